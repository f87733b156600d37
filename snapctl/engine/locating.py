"""Where in the file ranges of a node are, as far as leaves in memory tell; the loop has a compiled twin."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from snapctl.format.pointer import CHECKSUM_MASK, PAGE_MASK, PAGE_WORD

__all__ = ["locate_each", "pure_locate_each"]


def pure_locate_each(
    leaves: dict[int, array[int]],
    ranges: list[tuple[int, int]],
    block_shift: int,
    fanout_shift: int,
    units: int,
    unit: int,
    first_page: int,
    end_page: int,
    /,
) -> tuple[list[tuple[int, int] | None], list[int]]:
    """Find out where ranges are that are whole blocks beneath one leaf, in pages that follow each other.

    Args:
        leaves: the words of last-level tables, by number.
        ranges: offset and length in bytes.
        block_shift: logarithm of the size of a block.
        fanout_shift: likewise of the blocks beneath a leaf.
        units: of a block.
        unit: of allocation, in bytes.
        first_page: where pages begin.
        end_page: where the container ends.

    Returns:
        Offset in the file and length of each, None for what is found in another way; and the checksum of each block,
        but of those.
    """
    block_mask, fanout = (1 << block_shift) - 1, 1 << fanout_shift
    places: list[tuple[int, int] | None] = []
    sums: list[int] = []
    for offset, length in ranges:
        words = leaves.get(offset >> block_shift >> fanout_shift)
        first, count = offset >> block_shift & fanout - 1, length >> block_shift
        places.append(None)
        if words is None or (offset | length) & block_mask or not 0 < count <= fanout - first:
            continue
        found: Sequence[int] = words[2 * first : 2 * (first + count)]
        page_no = found[0] & PAGE_MASK
        expected = range(PAGE_WORD | page_no, (PAGE_WORD | page_no) + count * units, units)
        if list(found[::2]) == list(expected) and first_page <= page_no <= end_page - count * units:
            places[-1] = page_no * unit, length
            sums += [word & CHECKSUM_MASK for word in found[1::2]]
    return places, sums


try:
    from snapctl._native import locate_each
except ImportError:
    locate_each = pure_locate_each
