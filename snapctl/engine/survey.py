"""Walking tables of which some may be damaged: what cannot be used is told of, and the walk goes on behind it.

The read path stops at the first damage and says whom it hit; this is for those who want to know of all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from snapctl.errors import Corruption, IoFailure
from snapctl.format.pointer import KIND_SHIFT, Pointer, filled_table, kind_runs
from snapctl.storage.tabletree import Table, TableTree

if TYPE_CHECKING:
    from snapctl.engine.node import Node

_WINDOW = 256
"""Stretches between which the tables that were read can be forgotten."""


class Stretch(NamedTuple):
    """A range of indexes of a tree, found in one place or not to be found at all.

    Attributes:
        start: first index.
        stop: index after the last.
        pointer: the lowest one that was followed or that covers the range.
        level: of the table that `pointer` leads to, 0 for the first; without one, the level at which it would be.
        leaf: the last-level table that holds the entries.
        error: why the table that `pointer` leads to cannot be used.
        tables: sound tables that begin here.
    """

    start: int
    stop: int
    pointer: Pointer
    level: int
    leaf: Table | None
    error: Corruption | IoFailure | None
    tables: int

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Yield (start, stop, kind) for the runs of entries of one kind, in order; nothing where it is damaged."""
        if self.leaf is not None:
            first = self.start % (len(self.leaf.words) // 2)
            base = self.start - first
            for i, j, kind in kind_runs(self.leaf.words, first, self.stop - base):
                yield base + i, base + j, kind
        elif self.error is None:
            yield self.start, self.stop, self.pointer.word0 >> KIND_SHIFT


def walk(node: Node, start: int, stop: int) -> Iterator[Stretch]:
    """Walk the tables of a node from block `start` to `stop`, in order and without gaps, in bounded memory."""
    while start < stop:
        node.container.relieve(may_write=False)
        try:
            tree = node.tree
        except (Corruption, IoFailure) as error:
            yield Stretch(start, stop, node.tree_pointer, 0, None, error, 0)
            return
        for stretch in islice(walk_tree(tree, start, stop), _WINDOW):
            yield stretch
            start = stretch.stop


def walk_tree(tree: TableTree, start: int, stop: int) -> Iterator[Stretch]:
    """Walk the tables of any tree from index `start` to `stop`, in order and without gaps."""
    while start < stop:
        found = _descend(tree, start)
        end = min(stop, found.stop)
        yield found._replace(start=start, stop=end)
        start = end


def _descend(tree: TableTree, position: int) -> Stretch:
    """What lies at an index: the range of its leaf, of the damaged table, or of the equal entries that cover it."""
    table, pointer, base, span, level = tree.root, tree.pointer, 0, tree.capacity, 0
    fanout = len(table.words) // 2
    tables = int(position == 0)
    while span > fanout:
        span //= fanout
        entry = (position - base) // span
        base += entry * span
        level += 1
        pointer = Pointer(table.words[2 * entry], table.words[2 * entry + 1])
        try:
            child = tree.child(table, entry)
        except (Corruption, IoFailure) as error:
            return Stretch(base, base + span, pointer, level, None, error, tables)
        if child is None:
            # Most tables of snapshots are empty to the end; the others are searched for where that changes.
            last = fanout if table.words[2 * entry :] == filled_table(fanout - entry, pointer.word0) else entry + 1
            while last < fanout and table.words[2 * last] == pointer.word0:
                last += 1
            return Stretch(base, base + (last - entry) * span, pointer, level, None, None, tables)
        tables += position == base
        table = child
    return Stretch(base, base + span, pointer, level, table, None, tables)
