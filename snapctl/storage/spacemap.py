"""The space map: which units of the file are in use, and the allocator on top of it.

Bitmap pages hang off a table tree of depth 2 and are shadow-paged like everything else; a bitmap that does not exist
means that all its units are free. For each bitmap in memory three states are kept apart:

- *current*: as the open transaction has it;
- *committed*: as the last commit left it. A unit free there but not in *current* was born in this transaction: its page
  may be overwritten in place, and freeing it makes it reusable at once;
- *previous*: as the commit before left it, which the other superblock slot still stands for.

The allocator takes only what is free in all three and in every state that is pinned (invariant 2). A run freed by one
commit may be punched out of the file when the next is durable, or when the last pin that stands for it ends.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

from snapctl.errors import Corruption, IoFailure, NoSpace, SnapctlError
from snapctl.format.checksum import crc32c
from snapctl.format.geometry import INDEX_DEPTH
from snapctl.format.pointer import BIRTH_SHIFT, KIND_SHIFT, NOWHERE, PAGE, PAGE_MASK, Pointer, page_pointer
from snapctl.format.superblock import Superblock
from snapctl.storage.bitmap import (
    WAS_CLEAR,
    WAS_SET,
    clear_bits,
    clear_each,
    count_bits,
    find_run,
    has_run,
    set_bits,
    set_runs,
    set_where_clear,
    take_runs,
)
from snapctl.storage.pages import PageFile
from snapctl.storage.pins import Pin, Pins
from snapctl.storage.reserve import reserved_units
from snapctl.storage.tabletree import Table, TableTree
from snapctl.units import format_size

_PUNCH_BYTES = 1 << 20
"""Runs at least as long are given back to the file system."""
_EXTENT_BYTES, _MOST_EXTENT_BYTES = 1 << 20, 4 << 20
"""What is to lie together is given room in free runs at least as long, of which no more is set aside for it."""
_MOST_SEARCHED = 256
"""Bitmaps of which it is kept in memory what is free in them."""
_LONG = 0
"""Stands for runs of whatever length that is, where bitmaps are looked for that may have some."""
_AMPLE_BYTES = 4 << 30
"""Where so much is left, it is not because of its lack that a transaction wants what the one before has freed."""
_SPARE_BYTES = 64 << 20
"""The file system must have as much to spare if the file is to grow, rather than its holes be filled."""
_NEAR = 8
"""Bitmaps that are searched for one before the end of the file is."""
_MOST_HOLES, _MOST_HOLE_BYTES = 4, 1 << 30
"""No more than this part of the file, a quarter, or as much as is in use, though no more than this, may be free if one
is to make it longer."""


@dataclass(slots=True)
class Bitmap:
    """One bitmap in memory.

    Attributes:
        current, committed, previous: its states.
        page_no: where it stands; 0 while it is changed and has no page yet.
        changed: in the open transaction.
        free: what can be allocated: no state has it, none that is pinned, and it is not set aside. None until somebody
            wants some.
    """

    current: bytearray
    committed: bytes
    previous: bytes
    page_no: int = 0
    changed: bool = False
    free: bytearray | None = None

    @property
    def in_use(self) -> int:
        """How many bits are set."""
        return int.from_bytes(self.current, "little").bit_count()


class _Candidates:
    """Indexes of bitmaps in which runs of some length may be free, in order, as far as anybody has looked.

    Attributes:
        known: those that have been looked at.
        rest: the first index that nobody has looked at.
    """

    def __init__(self, first: int) -> None:
        """Begin at an index, with those behind it."""
        self.known: list[int] = []
        self.rest = first

    def add(self, index: int) -> None:
        """Take note that something has come free."""
        at = bisect_left(self.known, index)
        if index < self.rest and self.known[at : at + 1] != [index]:
            self.known.insert(at, index)

    def drop(self, index: int) -> None:
        """Take note that no such run is free there."""
        at = bisect_left(self.known, index)
        if self.known[at : at + 1] == [index]:
            del self.known[at]


class _MapTree(TableTree):
    """A tree whose pointers carry the free units beneath them instead of a birth."""

    def stamp(self, table: Table, level: int) -> int:
        if level:
            return 0  # the whole file's count may exceed 32 bits; the superblock has it
        words = table.words.tolist()
        absent = words[::2].count(0) * self._pages.geometry.units_per_bitmap
        return absent + sum([word1 >> BIRTH_SHIFT for word1 in words[1::2]])


class _Deferred:
    """The map's own pages: a free of one waits until the change under way is done, lest it recurse."""

    def __init__(self, space: SpaceMap) -> None:
        self._space = space

    def allocate(self, units: int, count: int) -> list[int]:
        return self._space.allocate(units, count)

    def free(self, page_no: int, units: int) -> None:
        self._space.pending.append((page_no, units))


class SpaceMap:
    """The allocator of one open container.

    Attributes:
        used: units in use in the open transaction, the superblock area among them.
        bitmaps: those in memory, by index; for looking only.
        pending: pages of the map itself that are free as soon as the change under way is done.
        idle_units: what may be kept of long runs that nothing stands for any more, to be allocated again, before the
            rest is punched out. To write into a hole costs the file system much more than to overwrite.
        lays_together: whether what is written together is to be given long runs (`allocate_together`), for which the
            file may grow. Whoever opens the container for one command had better fill the holes.
    """

    lays_together = False

    def __init__(self, pages: PageFile, committed: Superblock, previous: Superblock | None) -> None:
        """Take up the map of the last commit, or begin that of a new container.

        Args:
            pages: where the map is read from and written to.
            committed: the last commit's superblock; without a map of its own, all is free but the superblock area.
            previous: what the other slot stands for, if it is whole.
        """
        self._pages = pages
        self._geometry = pages.geometry
        self.bitmaps: dict[int, Bitmap] = {}
        self._first_unit = 0
        self._extent = range(0)  # free units that nobody else is given
        self._candidates: dict[int, _Candidates] = {}  # for runs of so many units
        self._searched: list[Bitmap] = []  # those of which it is known what is free, and maybe others
        self.set_limit(committed.pages_limit)
        self.used = committed.pages_used
        self.pending: list[tuple[int, int]] = []
        self._committed = committed
        self._previous = previous
        self._freed_units = 0
        self._waiting_units: int | None = None  # known once somebody asks, or after a commit
        self._pins = Pins()
        self.idle_units = 0
        self._idle: list[tuple[int, int]] = []
        if committed.space_map == NOWHERE:
            bitmap = self._bitmap(0)
            self._note_change(bitmap, 0)
            set_bits(bitmap.current, 0, self._geometry.first_page)
            self.used += self._geometry.first_page
            self._pages.end_page = max(self._pages.end_page, self._geometry.first_page)

    @classmethod
    def rebuild(cls, pages: PageFile, blank: Superblock, in_use: Iterable[tuple[int, int]]) -> SpaceMap:
        """Make a map anew from what is known to be in use; in the open transaction it gives room beyond the end only.

        So no page changes that any state on disk may stand for, whatever the old maps say. The capacity is not looked
        at, lest a full container could not be repaired.

        Args:
            pages: where the map will be written to.
            blank: the last commit's superblock, but with no map.
            in_use: (index of a bitmap, its bits as a number), those of the superblock area among them.
        """
        space = cls(pages, replace(blank, pages_used=0, pages_limit=0), None)
        space._first_unit = pages.end_page
        space.used = 0
        for index, bits in in_use:
            page = bits.to_bytes(pages.geometry.table_size, "little")
            space.bitmaps[index] = Bitmap(bytearray(page), page, page, changed=True)
            space._tree.leaf_for_writing(index)
            space.used += bits.bit_count()
        return space

    def set_limit(self, pages_limit: int) -> None:
        """Let so many units be in use, a part of them by what gives room back alone; 0 for no limit."""
        self._limit = pages_limit or self._geometry.max_units
        self._reserve = reserved_units(self._geometry, pages_limit) if pages_limit else 0
        self._end_extent()
        self._candidates.clear()
        for bitmap in self.bitmaps.values():
            bitmap.free = None

    def anew(self, committed: Superblock, previous: Superblock | None) -> SpaceMap:
        """The map as of the last commit, for when the open transaction is given up; what is pinned stays so."""
        space = SpaceMap(self._pages, committed, previous)
        space._pins, space._waiting_units = self._pins, self._waiting_units
        space._idle, space.idle_units, space.lays_together = self._idle, self.idle_units, self.lays_together
        return space

    @property
    def previous(self) -> Superblock | None:
        """The superblock of the commit before the last, if it was whole."""
        return self._previous

    def pin(self) -> Pin:
        """Keep every page that the last commit has in use, whatever later ones free, until `unpin`."""
        return self._pins.add({index: bitmap.committed for index, bitmap in self.bitmaps.items()})

    def unpin(self, pin: Pin) -> list[tuple[int, int]]:
        """End a pin, which makes what it alone kept available at once.

        Returns:
            Runs (page, units) that nothing stands for any more, worth punching out.
        """
        self._pins.remove(pin)
        retired: list[tuple[int, int]] = []
        for index, state in pin.states.items():
            try:
                bitmap = self._bitmap(index)
            except (Corruption, IoFailure):
                continue  # whoever needs it will hear of it
            if state != bitmap.committed:
                bitmap.free = None
                self._reconsider(index)
                self._pins.recount(index, bitmap.committed, bitmap.previous)
                retired += self._long_runs(index, int.from_bytes(state, "little") & ~self._busy(index, bitmap))
        return retired

    @property
    def fresh_units(self) -> int:
        """Units that the open transaction has taken."""
        return self.used - self._committed.pages_used + self._freed_units

    @property
    def reserve(self) -> int:
        """Units of the capacity that are kept for the tables of transactions which give room back."""
        return self._reserve

    @property
    def holds_back(self) -> bool:
        """Whether a commit of nothing would give room back, which only the other slot stands for."""
        return any(bits for _, bits in self._waiting())

    @property
    def room(self) -> int:
        """Units of the capacity that data can still take in the open transaction; some of them may lie apart."""
        if self._waiting_units is None:
            self._waiting_units = 0
            with suppress(Corruption):  # what cannot be read can neither be allocated from
                self._waiting_units = sum(bits.bit_count() for _, bits in self._waiting())
        held_back = self._freed_units + self._waiting_units  # free, but a slot on disk stands for them
        return self._within - self._reserve - self.used - held_back

    @property
    def _within(self) -> int:
        """Units that may be in use; what pins alone keep is there, but to nobody's use."""
        return self._limit - self._pins.held_units

    def are_fresh(self, page_nos: Sequence[int], units: int) -> bool:
        """Whether a run of pages was born in the open transaction, so that they may be overwritten in place.

        Args:
            page_nos: a single page in use, or a range of such, or pages that do not follow each other.
            units: of each page.

        Returns:
            As said; False unless they follow each other.

        Raises:
            Corruption: one is not in use, which says nothing of the commit before, or the map cannot be read.
        """
        per_bitmap = self._geometry.units_per_bitmap
        first = page_nos[0]
        if len(page_nos) == 1:
            bitmap = self.bitmaps.get(first // per_bitmap) or self._bitmap_of(first)
            at, mask = first % per_bitmap >> 3, 1 << (first & 7)
            if not bitmap.current[at] & mask:
                raise Corruption(WAS_CLEAR)
            return not bitmap.committed[at] & mask
        total = len(page_nos) * units
        bit = first % per_bitmap
        if not isinstance(page_nos, range) or bit + total > per_bitmap:
            return False
        bitmap = self._bitmap_of(first, total)
        if count_bits(bitmap.current, bit, total) != total:
            raise Corruption(WAS_CLEAR)
        return not count_bits(bitmap.committed, bit, total)

    def _bitmap_of(self, page_no: int, units: int = 1) -> Bitmap:
        self._check_within(page_no, units)
        return self._bitmap(page_no // self._geometry.units_per_bitmap)

    def allocate_data(self, units: int, count: int) -> list[int]:
        """As `allocate`, but never from the reserve.

        Raises:
            NoSpace: the capacity would be exceeded.
        """
        return self._allocate(units, count, self._reserve)

    def allocate_together(self, units: int, count: int) -> Sequence[int]:
        """As `allocate_data`, but one behind the other, as a range, if there is room for that; see `_find_extent`.

        Raises:
            NoSpace: the capacity would be exceeded.
        """
        wanted = units * count
        if self.used + wanted > self._within - self._reserve:
            raise self.full()
        if wanted > len(self._extent):
            self._end_extent()
            self._extent = self._find_extent(wanted)
            if not self._extent:
                return self.allocate_data(units, count)
        first = self._extent.start
        index, bit = divmod(first, self._geometry.units_per_bitmap)
        bitmap = self._bitmap(index)
        self._note_change(bitmap, index)
        set_bits(bitmap.current, bit, wanted)
        self._extent = self._extent[wanted:]
        self.used += wanted
        self._pages.end_page = max(self._pages.end_page, first + wanted)
        self._settle()
        return range(first, first + wanted, units)

    def _find_extent(self, wanted: int) -> range:
        """A run of free units for what had better lie together, with more for what comes next; empty if there is none.

        It is looked for near the front of the file, then at the end: the file may grow as long as little of it is free,
        but many holes had better be filled.
        """
        unit, per_bitmap, end_page = self._geometry.unit, self._geometry.units_per_bitmap, self._pages.end_page
        last, bit = divmod(end_page, per_bitmap)
        least, most = max(wanted, _EXTENT_BYTES // unit), max(wanted, _MOST_EXTENT_BYTES // unit)
        for index in islice(self._with_room(_LONG, last + 1), _NEAR):
            found = find_run(self._free(index), end_page - index * per_bitmap, least)
            if found is not None:
                return self._set_aside(index, found[0], min(most, found[1] - found[0]))
        self._candidates[_LONG] = _Candidates(last + 1)  # until some come free
        if end_page - self.used >= max(end_page // _MOST_HOLES, min(self.used, _MOST_HOLE_BYTES // unit)):
            return range(0)
        length = min(least, self._length(last) - bit)
        if length < wanted or self._pages.backend.room(self.used * unit) < (end_page + length) * unit + _SPARE_BYTES:
            return range(0)
        if count_bits(self._free(last), bit, length) < length:
            return range(0)
        return self._set_aside(last, bit, length)

    def _set_aside(self, index: int, bit: int, units: int) -> range:
        clear_bits(self._free(index), bit, units)
        first = index * self._geometry.units_per_bitmap + bit
        return range(first, first + units)

    def _end_extent(self) -> None:
        """Let what is left of the extent be allocated by anybody."""
        if self._extent:
            index, bit = divmod(self._extent.start, self._geometry.units_per_bitmap)
            units, self._extent = len(self._extent), range(0)
            if (free := self._bitmap(index).free) is not None:
                set_bits(free, bit, units)
            self._reconsider(index)

    def end_at(self, end_page: int) -> None:
        """Take back that the file has grown, for what found no space and is allocated no more.

        Raises:
            IoFailure: the system refuses.
        """
        self._end_extent()
        self._pages.end_at(end_page)

    def allocate(self, units: int, count: int) -> list[int]:
        """Take `count` runs of `units` consecutive units each, in address order as far as possible.

        Returns:
            The first page number of each run.

        Raises:
            NoSpace: the capacity is exhausted.
        """
        return self._allocate(units, count, 0 if self._pages.reserve.may_be_used else self._reserve)

    def _allocate(self, units: int, count: int, reserve: int) -> list[int]:
        """As `allocate`, but leave so many units of the capacity."""
        if not count:
            return []
        if self.used + units * count > self._within - reserve:
            raise self.full()
        found: list[int] = []
        try:
            for index in self._with_room(units, -(-self._limit // self._geometry.units_per_bitmap)):
                self._take(index, units, count, found)
                if len(found) == count:
                    return found
                self._candidates[units].drop(index)
            if self._extent:
                self._end_extent()
                return found + self._allocate(units, count - len(found), reserve)
            raise self.full()
        except SnapctlError:
            self.free_pages(found, units)
            raise
        finally:
            self._settle()

    def allocate_run(self, units: int) -> int:
        """Take one long run near the end of the file, so that no other bitmaps have to be searched for it.

        Raises:
            NoSpace: there is none, or the capacity is exhausted.
        """
        last = self._pages.end_page // self._geometry.units_per_bitmap
        self._candidates[units] = _Candidates(max(0, last - 1))
        return self.allocate(units, 1)[0]

    def free(self, page_no: int, units: int) -> None:
        """Give back a run of units.

        Raises:
            Corruption: it is not in use: two owners, or a map that is wrong.
        """
        self._release(page_no, units)
        self._settle()

    def free_pages(self, page_nos: Iterable[int], units: int) -> None:
        """Give back many runs of `units` each, neighbours at a stroke.

        Raises:
            Corruption: as `free`.
        """
        ordered = page_nos if isinstance(page_nos, range) else sorted(page_nos)
        if not ordered:
            return
        first, count = ordered[0], len(ordered)
        run = range(first, first + count * units, units)
        if ordered[-1] == run[-1] and list(ordered) == list(run):
            self._release(first, count * units)
        elif units == 1:
            self._check_within(first, 1)
            self._check_within(ordered[-1], 1)
            start, per_bitmap = 0, self._geometry.units_per_bitmap
            while start < count:
                index = ordered[start] // per_bitmap
                stop = bisect_left(ordered, (index + 1) * per_bitmap, start)
                self._clear_each(index, ordered[start:stop])
                start = stop
        else:
            for page_no in ordered:
                self._release(page_no, units)
        self._settle()

    def place(self) -> None:
        """Give every changed page of the map a place, to the fixed point: placing one may change another.

        Raises:
            NoSpace: no room is left.
        """
        again = True
        while again:
            for index, bitmap in list(self.bitmaps.items()):
                if bitmap.changed:
                    if bitmap.page_no == 0:
                        bitmap.page_no = self.allocate(self._geometry.table_units, 1)[0]
                    # Without its checksum yet, but it keeps the table above from being dropped as empty, and changes
                    # it again if an earlier attempt at this commit has written it.
                    self._tree.put(index, page_pointer(bitmap.page_no, 0, 0))
            self._settle()
            again = self._tree.place()
            self._settle()
            again |= any(bitmap.changed and bitmap.page_no == 0 for bitmap in self.bitmaps.values())

    def write(self) -> Pointer:
        """Write the placed map.

        Returns:
            The pointer to its first table.

        Raises:
            NoSpace: the file system is full.
            IoFailure: the system refuses.
        """
        batch: dict[int, bytes] = {}
        per_bitmap = self._geometry.units_per_bitmap
        for index, bitmap in self.bitmaps.items():
            if bitmap.changed:
                page = bytes(bitmap.current)
                batch[bitmap.page_no] = page
                self._tree.put(index, page_pointer(bitmap.page_no, crc32c(page), per_bitmap - bitmap.in_use))
        self._pages.write_pages(list(batch), list(batch.values()), self._geometry.table_size)
        return self._tree.write()

    def rotate(self, superblock: Superblock) -> list[tuple[int, int]]:
        """Turn current into committed and committed into previous, once `superblock` is durable.

        Returns:
            Runs (page, units) that no slot stands for any more, worth punching out.

        Raises:
            Corruption: a bitmap in which something was freed cannot be read.
        """
        self._idle += self._retired()
        changed = {index for index, bitmap in self.bitmaps.items() if bitmap.changed}
        for index in changed | self._differing:
            self._reconsider(index)
            bitmap = self.bitmaps.get(index)
            if bitmap is not None:
                bitmap.previous = bitmap.committed
                bitmap.committed = bytes(bitmap.current)
                bitmap.changed = False
                bitmap.free = None
                if self._pins:
                    self._pins.recount(index, bitmap.committed, bitmap.previous)
        self._tree.transaction = superblock.transaction + 1
        self._previous, self._committed = self._committed, superblock
        self.__dict__.pop("_previous_tree", None)
        self._differing = changed
        self._waiting_units, self._freed_units = self._freed_units, 0
        return self.surplus()

    def surplus(self) -> list[tuple[int, int]]:
        """Take the long runs out of what is kept for reuse that are more than `idle_units`; what was reused is none."""
        idle: dict[int, int] = {}
        for page_no, units in self._idle:
            index, bit = divmod(page_no, self._geometry.units_per_bitmap)
            idle[index] = idle.get(index, 0) | ((1 << units) - 1) << bit
        self._idle = []
        kept, found = 0, []
        for index in sorted(idle):
            free = idle[index] & ~self._busy(index, self._bitmap(index))
            for page_no, units in self._long_runs(index, free):
                part = min(units, self.idle_units - kept)
                if part:
                    self._idle.append((page_no, part))
                    kept += part
                if part < units:
                    found.append((page_no + part, units - part))
        return found

    def fresh_runs(self) -> Iterator[tuple[int, int]]:
        """Long runs (page, units) that the open transaction alone has taken, for whoever gives it up."""
        for index, bitmap in self.bitmaps.items():
            if bitmap.changed:
                states = (bitmap.current, bitmap.committed, bitmap.previous)
                now, last, before = (int.from_bytes(state, "little") for state in states)
                yield from self._long_runs(index, now & ~last & ~before)

    def wants_empty_commit(self) -> bool:
        """Whether a commit of nothing is worth its price, right after another one.

        It makes the room free for which only the other slot still stands: long runs go back to the file system, and
        where the capacity or the file system leaves little else, the next transaction can allocate what the last freed.
        """
        most = self._limit
        with suppress(IoFailure):  # what was asked for is durable; that nobody tells the room left does not matter
            unit = self._geometry.unit
            most = min(most, self._pages.backend.room(self.used * unit) // unit)
        left = most - self.used - (self._waiting_units or 0) - self._pins.held_units
        if left < min(most // 8, _AMPLE_BYTES // self._geometry.unit) and any(bits for _, bits in self._waiting()):
            return True
        waiting = sum(units for _, units in self._retired())
        return waiting > 0 and waiting + sum(units for _, units in self._idle) > self.idle_units

    @cached_property
    def _tree(self) -> TableTree:
        """The map's tables; readers never need them, so damage there does not keep anybody from the data."""
        return self._open_tree(self._committed)

    @cached_property
    def _previous_tree(self) -> TableTree | None:
        """The tables of the commit before; damaged ones are of no use and given up."""
        if self._previous is None or self._previous.space_map in (NOWHERE, self._committed.space_map):
            return None
        try:
            return self._open_tree(self._previous)
        except Corruption:
            return None

    @cached_property
    def _differing(self) -> set[int]:
        """Indexes of the bitmaps in which the last commit may differ from the one before."""
        previous = self._previous_tree
        if previous is None:
            return set()
        fanout, found = self._geometry.fanout, set()
        for index in range(-(-self._pages.end_page // self._geometry.units_per_bitmap)):
            entry = slice(2 * (index // fanout), 2 * (index // fanout) + 2)
            if self._tree.root.words[entry] == previous.root.words[entry]:
                continue
            if self._previous_pointer(index) not in (None, self._tree.get(index)):
                found.add(index)
        return found

    def _open_tree(self, superblock: Superblock) -> TableTree:
        pointer = None if superblock.space_map == NOWHERE else superblock.space_map
        return _MapTree(self._pages, _Deferred(self), INDEX_DEPTH, pointer, superblock.transaction + 1, "space map")

    def full(self) -> NoSpace:
        """What to raise where the capacity leaves no room."""
        capacity = format_size(self._limit * self._geometry.unit)
        advice = "delete snapshots or trim volumes"
        if held := self._pins.held_units:
            advice += (
                f"; {format_size(held * self._geometry.unit)} come free when those who read an older state are done"
            )
        return NoSpace(f"{self._pages.backend.path} is at its capacity of {capacity}; {advice}")

    def _reconsider(self, index: int) -> None:
        """Let searches for free units look at a bitmap again in which some came free."""
        for candidates in self._candidates.values():
            candidates.add(index)

    def _with_room(self, units: int, stop: int) -> Iterator[int]:
        """Indexes below `stop` of bitmaps that may have runs of `units` free; whoever finds none there says so."""
        first = self._first_unit // self._geometry.units_per_bitmap
        candidates = self._candidates.setdefault(units, _Candidates(first))
        index = -1
        while (at := bisect_right(candidates.known, index)) < len(candidates.known):
            index = candidates.known[at]
            if index >= stop:
                return
            yield index
        while candidates.rest < stop:
            index = candidates.rest
            has_room = index in self.bitmaps or self._has_room(index)
            candidates.rest = index + 1
            if has_room:
                candidates.known.append(index)
                yield index

    def _has_room(self, index: int) -> bool:
        """Whether a bitmap that is not in memory has any unit free."""
        table, _, _, _ = self._tree.find(index)
        if table is None:
            return True
        at = 2 * (index % self._tree.fanout)
        return table.words[at] >> KIND_SHIFT != PAGE or table.words[at + 1] >> BIRTH_SHIFT != 0

    def _take(self, index: int, units: int, count: int, found: list[int]) -> None:
        """Take runs of `units` from one bitmap until `found` holds `count`, or no more are free in it."""
        bitmap = self._bitmap(index)
        free = self._free(index) if bitmap.free is None else bitmap.free
        if not bitmap.changed:
            if find_run(free, 8 * len(free), units) is None:
                return
            self._note_change(bitmap, index)
        bits = take_runs(free, bitmap.current, units, count - len(found))
        if bits is None:
            raise Corruption(WAS_SET)
        if not bits:
            return
        base = index * self._geometry.units_per_bitmap
        self.used += len(bits) * units
        self._pages.end_page = max(self._pages.end_page, base + bits[-1] + units)
        found += [base + bit for bit in bits] if base else bits

    def _length(self, index: int) -> int:
        """Bits of a bitmap that lie below the capacity."""
        per_bitmap = self._geometry.units_per_bitmap
        return min(per_bitmap, self._limit - index * per_bitmap)

    def _free(self, index: int) -> bytearray:
        """The units of a bitmap that can be allocated."""
        bitmap = self._bitmap(index)
        if bitmap.free is None:
            per_bitmap = self._geometry.units_per_bitmap
            base = index * per_bitmap
            below = min(per_bitmap, max(0, self._first_unit - base))
            if len(self._searched) == _MOST_SEARCHED:
                for other in self._searched:
                    other.free = None
                self._searched.clear()
            self._searched.append(bitmap)
            free = ~self._busy(index, bitmap) & (1 << max(0, self._length(index))) - 1
            if self._extent and self._extent.start // per_bitmap == index:
                free &= ~((1 << len(self._extent)) - 1 << self._extent.start - base)
            bitmap.free = bytearray((free >> below << below).to_bytes(per_bitmap // 8, "little"))
        return bitmap.free

    def _busy(self, index: int, bitmap: Bitmap) -> int:
        """The units of a bitmap that some state stands for."""
        busy = self._pins.bits(index)
        for state in (bitmap.current, bitmap.committed, bitmap.previous):
            busy |= int.from_bytes(state, "little")
        return busy

    def _release(self, page_no: int, units: int) -> None:
        self._check_within(page_no, units)
        per_bitmap = self._geometry.units_per_bitmap
        while units:
            part = min(units, per_bitmap - page_no % per_bitmap)
            self._clear(*divmod(page_no, per_bitmap), part)
            page_no += part
            units -= part

    def _check_within(self, page_no: int, units: int) -> None:
        if not self._geometry.first_page <= page_no <= self._pages.end_page - units:
            raise Corruption(f"pointer to page {page_no}, outside the container", page_no=page_no)

    def _settle(self) -> None:
        while self.pending:
            self._release(*self.pending.pop())

    def _note_change(self, bitmap: Bitmap, index: int) -> None:
        """Take note that a bitmap is going to change; its page, and those of the tables above it, are freed."""
        if not bitmap.changed:
            if bitmap.page_no:
                self.pending.append((bitmap.page_no, self._geometry.table_units))
            bitmap.page_no = 0
            bitmap.changed = True
            self._tree.leaf_for_writing(index)

    def _clear(self, index: int, bit: int, units: int) -> None:
        """Free a run that lies within one bitmap."""
        bitmap = self._bitmap(index)
        self._note_change(bitmap, index)
        clear_bits(bitmap.current, bit, units)
        self.used -= units
        committed_units = count_bits(bitmap.committed, bit, units)
        self._freed_units += committed_units
        if committed_units < units:
            if bitmap.free is not None:
                set_where_clear(bitmap.free, (bitmap.committed, bitmap.previous), bit, units)
            self._reconsider(index)

    def _clear_each(self, index: int, page_nos: Sequence[int]) -> None:
        """Free single units of one bitmap, in ascending order."""
        bitmap = self._bitmap(index)
        if not bitmap.changed:
            self._note_change(bitmap, index)
        base = index * self._geometry.units_per_bitmap
        bits = [page_no - base for page_no in page_nos] if base else list(page_nos)
        cleared = clear_each(bitmap.current, bitmap.committed, bitmap.previous, bitmap.free, bits)
        if cleared is None:
            raise Corruption(WAS_CLEAR)
        held, again = cleared
        if again:
            self._reconsider(index)
        self.used -= len(page_nos)
        self._freed_units += held

    def _bitmap(self, index: int) -> Bitmap:
        bitmap = self.bitmaps.get(index)
        if bitmap is None:
            pointer = self._tree.get(index)
            committed = previous = self._read(pointer)
            earlier = self._previous_pointer(index)
            if earlier is not None and earlier != pointer:
                try:
                    previous = self._read(earlier)
                except Corruption:
                    self._previous_tree = None
            bitmap = Bitmap(bytearray(committed), committed, previous, pointer.word0 & PAGE_MASK)
            self.bitmaps[index] = bitmap
            self._pins.note(index, committed)
        return bitmap

    def _read(self, pointer: Pointer) -> bytes:
        size = self._geometry.table_size
        if pointer == NOWHERE:
            return bytes(size)
        return bytes(self._pages.read(pointer.word0, pointer.word1, size, "bitmap of the space map"))

    def _previous_pointer(self, index: int) -> Pointer | None:
        """Where the previous commit had a bitmap; a damaged previous map is of no use and given up."""
        if self._previous_tree is None:
            return None
        try:
            return self._previous_tree.get(index)
        except Corruption:
            self._previous_tree = None
            return None

    def _retired(self) -> Iterator[tuple[int, int]]:
        """Long runs that only the previous commit has in use, and nobody else."""
        for index, bits in self._waiting():
            yield from self._long_runs(index, bits)

    def _waiting(self) -> Iterator[tuple[int, int]]:
        """What only the previous commit keeps from being used, as (index of a bitmap, its bits as a number)."""
        for index in sorted(self._differing):
            bitmap = self._bitmap(index)
            states = (bitmap.previous, bitmap.committed, bitmap.current)
            before, last, now = (int.from_bytes(state, "little") for state in states)
            yield index, before & ~last & ~now & ~self._pins.bits(index)

    def _long_runs(self, index: int, bits: int) -> Iterator[tuple[int, int]]:
        """The runs of set bits of one bitmap that are worth punching out, as (page, units)."""
        per_bitmap = self._geometry.units_per_bitmap
        least = max(1, _PUNCH_BYTES // self._geometry.unit)
        if has_run(bits, least):
            for start, units in set_runs(bits, per_bitmap):
                if units >= least:
                    yield index * per_bitmap + start, units
