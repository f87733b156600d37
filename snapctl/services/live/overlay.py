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


Run = tuple[int, int, Content]
"""First block, block after the last, and what is there."""


class Overlay:
    """The newest content of the blocks of one node, as far as it is here.

    Attributes:
        blocks: whole blocks by number; they go before `zeros`.
        zeros: ranges of blocks (start, stop), sorted, apart from each other.
    """

    __slots__ = ("blocks", "zeros")

    def __init__(self) -> None:
        self.blocks: dict[int, Buffer] = {}
        self.zeros: list[tuple[int, int]] = []

    def zero(self, start: int, stop: int) -> None:
        """Let blocks read as zeros."""
        for block_no in self._written(start, stop):
            del self.blocks[block_no]
        low = bisect_left(self.zeros, (start, start))
        if low and self.zeros[low - 1][1] >= start:
            low -= 1
        high = low
        while high < len(self.zeros) and self.zeros[high][0] <= stop:
            start, stop = min(start, self.zeros[high][0]), max(stop, self.zeros[high][1])
            high += 1
        self.zeros[low:high] = [(start, stop)]

    def forget(self, start: int, stop: int) -> None:
        """Drop blocks that have been written elsewhere since; zeros that reach into the range are split."""
        for block_no in self._written(start, stop):
            del self.blocks[block_no]
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
        for block_no in [block_no for block_no in self.blocks if block_no >= stop]:
            del self.blocks[block_no]
        if at and last in self.blocks:
            self.blocks[last] = bytes(memoryview(self.blocks[last])[:at]).ljust(block_size, b"\0")
        self.zeros = [(start, min(end, stop)) for start, end in self.zeros if start < stop]

    def cover(self, newer: Overlay) -> None:
        """Take in what was written later."""
        for start, stop in newer.zeros:
            self.zero(start, stop)
        self.blocks.update(newer.blocks)

    def content(self, block_no: int) -> Content:
        """What is here of one block."""
        if block_no in self.blocks:
            return Content.DATA
        if not self.zeros:
            return Content.BELOW
        index = bisect_left(self.zeros, (block_no + 1, 0))
        return Content.ZEROS if index and self.zeros[index - 1][1] > block_no else Content.BELOW

    def touches(self, start: int, stop: int) -> bool:
        """Whether anything is here of a range of blocks."""
        return bool(self.zeros) or bool(self._written(start, stop))

    def runs(self, start: int, stop: int) -> Iterator[Run]:
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
        if stop - start <= len(self.blocks):
            return [block_no for block_no in range(start, stop) if block_no in self.blocks]
        return sorted(block_no for block_no in self.blocks if start <= block_no < stop)

    def _unwritten(self, start: int, stop: int) -> Iterator[Run]:
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
