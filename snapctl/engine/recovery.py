"""Bringing changes of blocks to the tables: those of a live container's cache, and those that a log has of one.

A log that is found on opening was left by a writer that died. What stands in it was durable, so it is there before
anybody sees the container: in the file if that is opened for writing, else in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from snapctl.engine.model import Kind
from snapctl.errors import Corruption, NoSpace, OutOfRange, SnapctlError
from snapctl.format.logrecord import DATA, ZEROS, Entry
from snapctl.storage.log import Logged, read_log
from snapctl.storage.scratch import ScratchBackend
from snapctl.storage.store import Store

if TYPE_CHECKING:
    from snapctl.engine.node import Node
    from snapctl.engine.session import Session
    from snapctl.storage.backend import Backend, Buffer

_ZEROED_LEAVES = 64
"""Leaves beneath which blocks are zeroed in one step."""


class Change(NamedTuple):
    """A change of blocks of one volume.

    Attributes:
        node: the volume.
        zeros: ranges of blocks (start, stop) that read as zeros from now on.
        leaves: whole blocks by number, which go before the zeros, those under one leaf of the tables together. Of a
            last block that the size cuts, what lies beyond does not matter.
    """

    node: Node
    zeros: Sequence[tuple[int, int]]
    leaves: Mapping[int, Mapping[int, Buffer]]


def written_down(changes: Iterable[Change]) -> tuple[list[Entry], list[Buffer]]:
    """What a log says of changes: of each first its zeros, then runs of neighbouring blocks; and the blocks.

    Raises:
        OutOfRange: they do not fit their volumes.
    """
    entries: list[Entry] = []
    data: list[Buffer] = []
    for node, zeros, leaves in changes:
        first = len(entries)
        entries += [Entry(node.id, start, stop, ZEROS) for start, stop in zeros]
        blocks = {number: block for leaf in leaves.values() for number, block in leaf.items()}
        numbers = sorted(blocks)
        data += [blocks[number] for number in numbers]
        i = 0
        while i < len(numbers):
            start = stop = numbers[i]
            while i < len(numbers) and numbers[i] == stop:
                stop += 1
                i += 1
            entries.append(Entry(node.id, start, stop, DATA))
        end_block = node.container.geometry.blocks(node.size_bytes)
        if node.kind is Kind.RO or any(entry.stop > end_block for entry in entries[first:]):
            raise OutOfRange(f"blocks that are to be logged do not lie inside {node.name}, or it is read-only")
    return entries, data


def adopt_to_read(backend: Backend, session: Callable[[Store], Session]) -> tuple[Store, int]:
    """Open what stands in a file for reading; what its log has is replayed in memory.

    Args:
        backend: the file.
        session: what to replay it with.

    Returns:
        The store, and how many flushes were replayed.

    Raises:
        SnapctlError: as `Store.adopt` and `replay`.
    """
    store = Store.adopt(backend, writable=False)
    base = store.superblock
    if not base.log_pages or read_log(backend, base) == Logged():
        return store, 0
    scratch = ScratchBackend(backend, base)
    container = session(Store.adopt(scratch, writable=True))
    replay(container)
    return Store.adopt(scratch, writable=False), container.replayed_records


def apply(change: Change) -> Iterator[None]:
    """Bring a change to the tables, a bounded step between two yields; raises as `Node.write`."""
    node = change.node
    geometry, size = node.container.geometry, node.container.block_size
    step = _ZEROED_LEAVES * geometry.fanout
    end_bytes = node.size_bytes
    for start, stop in change.zeros:
        for first in range(start, stop, step):
            begin, end = first * size, min(min(stop, first + step) * size, end_bytes)
            if begin < end:
                node.trim(begin, end - begin)
                yield
    last, at = divmod(end_bytes, size)
    for number in sorted(change.leaves):
        blocks = change.leaves[number]
        if (number + 1) * geometry.fanout > last:
            blocks = {number: block for number, block in blocks.items() if number * size < end_bytes}
            if at and last in blocks:
                blocks[last] = bytes(blocks[last])[:at].ljust(size, b"\0")
        node.write_runs(sorted(blocks.items()))
        yield


def replay(container: Session) -> None:
    """Bring what the log of a container has to the tables, and commit that without a log.

    Raises:
        NoSpace: no room for it; the log stays as it is, and the next opening tries again.
        Corruption: the log is damaged, or tables that it changes are; likewise.
        IoFailure: the system refuses; likewise.
    """
    logged = read_log(container.pages.backend, container.superblock)
    count = len(logged.records)
    if logged.damage:
        raise Corruption(f"{container.path}: {logged.damage}; 'check --repair' keeps what came before")
    space, known = container.space, set(container.node_ids)
    space.set_limit(0)  # what was flushed is no new data: a container that is full can be opened
    container.pages.reserve.may_be_used = True
    try:
        for record in logged.records:
            for entry, data in record.parts(container.block_size):
                if change := change_of(container, known, entry, data):
                    for _ in apply(change):
                        pass
        container.drop_log()
        container.commit()
    except NoSpace as error:
        _give_up(container)
        raise NoSpace(f"{container.path} has {count} flushed writes in its log, which find no room: {error}") from error
    except Corruption as error:
        _give_up(container)
        raise Corruption(f"the log of {container.path} cannot be replayed: {error}; run check") from error
    space.set_limit(container.superblock.pages_limit)
    container.replayed_records = count


def change_of(container: Session, known: Collection[int], entry: Entry, data: memoryview) -> Change | None:
    """What an entry of a log, with its data, means in a container; None if its volume has been deleted since.

    Raises:
        Corruption: it cannot be.
    """
    node = container.by_id(entry.node) if entry.node in known else None
    if fault := fault_of(entry, None if node is None else node.kind):
        raise Corruption(fault)
    if node is None:
        return None
    if entry.kind == ZEROS:
        return Change(node, [(entry.start, entry.stop)], {})
    size = container.block_size
    leaves: dict[int, dict[int, Buffer]] = {}
    for number in range(entry.start, entry.stop):
        at = (number - entry.start) * size
        leaves.setdefault(number // container.geometry.fanout, {})[number] = data[at : at + size]
    return Change(node, [], leaves)


def fault_of(entry: Entry, kind: Kind | None) -> str | None:
    """Why an entry of a log cannot be for a node of a kind, or for one that is not there any more; None if it can."""
    return f"changes node {entry.node}, a read-only snapshot" if kind is Kind.RO else None


def _give_up(container: Session) -> None:
    with suppress(SnapctlError):
        container.abort()
