"""What is wrong with the pointers of one tree, in the form in which a repair takes it: by fault, level and range."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from enum import Enum


class Fault(Enum):
    """What can be wrong with a pointer."""

    LOST = "what it points at cannot be used, or it cannot itself"
    SHARED = "what it points at is sound and belongs to another pointer"
    UNBORN = "what it points at is sound, but it tells a birth in the future"
    KNOWN = "it is marked as lost already, by an earlier repair"


class Ranges:
    """Ranges of indexes, noted in ascending order; neighbours are joined. 16 bytes for each that is left."""

    def __init__(self) -> None:
        self._bounds = array("Q")

    def add(self, start: int, stop: int) -> None:
        """Note the indexes from `start` to `stop`."""
        if self._bounds and self._bounds[-1] == start:
            self._bounds[-1] = stop
        else:
            self._bounds.extend((start, stop))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for i in range(0, len(self._bounds), 2):
            yield self._bounds[i], self._bounds[i + 1]

    def __len__(self) -> int:
        return len(self._bounds) // 2


class Faults:
    """The faults of one tree.

    A level is that of the table in which a pointer stands, 0 for the first table; the pointer to the first table itself
    stands at level -1.
    """

    def __init__(self) -> None:
        self._ranges: dict[tuple[Fault, int], Ranges] = {}

    def note(self, fault: Fault, level: int, start: int, stop: int) -> None:
        """Note that the pointers of a level over the indexes from `start` to `stop` have a fault."""
        self._ranges.setdefault((fault, level), Ranges()).add(start, stop)

    def ranges(self, fault: Fault, level: int) -> Ranges:
        """Where the pointers of a level have a fault."""
        return self._ranges.get((fault, level)) or Ranges()

    def __bool__(self) -> bool:
        """Whether a repair has anything to do here."""
        return any(fault is not Fault.KNOWN for fault, _ in self._ranges)
