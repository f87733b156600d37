"""A file that the bytes of a volume come from: a regular file, a block device, a pipe or standard input.

What a source must not be, and what the system says about it, becomes an error of ours here.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from select import POLLIN, poll

from snapctl.errors import IoFailure, UsageError
from snapctl.services.target import (
    CHUNK_BYTES,
    STANDARD,
    STANDARD_INPUT,
    check_not_container,
    translated,
    wait_until_ready,
)

_SHORTEST_HOLE_BYTES = 64 << 10
"""Holes in a source are looked for at this granularity; in what is read the engine finds the blocks of zeros."""

_POLL_MILLISECONDS = 100


class Abandoned(Exception):
    """Nobody wants the rest of a source."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file to read.

    Attributes:
        fd: its descriptor.
        name: for messages.
        start_bytes: where in the file the volume begins: at 0, unless standard input has been read from before.
        size_bytes: how much there is; 0 if only reading to the end can tell.
        abandoned: tells whether nobody wants the data any more; asked while waiting for it.
    """

    fd: int
    name: str
    start_bytes: int
    size_bytes: int
    abandoned: Callable[[], bool] | None = None

    def fill(self, view: memoryview) -> int:
        """Read on until `view` is full or the source ends; returns the bytes read."""
        filled = 0
        while filled < len(view):
            self._await_data()
            try:
                count = os.readv(self.fd, [view[filled:]])
            except BlockingIOError:
                if self.abandoned is None:
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
            self._await_data()
            try:
                count = os.preadv(self.fd, [view[done:]], self.start_bytes + offset + done)
            except OSError as error:
                raise translated(error, f"cannot read {self.name}") from error
            if count == 0:
                raise self._shrunk()
            done += count

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (begin, end) of what is not a hole, in order and in pieces of at most `CHUNK_BYTES`."""
        position = 0
        while position < self.size_bytes:
            data = self._next_data(position)
            if data >= self.size_bytes:
                return
            hole = self._next_hole(data)
            position = min(self.size_bytes, hole + -hole % _SHORTEST_HOLE_BYTES)
            yield from cut(data - data % _SHORTEST_HOLE_BYTES, position, CHUNK_BYTES)

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

    def _await_data(self) -> None:
        """Wait until a read would not block, or nobody wants it any more; the descriptor's own flags are not ours."""
        if self.abandoned is None:
            return
        ready = poll()
        ready.register(self.fd, POLLIN)
        while not self.abandoned():
            if ready.poll(_POLL_MILLISECONDS):
                return
        raise Abandoned

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


def adopt_source(fd: int, name: str, container_path: str, abandoned: Callable[[], bool]) -> Source:
    """Take up a descriptor that somebody else opened, who shares it and closes it; raises as `open_source`.

    Args:
        fd: the descriptor; it is read from where it stands.
        name: of the file, for messages.
        container_path: the container, which it must not be.
        abandoned: see `Source`.
    """
    check_not_container(fd, name, container_path)
    if os.isatty(fd):
        raise UsageError(f"{name} is a terminal, which its own process has to read")
    return Source(fd, name, *_measure(fd, name, from_here=True), abandoned)


@contextmanager
def open_source(source: str, container_path: str) -> Iterator[Source]:
    """Open a file, or standard input, for reading.

    Raises:
        UsageError: it is the container itself, or no name at all.
        IoFailure: it cannot be read.
    """
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
        yield Source(fd, name, start, size)
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


def cut(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Cut a range at the multiples of `step`; yields (begin, end)."""
    while start < stop:
        end = min(stop, start + step - start % step)
        yield start, end
        start = end
