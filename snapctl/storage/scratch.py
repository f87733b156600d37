"""A file with changes on top of it that are kept in memory, and never written.

A container whose log has to be replayed is opened for reading over it: what the replay writes, a commit like any other,
is seen by whoever reads here and by nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence

from snapctl.format.geometry import SUPERBLOCK_AREA
from snapctl.format.superblock import Superblock
from snapctl.storage.backend import Backend, Buffer, neighbours


class ScratchBackend:
    """See the module.

    Attributes:
        below: the file.
        base: the superblock that was found in it.
    """

    def __init__(self, below: Backend, base: Superblock) -> None:
        """Begin without a change."""
        self.path = below.path
        self.below = below
        self.base = base
        self._unit = base.geometry.unit
        self._size = below.size()
        self._area = bytearray(SUPERBLOCK_AREA)
        below.read_into(0, self._area)
        self._changed: dict[int, bytes] = {}

    def size(self) -> int:
        """See `Backend`."""
        return self._size

    def read_each(self, places: list[tuple[int, int]]) -> None:
        """See `Backend`."""

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """See `Backend`."""
        view = memoryview(buffer)[: max(0, self._size - offset)]
        got = self.below.read_into(offset, view)
        view[got:] = bytes(len(view) - got)
        kept = view[: max(0, SUPERBLOCK_AREA - offset)]
        kept[:] = self._area[offset : offset + len(kept)]
        unit, end = self._unit, offset + len(view)
        for number in range(offset // unit, -(-end // unit)):
            page = self._changed.get(number)
            if page is not None:
                first, stop = max(offset, number * unit), min(end, (number + 1) * unit)
                view[first - offset : stop - offset] = page[first - number * unit : stop - number * unit]
        return len(view)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See `Backend`; whole pages, or superblocks."""
        data = b"".join(buffers)
        self._size = max(self._size, offset + len(data))
        if offset < SUPERBLOCK_AREA:
            self._area[offset : offset + len(data)] = data
            return
        for at in range(0, len(data), self._unit):
            self._changed[(offset + at) // self._unit] = data[at : at + self._unit]

    def write_each(self, offsets: list[int], buffers: list[Buffer], size: int) -> None:
        """See `Backend`."""
        for offset, pages in neighbours(offsets, buffers, size):
            self.write(offset, pages)

    def extend(self, size: int) -> None:
        """See `Backend`."""
        self._size = max(self._size, size)

    def truncate(self, size: int) -> None:
        """See `Backend`."""
        self._size = min(self._size, size)

    def room(self, used_bytes: int) -> int:
        """See `Backend`."""
        return self.below.room(used_bytes)

    def free(self) -> int:
        """See `Backend`."""
        return self.below.free()

    def close(self) -> None:
        """See `Backend`."""
        self.below.close()

    def sync(self) -> None:
        """See `Backend`; nothing is to become durable."""

    def punch(self, offset: int, length: int) -> None:
        """See `Backend`; room that is not given back is there for reuse."""

    def reserve(self, offset: int, length: int) -> bool:  # noqa: ARG002
        """See `Backend`; memory need not keep any."""
        return True

    def release(self) -> None:
        """See `Backend`."""
