"""The files beside the container that commands read from, in chunks of bounded memory."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, TextIO

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
        UsageError: its name is empty.
    """
    path = STANDARD if path is None else path
    if not path:
        raise UsageError("the name of the file to read is empty")
    standard = path == STANDARD
    name = "standard input" if standard else path
    require_standard(path, sys.stdin, name)
    try:
        file = io.FileIO(0 if standard else path, "rb", closefd=not standard)
    except OSError as error:
        raise output.os_error(name, error) from error
    with file:
        yield Source(file, name, _remaining_bytes(file))


@contextmanager
def handed_over(descriptor: int) -> Iterator[int]:
    """Yield a descriptor that another process can read in our place: the same one, or of a terminal a pipe from it."""
    if not os.isatty(descriptor):
        yield descriptor
        return
    from threading import Thread

    # A terminal stops whoever reads it from the background.
    reader, writer = os.pipe()
    Thread(target=_pump, args=(descriptor, writer), daemon=True).start()
    try:
        yield reader
    finally:
        os.close(reader)


def _pump(source: int, target: int) -> None:
    with suppress(OSError), os.fdopen(target, "wb", buffering=0) as file:
        while piece := os.read(source, CHUNK_BYTES):
            file.write(piece)


def _remaining_bytes(file: io.FileIO) -> int | None:
    mode = os.fstat(file.fileno()).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        return None
    here = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(here)
    return max(0, end - here)


def refuse_container(source: Source, container_path: str) -> None:
    """Keep a command from copying the container into itself.

    Raises:
        UsageError: both are the same file.
    """
    if is_open_as(source.file.fileno(), container_path):
        raise UsageError(f"{source.name} is the container itself; choose another file")


def is_open_as(descriptor: int, path: str) -> bool:
    """Tell whether a descriptor is that of the file at `path`, by whatever name it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def require_standard(path: str, stream: TextIO | None, name: str) -> None:
    """Refuse ``-`` where the standard stream that it stands for is closed.

    Raises:
        SnapctlError: it is.
    """
    if path == STANDARD and stream is None:
        raise SnapctlError(f"{name} is closed")
