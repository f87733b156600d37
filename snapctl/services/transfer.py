"""Whole volumes in and out: files, block devices and pipes become volumes, volumes and snapshots become files again.

An import is one transaction, which the caller commits. An export to a file leaves it whole or not at all: one that
could not be finished is removed, or never takes the place of the old one. Holes stay holes both ways.

An export holds the container's shared lock, but of an RO snapshot, whose view never changes, it lets go every now and
then: writers need not wait for it to end. Beside a server it takes up a newer state then. Whatever it knows of the
container's pages is forgotten at that moment.

What a source or a target must not be, and what the system says about it, is found in `snapctl.services.source` and
`snapctl.services.target`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from snapctl.engine.model import Cow, Kind
from snapctl.errors import BadSize, IoFailure, NodeNotFound
from snapctl.services import opening
from snapctl.services.source import Source, cut, open_source
from snapctl.services.target import CHUNK_BYTES, PIECE_BYTES, STANDARD, STANDARD_OUTPUT, Target, open_target

if TYPE_CHECKING:
    from snapctl.engine.container import Container
    from snapctl.engine.node import Node

Progress = Callable[[int, int | None], None]
"""Told the bytes done so far, holes included, and of how many if that is known."""

_WINDOW_BYTES = 1 << 30
"""How far an export looks ahead for data: what it finds is held in memory, together with the tables it is found in."""

_WRITE_OUT_BYTES = 8 << 20
"""How much is written before the disk is told to begin with it, so that less is left for the end to wait for."""

_TURN_SECONDS = 1.0
"""How long an export holds the lock before it lets writers have a turn, which costs it some hundredths of a second."""


def _ignore(_done_bytes: int, _total_bytes: int | None) -> None:
    """Report progress to nobody."""


def import_volume(
    container: Container, name: str, source: str, *, cow: Cow = Cow.REDIRECT, progress: Progress = _ignore
) -> Node:
    """Make a base volume from a file, of the file's size, in the open transaction.

    Args:
        container: open for writing; its owner commits.
        name: of the new volume.
        source: a regular file, a block device or a pipe; ``-`` for standard input.
        cow: the volume's copy-on-write policy.
        progress: called after each piece.

    Returns:
        The new volume.

    Raises:
        BadName: the volume cannot be called that.
        NameTaken: a volume is called that.
        BadSize: the source is empty, or larger than the format allows.
        UsageError: the source is the container itself.
        IoFailure: the source cannot be read, or became shorter meanwhile.
        NoSpace: no room in the container.
    """
    container.check_writable()
    with open_source(source, container.path) as opened:
        if opened.size_bytes:
            return _import_file(container, name, opened, cow, progress)
        return _import_stream(container, name, opened, cow, progress)


def export_node(
    container_path: str,
    node_name: str,
    target: str,
    *,
    force: bool = False,
    wait_seconds: float = 5.0,
    progress: Progress = _ignore,
) -> int:
    """Write the bytes of a volume or a snapshot to a file, sparsely, or to a device or a pipe, in full.

    A regular file is synced; one that is replaced keeps its mode. What a device or a pipe got before a failure stays.

    Args:
        container_path: the container file.
        node_name: ``db`` or ``db@mon``.
        target: the file; ``-`` for standard output.
        force: replace a regular file, or write to a block device.
        wait_seconds: how long to wait for writers, at first and after each turn that they are given.
        progress: called after each piece.

    Returns:
        The number of bytes written; holes are not.

    Raises:
        NodeNotFound: there is no such node, or it was deleted meanwhile.
        NameTaken: the target exists and `force` is not set.
        UsageError: the target is the container itself.
        NoSpace: no room on the target.
        IoFailure: the target cannot be written.
        BrokenPipeError: standard output was closed by its reader.
        SnapctlError: the container cannot be opened or read, as `opening.reading` and `Node.read`.
    """
    if target == STANDARD:
        # Before the container is opened, which could get the number of a closed standard output.
        _check_standard(STANDARD_OUTPUT, "standard output")
    with opening.reading(container_path, wait_seconds) as container:
        node = container.node(node_name)
        with open_target(target, container_path, node.size_bytes, replace=force) as opened:
            return _export(node, opened, wait_seconds, progress)


def _import_file(container: Container, name: str, source: Source, cow: Cow, progress: Progress) -> Node:
    node = container.create_volume(name, source.size_bytes, cow=cow)
    buffer = memoryview(bytearray(min(CHUNK_BYTES, source.size_bytes)))
    waiting = 0
    with container.changing():
        for begin, end in source.data_ranges():
            piece = buffer[: end - begin]
            source.read_at(begin, piece)
            node.write(begin, piece)
            progress(end, source.size_bytes)
            waiting += len(piece)
            if waiting >= _WRITE_OUT_BYTES:
                container.start_writing_out()
                waiting = 0
        source.check_size()
    progress(source.size_bytes, source.size_bytes)
    return node


def _import_stream(container: Container, name: str, source: Source, cow: Cow, progress: Progress) -> Node:
    """Import what tells its size only at its end: the volume grows with it, which costs a base volume nothing."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    count = source.fill(buffer)
    if count == 0:
        raise BadSize(f"{source.name} is empty; a volume has at least one byte")
    node = container.create_volume(name, count, cow=cow)
    with container.changing():
        done = 0
        while count:
            node.resize(done + count)
            node.write(done, buffer[:count])
            done += count
            progress(done, None)
            count = source.fill(buffer) if count == len(buffer) else 0
    return node


def _export(node: Node, target: Target, wait_seconds: float, progress: Progress) -> int:
    """Copy a node's bytes, giving writers their turns if it is an RO snapshot."""
    name, size, container = node.name, node.size_bytes, node.container
    buffer = memoryview(bytearray(min(size, PIECE_BYTES)))
    done = written = written_out = 0
    while done < size:
        turn_ends = time.monotonic() + _TURN_SECONDS
        for begin, end in _ranges(node, done, target):
            piece = buffer[: end - begin]
            node.read_into(begin, piece)
            target.put(begin, piece)
            written += len(piece)
            done = end
            if done - written_out >= _WRITE_OUT_BYTES:
                target.write_out(written_out, done - written_out)
                written_out = done
            progress(done, size)
            if node.kind is Kind.RO and done < size and time.monotonic() >= turn_ends:
                break
        else:
            break
        # What `_ranges` knew of the container is void after this; it begins anew.
        container.let_writers_in(wait_seconds)
        if node.is_gone:
            raise NodeNotFound(f"{name} was deleted while it was being exported")
    progress(size, size)
    return written


def _ranges(node: Node, start: int, target: Target) -> Iterator[tuple[int, int]]:
    """Yield what there is to write from `start` on as (begin, end), cut at the multiples of `PIECE_BYTES`."""
    if not target.is_sparse:
        yield from cut(start, node.size_bytes, PIECE_BYTES)
        return
    for window, window_end in cut(start, node.size_bytes, _WINDOW_BYTES):
        for extent in node.extents(window, window_end - window):
            if not extent.is_zero:
                yield from cut(extent.offset_bytes, extent.offset_bytes + extent.length_bytes, PIECE_BYTES)


def _check_standard(fd: int, name: str) -> None:
    try:
        os.fstat(fd)
    except OSError as error:
        raise IoFailure(f"{name} is closed") from error
