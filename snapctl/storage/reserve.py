"""Room that is kept for transactions which give room back, so that what is full can still be emptied.

A delete writes tables before it frees anything. So a container with a capacity keeps a part of it from all other
transactions, which is up to the allocator; and of the file system every container keeps blocks beyond the end of its
file, which is up to `Reserve`. Nothing ever refers to those blocks, and the file is no longer for them.
"""

from __future__ import annotations

from snapctl.errors import IoFailure, NoSpace
from snapctl.format.geometry import Geometry
from snapctl.storage.backend import Backend
from snapctl.units import format_size

_FEWEST_TABLES, _MOST_TABLES = 16, 256
_SHARE = 16
_AHEAD_BYTES = 32 << 20
"""What is kept beyond a promise, where there is room, so that not every small one costs a system call."""
_SHARE_OF_MAP = 64
"""Where no room can be kept, one part in so many has to be free beside it, for the map that the file system makes."""


def reserved_units(geometry: Geometry, units: int) -> int:
    """How much is kept of a container that spans `units`, all in units of allocation.

    That is a bitmap for each bitmap of its space map, all of which a delete of scattered data may have to write anew,
    and a sixteenth, from 16 tables (one change of a node needs some ten, whatever it is) to 256.
    """
    tables = min(max(units // _SHARE // geometry.table_units, _FEWEST_TABLES), _MOST_TABLES)
    return (tables + -(-units // geometry.units_per_bitmap)) * geometry.table_units


class Reserve:
    """The blocks beyond the end of one open file, and the leave to use the reserve.

    Attributes:
        may_be_used: whether the open transaction gives room back, so that it may use the reserve, of the capacity
            as of the file system.
    """

    def __init__(self, backend: Backend, geometry: Geometry) -> None:
        """Take up a file; whether a reserve is in place there is not known yet."""
        self.may_be_used = False
        self._backend = backend
        self._geometry = geometry
        self._has_promised = False
        self._kept_to: int | None = None  # the offset that it reaches to; 0 if there is none, None if nobody knows

    def length(self, end_page: int) -> int:
        """Bytes to keep beyond the end of a container that ends before `end_page`."""
        return reserved_units(self._geometry, end_page) * self._geometry.unit

    def keep(self, end_page: int) -> None:
        """Have the file system keep the whole reserve; costs nothing where it is known to be in place.

        Raises:
            NoSpace: there is no room for it.
            IoFailure: the system refuses.
        """
        start, length = end_page * self._geometry.unit, self.length(end_page)
        if self._kept_to is None or self._kept_to < start + length:
            self._kept_to = start + length if self._backend.reserve(start, length) else None

    def promise(self, end_page: int, length_bytes: int) -> bool:
        """Have the file system keep room for data that is to be written, beside the reserve of what that will make.

        Wherever in the file that will find its place, it finds room: in a hole this room is given for it (`lend`).

        Returns:
            False if the file system cannot keep any: so much was free just now, and may be taken by other files.

        Raises:
            NoSpace: there is no room for it.
            IoFailure: the system refuses.
        """
        start = end_page * self._geometry.unit
        length = self.length(end_page + -(-length_bytes // self._geometry.unit)) + length_bytes
        self._has_promised = True
        if self._kept_to is not None and self._kept_to >= start + length:
            return True
        try:
            kept_bytes = length + _AHEAD_BYTES
            is_kept = self._backend.reserve(start, kept_bytes)
        except NoSpace:
            kept_bytes = length
            is_kept = self._backend.reserve(start, kept_bytes)
        self._kept_to = start + kept_bytes if is_kept else None
        if not is_kept and self._backend.free() < length + length // _SHARE_OF_MAP:
            wanted = f"{format_size(length_bytes)} more for {self._backend.path}"
            raise NoSpace(f"there is no room for {wanted} on its file system; free some space and try again")
        return is_kept

    def take_back(self, end_page: int) -> None:
        """Give the file system back what was promised and is not needed any more.

        Raises:
            IoFailure: the system refuses.
        """
        if self._has_promised:
            self._has_promised = False
            self._backend.release()
            self._kept_to = 0
            self.restore(end_page)

    def restore(self, end_page: int) -> None:
        """Have the file system keep as much of the reserve as it can, which may be nothing."""
        start, length = end_page * self._geometry.unit, self.length(end_page)
        if self._kept_to is not None and self._kept_to >= start + length:
            return
        part = length
        while part >= self._geometry.table_size:
            try:
                is_kept = self._backend.reserve(start, part)
            except NoSpace:
                part //= 2
            except IoFailure:
                return  # what this follows is done; whoever needs the room will hear of it
            else:
                # Of a part, the next commit must not take for granted that it is the whole.
                self._kept_to = start + length if is_kept and part == length else None
                return

    @property
    def is_lent(self) -> bool:
        """Whether nothing is kept at present."""
        return self._kept_to == 0

    def lend(self) -> bool:
        """Give what is kept back to a file system that has no room, if the open transaction has a right to it.

        Returns:
            Whether what found no room is worth being tried again.

        Raises:
            IoFailure: the system refuses.
        """
        if not (self.may_be_used or self._has_promised) or self._kept_to == 0:
            return False
        self._backend.release()
        self._kept_to = 0
        return True

    def cut(self, end_page: int) -> None:
        """End the file at `end_page` and the transaction that made it longer; what that took of the reserve is back.

        Raises:
            IoFailure: the system refuses.
        """
        self.may_be_used = False
        self.end_at(end_page)

    def end_at(self, end_page: int) -> None:
        """As `cut`, in the middle of a transaction, which goes on."""
        end = end_page * self._geometry.unit
        if self._backend.size() > end:
            self._backend.truncate(end)
            self._kept_to = 0
        if self._kept_to == 0:
            self.restore(end_page)
