"""What was written to one node and has not reached its tables yet: whole blocks, and ranges that read as zeros."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from enum import Enum, auto

from snapctl.storage.backend import Buffer


class Content(Enum):
    """What an overlay has for a run of blocks."""

    BELOW = auto()
    """Nothing: look further down."""
    ZEROS = auto()
    DATA = auto()
    """A single block, which `Overlay.blocks` holds."""


Stretch = tuple[int, int, Content]
"""First block, block after the last, and what is there."""


class Overlay:
    """The newest content of the blocks of one node, as far as it is here.

    Attributes:
        leaves: whole blocks by number, those under one leaf of the tables together; they go before `zeros`.
        zeros: ranges of blocks (start, stop), sorted, apart from each other.
        promised: the leaves whose tables have room promised.
        credit_blocks: blocks that may be written under those leaves without asking anybody for room.
    """

    __slots__ = ("_fanout", "credit_blocks", "leaves", "promised", "zeros")

    def __init__(self, fanout: int) -> None:
        self.leaves: dict[int, dict[int, Buffer]] = {}
        self.zeros: list[tuple[int, int]] = []
        self.promised: set[int] = set()
        self.credit_blocks = 0
        self._fanout = fanout

    def __bool__(self) -> bool:
        """Whether anything is here."""
        return bool(self.leaves or self.zeros)

    def get(self, block_no: int) -> Buffer | None:
        """The content of a block that was written."""
        leaf = self.leaves.get(block_no // self._fanout)
        return None if leaf is None else leaf.get(block_no)

    def put(self, block_no: int, block: Buffer) -> None:
        """Write a whole block."""
        self.leaves.setdefault(block_no // self._fanout, {})[block_no] = block

    def zero(self, start: int, stop: int) -> None:
        """Let blocks read as zeros."""
        self._drop(start, stop)
        low = bisect_left(self.zeros, (start, start))
        if low and self.zeros[low - 1][1] >= start:
            low -= 1
        high = low
        while high < len(self.zeros) and self.zeros[high][0] <= stop:
            start, stop = min(start, self.zeros[high][0]), max(stop, self.zeros[high][1])
            high += 1
        self.zeros[low:high] = [(start, stop)]

    def forget(self, start: int, stop: int) -> None:
        """Drop what is here of a range, which has been written elsewhere since."""
        self._drop(start, stop)
        self.zeros = [
            part
            for low, high in self.zeros
            for part in ((low, min(high, start)), (max(low, stop), high))
            if part[0] < part[1]
        ]

    def cut(self, size_bytes: int, block_size: int) -> None:
        """Drop what lies beyond `size_bytes`."""
        last, at = divmod(size_bytes, block_size)
        stop = -(-size_bytes // block_size)
        if self.leaves:
            self._drop(stop, (max(self.leaves) + 1) * self._fanout)
        if at and (block := self.get(last)) is not None:
            self.put(last, bytes(memoryview(block)[:at]).ljust(block_size, b"\0"))
        self.zeros = [(start, min(end, stop)) for start, end in self.zeros if start < stop]

    def cover(self, newer: Overlay) -> None:
        """Take in what was written later."""
        for start, stop in newer.zeros:
            self.zero(start, stop)
        for number, leaf in newer.leaves.items():
            self.leaves.setdefault(number, {}).update(leaf)

    def move_to(self, older: Overlay) -> None:
        """Give away all that is here, but for the room."""
        older.cover(self)
        self.leaves, self.zeros = {}, []

    def content(self, block_no: int) -> Content:
        """What is here of one block."""
        if self.get(block_no) is not None:
            return Content.DATA
        if not self.zeros:
            return Content.BELOW
        index = bisect_left(self.zeros, (block_no + 1, 0))
        return Content.ZEROS if index and self.zeros[index - 1][1] > block_no else Content.BELOW

    def touches(self, start: int, stop: int) -> bool:
        """Whether anything is here of a range of blocks; zeros elsewhere may count."""
        return bool(self.zeros) or bool(self._written(start, stop))

    def runs(self, start: int, stop: int) -> Iterator[Stretch]:
        """Tell what is here of a range of blocks, in order and without gaps; written blocks one by one."""
        position = start
        for block_no in self._written(start, stop):
            if position < block_no:
                yield from self._unwritten(position, block_no)
            yield block_no, block_no + 1, Content.DATA
            position = block_no + 1
        if position < stop:
            yield from self._unwritten(position, stop)

    def _written(self, start: int, stop: int) -> list[int]:
        """The written blocks of a range, in order."""
        first, last = start // self._fanout, (stop - 1) // self._fanout
        if last - first < len(self.leaves):
            numbers = [number for number in range(first, last + 1) if number in self.leaves]
        else:
            numbers = sorted(number for number in self.leaves if first <= number <= last)
        found: list[int] = []
        for number in numbers:
            leaf = self.leaves[number]
            low, high = max(start, number * self._fanout), min(stop, (number + 1) * self._fanout)
            if high - low <= len(leaf):
                found += [block_no for block_no in range(low, high) if block_no in leaf]
            else:
                found += sorted(block_no for block_no in leaf if low <= block_no < high)
        return found

    def _drop(self, start: int, stop: int) -> None:
        for block_no in self._written(start, stop):
            leaf = self.leaves[block_no // self._fanout]
            del leaf[block_no]
            if not leaf:
                del self.leaves[block_no // self._fanout]

    def _unwritten(self, start: int, stop: int) -> Iterator[Stretch]:
        index = bisect_left(self.zeros, (start, start))
        if index and self.zeros[index - 1][1] > start:
            index -= 1
        for low, high in self.zeros[index:]:
            if low >= stop:
                break
            if start < low:
                yield start, low, Content.BELOW
            start = max(start, low)
            end = min(high, stop)
            yield start, end, Content.ZEROS
            start = end
        if start < stop:
            yield start, stop, Content.BELOW
