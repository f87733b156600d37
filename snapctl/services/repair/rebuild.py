"""Carrying out a plan: one transaction that makes the snapshot list and the space map anew and mends tables.

All that it writes goes to pages beyond the end of the file as it was, so until its superblock is written the container
is as before, and after it the state before is whole behind the other superblock slot.
"""

from __future__ import annotations

from array import array
from dataclasses import replace

from snapctl.engine.container import Container
from snapctl.engine.model import Kind
from snapctl.engine.node import Node
from snapctl.errors import Corruption, DamagedTable, IoFailure
from snapctl.format.geometry import VOLUME_DEPTH
from snapctl.format.pointer import (
    CHECKSUM_MASK,
    KIND_SHIFT,
    LOST_WORD,
    PAGE,
    PASS_WORD,
    ZERO_WORD,
    Pointer,
    page_pointer,
)
from snapctl.services.check.faults import Fault
from snapctl.services.repair.plan import Plan, Salvage
from snapctl.storage.backend import Backend
from snapctl.storage.store import Store
from snapctl.storage.tabletree import TableTree

_LAST = VOLUME_DEPTH - 1


def rebuild(backend: Backend, plan: Plan) -> None:
    """Carry out a plan, and commit.

    Raises:
        NoSpace: no room for what has to be written; the container is as before.
        IoFailure: the system refuses; the container is as before, or if that happened in the commit, repaired.
    """
    container = Container(Store.rebuild(backend, plan.in_use(), plan.next_node_id))
    try:
        copier = _Copier(container, container.space.used)
        with container.changing():
            for salvage in plan.nodes:
                node = container.restore(replace(salvage.placed.record, own_blocks=salvage.sound_blocks))
                if salvage.is_changed:
                    _mend_tables(node, salvage, copier)
                container.relieve(may_write=True)
        container.commit()
    except BaseException:
        container.close()
        raise


def _mend_tables(node: Node, salvage: Salvage, copier: _Copier) -> None:
    faults, placed = salvage.faults, salvage.placed
    end_block = node.container.geometry.blocks(node.size_bytes)
    if not salvage.has_tables or len(faults.ranges(Fault.SHARED, -1)):
        node.begin_tables()
        if salvage.has_tables:
            copier.copy(node, 0, node.tree.capacity, placed.record.first_table)
        else:
            node.tree.fill(0, end_block, LOST_WORD)
    else:
        _mend_births(node, salvage)
        for level in range(VOLUME_DEPTH):
            for start, stop in faults.ranges(Fault.LOST, level):
                node.tree.cover(level, start, stop, 0)
                node.tree.fill(start, min(stop, end_block), LOST_WORD)
            for start, stop in faults.ranges(Fault.SHARED, level):
                node.tree.cover(level, start, stop, 0)
                copier.copy(node, start, stop, placed.record.first_table)
    if placed.pass_word != PASS_WORD:
        _replace(node.tree, PASS_WORD, placed.pass_word)
    if placed.is_orphan:
        node.tree.fill(0, end_block, LOST_WORD)
    node.container.note_change(node)


def _mend_births(node: Node, salvage: Salvage) -> None:
    """Have pages that were born in the future be born now."""
    tree, transaction = node.tree, node.container.transaction
    if salvage.faults.ranges(Fault.UNBORN, -1):
        tree.touch(tree.root)
    for level in range(VOLUME_DEPTH):
        step = tree.capacity // node.container.geometry.fanout ** (level + 1)
        for start, stop in salvage.faults.ranges(Fault.UNBORN, level):
            for index in range(start, stop, step):
                if level < _LAST:
                    tree.table_for_writing(level + 1, index)
                else:
                    pointer = tree.get(index)
                    tree.put(index, page_pointer(pointer.page_no, pointer.checksum, transaction))


def _replace(tree: TableTree, old_word: int, new_word: int) -> None:
    """Put one non-page entry in the place of another wherever it stands."""
    for start, stop, leaf, word0 in tree.spans(0, tree.capacity):
        if leaf is None and word0 == old_word:
            level = _level(tree, stop - start)
            tree.cover(level, start, stop, new_word)
        elif leaf is not None and old_word in leaf.words[::2]:
            words = tree.leaf_for_writing(start).words
            for i in range(0, len(words), 2):
                if words[i] == old_word:
                    words[i] = new_word


def _level(tree: TableTree, span: int) -> int:
    """The level of the table whose entries cover `span` indexes each."""
    level, step = 0, tree.capacity // tree.fanout
    while step > span:
        level, step = level + 1, step // tree.fanout
    return level


class _Copier:
    """Gives a node copies of pages that it shared with another, which is their owner now.

    A few bytes of pointers can name a great deal, over and over; so no more is copied than the container holds, and the
    rest becomes lost.
    """

    def __init__(self, container: Container, most_units: int) -> None:
        self._container = container
        self._left = most_units

    def copy(self, node: Node, start: int, stop: int, first_table: Pointer) -> None:
        """Fill a range of a node, ABSENT so far, from what its tables led to before."""
        tree = node.tree
        former = self._container.open_tree(node.name, first_table)
        position = start
        while position < stop:
            try:
                for first, end, leaf, word0 in former.spans(position, stop):
                    if leaf is None:
                        tree.fill(first, end, _sane_word(node, word0, 0))
                    elif self._left <= 0:
                        tree.fill(first, stop, LOST_WORD)
                        return
                    else:
                        self._copy_leaf(node, leaf.words, first, end)
                    position = end
                    former.root.children.clear()
            except DamagedTable as error:
                end = min(stop, error.stop)
                tree.fill(position, end, LOST_WORD)
                position = end

    def _copy_leaf(self, node: Node, former: array[int], start: int, stop: int) -> None:
        geometry, pages = self._container.geometry, self._container.pages
        words = node.tree.leaf_for_writing(start).words
        self._left -= geometry.table_units
        copied: list[tuple[int, bytes]] = []
        shift = start % geometry.fanout
        for i in range(2 * shift, 2 * (shift + stop - start), 2):
            if former[i] >> KIND_SHIFT != PAGE:
                words[i] = _sane_word(node, former[i], former[i + 1])
                continue
            try:
                block = pages.read(former[i], former[i + 1], geometry.block_size, "data")
            except (Corruption, IoFailure):
                words[i] = LOST_WORD
                continue
            page_no = self._container.space.allocate_data(geometry.block_units, 1)[0]
            words[i], words[i + 1] = page_pointer(page_no, former[i + 1] & CHECKSUM_MASK, self._container.transaction)
            copied.append((page_no, bytes(block)))
        pages.write_pages(copied)
        self._left -= len(copied) * geometry.block_units
        node.own_blocks += len(copied)


def _sane_word(node: Node, word0: int, word1: int) -> int:
    """What an entry that is no page becomes: itself, or LOST if it has no place in that node's tables."""
    is_known = word1 == 0 and word0 in (0, ZERO_WORD, LOST_WORD)
    return word0 if is_known or (word0, word1, node.kind) == (PASS_WORD, 0, Kind.RO) else LOST_WORD
