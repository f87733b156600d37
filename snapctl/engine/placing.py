"""Where runs of blocks go, and how the tables come to lead there, as far as the leaves above them are in memory.

The two loops of the write path that look at every block: both have a compiled twin.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from snapctl.format.pointer import CHECKSUM_MASK, KIND_SHIFT, PAGE, PAGE_MASK, PAGE_WORD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from snapctl.engine.runs import Run
    from snapctl.storage.backend import Buffer
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
) -> tuple[list[int], list[int], list[Buffer], list[Buffer], list[int]] | None:
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
        Of each block the page if it is written in place, else 0; those pages, and the data of their runs; the data of
        the other runs; the pages that are given up, in order. None if a leaf or a bitmap is not there, a page that is
        to be overwritten is not in use, or two blocks have one page.
    """
    pages: list[int] = []
    again: list[int] = []
    again_data: list[Buffer] = []
    moved_data: list[Buffer] = []
    old: list[int] = []
    for first, data in runs:
        words = leaves.get(first >> fanout_shift)
        if words is None:
            return None
        low, count = 2 * (first & (1 << fanout_shift) - 1), len(data) >> block_shift
        found = words[low : low + 2 * count : 2].tolist()
        fresh: bool | None = False
        if found[0] >> KIND_SHIFT == PAGE and found == list(range(found[0], found[0] + count * units, units)):
            fresh = _are_fresh(bitmaps, found[0] & PAGE_MASK, count * units, bitmap_shift)
            if fresh is None:
                return None
        kept = [word & PAGE_MASK for word in found if word >> KIND_SHIFT == PAGE]
        if fresh:
            pages += kept
            again += kept
            again_data.append(data)
        else:
            pages += [0] * count
            old += kept
            moved_data.append(data)
    if len({*old, *again}) < len(old) + len(again):
        return None
    return pages, again, again_data, moved_data, sorted(old)


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
    pages: list[int],
    fresh: Sequence[int],
    sums: list[int],
    block_shift: int,
    fanout_shift: int,
    birth: int,
    /,
) -> None:
    """Have entries of leaves lead to what was written.

    Args:
        leaves: the words of last-level tables, by number; all that the runs need.
        runs: what was written.
        pages: where each block was written in place; 0 for those that went to fresh pages.
        fresh: the pages of those.
        sums: the checksum of each block.
        block_shift: logarithm of the size of a block.
        fanout_shift: likewise of the blocks beneath a leaf.
        birth: the transaction as it stands in a pointer's second word.

    Raises:
        ValueError: there are too many or too few pages or checksums; nothing was changed.
        KeyError: a leaf is not there; likewise.
    """
    counts = [len(data) >> block_shift for _, data in runs]
    if not sum(counts) == len(pages) == len(sums) or pages.count(0) != len(fresh):
        raise ValueError("not one page and one checksum for each block")
    rest = iter(fresh)
    pages = [page_no or next(rest) for page_no in pages]
    targets = [leaves[first >> fanout_shift] for first, _ in runs]
    at = 0
    for (first, _), words, count in zip(runs, targets, counts, strict=True):
        low = 2 * (first & (1 << fanout_shift) - 1)
        chosen, found = pages[at : at + count], sums[at : at + count]
        words[low : low + 2 * count : 2] = array("Q", [PAGE_WORD | page_no for page_no in chosen])
        words[low + 1 : low + 2 * count : 2] = array("Q", [birth | checksum & CHECKSUM_MASK for checksum in found])
        at += count


try:
    from snapctl._native import enter, plan
except ImportError:
    enter, plan = pure_enter, pure_plan
