"""Runs of bits in the bitmaps of the space map: one bit a unit, set while the unit is in use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from snapctl.errors import Corruption

__all__ = [
    "WAS_CLEAR",
    "WAS_SET",
    "clear_bits",
    "clear_each",
    "count_bits",
    "find_run",
    "has_run",
    "pure_clear_each",
    "pure_find_run",
    "pure_take_runs",
    "set_bits",
    "set_runs",
    "set_where_clear",
    "take_runs",
]

WAS_SET = "a page that is in use was to be allocated; run check"
WAS_CLEAR = "a page that is free was to be freed; run check"
"""What is wrong where a bit is set, or is not, that should not be, or should."""
_STRIDE = 64
"""Bytes of a bitmap that are looked through at a stroke."""
_SET_BITS = [[bit for bit in range(8) if value >> bit & 1] for value in range(256)]


def set_bits(bitmap: bytearray, start: int, count: int) -> None:
    """Set bits that must all be clear.

    Raises:
        Corruption: one is set already; nothing is changed.
    """
    first, stop, mask = _span(start, count)
    chunk = int.from_bytes(bitmap[first:stop], "little")
    if chunk & mask:
        raise Corruption(WAS_SET)
    bitmap[first:stop] = (chunk | mask).to_bytes(stop - first, "little")


def clear_bits(bitmap: bytearray, start: int, count: int) -> None:
    """Clear bits that must all be set.

    Raises:
        Corruption: one is clear already; nothing is changed.
    """
    first, stop, mask = _span(start, count)
    chunk = int.from_bytes(bitmap[first:stop], "little")
    if chunk & mask != mask:
        raise Corruption(WAS_CLEAR)
    bitmap[first:stop] = (chunk ^ mask).to_bytes(stop - first, "little")


def set_where_clear(bitmap: bytearray, others: Iterable[bytes], start: int, count: int) -> None:
    """Set those of a run of bits that none of some other bitmaps has set."""
    first, stop, mask = _span(start, count)
    for other in others:
        mask &= ~int.from_bytes(other[first:stop], "little")
    chunk = int.from_bytes(bitmap[first:stop], "little")
    bitmap[first:stop] = (chunk | mask).to_bytes(stop - first, "little")


def count_bits(bitmap: bytes | bytearray, start: int, count: int) -> int:
    """How many of a run of bits are set."""
    first, stop, mask = _span(start, count)
    return (int.from_bytes(bitmap[first:stop], "little") & mask).bit_count()


def pure_clear_each(
    current: bytearray, committed: bytes, previous: bytes, free: bytearray | None, bits: list[int], /
) -> tuple[int, int] | None:
    """Clear single bits of a bitmap that must all be set.

    Args:
        current: the bitmap.
        committed: as the last commit has it.
        previous: as the commit before has it.
        free: where those are set that neither of them has, if given.
        bits: which, in ascending order.

    Returns:
        How many of them the last commit has set, and how many neither has; None, and nothing is changed, if one is
        clear already, does not exist or is not in order.
    """
    held, again = 0, []
    changed, last = current[:], -1
    for bit in bits:
        at, mask = bit >> 3, 1 << (bit & 7)
        if bit <= last or at >= len(changed) or not changed[at] & mask:
            return None
        last = bit
        changed[at] ^= mask
        if committed[at] & mask:
            held += 1
        elif not previous[at] & mask:
            again.append(bit)
    current[:] = changed
    if free is not None:
        for bit in again:
            free[bit >> 3] |= 1 << (bit & 7)
    return held, len(again)


def pure_take_runs(free: bytearray, current: bytearray, units: int, count: int, /) -> list[int] | None:
    """Take runs out of what is free: the lowest ones.

    Args:
        free: where bits are set that may be taken; they are cleared.
        current: where they are set.
        units: of each run.
        count: how many runs.

    Returns:
        The first bits of the runs in order, fewer if there are no more; None, and nothing is changed, if one is set in
        `current` already.
    """
    if len(free) != len(current):
        raise ValueError("the states of a bitmap have one size")
    bits, now = int.from_bytes(free, "little"), int.from_bytes(current, "little")
    found = list(islice(_starts(bits, 8 * len(free), units), max(0, count)))
    taken = bytearray(len(free))
    for bit in found:
        set_bits(taken, bit, units)
    mask = int.from_bytes(taken, "little")
    if now & mask:
        return None
    free[:] = (bits ^ mask).to_bytes(len(free), "little")
    current[:] = (now | mask).to_bytes(len(free), "little")
    return found


def pure_find_run(free: bytearray, stop: int, least: int, /) -> tuple[int, int] | None:
    """The lowest run of at least `least` set bits among the first `stop`, 1 or more, as (start, stop)."""
    bits = int.from_bytes(free, "little") & (1 << max(0, stop)) - 1
    found = _first_bits(bits, least)
    if not found:
        return None
    start = (found & -found).bit_length() - 1
    rest = ~(bits >> start)
    return start, start + (rest & -rest).bit_length() - 1


def _starts(bits: int, length: int, count: int) -> Iterator[int]:
    """Where among the lowest `length` bits runs of `count` set ones begin, in order and apart from each other."""
    page = _first_bits(bits & ((1 << length) - 1), count).to_bytes(-(-length // 8), "little")
    end = 0
    for low in range(0, len(page), _STRIDE):
        some = page[low : low + _STRIDE]
        if any(some):
            found = [8 * (low + at) + bit for at, value in enumerate(some) if value for bit in _SET_BITS[value]]
            if count == 1:
                yield from found
                continue
            for start in found:
                if start >= end:
                    yield start
                    end = start + count


def has_run(bits: int, count: int) -> bool:
    """Whether there are `count` set bits in a row."""
    return _first_bits(bits, count) != 0


def _first_bits(bits: int, count: int) -> int:
    """The lowest bit of each `count` set bits in a row."""
    done = 1
    while done < count:
        step = min(done, count - done)
        bits &= bits >> step
        done += step
    return bits


def set_runs(bits: int, length: int) -> list[tuple[int, int]]:
    """The runs of set bits among the lowest `length`, as (start, count) in order."""
    # Formatting in base two and looking for one character are linear and in C; a regular expression that steps over
    # a full bitmap takes ten times as long, and picking runs off an integer one by one is quadratic.
    text = f"{bits:0{length}b}"[::-1]
    runs = []
    start = text.find("1", 0, length)
    while start >= 0:
        stop = text.find("0", start, length)
        if stop < 0:
            stop = length
        runs.append((start, stop - start))
        start = text.find("1", stop, length)
    return runs


def _span(start: int, count: int) -> tuple[int, int, int]:
    return start >> 3, (start + count + 7) >> 3, ((1 << count) - 1) << (start & 7)


try:
    from snapctl._native import clear_each, find_run, take_runs
except ImportError:
    clear_each, find_run, take_runs = pure_clear_each, pure_find_run, pure_take_runs
