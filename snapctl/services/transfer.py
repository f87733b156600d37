"""Whole volumes in and out: files, block devices and pipes become volumes, volumes and snapshots become files again.

An import is one transaction, which the caller commits. An export to a file leaves it whole or not at all: one that
could not be finished is removed, or never takes the place of the old one. Holes stay holes both ways.

An export holds the container's shared lock, but of an RO snapshot, whose view never changes, it lets go every now and
then: writers need not wait for it to end. Whatever it knows of the container's pages is forgotten at that moment.

What a source must not be, and what the system says about it, becomes an error of ours here; for the target see
`snapctl.services.target`.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snapctl.engine.container import Container
from snapctl.engine.model import Cow, Kind
from snapctl.errors import BadSize, IoFailure, NodeNotFound, UsageError
from snapctl.services.target import (
    CHUNK_BYTES,
    STANDARD,
    STANDARD_INPUT,
    STANDARD_OUTPUT,
    Target,
    check_not_container,
    open_target,
    translated,
    wait_until_ready,
)

if TYPE_CHECKING:
    from snapctl.engine.node import Node

Progress = Callable[[int, int | None], None]
"""Told the bytes done so far, holes included, and of how many if that is known."""

_SHORTEST_HOLE_BYTES = 64 << 10
"""Holes in a source are looked for at this granularity; in what is read the engine finds the blocks of zeros."""

_WINDOW_BYTES = 1 << 30
"""How far an export looks ahead for data: what it finds is held in memory, together with the tables it is found in."""

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
    with _open_source(source, container.path) as opened:
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
        SnapctlError: the container cannot be opened or read, as `Container.open` and `Node.read`.
    """
    if target == STANDARD:
        # Before the container is opened, which could get the number of a closed standard output.
        _check_standard(STANDARD_OUTPUT, "standard output")
    with Container.open(container_path, wait_seconds=wait_seconds) as container:
        node = container.node(node_name)
        with open_target(target, container_path, node.size_bytes, replace=force) as opened:
            return _export(node, opened, wait_seconds, progress)


@dataclass(frozen=True, slots=True)
class _Source:
    """A file to import.

    Attributes:
        fd: its descriptor.
        name: for messages.
        start_bytes: where in the file the volume begins: at 0, unless standard input has been read from before.
        size_bytes: how much there is; 0 if only reading to the end can tell.
    """

    fd: int
    name: str
    start_bytes: int
    size_bytes: int

    def fill(self, view: memoryview) -> int:
        """Read on until `view` is full or the source ends; returns the bytes read."""
        filled = 0
        while filled < len(view):
            try:
                count = os.readv(self.fd, [view[filled:]])
            except BlockingIOError:
                wait_until_ready(self.fd, for_writing=False)
                continue
            except OSError as error:
                raise translated(error, f"cannot read {self.name}") from error
            if count == 0:
                break
            filled += count
        return filled

    def read_at(self, offset: int, view: memoryview) -> None:
        """Fill `view` from `offset` in the volume-to-be."""
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self.fd, [view[done:]], self.start_bytes + offset + done)
            except OSError as error:
                raise translated(error, f"cannot read {self.name}") from error
            if count == 0:
                raise self._shrunk()
            done += count

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (begin, end) of what is not a hole, in order, widened to whole units of `_SHORTEST_HOLE_BYTES`."""
        position = 0
        while position < self.size_bytes:
            data = self._next_data(position)
            if data >= self.size_bytes:
                return
            hole = self._next_hole(data)
            position = min(self.size_bytes, hole + -hole % _SHORTEST_HOLE_BYTES)
            yield data - data % _SHORTEST_HOLE_BYTES, position

    def _next_data(self, position: int) -> int:
        """The first offset from `position` on that is not in a hole; where the system cannot tell, none is."""
        try:
            return os.lseek(self.fd, self.start_bytes + position, os.SEEK_DATA) - self.start_bytes
        except OSError as error:
            return self.size_bytes if error.errno == errno.ENXIO else position

    def _next_hole(self, position: int) -> int:
        try:
            return os.lseek(self.fd, self.start_bytes + position, os.SEEK_HOLE) - self.start_bytes
        except OSError:
            return self.size_bytes

    def check_size(self) -> None:
        """Refuse a file that has become shorter: where holes are skipped, no read finds that out."""
        try:
            status = os.fstat(self.fd)
        except OSError as error:
            raise translated(error, f"cannot read {self.name}") from error
        if stat.S_ISREG(status.st_mode) and status.st_size < self.start_bytes + self.size_bytes:
            raise self._shrunk()

    def _shrunk(self) -> IoFailure:
        return IoFailure(f"{self.name} became shorter while it was being read; import it when nobody writes to it")


@contextmanager
def _open_source(source: str, container_path: str) -> Iterator[_Source]:
    if not source:
        raise UsageError("the name of the file to read is empty")
    is_standard = source == STANDARD
    name = "standard input" if is_standard else source
    try:
        fd = STANDARD_INPUT if is_standard else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise translated(error, f"cannot open {name}") from error
    try:
        check_not_container(fd, name, container_path)
        start, size = _measure(fd, name, from_here=is_standard)
        yield _Source(fd, name, start, size)
    finally:
        if not is_standard:
            os.close(fd)


def _measure(fd: int, name: str, *, from_here: bool) -> tuple[int, int]:
    """Where to begin in a source, and how much there is; 0 if its kind, or the kernel (/proc), does not tell."""
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IoFailure(f"cannot read {name}: it is a directory")
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            return 0, 0
        start = os.lseek(fd, 0, os.SEEK_CUR) if from_here else 0
        end = os.lseek(fd, 0, os.SEEK_END)
        os.lseek(fd, start, os.SEEK_SET)
    except OSError as error:
        raise translated(error, f"cannot read {name}") from error
    return start, max(0, end - start)


def _import_file(container: Container, name: str, source: _Source, cow: Cow, progress: Progress) -> Node:
    node = container.create_volume(name, source.size_bytes, cow=cow)
    buffer = memoryview(bytearray(min(CHUNK_BYTES, source.size_bytes)))
    with container.changing():
        for start, stop in source.data_ranges():
            for begin, end in _cut(start, stop, CHUNK_BYTES):
                piece = buffer[: end - begin]
                source.read_at(begin, piece)
                node.write(begin, piece)
                progress(end, source.size_bytes)
        source.check_size()
    progress(source.size_bytes, source.size_bytes)
    return node


def _import_stream(container: Container, name: str, source: _Source, cow: Cow, progress: Progress) -> Node:
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
    buffer = memoryview(bytearray(min(size, target.chunk_bytes)))
    done = written = 0
    while done < size:
        turn_ends = time.monotonic() + _TURN_SECONDS
        for ranges in _ranges(node, done, target):
            start, done = ranges[0][0], ranges[-1][1]
            node.read_into(start, buffer[: done - start])
            for begin, end in ranges:
                target.put(begin, buffer[begin - start : end - start])
                written += end - begin
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


def _ranges(node: Node, start: int, target: Target) -> Iterator[list[tuple[int, int]]]:
    """Yield what there is to write from `start` on as (begin, end), those of one chunk together."""
    chunk_bytes = target.chunk_bytes
    if not target.is_sparse:
        yield from ([piece] for piece in _cut(start, node.size_bytes, chunk_bytes))
        return
    ranges: list[tuple[int, int]] = []
    for begin, end in _data(node, start, chunk_bytes):
        if ranges and begin // chunk_bytes != ranges[0][0] // chunk_bytes:
            yield ranges
            ranges = []
        ranges.append((begin, end))
    if ranges:
        yield ranges


def _data(node: Node, start: int, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield what is not zeros from `start` on as (begin, end), cut at the ends of chunks."""
    for window, window_end in _cut(start, node.size_bytes, _WINDOW_BYTES):
        for extent in node.extents(window, window_end - window):
            if not extent.is_zero:
                yield from _cut(extent.offset_bytes, extent.offset_bytes + extent.length_bytes, chunk_bytes)


def _cut(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Cut a range at the multiples of `step`."""
    while start < stop:
        end = min(stop, start + step - start % step)
        yield start, end
        start = end


def _check_standard(fd: int, name: str) -> None:
    try:
        os.fstat(fd)
    except OSError as error:
        raise IoFailure(f"{name} is closed") from error
