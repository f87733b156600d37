"""The read path: ranges are resolved into pieces along the snapshot tree, and pieces into few large reads.

A piece is found in one leaf of one node, or is zeros. Resolution walks tables a subtree at a time and goes on, range
by range, in the parent (ABSENT) or past the origin (PASS). What is read through a node is clipped by that node's
size, in bytes, at every hop, so that a snapshot never shows what its origin grew into later.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from snapctl.engine.model import Extent
from snapctl.errors import Corruption, DamagedTable, DataLost
from snapctl.format.checksum import crc32c
from snapctl.format.pointer import ABSENT, CHECKSUM_MASK, KIND_SHIFT, LOST, PAGE, PAGE_MASK, PASS, ZERO, kind_runs

if TYPE_CHECKING:
    from array import array

    from snapctl.engine.node import Node

NOWHERE = -1
"""The hops of what was not found."""
_WINDOW_LEAVES = 256
"""Leaves that a walk over extents may hold in memory."""


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


def read_into(node: Node, offset: int, buffer: memoryview) -> None:
    """Fill `buffer` from `offset` in bytes on; the range lies inside the node. Raises as `read_blocks`."""
    block_size = node.container.block_size
    step = node.container.geometry.fanout * block_size
    done = 0
    while done < len(buffer):
        node.container.relieve(may_write=False)
        position = offset + done
        head = position % block_size
        length = min(len(buffer) - done, step - position % step)
        target = buffer[done : done + length]
        start, stop = position // block_size, -(-(position + length) // block_size)
        if head == 0 and length % block_size == 0:
            read_blocks(node, start, stop, target)
        else:
            scratch = memoryview(bytearray((stop - start) * block_size))
            read_blocks(node, start, stop, scratch)
            target[:] = scratch[head : head + length]
        done += length


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
    """As `resolve`, in parts between which the tables that were read can be forgotten."""
    step = _WINDOW_LEAVES * node.container.geometry.fanout
    for first in range(start, stop, step):
        node.container.relieve(may_write=False)
        yield from resolve(node, first, min(stop, first + step))


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
    for found in _entries(piece):
        if joined is not None:
            if found.words is None and joined[2:] == found[2:]:
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
    pages, geometry = container.pages, container.geometry
    size, units = geometry.block_size, geometry.block_units
    shift = piece.start % geometry.fanout
    count = piece.stop - piece.start
    i = 0
    while i < count:
        word0 = words[2 * (shift + i)]
        j = i + 1
        while j < count and words[2 * (shift + j)] == word0 + (j - i) * units:
            j += 1
        try:
            pages.read_run(pages.locate(word0, (j - i) * size), target[i * size : j * size])
        except Corruption as error:
            run = piece._replace(start=piece.start + i, stop=piece.start + j)
            raise _error(Corruption, node, run, f"data: {error}", error.page_no) from error
        for k in range(i, j):
            if crc32c(target[k * size : (k + 1) * size]) != words[2 * (shift + k) + 1] & CHECKSUM_MASK:
                page_no = words[2 * (shift + k)] & PAGE_MASK
                block = piece._replace(start=piece.start + k, stop=piece.start + k + 1)
                raise _error(Corruption, node, block, f"data at page {page_no} fails its checksum", page_no)
        i = j
