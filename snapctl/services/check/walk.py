"""Walking the tables of a container that may be damaged in any way, noting what is wrong and who owns what.

The engine stops at the first damage; this goes on past it. Each page is claimed for its owner, and one that has an
owner already is not descended into. So tables that form a loop end the walk there, and the work is bounded by the
pointers that stand on disk, whatever they say. Memory is bounded by the claims: a bit a unit, in chunks that come into
being where pages are claimed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from snapctl.errors import Corruption, IoFailure
from snapctl.format.checksum import crc32c
from snapctl.format.pointer import (
    BIRTH_SHIFT,
    CHECKSUM_MASK,
    KIND_SHIFT,
    KINDS,
    PAGE,
    PAGE_MASK,
    Pointer,
    decode_table,
    kind_runs,
)
from snapctl.services.check.findings import Findings
from snapctl.storage.bitmap import clear_bits, set_bits
from snapctl.storage.pages import PageFile

_CHUNK_UNITS = 4096
"""Units of one chunk of claims; divides the units of every bitmap of the space map."""
_LONGEST_READ = 1 << 20


class Ownership:
    """Which units of the file have an owner."""

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray] = {}

    def take(self, page_no: int, units: int) -> bool:
        """Claim a run of units if none of them has an owner.

        Returns:
            Whether it was so; if not, nothing is claimed.
        """
        taken: list[tuple[bytearray, int, int]] = []
        for chunk, bit, count in self._parts(page_no, units):
            try:
                set_bits(chunk, bit, count)
            except Corruption:
                for part in taken:
                    clear_bits(*part)
                return False
            taken.append((chunk, bit, count))
        return True

    def release(self, page_no: int, units: int) -> None:
        """Take back what `take` has claimed."""
        for part in self._parts(page_no, units):
            clear_bits(*part)

    def claim(self, page_no: int, units: int) -> bool:
        """Claim a run of units, those that have an owner too.

        Returns:
            Whether none of them had one.
        """
        if self.take(page_no, units):
            return True
        for unit in range(page_no, page_no + units):
            self.take(unit, 1)
        return False

    def regions(self, units: int) -> set[int]:
        """The numbers of the regions of `units` units each in which something has an owner."""
        return {key * _CHUNK_UNITS // units for key in self._chunks}

    def bits(self, region: int, units: int) -> int:
        """The claims of a region of `units` units, lowest unit in the lowest bit."""
        count = units // _CHUNK_UNITS
        blank = bytes(_CHUNK_UNITS // 8)
        chunks = (self._chunks.get(key, blank) for key in range(region * count, (region + 1) * count))
        return int.from_bytes(b"".join(chunks), "little")

    def _parts(self, page_no: int, units: int) -> Iterator[tuple[bytearray, int, int]]:
        while units:
            key, bit = divmod(page_no, _CHUNK_UNITS)
            count = min(units, _CHUNK_UNITS - bit)
            chunk = self._chunks.get(key)
            if chunk is None:
                chunk = self._chunks[key] = bytearray(_CHUNK_UNITS // 8)
            yield chunk, bit, count
            page_no += count
            units -= count


@dataclass(frozen=True, slots=True)
class Tree:
    """What is to be expected of one tree of tables.

    Attributes:
        where: whose it is, for findings.
        tables: what its tables are called, from the first one down.
        items: what its indexes count, for findings.
        kinds: the kinds of pointer that may stand in it.
        has_births: its pointers carry the transaction that wrote the page; those of the space map carry counts.
    """

    where: str
    tables: tuple[str, ...]
    items: str
    kinds: tuple[int, ...]
    has_births: bool = True


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


class Walk:
    """One walk over everything that a container owns.

    Attributes:
        pages: where it reads.
        owned: the pages that were claimed.
        is_complete: nothing was passed over that may own further pages.
        pages_checked: pages whose checksum was right.
        data_blocks: how many of those are data blocks.
    """

    def __init__(self, pages: PageFile, transaction: int, findings: Findings) -> None:
        """Begin; `transaction` is that of the superblock, after which no page can have been born."""
        self.owned = Ownership()
        self.is_complete = True
        self.pages_checked = 0
        self.data_blocks = 0
        self.pages = pages
        self._geometry = pages.geometry
        self._findings = findings
        # Births are cut to 32 bits; once transactions outgrow them any birth may be right.
        self._last_birth = min(transaction, CHECKSUM_MASK)
        self._buffer = memoryview(bytearray(max(_LONGEST_READ, self._geometry.block_size)))

    def page(self, tree: Tree, pointer: Pointer, length: int, what: str) -> bytearray | None:
        """Claim, read and verify one page.

        Args:
            tree: that the pointer stands in.
            pointer: to the page, of kind PAGE.
            length: of the page in bytes.
            what: what the page is, for findings.

        Returns:
            Its bytes; None, and a finding, if they cannot be relied on.
        """
        page_no = pointer.page_no
        try:
            offset = self.pages.locate(pointer.word0, length)
        except Corruption as error:
            self.is_complete = False
            self._findings.corruption(tree.where, f"{what}: {error}")
            return None
        if tree.has_births and pointer.birth > self._last_birth:
            self._findings.corruption(tree.where, f"{what} at page {page_no} was born in the future, {pointer.birth}")
        if not self.owned.claim(page_no, length // self._geometry.unit):
            self.is_complete = False
            self._findings.corruption(tree.where, f"{what} at page {page_no} has another owner, too")
            return None
        page = bytearray(length)
        try:
            self.pages.read_run(offset, memoryview(page))
        except (Corruption, IoFailure) as error:
            self._findings.corruption(tree.where, f"{what} at page {page_no} cannot be read: {error}")
            return None
        if crc32c(page) != pointer.checksum:
            self._findings.corruption(tree.where, f"{what} at page {page_no} fails its checksum")
            return None
        self.pages_checked += 1
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
            page = self.page(tree, pointer, self._geometry.table_size, what)
            if page is None:
                self.is_complete = False
                yield Leaf(start, start + span, pointer, None)
                continue
            words = decode_table(page)
            is_empty = page.count(0) == len(page)
            runs = () if is_empty else tuple(self._judge(tree, words, f"{what} at page {pointer.page_no}"))
            if level == depth - 1:
                yield Leaf(start, start + span, pointer, words, runs)
                continue
            step = span // fanout
            entries = [entry for first, end in runs for entry in range(first, end)]
            pending.extend(
                (Pointer(words[2 * entry], words[2 * entry + 1]), level + 1, start + entry * step)
                for entry in reversed(entries)
            )

    def data(self, tree: Tree, leaf: Leaf) -> int:
        """Claim, read and verify the data blocks that a third table points to, neighbours at a stroke.

        Returns:
            How many there are, sound or not.
        """
        words = leaf.words
        if words is None:
            return 0
        units, most = self._geometry.block_units, len(self._buffer) // self._geometry.block_size
        for first, end in leaf.page_runs:
            i = first
            while i < end:
                j = i + 1
                while j < end and j - i < most and words[2 * j] == words[2 * i] + (j - i) * units:
                    j += 1
                if self._take_run(words, i, j):
                    self.pages_checked += j - i
                    self.data_blocks += j - i
                else:
                    for k in range(i, j):
                        self._data_block(tree, leaf.start + k, Pointer(words[2 * k], words[2 * k + 1]))
                i = j
        return sum(end - first for first, end in leaf.page_runs)

    def _take_run(self, words: array[int], i: int, j: int) -> bool:
        """Claim and verify blocks that are neighbours on disk if nothing is wrong with any of them, else do nothing."""
        page_no, length = words[2 * i] & PAGE_MASK, (j - i) * self._geometry.block_size
        units = (j - i) * self._geometry.block_units
        seals = words[2 * i + 1 : 2 * j : 2]
        try:
            offset = self.pages.locate(words[2 * i], length)
        except Corruption:
            return False
        # Claimed before it is read, so that what many pointers name is not read for each of them.
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
        if self.page(tree, pointer, size, what) is not None:
            self.data_blocks += 1

    def _judge(self, tree: Tree, words: array[int], what: str) -> Iterator[tuple[int, int]]:
        """Judge the entries of a table; gives the runs of those of kind PAGE."""
        for first, end, kind in kind_runs(words, 0, self._geometry.fanout):
            if kind == PAGE:
                yield first, end
                continue
            what_is_wrong = None
            if kind not in KINDS:
                self.is_complete = False
                what_is_wrong = f"unknown kind {kind:#x}"
            elif kind not in tree.kinds:
                what_is_wrong = f"kind {kind}, which has no place here"
            elif words[2 * first : 2 * end] != array("Q", (kind << KIND_SHIFT, 0)) * (end - first):
                what_is_wrong = f"kind {kind} that is not empty otherwise"
            if what_is_wrong:
                entries = f"entries {first} to {end - 1}" if end - first > 1 else f"entry {first}"
                self._findings.corruption(tree.where, f"{what}, {entries}: pointer of {what_is_wrong}")
