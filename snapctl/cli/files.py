"""The files beside the container that commands read from and write to, in chunks of bounded memory."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from snapctl.cli import output
from snapctl.errors import SnapctlError, UsageError

CHUNK_BYTES = 4 * 1024 * 1024
"""Data moves in pieces of this size, cut where the offset in the volume is a multiple of it."""

STANDARD = "-"
"""Stands for standard input or output."""


class Source(NamedTuple):
    """A file to read from.

    Attributes:
        file: open and unbuffered.
        name: for messages.
        remaining_bytes: how much there is to read, if the file can tell.
    """

    file: io.FileIO
    name: str
    remaining_bytes: int | None

    def fill(self, view: memoryview) -> int:
        """Read until `view` is full or the file ends.

        Returns:
            The number of bytes read.

        Raises:
            SnapctlError: the system refused.
        """
        filled = 0
        while filled < len(view):
            try:
                count = self.file.readinto(view[filled:])
            except OSError as error:
                raise output.os_error(self.name, error) from error
            if count is None:
                _wait_until_readable(self.file)
            elif count == 0:
                break
            else:
                filled += count
        return filled


def _wait_until_readable(file: io.FileIO) -> None:
    """Wait for a file that its owner has set not to block."""
    from select import select

    select([file], [], [])


@contextmanager
def open_source(path: str | None) -> Iterator[Source]:
    """Open a file for reading.

    Args:
        path: the file; None or ``-`` for standard input.

    Raises:
        SnapctlError: it cannot be opened.
    """
    standard = path is None or path == STANDARD
    name = "standard input" if standard else str(path)
    if standard and sys.stdin is None:
        raise SnapctlError("standard input is closed")
    try:
        file = io.FileIO(0 if path is None or standard else path, "rb", closefd=not standard)
    except OSError as error:
        raise output.os_error(name, error) from error
    with file:
        yield Source(file, name, _remaining_bytes(file))


def _remaining_bytes(file: io.FileIO) -> int | None:
    mode = os.fstat(file.fileno()).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        return None
    here = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(here)
    return max(0, end - here)


@contextmanager
def open_target(path: str) -> Iterator[io.FileIO]:
    """Open a file for writing that takes its place under its name only when the block ends well.

    A device or a pipe is written to directly.

    Raises:
        SnapctlError: it cannot be made.
    """
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        with _open_or_explain(path, os.O_WRONLY) as file:
            yield file
        return
    partial = os.path.join(os.path.dirname(path), f".{os.path.basename(path)[:200]}.{os.getpid()}.part")
    try:
        with _open_or_explain(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, name=path) as file:
            yield file
        try:
            os.replace(partial, path)
        except OSError as error:
            raise output.os_error(path, error) from error
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def _open_or_explain(path: str, flags: int, name: str | None = None) -> io.FileIO:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise output.os_error(name or path, error) from error
    return io.FileIO(descriptor, "wb")


def write_all(file: io.FileIO, data: memoryview, name: str) -> None:
    """Write the whole of `data`.

    Args:
        file: where to.
        data: what.
        name: the file, for messages.

    Raises:
        SnapctlError: the system refused.
        NoSpace: the file system is full.
    """
    while data:
        try:
            data = data[file.write(data) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise output.os_error(name, error) from error


def refuse_container(target: str, container_path: str) -> None:
    """Keep a command from writing its output over the container it reads.

    Raises:
        UsageError: both are the same file.
    """
    if target != STANDARD and os.path.exists(target) and os.path.samefile(target, container_path):
        raise UsageError(f"{target} is the container itself; choose another file")
