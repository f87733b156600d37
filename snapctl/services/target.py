"""A file that the bytes of a node go to: a regular file, a block device, a pipe or standard output.

A regular file stands under its name whole and synced, or not at all: one that could not be finished is removed, or
never takes the place of the old one. What a device or a pipe got before a failure stays.

The system's errors about the target become ours here, by the helpers that those about the source of an import share.
`BrokenPipeError` alone passes, if standard output was closed by its reader, since that is the reader's good right.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from snapctl.errors import IoFailure, NameTaken, NoSpace, SnapctlError, UsageError

STANDARD = "-"
"""Stands for standard input or output."""

STANDARD_INPUT, STANDARD_OUTPUT = 0, 1

CHUNK_BYTES = 4 << 20
"""Data moves in pieces of this size, cut where the offset in the volume is a multiple of it."""

PIECE_BYTES = 256 << 10
"""Data going out moves in pieces of this size: one stays in the processor's cache from being read to being written, and
writers of the container wait for no more than one while a slow reader of a pipe takes it."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Target:
    """A file that is open for writing.

    Attributes:
        fd: its descriptor.
        name: for messages.
        is_sparse: what is not written reads as zeros, and writes may go anywhere.
    """

    fd: int
    name: str
    is_sparse: bool

    def put(self, offset: int, piece: memoryview) -> None:
        """Write all of `piece`: at `offset`, or if not sparse after what was written before."""
        done = 0
        while done < len(piece):
            try:
                if self.is_sparse:
                    done += os.pwrite(self.fd, piece[done:], offset + done)
                else:
                    done += os.write(self.fd, piece[done:])
            except BlockingIOError:
                wait_until_ready(self.fd, for_writing=True)
            except BrokenPipeError as error:
                if self.fd == STANDARD_OUTPUT:
                    raise
                raise translated(error, f"cannot write {self.name}") from error
            except OSError as error:
                raise translated(error, f"cannot write {self.name}") from error

    def write_out(self, offset: int, length: int) -> None:
        """Have the system begin to bring a range of a file to the disk, so that `sync` has little to wait for."""
        if self.is_sparse and hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # a hint that no file system has to take
                os.posix_fadvise(self.fd, offset, length, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Return when all that was written is durable."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise translated(error, f"cannot sync {self.name}") from error


@contextmanager
def open_target(path: str, container_path: str, size_bytes: int, *, replace: bool) -> Iterator[Target]:
    """Open a target of any kind; a regular file stands under its name, synced, when the block has ended well.

    Args:
        path: where to write; ``-`` for standard output.
        container_path: the container that is read, which the target must not be.
        size_bytes: how much will be written, holes included.
        replace: take the place of a regular file, whose mode and owner are kept, or write to a block device.

    Raises:
        NameTaken: the target exists and `replace` is not set.
        UsageError: the target is the container itself, or no name at all.
        NoSpace: no room on the target.
        IoFailure: the target cannot be written.
    """
    if not path:
        raise UsageError("the name of the file to write is empty")
    if path == STANDARD:
        check_not_container(STANDARD_OUTPUT, "standard output", container_path)
        yield Target(STANDARD_OUTPUT, "standard output", is_sparse=False)
        return
    present = _status(path)
    if present is None or stat.S_ISREG(present.st_mode):
        if present is not None:
            _check_replaceable(path, present, container_path, replace=replace)
        with _open_file(path, size_bytes, present, replace=replace) as opened:
            yield opened
    else:
        with _open_device(path, present, size_bytes, replace=replace) as opened:
            yield opened


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise translated(error, f"cannot write {path}") from error


def _check_replaceable(path: str, present: os.stat_result, container_path: str, *, replace: bool) -> None:
    refuse_container(present, path, container_path)
    if not replace:
        raise _taken(path)


@contextmanager
def _open_file(path: str, size_bytes: int, present: os.stat_result | None, *, replace: bool) -> Iterator[Target]:
    """Make a file; to `replace` one beside its final place, which it takes at the end."""
    final = os.path.realpath(path) if replace else path
    directory = os.path.dirname(final) or "."
    made = os.path.join(directory, f".snapctl-{os.urandom(8).hex()}.part") if replace else path
    try:
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError as error:
        raise _taken(path) from error
    except OSError as error:
        raise translated(error, f"cannot create {path}") from error
    try:
        target = Target(fd, path, is_sparse=True)
        try:
            os.ftruncate(fd, size_bytes)
            if present is not None:
                _keep_owner_and_mode(fd, present)
        except OSError as error:
            raise translated(error, f"cannot write {path}") from error
        yield target
        target.sync()
        if replace:
            try:
                os.replace(made, final)
            except OSError as error:
                raise translated(error, f"cannot replace {path}") from error
    except BaseException:
        with suppress(OSError):
            os.unlink(made)
        raise
    finally:
        os.close(fd)
    _sync_directory(directory)


def _keep_owner_and_mode(fd: int, present: os.stat_result) -> None:
    # Some file systems know neither, and only root gives files away.
    with suppress(PermissionError):
        os.fchmod(fd, stat.S_IMODE(present.st_mode) & 0o777)
        os.fchown(fd, present.st_uid, present.st_gid)


def _sync_directory(path: str) -> None:
    """Make the names in a directory durable, where that is possible."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextmanager
def _open_device(path: str, present: os.stat_result, size_bytes: int, *, replace: bool) -> Iterator[Target]:
    """Open what exists and is no regular file: a block device, which has to be large enough, a pipe or the like."""
    is_block = stat.S_ISBLK(present.st_mode)
    if is_block and not replace:
        raise NameTaken(f"{path} is a block device; give --force to overwrite all that is on it")
    # For a block device O_EXCL means that nobody may have it mounted.
    exclusive = os.O_EXCL if is_block and sys.platform.startswith("linux") else 0
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | exclusive)
    except OSError as error:
        raise translated(error, f"cannot write {path}") from error
    try:
        if is_block:
            _check_room(fd, path, size_bytes)
        target = Target(fd, path, is_sparse=False)
        yield target
        if is_block:
            target.sync()
    finally:
        os.close(fd)


def _check_room(fd: int, path: str, size_bytes: int) -> None:
    try:
        room = os.lseek(fd, 0, os.SEEK_END)
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError as error:
        raise translated(error, f"cannot write {path}") from error
    if room < size_bytes:
        raise NoSpace(f"{path} holds {room} bytes, {size_bytes} are needed; nothing was written")


def check_not_container(fd: int, name: str, container_path: str) -> None:
    """Refuse an open file that is the container; raises as `refuse_container`."""
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise translated(error, f"cannot use {name}") from error
    refuse_container(status, name, container_path)


def refuse_container(status: os.stat_result, name: str, container_path: str) -> None:
    """Refuse to copy the container into or over itself.

    Raises:
        UsageError: the file is the container.
        IoFailure: the container cannot be found.
    """
    try:
        container = os.stat(container_path)
    except OSError as error:
        raise translated(error, f"cannot find {container_path} any more") from error
    if os.path.samestat(status, container):
        raise UsageError(f"{name} is the container itself; choose another file")


def wait_until_ready(fd: int, *, for_writing: bool) -> None:
    """Wait for a file that its owner has set not to block."""
    from select import select

    select([] if for_writing else [fd], [fd] if for_writing else [], [])


def _taken(path: str) -> NameTaken:
    return NameTaken(f"{path} exists already; give --force to replace it")


def translated(error: OSError, message: str) -> SnapctlError:
    """Make an error of ours from the system's about a file other than the container.

    Args:
        error: as caught.
        message: what cannot be done, to what.
    """
    if error.errno in _NO_SPACE:
        return NoSpace(f"{message}: {error.strerror}; free some space and try again")
    return IoFailure(f"{message}: {error.strerror}")
