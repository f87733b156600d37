"""The small values that the engine's callers see."""

from __future__ import annotations

from dataclasses import dataclass

from snapctl.format.record import Cow, Kind

__all__ = ["Cow", "Extent", "Kind", "Usage"]

_NEARLY_FULL_PERCENT = 85


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of a node that is all data or all zeros.

    Attributes:
        offset_bytes: where it begins in the node.
        length_bytes: how long it is, 1 or more.
        is_zero: it reads as zeros without any data behind it.
    """

    offset_bytes: int
    length_bytes: int
    is_zero: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """How full a container is.

    Attributes:
        used_bytes: pages in use, of data and of tables, and the superblocks.
        free_bytes: what can still be written: of the capacity or of the file system, whichever leaves less.
        reserve_bytes: what is kept for deletes, neither used nor free.
    """

    used_bytes: int
    free_bytes: int
    reserve_bytes: int

    @property
    def full_percent(self) -> int:
        """How much of what is used or free is used, rounded down: 100 only if nothing is free."""
        return 100 * self.used_bytes // (self.used_bytes + self.free_bytes)

    @property
    def is_nearly_full(self) -> bool:
        """Whether its owner should hear of it."""
        return self.full_percent >= _NEARLY_FULL_PERCENT
