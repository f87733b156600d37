"""Whom a damage affects: the nodes that read through a range of a node, found forwards.

The read path asks where a block of a node comes from; this asks where a block of a node goes to. A child reads through
its parent what its own tables say is ABSENT. An RO snapshot reads through the parent of its origin what its tables say
is PASS; that parent stands above its origin. So one way down from the damaged node meets everyone, knowing two things
at each: the ranges that are affected in its parent, and those in its origin's parent. Each node's tables are looked at
once, however long the chain. As on the way up, each node's size clips what is seen through it; a block is the least
that can be damaged, since a read takes whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from snapctl.engine.model import Kind
from snapctl.engine.survey import walk
from snapctl.errors import Corruption
from snapctl.format.pointer import ABSENT, PASS

if TYPE_CHECKING:
    from snapctl.engine.node import Node

_WINDOW_BLOCKS = 1 << 18
"""How much of a damaged range is followed at a time: what is affected of it, in however many parts, is in memory."""
_FEW_RANGES = 1 << 10
"""So few parts in a window, and the next one may be larger: a lost first table stands for terabytes of nothing."""

Ranges = list[tuple[int, int]]
"""(start, stop) in blocks, in order and apart."""


class _Visit(NamedTuple):
    """A node on the way down.

    Attributes:
        node: to be looked at.
        above: what is affected in its parent.
        beyond: what is affected in its origin's parent; for RO snapshots.
    """

    node: Node
    above: Ranges
    beyond: Ranges


def affected(node: Node, start: int, stop: int) -> Iterator[tuple[Node, int, int]]:
    """Find all that cannot be read because of a damage in one node.

    Args:
        node: whose table or data is damaged.
        start: first block that cannot be had from it.
        stop: block after the last.

    Yields:
        (node, offset, end) in bytes, `node` itself included; each node's ranges in order and as long as they can be.
        What is damaged in other nodes as well is not told; that is affected by their damage.
    """
    pending: dict[int, tuple[Node, int, int]] = {}
    stop = max(start, stop)
    step = _WINDOW_BLOCKS
    while start < stop:
        end = min(stop, start + step)
        most = 0
        for found, ranges in _affected_window(node, start, end):
            most = max(most, len(ranges))
            for first, last in ranges:
                known = pending.get(found.id)
                if known is not None and known[2] == first:
                    first = known[1]
                elif known is not None:
                    yield _in_bytes(*known)
                pending[found.id] = found, first, last
        start = end
        step = 2 * step if most < _FEW_RANGES else _WINDOW_BLOCKS
    yield from (_in_bytes(*known) for known in pending.values())


def _affected_window(node: Node, start: int, stop: int) -> Iterator[tuple[Node, Ranges]]:
    seen = _clipped([(start, stop)], node)
    waiting = [_Visit(node, [], [])]
    while waiting:
        visit = waiting.pop()
        if visit.node is not node:
            seen = _seen(visit)
        if seen:
            yield visit.node, seen
        waiting += _below(visit, seen, node)


def _below(visit: _Visit, seen: Ranges, first: Node) -> Iterator[_Visit]:
    """The children of a node to which something of what is affected in it or above it may come down."""
    container = first.container
    for child_id in container.child_ids(visit.node.id):
        if child_id == first.id:
            continue  # hostile: a cycle
        try:
            child = container.by_id(child_id)
            beyond: Ranges = []
            if child.kind is Kind.RO:
                beyond = visit.above if child.origin is visit.node else visit.beyond
        except Corruption:
            continue  # its record makes no sense, which no read of it survives
        if seen or beyond:
            yield _Visit(child, seen, beyond)


def _seen(visit: _Visit) -> Ranges:
    """What of the ranges affected above is seen in a node."""
    found = list(_where(visit.node, visit.above, ABSENT))
    if visit.beyond:
        found += _where(visit.node, visit.beyond, PASS)
        found.sort()
    joined: Ranges = []
    for start, stop in found:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return joined


def _where(node: Node, ranges: Ranges, kind: int) -> Iterator[tuple[int, int]]:
    """The parts of ranges, clipped by the size of a node, in which its tables have entries of a kind."""
    for start, stop in _clipped(ranges, node):
        for stretch in walk(node, start, stop):
            for first, last, found in stretch.runs():
                if found == kind:
                    yield first, last


def _clipped(ranges: Ranges, node: Node) -> Ranges:
    end = node.container.geometry.blocks(node.size_bytes)
    return [(start, min(stop, end)) for start, stop in ranges if start < end]


def _in_bytes(node: Node, start: int, stop: int) -> tuple[Node, int, int]:
    size = node.container.block_size
    return node, start * size, min(stop * size, node.size_bytes)
