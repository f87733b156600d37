"""The write path: who inherits the old page is the only question (design invariant 2, claims 5 and 6).

The first write to a block after a snapshot hands the block's old entry to the newest snapshot, or PASS if the volume
had none of its own. Any other old page is overwritten in place if it was born in this transaction, else freed. Data
goes to the file a leaf of blocks at a time, in as few calls as its pages allow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapctl.engine import reading
from snapctl.engine.handover import Handover
from snapctl.engine.model import Cow, Kind
from snapctl.errors import BadSize, Corruption, DataLost, IoFailure
from snapctl.format.checksum import crc32c
from snapctl.format.pointer import (
    ABSENT,
    BIRTH_SHIFT,
    CHECKSUM_MASK,
    KIND_SHIFT,
    PAGE,
    PAGE_MASK,
    PAGE_WORD,
    PASS_WORD,
    ZERO_WORD,
)

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Mapping, Sequence

    from snapctl.engine.node import Node
    from snapctl.storage.backend import Buffer
    from snapctl.storage.tabletree import Table


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
    """Write `data` at `offset` in bytes; the range lies inside the volume.

    Raises:
        NoSpace: no room for the data or for tables; whatever happened before stays in the open transaction.
        Corruption: a table, or a block that is written in part, cannot be read.
        IoFailure: the system refuses.
    """
    block_size = node.container.block_size
    end = offset + len(data)
    position = offset
    while position < end:
        block_no, at = divmod(position, block_size)
        piece = data[position - offset :]
        if at or len(piece) < block_size:
            piece = piece[: block_size - at]
            block = memoryview(bytearray(block_size))
            if at or position + len(piece) < node.size_bytes:
                # Else it is all that there is of the last block, of which nothing has to be readable.
                reading.read_blocks(node, block_no, block_no + 1, block)
            block[at : at + len(piece)] = piece
            _write_run(node, block_no, block)
        else:
            piece = piece[: len(piece) - len(piece) % block_size]
            _write_run(node, block_no, piece)
        position += len(piece)


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
    _write_run(node, block_no, block)


def _hole_word(node: Node) -> int:
    """What stands for zeros in a volume: nothing in a base, ZERO in an RW snapshot, whose parent would show through."""
    return 0 if node.kind is Kind.BASE else ZERO_WORD


def _trim_blocks(node: Node, start: int, stop: int) -> None:
    heir = node.newest_snapshot
    container = node.container
    heir_tree = heir.tree if heir else None
    handover = Handover(container, node.tree, heir_tree, absent_word=PASS_WORD, rest_word=_hole_word(node))
    handover.run(start, stop)
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
    node.container.relieve(may_write=True)
    numbers = sorted(blocks)
    start = numbers[0] - numbers[0] % node.container.geometry.fanout
    _write_leaf(node, start, [number - start for number in numbers], [blocks[number] for number in numbers])


def _write_run(node: Node, start: int, data: memoryview) -> None:
    """Write whole blocks from block `start` on, a leaf at a time."""
    size, fanout = node.container.block_size, node.container.geometry.fanout
    done = 0
    while done < len(data):
        node.container.relieve(may_write=True)
        block_no = start + done // size
        first = block_no % fanout
        count = min((len(data) - done) // size, fanout - first)
        blocks = [data[at : at + size] for at in range(done, done + count * size, size)]
        _write_leaf(node, block_no - first, range(first, first + count), blocks)
        done += count * size


def _write_leaf(node: Node, start: int, entries: Sequence[int], blocks: Sequence[Buffer]) -> None:
    """Write whole blocks that lie under the leaf whose first block is `start`, at ascending entries of it."""
    container = node.container
    zero_checksum, zeros = container.zero_checksum, container.zero_block
    checksums = [crc32c(block) for block in blocks]
    holes = {
        entry
        for entry, block, checksum in zip(entries, blocks, checksums, strict=True)
        if checksum == zero_checksum and bytes(block) == zeros
    }
    if len(holes) == len(entries):
        for low, high in _stretches(entries):
            _trim_blocks(node, start + low, start + high)
        return
    heir = node.newest_snapshot
    heir_leaf = _preserving_leaf(heir, start, entries) if heir else None
    leaf = node.tree.leaf_for_writing(start)
    if heir is not None and heir_leaf is not None:
        _preserve(node, heir, leaf, heir_leaf, entries)
    pages = _replace(node, leaf, entries, holes)
    container.pages.write_pages((pages[i], block) for i, block in enumerate(blocks) if entries[i] not in holes)
    birth = (container.transaction & CHECKSUM_MASK) << BIRTH_SHIFT
    words = leaf.words
    for entry, page_no, checksum in zip(entries, pages, checksums, strict=True):
        if entry not in holes:
            words[2 * entry], words[2 * entry + 1] = PAGE_WORD | page_no, checksum | birth
    node.own_blocks += len(entries) - len(holes)
    container.note_change(node)


def _stretches(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as ranges without a gap."""
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            yield numbers[start], numbers[i - 1] + 1
            start = i


def _preserving_leaf(heir: Node, start: int, entries: Sequence[int]) -> Table | None:
    """The heir's leaf for entries of one leaf, made if need be; None if it lacks none of them."""
    leaf, word0, _, _ = heir.tree.find(start)
    lacks = word0 >> KIND_SHIFT == ABSENT if leaf is None else any(not leaf.words[2 * entry] for entry in entries)
    return heir.tree.leaf_for_writing(start) if lacks else None


def _preserve(node: Node, heir: Node, leaf: Table, heir_leaf: Table, entries: Sequence[int]) -> None:
    """Hand old entries to the newest snapshot where it has none; the volume is left without them."""
    words, inherits = leaf.words, heir_leaf.words
    copies: dict[int, bytes] = {}
    moved = 0
    is_copy = node.cow is Cow.COPY
    for entry in entries:
        i = 2 * entry
        if inherits[i]:
            continue
        word0 = words[i]
        if not word0:
            inherits[i] = PASS_WORD
        elif is_copy and (original := _original(node, word0, words[i + 1])) is not None:
            copies[i] = original
        else:
            inherits[i], inherits[i + 1] = word0, words[i + 1]
            words[i] = words[i + 1] = 0
            moved += word0 >> KIND_SHIFT == PAGE
    _copy(node, words, inherits, copies)
    node.own_blocks -= moved
    heir.own_blocks += moved + len(copies)
    node.container.note_change(heir)


def _original(node: Node, word0: int, word1: int) -> bytes | None:
    """The data that an entry of a volume points to; None if it points to none, or to none that can be read.

    Then there is nothing to copy, and the snapshot gets the entry itself: it has to tell the damage, and the volume can
    be written anew.
    """
    container = node.container
    if word0 >> KIND_SHIFT != PAGE:
        return None
    try:
        return bytes(container.pages.read(word0, word1, container.block_size, f"{node.name}: data"))
    except (Corruption, IoFailure):
        return None


def _copy(node: Node, words: array[int], inherits: array[int], originals: dict[int, bytes]) -> None:
    """Claim 5 to the letter: bring the original to a new data block of the snapshot.

    Raises:
        NoSpace: no room for the copies.
    """
    container = node.container
    targets = container.space.allocate_data(container.geometry.block_units, len(originals)) if originals else []
    birth = (container.transaction & CHECKSUM_MASK) << BIRTH_SHIFT
    for i, page_no in zip(originals, targets, strict=True):
        inherits[i], inherits[i + 1] = PAGE_WORD | page_no, words[i + 1] & CHECKSUM_MASK | birth
    container.pages.write_pages(zip(targets, originals.values(), strict=True))


def _replace(node: Node, leaf: Table, entries: Sequence[int], holes: set[int]) -> list[int]:
    """Take old entries away and find a page for each that is no hole; those born in this transaction are used again.

    Returns:
        A page number for each entry, 0 for a hole.
    """
    space, units = node.container.space, node.container.geometry.block_units
    words, hole = leaf.words, _hole_word(node)
    freed: list[int] = []
    again: dict[int, int] = {}
    for entry in entries:
        word0 = words[2 * entry]
        if word0 >> KIND_SHIFT == PAGE:
            page_no = word0 & PAGE_MASK
            if entry not in holes and space.is_fresh(page_no):
                again[entry] = page_no
            else:
                freed.append(page_no)
        words[2 * entry], words[2 * entry + 1] = hole, 0
    space.free_pages(freed, units)
    node.own_blocks -= len(freed) + len(again)
    fresh = iter(space.allocate_data(units, len(entries) - len(holes) - len(again)))
    return [again[entry] if entry in again else 0 if entry in holes else next(fresh) for entry in entries]
