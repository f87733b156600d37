"""The tree of table pages: one class for volumes (depth 3), the snapshot list and the space map (depth 2).

A tree maps an index (a block number) to a pointer. Tables come into being when an entry in them is needed, and are
shadow-paged: a committed table is never written again (invariant 2). The first change of a table in a transaction
frees its page and keeps the words in memory; at commit every changed table gets a fresh page (`place`) and is written
from the bottom up (`write`), so that each pointer carries the checksum of what it points at. Placing and writing are
apart because the space map, itself such a tree, changes while pages are being placed, and because a preview places
without writing.

An entry above the last level that is not ABSENT and not PAGE covers all beneath; `leaf_for_writing` splits it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import cache
from typing import Protocol

from snapctl.errors import Corruption, DamagedTable
from snapctl.format.geometry import POINTER_BYTES
from snapctl.format.pointer import (
    ABSENT,
    KIND_SHIFT,
    LOST,
    NOWHERE,
    PAGE,
    PAGE_MASK,
    Pointer,
    decode_table,
    encode_table,
    filled_table,
    page_pointer,
    table_checksum,
)
from snapctl.storage.backend import Buffer
from snapctl.storage.pages import PageFile


class Space(Protocol):
    """Where a tree gets pages from and gives them back to."""

    def allocate(self, units: int, count: int) -> list[int]:
        """First page numbers of `count` fresh runs of `units` each."""

    def free(self, page_no: int, units: int) -> None:
        """Give back a run of `units`."""


class Table:
    """One table page in memory.

    Attributes:
        words: its pointers, two words each.
        page_no: where it stands or will stand; 0 while changed and not yet placed.
        changed: differs from what stands on disk.
        children: tables beneath that are in memory, by entry.
        changed_children: entries whose table, or one beneath it, is changed.
    """

    __slots__ = ("changed", "changed_children", "children", "page_no", "words")

    def __init__(self, words: array[int], page_no: int, *, changed: bool) -> None:
        self.words = words
        self.page_no = page_no
        self.changed = changed
        self.children: dict[int, Table] = {}
        self.changed_children: set[int] = set()


class TableTree:
    """A tree of tables of a given depth beneath one root.

    Attributes:
        root: the first table.
        pointer: to the first table as last written.
        fanout: entries of a table.
        capacity: indexes that it covers.
        leaves: the words of last-level tables that are changed and in memory, by index divided by the fanout: those
            that were asked for since any was written out or taken away.
        read_leaves: likewise of those that reads have come by, until any of them is changed, made or taken away.
    """

    def __init__(
        self, pages: PageFile, space: Space, depth: int, pointer: Pointer | None, transaction: int, what: str
    ) -> None:
        """Load the first table, or make an empty one if `pointer` is None.

        Args:
            pages: where tables are read from and written to.
            space: where their pages come from.
            depth: levels of tables, 2 or 3.
            pointer: of the first table as committed.
            transaction: number of the open transaction, the birth of pages written in it.
            what: whose tables these are, for messages.

        Raises:
            DamagedTable: the first table cannot be read as such.
        """
        self._pages = pages
        self._space = space
        self.fanout = pages.geometry.fanout
        self._units = pages.geometry.table_units
        self.depth = depth
        self._mask = self.fanout - 1
        self._shifts = [pages.geometry.fanout_shift * level for level in range(depth - 1, 0, -1)]
        self.capacity = self.fanout**depth
        self.what = what
        self.transaction = transaction
        self.leaves: dict[int, array[int]] = {}
        self.read_leaves: dict[int, array[int]] = {}
        self.pointer = pointer or NOWHERE
        if pointer is None:
            self.root = Table(filled_table(self.fanout), 0, changed=True)
            pages.resident_tables += 1
        else:
            try:
                self.root = self._load(pointer.word0, pointer.word1)
            except Corruption as error:
                raise DamagedTable(str(error), start=0, stop=self.capacity, page_no=error.page_no) from error

    @property
    def changed(self) -> bool:
        """Whether a commit has to write any table."""
        return self.root.changed

    @property
    def is_empty(self) -> bool:
        """Whether the first table has no entry at all."""
        return not any(self.root.words)

    def child(self, table: Table, entry: int) -> Table | None:
        """The table that an entry above the last level points to; None if the entry is of another kind.

        Raises:
            Corruption: the table cannot be read as such.
        """
        found = table.children.get(entry)
        if found is None:
            word0 = table.words[2 * entry]
            if word0 >> KIND_SHIFT != PAGE:
                if word0 >> KIND_SHIFT > LOST or word0 & PAGE_MASK:
                    raise Corruption(f"{self.what}: pointer of unknown kind in a table")
                return None
            found = table.children[entry] = self._load(word0, table.words[2 * entry + 1])
        return found

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int, Table | None, int]]:
        """Walk the indexes from `start` to `stop` in order, whole subtrees at a time.

        Yields:
            (first, end, leaf, word0): a last-level table that holds the entries from first to end, or None, and the
            first word of the entry above: with no leaf the one that covers them all.

        Raises:
            DamagedTable: a table on the way cannot be read as such; the walk can be taken up again behind it.
        """
        position = start
        while position < stop:
            leaf, word0, base, span, above = self._descend(position)
            if leaf is None and not word0:
                # Most of the tables of a long chain is ABSENT, which is told of all entries up to the next at a stroke.
                rest = above.words[2 * (base // span % self.fanout) :].tobytes()
                span *= max(1, (len(rest) - len(rest.lstrip(b"\0"))) // POINTER_BYTES)
            end = min(stop, base + span)
            yield position, end, leaf, word0
            position = end

    def find(self, index: int) -> tuple[Table | None, int, int, int]:
        """What holds `index`.

        Returns:
            (leaf, word0, base, span): the last-level table, or None, the first word of the entry above, with no leaf
            the one that covers the index, and the first index and the number of those that it holds or covers.

        Raises:
            DamagedTable: a table on the way cannot be read as such.
        """
        return self._descend(index)[:4]

    def _descend(self, index: int) -> tuple[Table | None, int, int, int, Table]:
        """As `find`, and the last table that was passed."""
        fanout = self.fanout
        above = self.root
        leaf: Table | None = above
        span, base, word0 = self.capacity, 0, 0
        while leaf is not None and span > fanout:
            above = leaf
            span //= fanout
            entry = (index - base) // span
            base += entry * span
            word0 = leaf.words[2 * entry]
            try:
                leaf = self.child(leaf, entry)
            except Corruption as error:
                raise DamagedTable(str(error), start=base, stop=base + span, page_no=error.page_no) from error
        return leaf, word0, base, span, above

    def resident_words(self, index: int) -> array[int] | None:
        """The words of the last-level table that holds `index`, if every table on the way is in memory.

        Where an entry on the way is ABSENT they are those of an empty table.
        """
        words = self.read_leaves.get(index // self.fanout)
        if words is not None:
            return words
        table = self.root
        for shift in self._shifts:
            entry = index >> shift & self._mask
            child = table.children.get(entry)
            if child is None:
                return None if table.words[2 * entry] else _empty_table(self.fanout)[1]
            table = child
        self.read_leaves[index // self.fanout] = table.words
        return table.words

    def get(self, index: int) -> Pointer:
        """The pointer at `index`, or the covering one above it; raises as `spans`."""
        leaf, word0, _, _ = self.find(index)
        if leaf is None:
            return Pointer(word0, 0)
        entry = 2 * (index % self.fanout)
        return Pointer(leaf.words[entry], leaf.words[entry + 1])

    def put(self, index: int, pointer: Pointer) -> None:
        """Set the pointer at `index`, making the tables above it; raises as `spans`."""
        leaf = self.leaf_for_writing(index)
        entry = 2 * (index % self.fanout)
        leaf.words[entry], leaf.words[entry + 1] = pointer

    def leaf_for_writing(self, index: int) -> Table:
        """The last-level table that holds `index`, made if need be, ready to be changed; raises as `spans`."""
        leaf = self.table_for_writing(self.depth - 1, index)
        self.leaves[index // self.fanout] = leaf.words
        return leaf

    def table_for_writing(self, level: int, index: int) -> Table:
        """As `leaf_for_writing`, but the table of any level, 0 for the first one."""
        table, span = self.root, self.capacity
        self.touch(table)
        for _ in range(level):
            span //= self.fanout
            table = self.child_for_writing(table, index // span % self.fanout)
        return table

    def child_for_writing(self, table: Table, entry: int) -> Table:
        """The table below an entry of a changed table, ready to be changed.

        One that does not exist is made, filled with the kind that the entry had (the split of a covering entry).

        Raises:
            Corruption: the table cannot be read as such.
        """
        child = self.child(table, entry)
        if child is None:
            child = Table(filled_table(self.fanout, table.words[2 * entry]), 0, changed=True)
            self._pages.resident_tables += 1
            self.adopt(table, entry, child)
        else:
            self.touch(child)
            table.changed_children.add(entry)
        return child

    def touch(self, table: Table) -> None:
        """Make a table changeable: its committed page is freed, its words live in memory until the commit.

        Every table above it must be touched as well; `child_for_writing` does that on the way down.

        Raises:
            Corruption: the space map has its page as free.
        """
        if not table.changed:
            self._space.free(table.page_no, self._units)
            table.page_no = 0
            table.changed = True
            self.read_leaves.clear()
            table.words = table.words[:]

    def adopt(self, table: Table, entry: int, child: Table) -> None:
        """Hang a changed table in memory under an entry of a changed table."""
        self.read_leaves.clear()
        table.words[2 * entry], table.words[2 * entry + 1] = PAGE << KIND_SHIFT, 0
        table.children[entry] = child
        table.changed_children.add(entry)

    def release(self, table: Table, entry: int) -> Table | None:
        """Take the table out from under an entry of a changed table, leaving the entry's words to the caller."""
        self._forget_leaves()
        table.changed_children.discard(entry)
        return table.children.pop(entry, None)

    def _forget_leaves(self) -> None:
        self.leaves.clear()
        self.read_leaves.clear()

    def discard(self, table: Table) -> None:
        """Free the page of a table that nothing points to any more; raises as `touch`."""
        if table.page_no:
            self._space.free(table.page_no, self._units)

    def cover(self, level: int, start: int, stop: int, word0: int) -> None:
        """Put a non-page entry in the place of entries, without looking at what stood beneath them.

        Args:
            level: of the tables in which the entries stand, 0 for the first one.
            start: first index beneath the first entry.
            stop: index after the last one beneath the last entry.
            word0: the entry to put there.

        Raises:
            Corruption: a table above cannot be read as such.
        """
        step = self.capacity // self.fanout ** (level + 1)
        for index in range(start, stop, step):
            table = self.table_for_writing(level, index)
            entry = index // step % self.fanout
            self.release(table, entry)
            table.words[2 * entry], table.words[2 * entry + 1] = word0, 0

    def fill(self, start: int, stop: int, word0: int) -> None:
        """Give a non-page entry to every index of a range that is ABSENT; raises as `spans`."""
        if word0 and start < stop:
            self.touch(self.root)
            self._fill(self.root, self.capacity, start, stop, word0)

    def fill_entry(self, table: Table, entry: int, step: int, start: int, stop: int, word0: int) -> None:
        """As `fill`, beneath one entry of a changed table that covers `step` indexes; the range is relative to it."""
        word = table.words[2 * entry]
        if word == 0 and stop - start == step:
            table.words[2 * entry] = word0
        elif word0 and word >> KIND_SHIFT in (ABSENT, PAGE):
            if word and step == self.fanout:
                leaf = self.child(table, entry)
                if leaf is not None and 0 not in leaf.words[2 * start : 2 * stop : 2]:
                    return
            self._fill(self.child_for_writing(table, entry), step, start, stop, word0)

    def _fill(self, table: Table, span: int, start: int, stop: int, word0: int) -> None:
        step = span // self.fanout
        if step == 1:
            for i in range(2 * start, 2 * stop, 2):
                table.words[i] = table.words[i] or word0
            return
        for entry in range(start // step, -(-stop // step)):
            low, high = max(0, start - entry * step), min(step, stop - entry * step)
            self.fill_entry(table, entry, step, low, high, word0)

    def place(self) -> bool:
        """Give every changed table a page; tables that became empty are dropped, except the first.

        Returns:
            Whether any page was allocated or freed.

        Raises:
            NoSpace: no room is left.
        """
        if not self.root.changed:
            return False
        unplaced: list[Table] = []
        dropped = self._prune(self.root, unplaced)
        if self.root.page_no == 0:
            unplaced.append(self.root)
        self._assign(unplaced)
        return dropped or bool(unplaced)

    def write(self) -> Pointer:
        """Write every changed, placed table from the bottom up; after a failure it can be tried again.

        Returns:
            The pointer to the first table.

        Raises:
            NoSpace: the file system is full.
            IoFailure: the system refuses.
        """
        if self.root.changed:
            written: list[tuple[Table, bytes]] = []
            pointer = self._encode(self.root, self.depth - 1, written)
            self._write_out(written)
            self.pointer = pointer
        return self.pointer

    def spill(self) -> None:
        """Write out all changed tables but the first before the commit, and forget all that are below it.

        Raises:
            NoSpace: no room is left.
            IoFailure: the system refuses.
        """
        if self.root.changed:
            unplaced: list[Table] = []
            self._prune(self.root, unplaced)
            self._assign(unplaced)
            written: list[tuple[Table, bytes]] = []
            self._encode_children(self.root, self.depth - 1, written)
            self._write_out(written)
            self.root.changed_children.clear()
        self._forget_leaves()
        self.root.children.clear()

    def stamp(self, table: Table, level: int) -> int:
        """What a pointer to `table` carries beside page and checksum: the birth, low 32 bits of the transaction.

        Args:
            table: the table pointed at.
            level: 0 for a last-level table.
        """
        del table, level
        return self.transaction

    def _load(self, word0: int, word1: int) -> Table:
        page = self._pages.read(word0, word1, self._pages.geometry.table_size, f"{self.what}: table")
        self._pages.resident_tables += 1
        empty, empty_words = _empty_table(self.fanout)
        return Table(empty_words if page == empty else decode_table(page), word0 & PAGE_MASK, changed=False)

    def _prune(self, table: Table, unplaced: list[Table]) -> bool:
        dropped = False
        for entry in list(table.changed_children):
            child = table.children[entry]
            dropped |= self._prune(child, unplaced)
            if not any(child.words):
                self.discard(child)
                self.release(table, entry)
                table.words[2 * entry] = table.words[2 * entry + 1] = 0
                dropped = True
            elif child.page_no == 0:
                unplaced.append(child)
        return dropped

    def _assign(self, unplaced: list[Table]) -> None:
        for table, page_no in zip(unplaced, self._space.allocate(self._units, len(unplaced)), strict=True):
            table.page_no = page_no

    def _encode(self, table: Table, level: int, written: list[tuple[Table, bytes]]) -> Pointer:
        self._encode_children(table, level, written)
        page = encode_table(table.words)
        written.append((table, page))
        return page_pointer(table.page_no, table_checksum(page), self.stamp(table, level))

    def _encode_children(self, table: Table, level: int, written: list[tuple[Table, bytes]]) -> None:
        for entry in table.changed_children:
            pointer = self._encode(table.children[entry], level - 1, written)
            table.words[2 * entry], table.words[2 * entry + 1] = pointer

    def _write_out(self, written: list[tuple[Table, bytes]]) -> None:
        self._forget_leaves()
        written.sort(key=lambda pair: pair[0].page_no)
        pages: list[Buffer] = [page for _, page in written]
        self._pages.write_pages([table.page_no for table, _ in written], pages, self._pages.geometry.table_size)
        for table, _ in written:
            table.changed = False
            table.changed_children.clear()


@cache
def _empty_table(fanout: int) -> tuple[bytes, array[int]]:
    """An empty table page, and the words that all unchanged empty tables share; touching one gives it its own."""
    words = filled_table(fanout)
    return encode_table(words), words
