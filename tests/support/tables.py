"""A node's tables seen the way the claims speak of them: first table, second tables, third tables, data blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from snapctl.engine.node import Node
from snapctl.format.pointer import KIND_SHIFT, PAGE, Pointer
from snapctl.storage.tabletree import Table


class Portions(NamedTuple):
    """A block address taken apart: each portion indexes the table of its level."""

    first: int
    second: int
    third: int


class Route(NamedTuple):
    """The pointers that lead from a node to a data block; None below one that names no table.

    Attributes:
        first: in the node's record, to the first table.
        second: in the first table, to a second table.
        third: in the second table, to a third table.
        data: in the third table, to the data block.
    """

    first: Pointer
    second: Pointer
    third: Pointer | None
    data: Pointer | None

    @property
    def is_complete(self) -> bool:
        """Whether it ends at a data block of the node's own."""
        return all(pointer is not None and pointer.kind == PAGE for pointer in self)


def portions(node: Node, block_no: int) -> Portions:
    """The portions of a block's address."""
    fanout = node.container.geometry.fanout
    return Portions(block_no // fanout**2, block_no // fanout % fanout, block_no % fanout)


def entry(table: Table, index: int) -> Pointer:
    """One pointer of a table."""
    return Pointer(table.words[2 * index], table.words[2 * index + 1])


def route(node: Node, block_no: int) -> Route:
    """How a node's own tables lead to a block, as far as they do."""
    tree, index = node.tree, portions(node, block_no)
    second_table = tree.child(tree.root, index.first)
    third_table = tree.child(second_table, index.second) if second_table else None
    return Route(
        node.tree_pointer,
        entry(tree.root, index.first),
        entry(second_table, index.second) if second_table else None,
        entry(third_table, index.third) if third_table else None,
    )


def tables(node: Node) -> list[Table]:
    """All tables of a node, the first table first."""
    return list(_walk(node, node.tree.root, node.tree.depth))


def table_counts(node: Node) -> tuple[int, int, int]:
    """How many first, second and third tables a node has."""
    tree = node.tree
    seconds = list(_children(node, tree.root))
    return 1, len(seconds), sum(len(list(_children(node, table))) for table in seconds)


def table_pages(node: Node) -> set[int]:
    """Where a node's tables stand, as of the last commit."""
    return {table.page_no for table in tables(node)}


def data_pages(node: Node) -> set[int]:
    """The data blocks that a node's own tables point to."""
    found: set[int] = set()
    for start, stop, leaf, _ in node.tree.spans(0, node.tree.capacity):
        if leaf is not None:
            fanout = node.container.geometry.fanout
            pointers = (entry(leaf, index % fanout) for index in range(start, stop))
            found |= {pointer.page_no for pointer in pointers if pointer.kind == PAGE}
    return found


def stored_block(node: Node, block_no: int) -> bytes:
    """What stands in the data block that a node's own tables lead to, read and verified by their pointers alone."""
    pointer = route(node, block_no).data
    if pointer is None or pointer.kind != PAGE:
        raise LookupError(f"{node.name} has no data block of its own for block {block_no}")
    container = node.container
    return bytes(container.pages.read(*pointer, container.block_size, "data block"))


def _children(node: Node, table: Table) -> Iterator[Table]:
    for index in range(len(table.words) // 2):
        if table.words[2 * index] >> KIND_SHIFT == PAGE:
            child = node.tree.child(table, index)
            if child is not None:
                yield child


def _walk(node: Node, table: Table, depth: int) -> Iterator[Table]:
    yield table
    if depth > 1:
        for child in _children(node, table):
            yield from _walk(node, child, depth - 1)
