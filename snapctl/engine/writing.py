"""The write path: who inherits the old page is the only question (design invariant 2, claims 5 and 6).

The first write to a block after a snapshot hands the block's old entry to the newest snapshot, or PASS if the volume
had none of its own. Any other old page is overwritten in place if it was born in this transaction, else freed. Data
goes to the file a leaf of blocks at a time, in as few calls as its pages allow.
"""

from __future__ import annotations

from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from snapctl.engine import placing, reading
from snapctl.engine.handover import Handover
from snapctl.engine.model import Cow, Kind
from snapctl.errors import BadSize, Corruption, DataLost, IoFailure, NoSpace, SnapctlError
from snapctl.format.checksum import checksums_of
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
from snapctl.storage.backend import Buffer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from snapctl.engine.node import Node
    from snapctl.engine.runs import Run
    from snapctl.engine.session import Session

_TOGETHER_BYTES = 64 << 10
"""From there on, fresh pages had better follow each other, so that they are written and read at a stroke."""


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
    tables = sum(last // span - first // span + 1 for span in geometry.spans) * (2 if heir else 1)
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
        start = position // size // fanout * fanout
        piece = data[position - offset : (start + fanout) * size - offset]
        write_runs(node, _whole_blocks(node, position, piece))
        position += len(piece)


def _whole_blocks(node: Node, position: int, piece: memoryview) -> list[Run]:
    """What is to be written at an offset, as whole blocks; those that it covers in part are filled up by reading."""
    size = node.container.block_size
    block_no, head = position // size, min(-position % size, len(piece))
    runs: list[Run] = []
    if head:
        runs.append((block_no, _filled_up(node, position, piece[:head])))
        block_no += 1
    tail = (len(piece) - head) % size
    if len(piece) > head + tail:
        runs.append((block_no, piece[head : len(piece) - tail]))
        block_no += (len(piece) - tail - head) // size
    if tail:
        runs.append((block_no, _filled_up(node, position + len(piece) - tail, piece[-tail:])))
    return runs


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
    write_runs(node, [(block_no, block)])


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


def write_runs(node: Node, runs: list[Run]) -> None:
    """Write whole blocks, all of them or none: neighbours among them become neighbours on disk as far as possible.

    What can fail comes before anything changes: tables are read, and data goes to pages that nothing points to yet.

    Args:
        node: the volume.
        runs: what to write, in order, apart from each other.

    Raises:
        NoSpace, Corruption, IoFailure: as `write`.
    """
    container = node.container
    container.relieve(may_write=True)
    sums = checksums_of([data for _, data in runs], container.block_size)
    if container.zero_checksum not in sums:
        _write_data(node, runs, sums)
        return
    data_runs, holes = _find_holes(container, runs, sums)
    for owner in filter(None, (node, node.newest_snapshot)):
        for first, _ in holes:
            _old_words(owner, first)
    if data_runs:
        _write_data(node, data_runs, checksums_of([data for _, data in data_runs], container.block_size))
    with container.changing(moves_pages=False):
        for first, stop in holes:
            _trim_blocks(node, first, stop)


def _find_holes(
    container: Session, runs: Sequence[Run], sums: Sequence[int]
) -> tuple[list[Run], list[tuple[int, int]]]:
    """Tell blocks that are zeros, as ranges, from those that are not, one by one."""
    size, zeros, mask = container.block_size, container.zero_block, container.geometry.fanout_mask
    data_runs: list[Run] = []
    holes: list[tuple[int, int]] = []
    blocks = (
        (first + at // size, memoryview(data)[at : at + size])
        for first, data in runs
        for at in range(0, len(data), size)
    )
    for (number, block), checksum in zip(blocks, sums, strict=True):
        if checksum != container.zero_checksum or block != zeros:
            data_runs.append((number, block))
        elif holes and holes[-1][1] == number and number & mask:
            holes[-1] = holes[-1][0], number + 1
        else:
            holes.append((number, number + 1))
    return data_runs, holes


def _old_words(node: Node, block_no: int) -> array[int]:
    """The words of the leaf that holds a block, as they are or would be if it were made; only to be read."""
    words = node.tree.leaves.get(block_no >> node.container.geometry.fanout_shift)
    if words is None:
        leaf, word0, _, _ = node.tree.find(block_no)
        return filled_table(node.tree.fanout, word0) if leaf is None else leaf.words
    return words


class _Plan(NamedTuple):
    """Where runs go.

    Attributes:
        pages: of each block the page, if it is written again where it stands; else 0, and it gets a fresh one.
        again: those pages.
        again_data: what is written there.
        moved_data: what goes to fresh pages.
        old: pages that are given up, in order.
        lacking: blocks that the newest snapshot has to inherit first, by the first block of their run.
        originals: what blocks have held so far, to be copied for it.
    """

    pages: list[int]
    again: list[int]
    again_data: list[Buffer]
    moved_data: list[Buffer]
    old: list[int]
    lacking: Mapping[int, Sequence[int]] = {}
    originals: Mapping[int, bytes] = {}


def _plan(node: Node, runs: list[Run]) -> _Plan:
    """Find out where runs go; raises as `write` for tables that cannot be read, or that lead to one page twice.

    What an entry leads to so far is given to the newest snapshot if that lacks it. Else a run whose pages follow each
    other and were all born in this transaction is written in place; pages of any other are given up.
    """
    container, heir = node.container, node.newest_snapshot
    geometry, space = container.geometry, container.space
    shift, mask, units = geometry.block_shift, geometry.fanout_mask, geometry.block_units
    if heir is None:
        found = placing.plan(
            node.tree.leaves, space.bitmaps, runs, shift, geometry.fanout_shift, geometry.bitmap_shift, units
        )
        if found is not None:
            return _Plan(*found)
    lacking: dict[int, Sequence[int]] = {}
    originals: dict[int, bytes] = {}
    plan = _Plan([], [], [], [], [], lacking, originals)
    for first, data in runs:
        words, entry, count = _old_words(node, first), first & mask, len(data) >> shift
        kept: Sequence[int] = range(entry, entry + count)
        if heir is not None:
            inherits = _old_words(heir, first)
            missing = [entry for entry in kept if not inherits[2 * entry]]
            if missing:
                lacking[first] = missing
                if node.cow is Cow.COPY:
                    copies = _originals(node, missing, words)
                    originals.update((first - entry + each, page) for each, page in copies.items())
                    missing = [entry for entry in missing if entry not in copies]
                kept = [entry for entry in kept if entry not in missing]
        pages = _pages_of(words, kept, units)
        if len(pages) == count and space.are_fresh(pages, units):
            plan.pages.extend(pages)
            plan.again.extend(pages)
            plan.again_data.append(data)
        else:
            plan.pages.extend([0] * count)
            plan.old.extend(pages)
            plan.moved_data.append(data)
    if len({*plan.old, *plan.again}) < len(plan.old) + len(plan.again):
        raise Corruption(f"{node.name}: two entries of a table lead to one page; run check", node=node.name)
    plan.old.sort()
    return plan


def _write_data(node: Node, runs: list[Run], sums: list[int]) -> None:
    """Write blocks that are not zeros, as `write_runs`, given their checksums."""
    container = node.container
    geometry, space = container.geometry, container.space
    plan = _plan(node, runs)
    new_blocks, copies = len(plan.pages) - len(plan.again), len(plan.originals)
    fresh: Sequence[int] = ()
    if new_blocks or copies:
        fresh = _write_fresh(container, list(plan.originals.values()), plan.moved_data, copies + new_blocks)
    if plan.again:
        container.pages.write_again(plan.again, plan.again_data, geometry.block_size)
    with container.changing(moves_pages=False):
        if plan.lacking:
            _bequeath(node, runs, plan, dict(zip(plan.originals, fresh[:copies], strict=True)))
        _enter(node, runs, plan.pages, fresh[copies:], sums)
        space.free_pages(plan.old, geometry.block_units)
        node.own_blocks += new_blocks - len(plan.old)
        container.note_change(node)


def _write_fresh(container: Session, originals: list[Buffer], buffers: list[Buffer], count: int) -> Sequence[int]:
    """Write the originals and then whole blocks, `count` in all, to pages that nothing points to; returns those.

    Raises:
        NoSpace, IoFailure: as `write`; nothing is allocated.
    """
    space, pages = container.space, container.pages
    units, size, end_page = container.geometry.block_units, container.block_size, pages.end_page
    is_together = space.lays_together and count * size >= _TOGETHER_BYTES
    while True:
        fresh = (space.allocate_together if is_together else space.allocate_data)(units, count)
        try:
            pages.write_pages(fresh[: len(originals)], originals, size)
            pages.write_pages(fresh[len(originals) :], buffers, size)
        except SnapctlError as error:
            space.free_pages(fresh, units)
            if not (is_together and isinstance(error, NoSpace)):
                raise
            # On the disk, where the file was to grow; there may be some in its holes.
            space.end_at(end_page)
            is_together = False
        else:
            return fresh


def _pages_of(words: array[int], entries: Sequence[int], units: int) -> Sequence[int]:
    """The pages that entries of a leaf lead to; as a range, if there is one for each and they follow each other."""
    if len(entries) == 1:
        word0 = words[2 * entries[0]]
        return (word0 & PAGE_MASK,) if word0 >> KIND_SHIFT == PAGE else ()
    if isinstance(entries, range):
        found = words[2 * entries.start : 2 * entries.stop : 2].tolist()
        run = range(found[0], found[0] + len(found) * units, units)
        if found[0] >> KIND_SHIFT == PAGE and found[-1] == run[-1] and found == list(run):
            return range(run.start & PAGE_MASK, (run.start & PAGE_MASK) + len(run) * units, units)
    else:
        found = [words[2 * entry] for entry in entries]
    return [word0 & PAGE_MASK for word0 in found if word0 >> KIND_SHIFT == PAGE]


def _bequeath(node: Node, runs: list[Run], plan: _Plan, copied: Mapping[int, int]) -> None:
    """Have the newest snapshot inherit what it lacks.

    Args:
        node: the volume.
        runs: what was written.
        plan: what is lacking.
        copied: pages that hold copies for it, by block.
    """
    heir, mask = node.newest_snapshot, node.container.geometry.fanout_mask
    for first, _ in runs:
        if heir is not None and first in plan.lacking:
            words = node.tree.leaf_for_writing(first).words
            _preserve(node, heir, first - (first & mask), plan.lacking[first], words, copied)


def _enter(node: Node, runs: list[Run], pages: list[int], fresh: Sequence[int], sums: list[int]) -> None:
    """Have the tables lead to what was written; the arguments are those of `placing.enter`."""
    container, leaves = node.container, node.tree.leaves
    geometry = container.geometry
    birth = (container.transaction & CHECKSUM_MASK) << BIRTH_SHIFT
    shifts = geometry.block_shift, geometry.fanout_shift
    try:
        placing.enter(leaves, runs, pages, fresh, sums, *shifts, birth)
    except KeyError:  # before anything was changed
        for first, _ in runs:
            node.tree.leaf_for_writing(first)
        placing.enter(leaves, runs, pages, fresh, sums, *shifts, birth)


def _preserve(
    node: Node, heir: Node, start: int, entries: Sequence[int], words: array[int], copied: Mapping[int, int]
) -> None:
    """Hand old entries to the newest snapshot, which has none: the volume's own, or PASS if it has none either.

    Under the policy of copying, what it gets is a page of its own (claim 5 to the letter).

    Args:
        node: the volume.
        heir: its newest snapshot.
        start: first block of the leaf.
        entries: of the leaf.
        words: of the leaf.
        copied: pages that hold copies, by block.
    """
    inherits = heir.tree.leaf_for_writing(start).words
    birth = (node.container.transaction & CHECKSUM_MASK) << BIRTH_SHIFT
    moved = made = 0
    for entry in entries:
        i = 2 * entry
        if start + entry in copied:
            inherits[i], inherits[i + 1] = PAGE_WORD | copied[start + entry], words[i + 1] & CHECKSUM_MASK | birth
            made += 1
        elif words[i]:
            inherits[i], inherits[i + 1] = words[i], words[i + 1]
            moved += words[i] >> KIND_SHIFT == PAGE
        else:
            inherits[i] = PASS_WORD
    node.own_blocks -= moved
    heir.own_blocks += moved + made
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
