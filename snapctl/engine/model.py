"""The small values that the engine's callers see."""

from __future__ import annotations

from dataclasses import dataclass

from snapctl.format.record import Cow, Kind

__all__ = ["Cow", "Extent", "Kind"]


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
