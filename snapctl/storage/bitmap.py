"""Runs of bits in the bitmaps of the space map: one bit a unit, set while the unit is in use."""

from __future__ import annotations

from snapctl.errors import Corruption


def set_bits(bitmap: bytearray, start: int, count: int) -> None:
    """Set bits that must all be clear.

    Raises:
        Corruption: one is set already; nothing is changed.
    """
    first, stop, mask = _span(start, count)
    chunk = int.from_bytes(bitmap[first:stop], "little")
    if chunk & mask:
        raise Corruption("a page that is in use was to be allocated; run check")
    bitmap[first:stop] = (chunk | mask).to_bytes(stop - first, "little")


def clear_bits(bitmap: bytearray, start: int, count: int) -> None:
    """Clear bits that must all be set.

    Raises:
        Corruption: one is clear already; nothing is changed.
    """
    first, stop, mask = _span(start, count)
    chunk = int.from_bytes(bitmap[first:stop], "little")
    if chunk & mask != mask:
        raise Corruption("a page that is free was to be freed; run check")
    bitmap[first:stop] = (chunk ^ mask).to_bytes(stop - first, "little")


def count_bits(bitmap: bytes | bytearray, start: int, count: int) -> int:
    """How many of a run of bits are set."""
    first, stop, mask = _span(start, count)
    return (int.from_bytes(bitmap[first:stop], "little") & mask).bit_count()


def clear_runs(bits: int, length: int) -> list[tuple[int, int]]:
    """The runs of clear bits among the lowest `length`, as (start, count) in order."""
    return _runs("0", "1", bits, length)


def set_runs(bits: int, length: int) -> list[tuple[int, int]]:
    """The runs of set bits among the lowest `length`, as (start, count) in order."""
    return _runs("1", "0", bits, length)


def _runs(wanted: str, other: str, bits: int, length: int) -> list[tuple[int, int]]:
    # Formatting in base two and looking for one character are linear and in C; a regular expression that steps over
    # a full bitmap takes ten times as long, and picking runs off an integer one by one is quadratic.
    text = f"{bits:0{length}b}"[::-1]
    runs = []
    start = text.find(wanted, 0, length)
    while start >= 0:
        stop = text.find(other, start, length)
        if stop < 0:
            stop = length
        runs.append((start, stop - start))
        start = text.find(wanted, stop, length)
    return runs


def _span(start: int, count: int) -> tuple[int, int, int]:
    return start >> 3, (start + count + 7) >> 3, ((1 << count) - 1) << (start & 7)
