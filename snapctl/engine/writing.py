"""The write path: who inherits the old page is the only question (design invariant 2, claims 5 and 6).

The first write to a block after a snapshot hands the block's old entry to the newest snapshot, or PASS if the volume
had none of its own. Any other old page is overwritten in place if it was born in this transaction, else freed. Data
goes to the file a leaf of blocks at a time, in as few calls as its pages allow.
"""

from __future__ import annotations

from array import array
from contextlib import suppress
from itertools import compress
from typing import TYPE_CHECKING

from snapctl.engine import reading
from snapctl.engine.handover import Handover
from snapctl.engine.model import Cow, Kind
from snapctl.errors import BadSize, Corruption, DataLost, IoFailure, SnapctlError
from snapctl.format.checksum import crc32c
from snapctl.format.pointer import (
    BIRTH_SHIFT,
    CHECKSUM_MASK,
    KIND_SHIFT,
    PAGE,
    PAGE_MASK,
    PAGE_WORD,
    PASS_WORD,
    ZERO_WORD,
    filled_table,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

    from snapctl.engine.node import Node
    from snapctl.engine.session import Session
    from snapctl.storage.backend import Buffer


def check_room(node: Node, offset: int, data: memoryview) -> None:
    """Refuse data that the capacity has no room for, while nothing is changed yet.

    What the data replaces does not count, since none of that is free before the next commit; nor do blocks of zeros.

    Raises:
        NoSpace: no room for the data, or in the worst case for the tables above it.
    """
    container = node.container
    geometry, size, zeros = container.geometry, container.block_size, container.zero_block
    end = offset + len(data)
    first, last = offset // size, (end - 1) // size
    heir = node.newest_snapshot
    copies = 2 if heir and node.cow is Cow.COPY else 1
    spans = (geometry.fanout, geometry.fanout**2, geometry.fanout**3)
    tables = sum(last // span - first // span + 1 for span in spans) * (2 if heir else 1)
    room = container.space.room - tables * geometry.table_units
    blocks = last - first + 1
    if blocks * copies * geometry.block_units > room:
        whole = range(-offset % size, len(data) - size + 1, size)
        blocks -= sum(data[at : at + size].tobytes() == zeros for at in whole)
    if blocks * copies * geometry.block_units > room:
        raise container.space.full()


def write(node: Node, offset: int, data: memoryview) -> None:
    """Write `data` at `offset` in bytes, a leaf at a time; the range lies inside the volume.

    Raises:
        NoSpace: no room for the data or for tables; what was written to other leaves stays in the open transaction.
        Corruption: a table, or a block that is written in part, cannot be read; likewise.
        IoFailure: the system refuses.
    """
    size, fanout = node.container.block_size, node.container.geometry.fanout
    end = offset + len(data)
    position = offset
    while position < end:
        first = position // size % fanout
        start = position // size - first
        piece = data[position - offset : (start + fanout) * size - offset]
        blocks = _whole_blocks(node, position, piece)
        together = piece if len(piece) == len(blocks) * size else None
        _write_leaf(node, start, range(first, first + len(blocks)), blocks, together)
        position += len(piece)


def _whole_blocks(node: Node, position: int, piece: memoryview) -> list[memoryview]:
    """Cut what is to be written at an offset into blocks; those that it covers in part are filled up by reading."""
    size = node.container.block_size
    head = -position % size
    blocks = [piece[at : at + size] for at in range(head, len(piece), size)]
    if head:
        blocks.insert(0, _filled_up(node, position, piece[:head]))
    if len(blocks[-1]) < size:
        tail = len(blocks[-1])
        blocks[-1] = _filled_up(node, position + len(piece) - tail, piece[-tail:])
    return blocks


def _filled_up(node: Node, position: int, piece: memoryview) -> memoryview:
    """The block in which a part of one is written."""
    size = node.container.block_size
    block_no, at = divmod(position, size)
    block = memoryview(bytearray(size))
    if at or position + len(piece) < node.size_bytes:
        # Else it is all that there is of the last block, of which nothing has to be readable.
        reading.read_blocks(node, block_no, block_no + 1, block)
    block[at : at + len(piece)] = piece
    return block


def trim(node: Node, offset: int, length: int) -> None:
    """Make a range in bytes read as zeros; blocks that it covers in full lose their data. Raises as `write`."""
    block_size = node.container.block_size
    end = offset + length
    start, stop = -(-offset // block_size), end // block_size
    if end == node.size_bytes:
        stop = node.container.geometry.blocks(end)
    if start > stop:  # inside one block
        _zero(node, offset, end)
        return
    node.container.pages.reserve.may_be_used = True
    _zero(node, offset, min(end, start * block_size))
    _zero(node, stop * block_size, end)
    _trim_blocks(node, start, stop)


def check_resize(node: Node, size_bytes: int, *, shrink: bool) -> None:
    """Refuse a new size that the format cannot hold, or a smaller one unless `shrink` is set.

    Raises:
        BadSize: so it is.
    """
    node.container.geometry.check_volume_size(size_bytes)
    if size_bytes < node.size_bytes and not shrink:
        raise BadSize(
            f"{size_bytes} is less than the {node.size_bytes} bytes of {node.name}; what lies beyond would be lost "
            "(give --shrink to do it)"
        )


def resize(node: Node, size_bytes: int) -> None:
    """Change a volume's size: a smaller one trims the tail, an RW snapshot that grows gets zeros. Raises as `write`."""
    geometry = node.container.geometry
    old = node.size_bytes
    smaller, larger = sorted((old, size_bytes))
    if size_bytes < old or node.kind is Kind.RW:
        node.container.pages.reserve.may_be_used = True
        # Every block of the tail, mapped or not, and the last block's bytes beyond the end: whoever grows over them
        # later, or reads them through here, finds zeros.
        _trim_blocks(node, geometry.blocks(smaller), geometry.blocks(larger))
        _zero_beyond(node, smaller)
    node.update(size_bytes=size_bytes)


def _zero(node: Node, start: int, end: int) -> None:
    if start < end:
        write(node, start, memoryview(bytes(end - start)))


def _zero_beyond(node: Node, size_bytes: int) -> None:
    """Zero the rest of the block in which `size_bytes` lies."""
    block_size = node.container.block_size
    block_no, at = divmod(size_bytes, block_size)
    if not at:
        return
    block = memoryview(bytearray(block_size))
    try:
        reading.read_blocks(node, block_no, block_no + 1, block)
    except DataLost:
        return  # and stays so, with what the volume may grow into
    block[at:] = bytes(block_size - at)
    write_blocks(node, {block_no: block})


def _hole_word(node: Node) -> int:
    """What stands for zeros in a volume: nothing in a base, ZERO in an RW snapshot, whose parent would show through."""
    return 0 if node.kind is Kind.BASE else ZERO_WORD


def _trim_blocks(node: Node, start: int, stop: int) -> None:
    heir = node.newest_snapshot
    container = node.container
    heir_tree = heir.tree if heir else None
    handover = Handover(container, node.tree, heir_tree, absent_word=PASS_WORD, rest_word=_hole_word(node))
    try:
        handover.run(start, stop)
    finally:  # what lies before a damaged table is trimmed
        node.own_blocks -= handover.freed + handover.inherited
        container.note_change(node)
        if heir:
            heir.own_blocks += handover.inherited
            container.note_change(heir)


def write_blocks(node: Node, blocks: Mapping[int, Buffer]) -> None:
    """Write whole blocks by number, all under one leaf: neighbours in the leaf become neighbours on disk.

    Raises:
        NoSpace, Corruption, IoFailure: as `write`.
    """
    numbers = sorted(blocks)
    start = numbers[0] - numbers[0] % node.container.geometry.fanout
    _write_leaf(node, start, [number - start for number in numbers], [blocks[number] for number in numbers])


def _write_leaf(
    node: Node, start: int, entries: Sequence[int], blocks: Sequence[Buffer], together: memoryview | None = None
) -> None:
    """Write whole blocks at ascending entries of the leaf whose first block is `start`: all of them, or none.

    What can fail comes before anything changes: tables are read, and data goes to pages that nothing points to yet.

    Args:
        node: the volume.
        start: first block beneath the leaf.
        entries: of the leaf.
        blocks: what to write.
        together: the same as one buffer, if it is one.
    """
    container = node.container
    container.relieve(may_write=True)
    checksums = list(map(crc32c, blocks))
    is_hole = _find_holes(container, blocks, checksums)
    if not any(is_hole):
        _write_data(node, start, entries, blocks, checksums, together)
        return
    holes = list(compress(entries, is_hole))
    if len(holes) < len(entries):
        is_data = [not hole for hole in is_hole]
        data, data_checksums = list(compress(blocks, is_data)), list(compress(checksums, is_data))
        _write_data(node, start, list(compress(entries, is_data)), data, data_checksums)
    heir = node.newest_snapshot
    for owner in (node, heir) if heir else (node,):
        _old_words(owner, start)
    with container.changing(moves_pages=False):
        for low, high in _stretches(holes):
            _trim_blocks(node, start + low, start + high)


def _find_holes(container: Session, blocks: Sequence[Buffer], checksums: Sequence[int]) -> Sequence[bool]:
    """Tell for each block whether it is zeros; nothing at all if none is."""
    if container.zero_checksum not in checksums:
        return ()
    zero_checksum, zeros = container.zero_checksum, container.zero_block
    return [
        checksum == zero_checksum and bytes(block) == zeros for block, checksum in zip(blocks, checksums, strict=True)
    ]


def _stretches(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as ranges without a gap."""
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            yield numbers[start], numbers[i - 1] + 1
            start = i


def _old_words(node: Node, start: int) -> array[int]:
    """The words of the leaf whose first block is `start`, as they are or would be if it were made; only to be read."""
    leaf, word0, _, _ = node.tree.find(start)
    return filled_table(node.tree.fanout, word0) if leaf is None else leaf.words


def _write_data(
    node: Node,
    start: int,
    entries: Sequence[int],
    blocks: Sequence[Buffer],
    checksums: Sequence[int],
    together: memoryview | None = None,
) -> None:
    """Write blocks that are not zeros, as `_write_leaf`.

    What an entry leads to so far is given to the newest snapshot if that lacks it; else its page is used again if it
    was born in this transaction, or freed.
    """
    container = node.container
    space, units = container.space, container.geometry.block_units
    words, heir = _old_words(node, start), node.newest_snapshot
    lacking: list[int] = []
    originals: dict[int, bytes] = {}
    if heir is not None:
        inherits = _old_words(heir, start)
        lacking = [entry for entry in entries if not inherits[2 * entry]]
        if node.cow is Cow.COPY:
            originals = _originals(node, lacking, words)
    given = set(lacking).difference(originals)
    kept = [entry for entry in entries if entry not in given] if given else entries
    old = _pages_of(words, kept, units)
    again = space.fresh_among(old)
    fresh = space.allocate_data(units, len(originals) + len(entries) - len(again))
    copied, pages = fresh[: len(originals)], fresh[len(originals) :]
    try:
        container.pages.write_pages(copied, list(originals.values()))
        if again:
            pages = _write_mixed(node, words, entries, blocks, again, pages)
        else:
            container.pages.write_pages(pages, blocks, together)
    except SnapctlError:
        space.free_pages(fresh, units)
        raise
    with container.changing(moves_pages=False):
        if heir is not None and lacking:
            _preserve(node, heir, start, lacking, words, dict(zip(originals, copied, strict=True)))
        space.free_pages(old if not again else [page_no for page_no in old if page_no not in again], units)
        _enter(node.tree.leaf_for_writing(start).words, entries, pages, checksums, container.transaction)
        node.own_blocks += len(entries) - len(old)
        container.note_change(node)


def _pages_of(words: array[int], entries: Sequence[int], units: int) -> Sequence[int]:
    """The pages that entries of a leaf lead to; as a range, if there is one for each and they follow each other."""
    if isinstance(entries, range):
        found = words[2 * entries.start : 2 * entries.stop : 2].tolist()
        run = range(found[0], found[0] + len(found) * units, units)
        if found[0] >> KIND_SHIFT == PAGE and found[-1] == run[-1] and found == list(run):
            return range(run.start & PAGE_MASK, (run.start & PAGE_MASK) + len(run) * units, units)
    else:
        found = [words[2 * entry] for entry in entries]
    return [word0 & PAGE_MASK for word0 in found if word0 >> KIND_SHIFT == PAGE]


def _write_mixed(
    node: Node,
    words: array[int],
    entries: Sequence[int],
    blocks: Sequence[Buffer],
    again: Container[int],
    fresh: Sequence[int],
) -> list[int]:
    """Write blocks to fresh pages or to those that they have, if these may be used again; returns the page of each.

    A page of this transaction was written before, so that the file system has room for it. Should it nevertheless have
    none, nothing can be saved, for the page may be half overwritten.
    """
    pages, unused = node.container.pages, iter(fresh)
    found = [page_no if (page_no := words[2 * entry] & PAGE_MASK) in again else next(unused) for entry in entries]
    if next(unused, None) is not None:
        raise Corruption(f"{node.name}: two entries of a table lead to one page; run check", node=node.name)
    is_fresh = [page_no not in again for page_no in found]
    pages.write_pages(fresh, list(compress(blocks, is_fresh)))
    present = sorted((page_no, i) for i, page_no in enumerate(found) if page_no in again)
    with pages.poisoned_by_failure():
        pages.write_pages([page_no for page_no, _ in present], [blocks[i] for _, i in present])
    return found


def _enter(
    words: array[int], entries: Sequence[int], pages: Sequence[int], checksums: Sequence[int], transaction: int
) -> None:
    """Have entries of a leaf lead to pages."""
    birth = (transaction & CHECKSUM_MASK) << BIRTH_SHIFT
    if isinstance(entries, range):
        low, high = 2 * entries.start, 2 * entries.stop
        words[low:high:2] = array("Q", [PAGE_WORD | page_no for page_no in pages])
        words[low + 1 : high : 2] = array("Q", [birth | checksum for checksum in checksums])
        return
    for entry, page_no, checksum in zip(entries, pages, checksums, strict=True):
        words[2 * entry] = PAGE_WORD | page_no
        words[2 * entry + 1] = birth | checksum


def _preserve(
    node: Node, heir: Node, start: int, entries: Sequence[int], words: array[int], copied: Mapping[int, int]
) -> None:
    """Hand old entries to the newest snapshot, which has none: the volume's own, or PASS if it has none either.

    Under the policy of copying, what it gets is a page of its own (claim 5 to the letter).
    """
    inherits = heir.tree.leaf_for_writing(start).words
    birth = (node.container.transaction & CHECKSUM_MASK) << BIRTH_SHIFT
    moved = 0
    for entry in entries:
        i = 2 * entry
        if entry in copied:
            inherits[i], inherits[i + 1] = PAGE_WORD | copied[entry], words[i + 1] & CHECKSUM_MASK | birth
        elif words[i]:
            inherits[i], inherits[i + 1] = words[i], words[i + 1]
            moved += words[i] >> KIND_SHIFT == PAGE
        else:
            inherits[i] = PASS_WORD
    node.own_blocks -= moved
    heir.own_blocks += moved + len(copied)
    node.container.note_change(heir)


def _originals(node: Node, entries: Iterable[int], words: array[int]) -> dict[int, bytes]:
    """The data that entries of a volume lead to, but for what cannot be read.

    Then there is nothing to copy, and the snapshot gets the entry itself: it has to tell the damage, and the volume can
    be written anew.
    """
    container = node.container
    found: dict[int, bytes] = {}
    for entry in entries:
        word0, word1 = words[2 * entry], words[2 * entry + 1]
        if word0 >> KIND_SHIFT == PAGE:
            with suppress(Corruption, IoFailure):
                page = container.pages.read(word0, word1, container.block_size, f"{node.name}: data")
                found[entry] = bytes(page)
    return found
