"""What tables tell of a node without a byte of data: where it was changed since a snapshot, and how deep its data lies.

The first write of a block after a snapshot leaves an entry in the newest one, whatever the block held, and an entry
outlives the deletion of its snapshot, since the next older one inherits it. So a block of a volume may differ from an
RO snapshot only where the snapshot, or a newer one between the two, has an entry of its own; where none has, the lookup
of the older ends in the newer. `changes` walks the tables of all of them side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

from snapctl.engine.model import Kind
from snapctl.engine.reading import resolve_by_windows
from snapctl.errors import Corruption, DamagedTable, Unrelated
from snapctl.format.pointer import ABSENT, KIND_SHIFT, LOST, PAGE

if TYPE_CHECKING:
    from snapctl.engine.node import Node
    from snapctl.storage.tabletree import Table, TableTree

T = TypeVar("T")


def changes(node: Node, since: Node, offset: int, length: int) -> Iterator[tuple[int, bool]]:
    """Tell which bytes of a node may differ from an older RO snapshot of the same volume.

    Costs as much as the snapshots in between have tables, whatever the length. Not to be taken further once the
    container was changed.

    Args:
        node: a volume, or an RO snapshot of it.
        since: an older RO snapshot of that volume.
        offset: of the range, in bytes.
        length: of the range, in bytes.

    Returns:
        (length in bytes, may differ) in order, without gaps, and in turns. All edges but those of the range lie between
        blocks. What was written may differ even if it was the same again, and so may all beyond the end of `since`.

    Raises:
        Unrelated: `since` is no older RO snapshot of the same volume.
        OutOfRange: the range does not lie inside the node.
        NodeNotFound: one of the two has been deleted.
        Corruption: a table cannot be used; it names the node it belongs to and the bytes that it covers.
    """
    node.check_range(offset, length)
    since.check_range(0, 0)
    size = node.container.block_size
    start, stop = offset // size, -(-(offset + length) // size)
    return _in_bytes(_changed_blocks(node, _chain(node, since), start, stop), size, offset, length)


def depths(node: Node, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Tell how far along the lookup of a node its data lies.

    Args:
        node: any node.
        offset: of the range, in bytes.
        length: of the range, in bytes.

    Returns:
        (length in bytes, depth) in order, without gaps, neighbours of one depth joined: 1 for what the node's own
        tables tell, zeros of its own included, n for what was found n - 1 nodes further on, and 0 for what was found
        nowhere, which reads as zeros.

    Raises:
        OutOfRange: the range does not lie inside the node.
        Corruption: as `Node.extents`, while the result is taken.
    """
    node.check_range(offset, length)
    size = node.container.block_size
    pieces = resolve_by_windows(node, offset // size, -(-(offset + length) // size))
    return _in_bytes(((piece.stop, piece.hops + 1) for piece in pieces), size, offset, length)


def _chain(node: Node, since: Node) -> list[Node]:
    """The snapshots that the lookup of `since` goes through before it comes to `node`, oldest first."""
    volume = node.origin if node.kind is Kind.RO else node
    chain: list[Node] = []
    snapshot: Node | None = since
    while not chain or snapshot is not node:
        if snapshot is None or snapshot.kind is not Kind.RO or snapshot.origin is not volume:
            raise Unrelated(f"{since.name} is no older snapshot of the volume of {node.name}")
        chain.append(snapshot)
        if len(chain) > len(node.container):
            raise Corruption(f"the snapshots of {node.name} form a cycle; run check", node=node.name)
        snapshot = snapshot.parent
    return chain


def _changed_blocks(node: Node, chain: list[Node], start: int, stop: int) -> Iterator[tuple[int, bool]]:
    """(block after the last, may differ) for runs from `start` to `stop` in order."""
    size = node.container.block_size
    since = chain[0]
    shared_stop = stop if since.size_bytes >= node.size_bytes else min(stop, since.size_bytes // size)
    try:
        yield from _entries(chain, start, shared_stop)
    except DamagedTable as error:
        affected = max(start, error.start) * size, min(stop * size, error.stop * size, node.size_bytes)
        message = f"{node.name} bytes {affected[0]} to {affected[1]}, compared with {since.name}: {error}"
        raise Corruption(message, node=node.name, bytes_affected=affected, page_no=error.page_no) from error
    if max(start, shared_stop) < stop:
        yield stop, True


def _entries(chain: list[Node], start: int, stop: int) -> Iterator[tuple[int, bool]]:
    """(block after the last, whether a node of the chain has entries of its own there), as `_changed_blocks`."""
    container = chain[0].container
    position = start
    while position < stop:
        container.relieve(may_write=False)
        tables = [(tree, tree.root) for tree in (snapshot.tree for snapshot in chain)]
        most_resident = container.pages.resident_tables + container.most_resident_tables
        for run_stop, is_changed in _merged(tables, 0, tables[0][0].capacity, position, stop):
            yield run_stop, is_changed
            position = run_stop
            if container.pages.resident_tables >= most_resident:
                break  # and go on from the first tables, with all others forgotten


def _merged(
    tables: list[tuple[TableTree, Table]], base: int, span: int, start: int, stop: int
) -> Iterator[tuple[int, bool]]:
    """As `_entries`, of tables that stand in the same place of several trees.

    Args:
        tables: with the trees that they are of.
        base: first block that they cover.
        span: blocks that they cover.
        start: first block of the range.
        stop: block after the last.

    Raises:
        DamagedTable: one of them, or one beneath, cannot be used.
    """
    step = span // tables[0][0].fanout
    first, end = (start - base) // step, -(-(stop - base) // step)
    rows = [table.words[2 * first : 2 * end : 2] for _, table in tables]
    for (tree, _), row in zip(tables, rows, strict=True):
        if max(row) >> KIND_SHIFT > LOST:
            raise DamagedTable(f"{tree.what}: pointer of unknown kind in a table", start=base, stop=base + span)
    columns = zip(*rows, strict=True)
    if step == 1:
        for is_changed, run in groupby(map(any, columns)):
            start += sum(1 for _ in run)
            yield start, is_changed
        return
    for entry, words in enumerate(columns, first):
        low, high = base + entry * step, min(stop, base + (entry + 1) * step)
        if not any(words):
            yield high, False
        elif any(word >> KIND_SHIFT not in (ABSENT, PAGE) for word in words):
            yield high, True
        else:
            holders = [holder for holder, word in zip(tables, words, strict=True) if word]
            yield from _merged(_beneath(holders, entry, low, step), low, step, max(start, low), high)


def _beneath(tables: list[tuple[TableTree, Table]], entry: int, low: int, span: int) -> list[tuple[TableTree, Table]]:
    """The tables, of `span` blocks from `low` on, that an entry of each of these tables points to; all do."""
    found = []
    for tree, table in tables:
        try:
            child = tree.child(table, entry)
        except Corruption as error:
            raise DamagedTable(str(error), start=low, stop=low + span, page_no=error.page_no) from error
        if child is not None:
            found.append((tree, child))
    return found


def _in_bytes(runs: Iterable[tuple[int, T]], size: int, offset: int, length: int) -> Iterator[tuple[int, T]]:
    """Turn runs told by the block after their last into lengths of a range in bytes, neighbours of one value joined."""
    begin = position = offset
    former: T | None = None
    for stop, value in runs:
        if value != former:
            if former is not None and position > begin:
                yield position - begin, former
            begin, former = position, value
        position = min(stop * size, offset + length)
    if former is not None and position > begin:
        yield position - begin, former
