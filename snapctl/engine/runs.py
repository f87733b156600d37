"""Runs of whole blocks: the form in which what is written reaches the tables."""

from __future__ import annotations

from snapctl.storage.backend import Buffer

__all__ = ["Run", "Runs", "pure_runs_of", "runs_of"]

Run = tuple[int, Buffer]
"""The number of the first block, and the bytes of one or more, all beneath one leaf."""

Runs = tuple[list[Run], set[int], int]
"""Runs in order, apart from each other; the numbers of the leaves above them; how many blocks they are."""


def pure_runs_of(
    writes: list[tuple[int, memoryview]], block_shift: int, fanout_shift: int, size_bytes: int, /
) -> Runs | None:
    """Writes as runs.

    Args:
        writes: offset and data.
        block_shift: logarithm of the size of a block.
        fanout_shift: likewise of the blocks beneath a leaf.
        size_bytes: where the volume ends.

    Returns:
        As said; None if not all of them are runs inside the volume, or two touch the same block.
    """
    runs: list[Run] = []
    leaves: set[int] = set()
    blocks = stop = 0
    block_mask, fanout = (1 << block_shift) - 1, 1 << fanout_shift
    for offset, data in sorted(writes, key=lambda write: write[0]):
        first, count = offset >> block_shift, len(data) >> block_shift
        if (offset | len(data)) & block_mask or first < stop or not 0 < count <= fanout - (first & fanout - 1):
            return None
        stop = first + count
        blocks += count
        leaves.add(first >> fanout_shift)
        runs.append((first, data))
    return (runs, leaves, blocks) if stop << block_shift <= size_bytes else None


try:
    from snapctl._native import runs_of
except ImportError:
    runs_of = pure_runs_of
