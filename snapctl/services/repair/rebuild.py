"""Carrying out a plan: one transaction that makes the snapshot list and the space map anew and mends tables.

All that it writes goes to pages beyond the end of the file as it was, so until its superblock is written the container
is as before, and after it the state before is whole behind the other superblock slot.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace

from snapctl.engine import recovery
from snapctl.engine.container import Container
from snapctl.engine.model import Kind
from snapctl.engine.node import Node
from snapctl.errors import Corruption, IoFailure
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
from snapctl.services.check.faults import Fault, Faults
from snapctl.services.repair.plan import Plan, Salvage
from snapctl.storage.backend import Backend, Buffer
from snapctl.storage.store import Store
from snapctl.storage.tabletree import Table, TableTree

_LAST = VOLUME_DEPTH - 1


def rebuild(backend: Backend, plan: Plan) -> None:
    """Carry out a plan, and commit.

    Raises:
        NoSpace: no room for what has to be written; the container is as before.
        IoFailure: the system refuses; the container is as before, or if that happened in the commit, repaired.
    """
    container = Container(Store.rebuild(backend, plan.base, plan.in_use(), plan.next_node_id))
    try:
        copier = _Copier(container, container.space.used)
        with container.changing():
            for salvage in plan.nodes:
                node = container.restore(replace(salvage.placed.record, own_blocks=salvage.sound_blocks))
                if salvage.is_changed:
                    _mend_tables(node, salvage, copier)
                container.relieve(may_write=True)
        known = {node.placed.record.id for node in plan.nodes}
        for entry, data in plan.log:
            if change := recovery.change_of(container, known, entry, data):
                for _ in recovery.apply(change):
                    pass
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
            _fill(node, 0, end_block, LOST_WORD)
    else:
        # Changed from here on, so that it stays in memory when tables are written out.
        node.tree.touch(node.tree.root)
        _mend_births(node, faults)
        for level in range(VOLUME_DEPTH):
            for start, stop in faults.ranges(Fault.LOST, level):
                _clear(node, level, start, stop)
                _fill(node, start, min(stop, end_block), LOST_WORD)
            for start, stop in faults.ranges(Fault.SHARED, level):
                _clear(node, level, start, stop)
                copier.copy(node, start, stop, placed.record.first_table)
    if placed.pass_word != PASS_WORD:
        _replace(node, PASS_WORD, placed.pass_word)
    if placed.is_orphan:
        _fill(node, 0, end_block, LOST_WORD)
    node.container.note_change(node)


def _pieces(node: Node, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Split a range so that each piece lies below one second table; between them tables in memory may be let go of."""
    span = node.container.geometry.fanout**_LAST
    while start < stop:
        end = min(stop, start - start % span + span)
        yield start, end
        node.container.relieve(may_write=True)
        start = end


def _clear(node: Node, level: int, start: int, stop: int) -> None:
    for first, end in _pieces(node, start, stop):
        node.tree.cover(level, first, end, 0)


def _fill(node: Node, start: int, stop: int, word0: int) -> None:
    for first, end in _pieces(node, start, stop):
        node.tree.fill(first, end, word0)


def _mend_births(node: Node, faults: Faults) -> None:
    """Have pages that were born in the future be born now; of a first table that is so when it is changed."""
    tree, transaction = node.tree, node.container.transaction
    for level in range(VOLUME_DEPTH):
        step = tree.capacity // tree.fanout ** (level + 1)
        for start, stop in faults.ranges(Fault.UNBORN, level):
            for first, end in _pieces(node, start, stop):
                for index in range(first, end, step):
                    if level < _LAST:
                        tree.table_for_writing(level + 1, index)
                    else:
                        pointer = tree.get(index)
                        tree.put(index, page_pointer(pointer.page_no, pointer.checksum, transaction))


def _replace(node: Node, old_word: int, new_word: int) -> None:
    """Put one non-page entry in the place of another wherever it stands."""
    tree = node.tree
    for first, end in _pieces(node, 0, tree.capacity):
        for start, stop, leaf, word0 in tree.spans(first, end):
            if leaf is None and word0 == old_word:
                tree.cover(_level(tree, stop - start), start, stop, new_word)
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

    A few bytes of pointers can name a great deal, over and over; so no more tables are looked at and no more data is
    copied than the container holds, and the rest becomes lost.
    """

    def __init__(self, container: Container, most_units: int) -> None:
        self._container = container
        self._left = most_units

    def copy(self, node: Node, start: int, stop: int, first_table: Pointer) -> None:
        """Fill a range of a node, ABSENT so far, from what its tables led to before."""
        former = self._container.open_tree(node.name, first_table)
        self._copy_table(node, former, former.root, former.capacity, start, stop)

    def _copy_table(self, node: Node, former: TableTree, table: Table, span: int, start: int, stop: int) -> None:
        """Fill a range that lies below one former table, which covers `span` blocks."""
        self._left -= self._container.geometry.table_units
        step = span // former.fanout
        if step == 1:
            self._copy_leaf(node, table.words, start, stop)
            return
        position = start
        while position < stop:
            if self._left <= 0:
                _fill(node, position, stop, LOST_WORD)
                return
            entry = position // step % former.fanout
            end = min(stop, position - position % step + step)
            try:
                child = former.child(table, entry)
            except (Corruption, IoFailure):
                node.tree.fill(position, end, LOST_WORD)
            else:
                if child is None:
                    node.tree.fill(position, end, _sane_word(node, *table.words[2 * entry : 2 * entry + 2]))
                else:
                    self._copy_table(node, former, child, step, position, end)
                    table.children.clear()
            self._container.relieve(may_write=True)
            position = end

    def _copy_leaf(self, node: Node, former: array[int], start: int, stop: int) -> None:
        geometry, pages = self._container.geometry, self._container.pages
        words = node.tree.leaf_for_writing(start).words
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
        blocks: list[Buffer] = [block for _, block in copied]
        pages.write_pages([page_no for page_no, _ in copied], blocks, geometry.block_size)
        self._left -= len(copied) * geometry.block_units
        node.own_blocks += len(copied)


def _sane_word(node: Node, word0: int, word1: int) -> int:
    """What an entry that is no page becomes: itself, or LOST if it has no place in that node's tables."""
    is_known = word1 == 0 and word0 in (0, ZERO_WORD, LOST_WORD)
    return word0 if is_known or (word0, word1, node.kind) == (PASS_WORD, 0, Kind.RO) else LOST_WORD
