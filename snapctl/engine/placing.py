"""Where runs of blocks go, and how the tables come to lead there, as far as the leaves above them are in memory.

The two loops of the write path that look at every block: both have a compiled twin.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from snapctl.format.pointer import CHECKSUM_MASK, KIND_SHIFT, PAGE, PAGE_MASK, PAGE_WORD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from snapctl.engine.runs import Run
    from snapctl.storage.spacemap import Bitmap


__all__ = ["enter", "plan", "pure_enter", "pure_plan"]


def pure_plan(
    leaves: dict[int, array[int]],
    bitmaps: dict[int, Bitmap],
    runs: list[Run],
    block_shift: int,
    fanout_shift: int,
    bitmap_shift: int,
    units: int,
    /,
) -> tuple[list[int], list[int], int] | None:
    """Find out where runs go, of which nothing has to be preserved.

    A run whose pages follow each other and were all born in the open transaction is written in place; all pages of any
    other are given up.

    Args:
        leaves: the words of last-level tables, by number.
        bitmaps: of the space map, by number.
        runs: what is to be written.
        block_shift: logarithm of the size of a block.
        fanout_shift: likewise of the blocks beneath a leaf.
        bitmap_shift: likewise of the units of a bitmap.
        units: of a block.

    Returns:
        Of each run the first page if it is written in place, else 0; the pages that are given up; how many blocks take
        fresh ones. None if a leaf or a bitmap is not there, or a page that is to be overwritten is not in use.
    """
    places: list[int] = []
    old: list[int] = []
    new_blocks = 0
    for first, data in runs:
        words = leaves.get(first >> fanout_shift)
        if words is None:
            return None
        low, count = 2 * (first & (1 << fanout_shift) - 1), len(data) >> block_shift
        found = words[low : low + 2 * count : 2].tolist()
        place = 0
        if found[0] >> KIND_SHIFT == PAGE and found == list(range(found[0], found[0] + count * units, units)):
            fresh = _are_fresh(bitmaps, found[0] & PAGE_MASK, count * units, bitmap_shift)
            if fresh is None:
                return None
            place = found[0] & PAGE_MASK if fresh else 0
        if not place:
            new_blocks += count
            old += [word & PAGE_MASK for word in found if word >> KIND_SHIFT == PAGE]
        places.append(place)
    return places, old, new_blocks


def _are_fresh(bitmaps: Mapping[int, Bitmap], page_no: int, units: int, bitmap_shift: int) -> bool | None:
    """Whether pages were born in the open transaction; None if that cannot be told here."""
    bitmap, bit = bitmaps.get(page_no >> bitmap_shift), page_no & (1 << bitmap_shift) - 1
    if bitmap is None or not page_no or bit + units > min(1 << bitmap_shift, 8 * len(bitmap.current)):
        return None
    mask = (1 << units) - 1 << (bit & 7)
    octets = slice(bit >> 3, (bit + units + 7) >> 3)
    if int.from_bytes(bitmap.current[octets], "little") & mask != mask:
        return None
    return not int.from_bytes(bitmap.committed[octets], "little") & mask


def pure_enter(
    leaves: dict[int, array[int]],
    runs: list[Run],
    places: list[int],
    pages: list[int],
    sums: list[int],
    block_shift: int,
    fanout_shift: int,
    units: int,
    birth: int,
    /,
) -> None:
    """Have entries of leaves lead to what was written.

    Args:
        leaves: the words of last-level tables, by number; all that the runs need.
        runs: what was written.
        places: of each run the first page, if it was written in place, else 0.
        pages: the fresh pages, one for each block of the others.
        sums: the checksum of each block.
        block_shift: logarithm of the size of a block.
        fanout_shift: likewise of the blocks beneath a leaf.
        units: of a block.
        birth: the transaction as it stands in a pointer's second word.

    Raises:
        ValueError: there are too many or too few places, pages or checksums; nothing was changed.
        KeyError: a leaf is not there; likewise.
    """
    counts = [len(data) >> block_shift for _, data in runs]
    fresh = sum([count for count, place in zip(counts, places, strict=True) if not place])
    if (sum(counts), fresh) != (len(sums), len(pages)):
        raise ValueError("not one checksum for each block, or not one page for each that has none")
    targets = [leaves[first >> fanout_shift] for first, _ in runs]
    next_page = next_sum = 0
    for (first, _), words, count, place in zip(runs, targets, counts, places, strict=True):
        low = 2 * (first & (1 << fanout_shift) - 1)
        if place:
            chosen = list(range(place, place + count * units, units))
        else:
            chosen, next_page = pages[next_page : next_page + count], next_page + count
        found, next_sum = sums[next_sum : next_sum + count], next_sum + count
        words[low : low + 2 * count : 2] = array("Q", [PAGE_WORD | page_no for page_no in chosen])
        words[low + 1 : low + 2 * count : 2] = array("Q", [birth | checksum & CHECKSUM_MASK for checksum in found])


try:
    from snapctl._native import enter, plan
except ImportError:
    enter, plan = pure_enter, pure_plan
