"""Walking the tables of a container that may be damaged in any way, noting what is wrong and who owns what.

The engine stops at the first damage; this goes on past it. Each page is claimed for its owner, and one that has an
owner already is not descended into. So tables that form a loop end the walk there, and the work is bounded by the
pointers that stand on disk, whatever they say.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from snapctl.errors import Corruption, IoFailure
from snapctl.format.checksum import crc32c
from snapctl.format.pointer import (
    BIRTH_SHIFT,
    CHECKSUM_MASK,
    KINDS,
    LOST,
    PAGE,
    PAGE_MASK,
    Pointer,
    decode_table,
    kind_runs,
)
from snapctl.services.check.faults import Fault, Faults
from snapctl.services.check.findings import Findings
from snapctl.services.check.ownership import Ownership
from snapctl.storage.pages import PageFile

_LONGEST_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class Tree:
    """What is to be expected of one tree of tables, and what is found wrong in it.

    Attributes:
        where: whose it is, for findings.
        tables: what its tables are called, from the first one down.
        items: what its indexes count, for findings.
        kinds: the kinds of pointer that may stand in it.
        has_births: its pointers carry the transaction that wrote the page; those of the space map carry counts.
        faults: takes where it is damaged.
    """

    where: str
    tables: tuple[str, ...]
    items: str
    kinds: tuple[int, ...]
    has_births: bool = True
    faults: Faults = field(default_factory=Faults)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A last-level table, or a part of a tree whose table cannot be used.

    Attributes:
        start: index of its first entry.
        stop: index after its last entry.
        pointer: that led to it.
        words: its pointers; None if it cannot be used.
        page_runs: (first, end) of the entries of kind PAGE.
    """

    start: int
    stop: int
    pointer: Pointer
    words: array[int] | None
    page_runs: tuple[tuple[int, int], ...] = ()

    def pages(self) -> Iterator[tuple[int, Pointer]]:
        """The indexes of its entries of kind PAGE, with the pointers that stand there."""
        if self.words is not None:
            for first, end in self.page_runs:
                for i in range(first, end):
                    yield self.start + i, Pointer(self.words[2 * i], self.words[2 * i + 1])


Progress = Callable[[int], None]
"""Told, now and then, the bytes verified so far."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pointer stands in a tree: the level of its table (-1 for none) and the indexes that it covers."""

    level: int
    start: int
    stop: int


class Walk:
    """One walk over everything that a container owns.

    Attributes:
        pages: where it reads.
        owned: the pages that sound pointers lead to.
        named: the pages that are named by pointers which are not their owners: damaged, or owned by others.
        is_complete: nothing was passed over that may own further pages.
        pages_checked: pages whose checksum was right.
        bytes_checked: how many bytes they have.
        data_blocks: how many of those pages are data blocks.
        needs_every_sector: what the disk refuses to read ends the walk, rather than being a finding.
    """

    def __init__(self, pages: PageFile, transaction: int, findings: Findings, progress: Progress | None = None) -> None:
        """Begin; `transaction` is that of the superblock, after which no page can have been born."""
        self.owned = Ownership()
        self.named = Ownership()
        self.is_complete = True
        self.pages_checked = 0
        self.bytes_checked = 0
        self.data_blocks = 0
        self.needs_every_sector = False
        self.pages = pages
        self._geometry = pages.geometry
        self._findings = findings
        self._progress = progress
        # Births are cut to 32 bits; once transactions outgrow them any birth may be right.
        self._last_birth = min(transaction, CHECKSUM_MASK)
        self._buffer = memoryview(bytearray(max(_LONGEST_READ, self._geometry.block_size)))

    def page(self, tree: Tree, pointer: Pointer, length: int, what: str, place: Place) -> bytearray | None:
        """Claim, read and verify one page.

        Args:
            tree: that the pointer stands in.
            pointer: to the page, of kind PAGE.
            length: of the page in bytes.
            what: what the page is, for findings.
            place: where the pointer stands, for the tree's faults.

        Returns:
            Its bytes; None, and a finding, if they cannot be relied on.
        """
        page_no, units = pointer.page_no, length // self._geometry.unit
        try:
            offset = self.pages.locate(pointer.word0, length)
        except Corruption as error:
            self.is_complete = False
            self._fault(tree, Fault.LOST, place, f"{what}: {error}")
            return None
        what += f" at page {page_no}"
        # Claimed before it is read, so that what many pointers name is not read for each of them.
        if not self.owned.take(page_no, units):
            self.is_complete = False
            self.named.claim(page_no, units)
            self._fault(tree, Fault.SHARED, place, f"{what} has another owner, too")
            return None
        page = bytearray(length)
        problem = None
        try:
            self.pages.read_run(offset, memoryview(page))
        except (Corruption, IoFailure) as error:
            if isinstance(error, IoFailure) and self.needs_every_sector:
                raise
            problem = f"{what} cannot be read: {error}"
        else:
            if crc32c(page) != pointer.checksum:
                problem = f"{what} fails its checksum"
        if problem:
            # It may be the sound page of another pointer.
            self.owned.release(page_no, units)
            self.named.claim(page_no, units)
            self._fault(tree, Fault.LOST, place, problem)
            return None
        if tree.has_births and pointer.birth > self._last_birth:
            self._findings.corruption(tree.where, f"{what} was born in the future, {pointer.birth}")
            tree.faults.note(Fault.UNBORN, place.level, place.start, place.stop)
        self._count(1, length)
        return page

    def leaves(self, tree: Tree, root: Pointer) -> Iterator[Leaf]:
        """Walk a tree of tables, judging every entry but not what those of last-level tables point to.

        Yields:
            Its last-level tables in order, and in place of tables that cannot be used what they would have covered.
        """
        fanout, depth = self._geometry.fanout, len(tree.tables)
        pending = [(root, 0, 0)]
        while pending:
            pointer, level, start = pending.pop()
            span = fanout ** (depth - level)
            what = tree.tables[level]
            if level:
                what += f" of {tree.items} {start} to {start + span - 1}"
            place = Place(level - 1, start, start + span)
            page = self.page(tree, pointer, self._geometry.table_size, what, place)
            if page is None:
                self.is_complete = False
                yield Leaf(start, start + span, pointer, None)
                continue
            words = decode_table(page)
            is_empty = page.count(0) == len(page)
            step = span // fanout
            whose = f"{what} at page {pointer.page_no}"
            runs = () if is_empty else tuple(self._judge(tree, words, whose, Place(level, start, start + step)))
            if level == depth - 1:
                yield Leaf(start, start + span, pointer, words, runs)
                continue
            entries = [entry for first, end in runs for entry in range(first, end)]
            pending.extend(
                (Pointer(words[2 * entry], words[2 * entry + 1]), level + 1, start + entry * step)
                for entry in reversed(entries)
            )

    def data(self, tree: Tree, leaf: Leaf) -> int:
        """Claim, read and verify the data blocks that a third table points to, neighbours at a stroke.

        Returns:
            How many of them are sound and its own.
        """
        words = leaf.words
        if words is None:
            return 0
        before = self.data_blocks
        units, most = self._geometry.block_units, len(self._buffer) // self._geometry.block_size
        for first, end in leaf.page_runs:
            i = first
            while i < end:
                j = i + 1
                while j < end and j - i < most and words[2 * j] == words[2 * i] + (j - i) * units:
                    j += 1
                if self._take_run(words, i, j):
                    self._count(j - i, (j - i) * self._geometry.block_size)
                    self.data_blocks += j - i
                else:
                    for k in range(i, j):
                        self._data_block(tree, leaf.start + k, Pointer(words[2 * k], words[2 * k + 1]))
                i = j
        return self.data_blocks - before

    def _take_run(self, words: array[int], i: int, j: int) -> bool:
        """Claim and verify blocks that are neighbours on disk if nothing is wrong with any of them, else do nothing."""
        page_no, length = words[2 * i] & PAGE_MASK, (j - i) * self._geometry.block_size
        units = (j - i) * self._geometry.block_units
        seals = words[2 * i + 1 : 2 * j : 2]
        try:
            offset = self.pages.locate(words[2 * i], length)
        except Corruption:
            return False
        if max(seals) >> BIRTH_SHIFT > self._last_birth or not self.owned.take(page_no, units):
            return False
        if not self._has_sound_blocks(offset, length, seals):
            self.owned.release(page_no, units)
            return False
        return True

    def _has_sound_blocks(self, offset: int, length: int, seals: array[int]) -> bool:
        size, buffer = self._geometry.block_size, self._buffer
        try:
            self.pages.read_run(offset, buffer[:length])
        except (Corruption, IoFailure):
            return False
        start = 0
        for seal in seals:
            end = start + size
            if crc32c(buffer[start:end]) != seal & CHECKSUM_MASK:
                return False
            start = end
        return True

    def _data_block(self, tree: Tree, block_no: int, pointer: Pointer) -> None:
        size = self._geometry.block_size
        what = f"data of block {block_no} (bytes {block_no * size} to {(block_no + 1) * size})"
        place = Place(len(tree.tables) - 1, block_no, block_no + 1)
        if self.page(tree, pointer, size, what, place) is not None:
            self.data_blocks += 1

    def _judge(self, tree: Tree, words: array[int], what: str, place: Place) -> Iterator[tuple[int, int]]:
        """Judge the entries of a table, the first of which stands at `place`; gives the runs of those of kind PAGE."""
        step = place.stop - place.start
        for first, end, kind in kind_runs(words, 0, self._geometry.fanout):
            if kind == PAGE:
                yield first, end
                continue
            covered = Place(place.level, place.start + first * step, place.start + end * step)
            if kind not in tree.kinds:
                has_meaning = kind in KINDS
                what_is_wrong = f"kind {kind}, which has no place here" if has_meaning else f"unknown kind {kind:#x}"
                self.is_complete &= has_meaning
                self._fault(tree, Fault.LOST, covered, f"{what}, {_entries(first, end)}: pointer of {what_is_wrong}")
                continue
            if kind == LOST:
                tree.faults.note(Fault.KNOWN, covered.level, covered.start, covered.stop)
            for bad, after in _not_empty(words, first, end):
                covered = Place(place.level, place.start + bad * step, place.start + after * step)
                message = f"{what}, {_entries(bad, after)}: pointer of kind {kind} that is not empty otherwise"
                self._fault(tree, Fault.LOST, covered, message)

    def _fault(self, tree: Tree, fault: Fault, place: Place, message: str) -> None:
        """Note a pointer that leads to nothing that can be used."""
        self._findings.corruption(tree.where, message)
        tree.faults.note(fault, place.level, place.start, place.stop)

    def _count(self, pages: int, length: int) -> None:
        self.pages_checked += pages
        self.bytes_checked += length
        if self._progress is not None:
            self._progress(self.bytes_checked)


def _entries(first: int, end: int) -> str:
    return f"entries {first} to {end - 1}" if end - first > 1 else f"entry {first}"


def _not_empty(words: array[int], first: int, end: int) -> Iterator[tuple[int, int]]:
    """The runs, among entries of one kind that names no page, of those in which anything else is set."""
    blank = (words[2 * first] & ~PAGE_MASK, 0)
    if words[2 * first : 2 * end] == array("Q", blank) * (end - first):
        return
    start = first
    for i in range(first, end + 1):
        if i == end or (words[2 * i], words[2 * i + 1]) == blank:
            if start < i:
                yield start, i
            start = i + 1
