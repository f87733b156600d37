"""What the lookups of an RO snapshot end in, a leaf at a time: a chain is walked once for a leaf, not for each read.

The view of an RO snapshot never changes (invariant 5), and most changes leave its pages where they are: a write or a
trim of a volume hands the old entry on as it is, a new snapshot is empty. Every other change may move or free a page
that a view refers to, so it makes all be forgotten (`Session.changing`).
"""

from __future__ import annotations

import re
from array import array
from typing import TYPE_CHECKING

from snapctl.errors import Corruption, IoFailure
from snapctl.format.pointer import KINDS, PASS, ZERO_WORD, filled_table, kind_bytes

if TYPE_CHECKING:
    from snapctl.engine.node import Node

_FOUND = re.compile(rb"([^\0])\1*", re.DOTALL)


class Views:
    """The views of a container's RO snapshots that are kept in memory.

    Attributes:
        most_leaves: how many leaves are kept before all are forgotten.
    """

    def __init__(self, most_leaves: int) -> None:
        """Begin with none."""
        self.most_leaves = most_leaves
        self._nodes: set[Node] = set()
        self._count = 0

    def leaf(self, snapshot: Node, leaf_no: int) -> array[int] | None:
        """What blocks of an RO snapshot are found in, as the words of a leaf whose entries point to data anywhere.

        An entry is ABSENT where more than an entry would be needed to tell what the block reads as.

        Returns:
            The words, or None if they cannot be had and each block has to be looked up by itself.
        """
        words = snapshot.view.get(leaf_no)
        if words is None:
            snapshot.container.relieve(may_write=False)
            words = look_up_leaf(snapshot, leaf_no)
            if words is not None:
                self._keep(snapshot, leaf_no, words)
        return words

    def forget(self) -> None:
        """Forget them all, since pages that they refer to may be moved or freed."""
        for node in self._nodes:
            node.view.clear()
        self._nodes.clear()
        self._count = 0

    def _keep(self, snapshot: Node, leaf_no: int, words: array[int]) -> None:
        if self._count >= self.most_leaves:
            self.forget()
        snapshot.view[leaf_no] = words
        self._nodes.add(snapshot)
        self._count += 1


def look_up_leaf(snapshot: Node, leaf_no: int) -> array[int] | None:
    """Look up all blocks under one leaf of a node side by side; returns as `Views.leaf`."""
    container, geometry = snapshot.container, snapshot.container.geometry
    fanout, start = geometry.fanout, leaf_no * geometry.fanout
    end = (start + fanout) * geometry.block_size
    found = filled_table(fanout)
    # Sets of entries are numbers with a byte of ones for each. Who is asked last is popped first, so that those who
    # come to one node by several ways wait there for each other.
    waiting = {(snapshot.id, snapshot.size_bytes): _entries(0, fanout)}
    most_steps = 4 * len(container)
    try:
        while waiting and most_steps:
            most_steps -= 1
            (node_id, limit), wanted = waiting.popitem()
            if limit < end:
                wanted = _clip(found, wanted, limit - start * geometry.block_size, geometry.block_size)
            node = container.by_id(node_id)
            leaf, word0, _, _ = node.tree.find(start)
            passed = 0
            if leaf or word0:  # else the whole leaf is ABSENT, as in most nodes of a long chain
                words = leaf.words if leaf else array("Q", (word0, 0)) * fanout
                held = int.from_bytes(kind_bytes(words, 0, fanout), "little") & wanted
                for run in _FOUND.finditer(held.to_bytes(fanout, "little")):
                    first, last = run.span()
                    wanted ^= _entries(first, last)
                    if run[0][0] == PASS:
                        passed |= _entries(first, last)
                    elif run[0][0] in KINDS:
                        found[2 * first : 2 * last] = words[2 * first : 2 * last]
                    else:
                        return None
            if passed:
                _send_on(waiting, found, passed, _past_origin(node), limit)
            if wanted:
                _send_on(waiting, found, wanted, node.parent, limit)
    except (Corruption, IoFailure):
        return None  # for whoever asks for a block that it hits
    return None if waiting else found


def _send_on(
    waiting: dict[tuple[int, int], int], found: array[int], entries: int, parent: Node | None, limit: int
) -> None:
    """Have entries looked up in a node further on; where there is none they are zeros."""
    if parent is None:
        _put_zeros(found, entries)
        return
    key = parent.id, min(limit, parent.size_bytes)
    waiting[key] = waiting.get(key, 0) | entries


def _past_origin(node: Node) -> Node | None:
    origin = node.origin
    return origin.parent if origin else None


def _entries(first: int, end: int) -> int:
    """The set of the entries from `first` to `end`."""
    return (1 << 8 * end) - (1 << 8 * first)


def _clip(found: array[int], entries: int, end_bytes: int, block_size: int) -> int:
    """Have entries beyond a size read as zeros; returns those before, without the one that the size cuts."""
    whole = max(0, end_bytes // block_size)
    beyond = max(0, -(-end_bytes // block_size))
    if beyond < len(found) // 2:
        _put_zeros(found, entries >> 8 * beyond << 8 * beyond)
    return entries & _entries(0, min(whole, len(found) // 2))


def _put_zeros(found: array[int], entries: int) -> None:
    for run in _FOUND.finditer(entries.to_bytes(len(found) // 2, "little")):
        first, end = run.span()
        found[2 * first : 2 * end] = array("Q", (ZERO_WORD, 0)) * (end - first)
