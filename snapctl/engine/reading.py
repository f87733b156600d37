"""The read path: ranges are resolved into pieces along the snapshot tree, and pieces into few large reads.

A piece is found in one leaf of one node, or is zeros. Resolution walks tables a subtree at a time and goes on, range
by range, in the parent (ABSENT) or past the origin (PASS). What is read through a node is clipped by that node's
size, in bytes, at every hop, so that a snapshot never shows what its origin grew into later.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from snapctl.engine.locating import locate_each
from snapctl.engine.model import Extent
from snapctl.errors import Corruption, DamagedTable, DataLost
from snapctl.format.checksum import checksums, checksums_of
from snapctl.format.pointer import (
    ABSENT,
    KIND_SHIFT,
    LOST,
    PAGE,
    PAGE_MASK,
    PAGE_WORD,
    PASS,
    ZERO,
    kind_runs,
    pointer_checksums,
)
from snapctl.storage.backend import NotCached

if TYPE_CHECKING:
    from array import array

    from snapctl.engine.node import Node
    from snapctl.storage.backend import Buffer
    from snapctl.storage.pages import PageFile

NOWHERE = -1
"""The hops of what was not found."""
_WINDOW_LEAVES = 256
"""Leaves of each node on the way that a walk over extents may hold in memory."""


class Piece(NamedTuple):
    """A range of blocks that is found in one place.

    Attributes:
        start: first block.
        stop: block after the last.
        kind: PAGE, ZERO or LOST once found; ABSENT while the lookup has to go on in `owner`.
        limit_bytes: offset in the node from which on the piece reads as zeros.
        owner: the node that it was found in.
        words: for PAGE, the words of the leaf that points to the data.
        hops: how many nodes were passed on the way; `NOWHERE` for zeros that no entry of any node stands for.
    """

    start: int
    stop: int
    kind: int
    limit_bytes: int
    owner: Node
    words: array[int] | None
    hops: int


def read(node: Node, offset: int, length: int) -> bytearray:
    """Read a range that lies inside the node. Raises as `read_blocks`."""
    data = bytearray(length)
    read_into(node, offset, memoryview(data))
    return data


def read_each(node: Node, ranges: list[tuple[int, int]]) -> list[Buffer | NotCached | None]:
    """Read ranges that lie inside the node, the shortest way: whole blocks that a leaf in memory points to.

    Args:
        node: the node.
        ranges: offset and length in bytes.

    Returns:
        Of each range the data, or what its pages lack in memory; None if that takes another way, or is damaged.

    Raises:
        IoFailure: the system refuses.
    """
    pages, geometry = node.container.pages, node.container.geometry
    leaf_shift = geometry.block_shift + geometry.fanout_shift
    sizes = geometry.block_shift, geometry.fanout_shift, geometry.block_units, geometry.unit
    bounds = geometry.first_page, pages.end_page
    tables = None if node.is_snapshot else node.tables
    leaves = node.view if tables is None else tables.read_leaves
    places, sums = locate_each(leaves, ranges, *sizes, *bounds)
    if tables is not None and None in places:
        seen = len(leaves)
        for leaf_no in {offset >> leaf_shift for offset, _ in ranges}.difference(leaves):
            tables.resident_words(leaf_no << geometry.fanout_shift)
        if len(leaves) > seen:
            places, sums = locate_each(leaves, ranges, *sizes, *bounds)
    blocks = pages.backend.read_each([place for place in places if place is not None])
    if blocks is None or checksums_of(blocks, geometry.block_size) != sums:
        blocks, places = [], [None] * len(ranges)  # each by itself, to find out which it is
    if len(blocks) == len(ranges):
        return [*blocks]
    read = iter(blocks)
    return [
        _read_simply(pages, leaves.get(offset >> leaf_shift), offset, length) if place is None else next(read)
        for (offset, length), place in zip(ranges, places, strict=True)
    ]


def _read_simply(pages: PageFile, words: array[int] | None, offset: int, length: int) -> bytearray | NotCached | None:
    """Read a range; returns and raises as `read_each`."""
    geometry = pages.geometry
    first, count = offset >> geometry.block_shift & geometry.fanout_mask, length >> geometry.block_shift
    is_whole = not (offset | length) & geometry.block_size - 1
    if words is None or not is_whole or not 0 < count <= geometry.fanout - first:
        return None
    data = bytearray(length)
    try:
        return data if _fetch(pages, words, first, count, data) else None
    except NotCached as missing:
        return missing


def _fetch(pages: PageFile, words: array[int], first: int, count: int, target: bytearray | memoryview) -> bool:
    """Read the data blocks that entries of a leaf point to, and verify each.

    Returns:
        Whether all is well; else nothing is known of `target`, and `read_blocks` finds out why.
    """
    geometry = pages.geometry
    view, shift = memoryview(target), geometry.block_shift
    for i, j in _runs(words, first, first + count, geometry.block_units):
        page_no = words[2 * i] - PAGE_WORD
        if not geometry.first_page <= page_no <= pages.end_page - (j - i) * geometry.block_units:
            return False
        pages.backend.read_into(page_no * geometry.unit, view[(i - first) << shift : (j - first) << shift])
    return checksums(view, geometry.block_size) == pointer_checksums(words, first, first + count)


def read_into(node: Node, offset: int, buffer: memoryview) -> None:
    """Fill `buffer` from `offset` in bytes on; the range lies inside the node. Raises as `read_blocks`."""
    block_size = node.container.block_size
    step = node.container.geometry.fanout * block_size
    done = 0
    while done < len(buffer):
        position = offset + done
        head = position % block_size
        length = min(len(buffer) - done, step - position % step)
        target = buffer[done : done + length]
        start, stop = position // block_size, -(-(position + length) // block_size)
        is_whole = head == 0 and length % block_size == 0
        blocks = target if is_whole else memoryview(bytearray((stop - start) * block_size))
        words = _words_of(node, start, stop)
        if words is None or not _read_entries(node, start, stop, words, blocks):
            node.container.relieve(may_write=False)
            read_blocks(node, start, stop, blocks)
        if not is_whole:
            target[:] = blocks[head : head + length]
        done += length


def _words_of(node: Node, start: int, stop: int) -> array[int] | None:
    """The words of a leaf that lead to where blocks of a node are, or None if they are not to be had at once."""
    container = node.container
    leaf_no = start >> container.geometry.fanout_shift
    if node.is_snapshot:
        return node.view.get(leaf_no) or container.views.leaf(node, leaf_no)
    words = None if node.tables is None else node.tables.resident_words(start)
    if words is None or not node.is_clone:
        return words
    first = start & container.geometry.fanout_mask
    lacking = [i for i in range(2 * first, 2 * (first + stop - start), 2) if not words[i]]
    if not lacking:
        return words
    parent = node.parent
    if parent is None or not parent.is_snapshot:
        return None
    below = parent.view.get(leaf_no) or container.views.leaf(parent, leaf_no)
    if below is None or len(lacking) == stop - start:
        return below
    words = words[:]
    for i in lacking:
        words[i], words[i + 1] = below[i], below[i + 1]
    return words


def _read_entries(node: Node, start: int, stop: int, words: array[int], target: memoryview) -> bool:
    """Fill `target` with blocks that the words of a leaf lead to.

    Returns:
        As `_fetch`.
    """
    size = node.container.block_size
    base = start - start % node.container.geometry.fanout
    for i, j, kind in kind_runs(words, start - base, stop - base):
        part = target[(base + i - start) * size : (base + j - start) * size]
        if kind == PAGE:
            if not _fetch(node.container.pages, words, i, j - i, part):
                return False
        elif kind == ZERO or (kind == ABSENT and not (node.is_snapshot or node.is_clone)):
            part[:] = bytes(len(part))
        else:
            return False
    return True


def read_blocks(node: Node, start: int, stop: int, target: memoryview) -> None:
    """Fill `target` with the blocks from `start` to `stop`.

    Raises:
        Corruption: something on the way fails its checksum; the message names node, bytes and page.
        DataLost: a block is marked as lost.
    """
    size = node.container.block_size
    for piece in resolve(node, start, stop):
        begin = (piece.start - start) * size
        end = (piece.stop - start) * size
        if piece.words is None:
            if piece.kind == LOST:
                raise _error(DataLost, node, piece, "damaged beyond repair; writing it anew heals it", None)
            target[begin:end] = bytes(end - begin)
            continue
        _read_pages(node, piece, piece.words, target[begin:end])
        if piece.limit_bytes < piece.stop * size:
            cut = max(begin, piece.limit_bytes - start * size)
            target[cut:end] = bytes(end - cut)


def extents(node: Node, offset: int, length: int) -> Iterator[Extent]:
    """The extents of a range in bytes that lies inside the node; neighbours of one kind are joined.

    Raises:
        Corruption: as `resolve`.
    """
    size = node.container.block_size
    end = offset + length
    begin, was_zero = offset, True
    for piece in resolve_by_windows(node, offset // size, -(-end // size)):
        is_zero = piece.kind == ZERO
        start = max(offset, piece.start * size)
        if is_zero != was_zero:
            if start > begin:
                yield Extent(begin, start - begin, was_zero)
            begin, was_zero = start, is_zero
    if end > begin:
        yield Extent(begin, end - begin, was_zero)


def resolve_by_windows(node: Node, start: int, stop: int) -> Iterator[Piece]:
    """As `resolve`, in parts between which the tables that were read can be forgotten.

    A part without many tables may be of any length: what costs is to pass all nodes of a long chain, once for each.
    """
    container = node.container
    while start < stop:
        container.relieve(may_write=False)
        least = start + _WINDOW_LEAVES * container.geometry.fanout
        most_tables = container.pages.resident_tables + _WINDOW_LEAVES
        for piece in resolve(node, start, stop):
            yield piece
            start = piece.stop
            if start >= least and container.pages.resident_tables >= most_tables:
                break


def resolve(node: Node, start: int, stop: int) -> Iterator[Piece]:
    """Find out where the blocks from `start` to `stop` of a node come from.

    Yields:
        Pieces in order, without gaps.

    Raises:
        Corruption: a table or a record on the way is damaged, or the parents form a cycle; it names node and bytes.
    """
    # Depth first with a stack of our own, since chains are as long as people keep snapshots; and lazily, since a range
    # may be terabytes.
    most_hops = len(node.container)
    whole = Piece(start, stop, ABSENT, node.size_bytes, node, None, 0)
    stack = [(whole, iter([whole]))]
    while stack:
        asked, found = stack[-1]
        try:
            piece = next(found, None)
        except DamagedTable as error:
            beneath = asked._replace(start=max(asked.start, error.start), stop=min(asked.stop, error.stop))
            raise _error(Corruption, node, beneath, str(error), error.page_no) from error
        except Corruption as error:
            raise _error(Corruption, node, asked, str(error), error.page_no) from error
        if piece is None:
            stack.pop()
        elif piece.kind != ABSENT:
            yield piece
        elif piece.hops > most_hops:
            raise _error(Corruption, node, piece, "its ancestors form a cycle; run check", None)
        else:
            stack.append((piece, _look_up(piece)))


def _look_up(piece: Piece) -> Iterator[Piece]:
    """Resolve a piece one hop further, in the tables of its owner; neighbours without data are joined."""
    joined: Piece | None = None
    pages = piece.owner.container.pages
    most_tables = pages.resident_tables + _WINDOW_LEAVES
    for found in _entries(piece):
        if joined is not None:
            if found.words is None and joined[2:] == found[2:] and pages.resident_tables < most_tables:
                joined = joined._replace(stop=found.stop)
                continue
            yield joined
        joined = found
    if joined is not None:
        yield joined


def _entries(piece: Piece) -> Iterator[Piece]:
    node, limit = piece.owner, piece.limit_bytes
    fanout = node.container.geometry.fanout
    end_block = node.container.geometry.blocks(limit)
    for first, end, leaf, word0 in node.tree.spans(piece.start, piece.stop):
        base = first - first % fanout
        runs = (
            kind_runs(leaf.words, first - base, end - base)
            if leaf
            else ((first - base, end - base, word0 >> KIND_SHIFT),)
        )
        for i, j, kind in runs:
            start, stop = base + i, base + j
            if start >= end_block:
                yield Piece(start, stop, ZERO, limit, node, None, NOWHERE)
            elif kind == ZERO:
                yield Piece(start, stop, ZERO, limit, node, None, piece.hops)
            elif (kind == PAGE and leaf is not None) or kind == LOST:
                visible = min(stop, end_block)
                words = leaf.words if kind == PAGE and leaf else None
                yield Piece(start, visible, kind, limit, node, words, piece.hops)
                if visible < stop:
                    yield Piece(visible, stop, ZERO, limit, node, None, NOWHERE)
            elif kind == ABSENT:
                yield _hop(start, stop, piece, node.parent)
            elif kind == PASS:
                origin = node.origin
                yield _hop(start, stop, piece, origin.parent if origin else None)
            else:
                raise DamagedTable(f"pointer of unknown kind {kind:#x}", start=start, stop=stop)


def _hop(start: int, stop: int, piece: Piece, parent: Node | None) -> Piece:
    """The piece that continues in `parent`, clipped by its size; zeros if there is none or it ends before."""
    if parent is None:
        return Piece(start, stop, ZERO, piece.limit_bytes, piece.owner, None, NOWHERE)
    limit = min(piece.limit_bytes, parent.size_bytes)
    if start * parent.container.block_size >= limit:
        return Piece(start, stop, ZERO, limit, parent, None, NOWHERE)
    return Piece(start, stop, ABSENT, limit, parent, None, piece.hops + 1)


def _error(kind: type[Corruption], node: Node, piece: Piece, what: str, page_no: int | None) -> Corruption:
    """What is raised when a piece of `node` cannot be had: it names the bytes of the node, and who holds them."""
    size = node.container.block_size
    start, stop = piece.start * size, min(piece.stop * size, node.size_bytes)
    holder = "" if piece.owner is node else f" (held by {piece.owner.name})"
    message = f"{node.name} bytes {start} to {stop}{holder}: {what}"
    return kind(message, node=node.name, bytes_affected=(start, stop), page_no=page_no)


def _read_pages(node: Node, piece: Piece, words: array[int], target: memoryview) -> None:
    """Read the data blocks of one piece of `node`, physically adjacent ones at a stroke, and verify each."""
    container = piece.owner.container
    pages, size = container.pages, container.block_size
    first = piece.start % container.geometry.fanout
    end = first + piece.stop - piece.start
    for i, j in _runs(words, first, end, container.geometry.block_units):
        part = target[(i - first) * size : (j - first) * size]
        try:
            pages.read_run(pages.locate(words[2 * i], len(part)), part)
        except Corruption as error:
            run = piece._replace(start=piece.start + i - first, stop=piece.start + j - first)
            raise _error(Corruption, node, run, f"data: {error}", error.page_no) from error
        expected, found = pointer_checksums(words, i, j), checksums(part, size)
        if found != expected:
            k = next(k for k in range(j - i) if found[k] != expected[k])
            page_no = words[2 * (i + k)] & PAGE_MASK
            block_no = piece.start + i - first + k
            block = piece._replace(start=block_no, stop=block_no + 1)
            raise _error(Corruption, node, block, f"data at page {page_no} fails its checksum", page_no)


def _runs(words: array[int], first: int, end: int, units: int) -> Iterator[tuple[int, int]]:
    """Split the entries from `first` to `end` of a leaf where pages are not neighbours on disk."""
    row = words[2 * first : 2 * end : 2]
    if row.tolist() == list(range(row[0], row[0] + (end - first) * units, units)):
        yield first, end  # as most are, told without looking at each
        return
    for i, (here, following) in enumerate(pairwise(row), first + 1):
        if following - here != units:
            yield first, i
            first = i
    yield first, end
