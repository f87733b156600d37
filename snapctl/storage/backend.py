"""The one module that touches the container file with system calls.

`Backend` is the whole of what the layers above need; tests put crashing, failing and recording files in its place. A
backend reads and writes completely or raises; it knows nothing of pages. The system's errors become ours here: a lack
of space is `NoSpace`, all else `IoFailure`.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Protocol

from snapctl.errors import IoFailure, NameTaken, NoSpace, NotAContainer, SnapctlError
from snapctl.units import format_size

if TYPE_CHECKING:
    import ctypes

__all__ = [
    "Backend",
    "Buffer",
    "FileBackend",
    "NotCached",
    "neighbours",
    "pure_read_each",
    "pure_write_each",
    "read_each",
    "write_each",
]

Buffer = bytes | bytearray | memoryview

_IOV_MAX = 1024
_CLOSED = 0x7FFF_FFFF
"""What stands for a closed file: a descriptor that no process has, so that any use of it is refused by the system."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FAILURES_TO_RESERVE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""What else a file system may say about a reservation is that it has none for this file."""
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
"""FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE of linux/falloc.h."""
_SYNC_WRITE = 0x02
"""SYNC_FILE_RANGE_WRITE of linux/fs.h."""
_STAT_BLOCK_BYTES = 512
"""What st_blocks counts, whatever the file system's blocks are."""
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_NO_NOWAIT = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""What a system or a file system says that knows nothing of reads which do not wait."""
_WARM_BYTES = 1 << 20
_PORTION_BYTES = 64 << 10
"""How much is written by one call. Linux makes one folio of the page cache of it, if it can; what a small write costs
later, and be it of one block, grows with the folio that it falls into, while larger ones make a large write hardly
cheaper."""


class NotCached(Exception):
    """Bytes that a `FileBackend` was to read from the page cache alone are not all there.

    No error: the reader is to have them fetched and to ask again.

    Attributes:
        offset: where the missing bytes begin in the file.
        length: how many there are at most.
    """

    def __init__(self, offset: int, length: int) -> None:
        super().__init__(f"bytes {offset} to {offset + length} are not in memory")
        self.offset = offset
        self.length = length


class Backend(Protocol):
    """A file of bytes that can be made durable.

    Raises (all methods):
        NoSpace: the file system is full.
        IoFailure: any other refusal of the system.
    """

    path: str

    def size(self) -> int:
        """Length of the file in bytes."""

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill `buffer` from `offset` in bytes; returns the bytes read, fewer only at the end of the file."""

    def read_each(self, places: list[tuple[int, int]]) -> list[Buffer] | None:
        """Read many ranges, given by offset and length, at less cost; None if they are better read one by one."""

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write the buffers one after the other from `offset` in bytes on."""

    def write_each(self, offsets: list[int], buffers: list[Buffer], size: int) -> None:
        """Write pages of `size` bytes, each to its offset; the buffers hold one or more of them each, in order."""

    def sync(self) -> None:
        """Return when all that was written is durable."""

    def extend(self, size: int) -> None:
        """Make the file at least `size` bytes long."""

    def truncate(self, size: int) -> None:
        """Make the file at most `size` bytes long."""

    def punch(self, offset: int, length: int) -> None:
        """Give a range back to the file system if it can take it, which is no failure otherwise.

        The bytes of the range are undefined afterwards.
        """

    def reserve(self, offset: int, length: int) -> bool:
        """Have the file system keep room for a range.

        The length of the file stays as it is, though the range may lie beyond its end; no byte of it changes.

        Returns:
            False if it is one that cannot keep any, which is no failure.
        """

    def release(self) -> None:
        """Give all room that is kept beyond the end of the file back to the file system."""

    def room(self, used_bytes: int) -> int:
        """Bytes that the file could take in all: what the file system keeps for it, and what it has free.

        Of so many it is known that they are kept, though a file system may keep them in less.
        """

    def free(self) -> int:
        """Bytes that the file system has free, kept for nobody."""

    def close(self) -> None:
        """Close the file, which releases its lock."""


class FileBackend:
    """A regular file, addressed by position, never by a shared offset.

    Attributes:
        fd: its descriptor.
        cached_only: while set, `read_into` raises `NotCached` rather than wait for the disk, where the system can tell.
            For a while around reads that change nothing: whoever gets that exception has the range fetched by `warm`,
            on another thread, and asks again. The cache may have forgotten it by then, so the last try must wait.
    """

    cached_only = False

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self._nowait = _NOWAIT

    @classmethod
    def open(cls, path: str, *, writable: bool) -> FileBackend:
        """Open an existing regular file.

        Raises:
            NotAContainer: a directory, device, socket or pipe.
            IoFailure: it does not exist or the permissions do not suffice.
        """
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(path, flags)
        except IsADirectoryError as error:
            raise NotAContainer(f"{path} is a directory, not a container") from error
        except OSError as error:
            purpose = "writing" if writable else "reading"
            raise IoFailure(f"cannot open {path} for {purpose}: {error.strerror}") from error
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            os.close(fd)
            what = "directory" if stat.S_ISDIR(mode) else "device, socket or pipe"
            raise NotAContainer(f"{path} is a {what}; a container is a regular file")
        return cls(path, fd)

    @classmethod
    def create(cls, path: str) -> FileBackend:
        """Make a new, empty file, readable and writable as the umask says.

        Raises:
            NameTaken: something of that name exists.
            IoFailure: the system refuses.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError as error:
            raise NameTaken(f"{path} exists already; it is left as it is") from error
        except OSError as error:
            raise _translate(error, f"cannot create {path}") from error
        return cls(path, fd)

    def reopen(self) -> int:
        """A descriptor of this very file for reading only, which shares nothing with ours, our lock least of all.

        Raises:
            IoFailure: the system refuses, or neither has a path of the file left.
        """
        for path in (f"/proc/self/fd/{self.fd}", self.path):
            with suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                if os.path.samestat(os.fstat(fd), os.fstat(self.fd)):
                    return fd
                os.close(fd)
        raise IoFailure(f"cannot open {self.path} once more: its name leads to another file, or to none")

    def remove(self) -> None:
        """Unlink the file, which the caller has locked, unless its name has become another file's."""
        if self.is_named():
            os.unlink(self.path)

    def is_named(self) -> bool:
        """Whether the path still leads to this file; another process may have replaced or removed it."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.fd))
        except FileNotFoundError:
            return False

    def identity(self) -> tuple[int, int]:
        """The file's device and inode."""
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino

    def sync_directory(self) -> None:
        """Make the file's name durable."""
        try:
            directory = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise self._failure("sync the directory of", error) from error

    def size(self) -> int:
        """See `Backend`."""
        try:
            return os.fstat(self.fd).st_size
        except OSError as error:
            raise self._failure("stat", error) from error

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """See `Backend`.

        Raises:
            NotCached: `cached_only` is set and some of it is not in memory.
        """
        done = self._read_some(offset, buffer)
        if done == len(buffer):
            return done
        view, got = memoryview(buffer), done
        while got and done < len(view):
            got = self._read_some(offset + done, view[done:])
            done += got
        return done

    def _read_some(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Read as much as one call of the system gives, 0 bytes at the end of the file; raises as `read_into`."""
        flags = self._nowait if self.cached_only else 0
        try:
            return os.preadv(self.fd, (buffer,), offset, flags)
        except OSError as error:
            if flags and error.errno == errno.EAGAIN:
                raise NotCached(offset, len(buffer)) from None
            if not flags or error.errno not in _NO_NOWAIT:
                raise self._failure("read", error) from error
        self._nowait = 0
        return self._read_some(offset, buffer)

    def read_each(self, places: list[tuple[int, int]]) -> list[Buffer] | None:
        """See `Backend`; None also if `cached_only` does not let all of them be read."""
        return read_each(self.fd, places, self._nowait if self.cached_only else 0)

    def warm(self, offset: int, length: int) -> None:
        """Have the system read a range into the page cache, on whatever thread this is called.

        Raises:
            IoFailure: the system refuses.
        """
        scratch = memoryview(bytearray(min(length, _WARM_BYTES)))
        end = offset + length
        while offset < end:
            try:
                got = os.preadv(self.fd, [scratch[: end - offset]], offset)
            except OSError as error:
                raise self._failure("read", error) from error
            if got == 0:
                break
            offset += got

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See `Backend`."""
        try:
            for batch in _portions(buffers):
                length = sum(map(len, batch))
                _write_all(self.fd, batch, offset, length)
                offset += length
        except OSError as error:
            raise self._failure("write", error) from error

    def write_each(self, offsets: list[int], buffers: list[Buffer], size: int) -> None:
        """See `Backend`."""
        try:
            write_each(self.fd, offsets, buffers, size, _PORTION_BYTES)
        except OSError as error:
            raise self._failure("write", error) from error

    def sync(self) -> None:
        """See `Backend`."""
        try:
            getattr(os, "fdatasync", os.fsync)(self.fd)
        except OSError as error:
            raise self._failure("sync", error) from error

    def extend(self, size: int) -> None:
        """See `Backend`."""
        if self.size() < size:
            self._set_size(size, "extend")

    def truncate(self, size: int) -> None:
        """See `Backend`."""
        if self.size() > size:
            self._set_size(size, "truncate")

    def punch(self, offset: int, length: int) -> None:
        """See `Backend`; room that stays allocated is there for reuse."""
        self._allocate(_KEEP_SIZE | _PUNCH_HOLE, offset, length)

    def reserve(self, offset: int, length: int) -> bool:
        """See `Backend`; nothing is kept beyond the largest file that the system allows."""
        code = self._allocate(_KEEP_SIZE, offset, length)
        if code in _FAILURES_TO_RESERVE:
            raise self._failure(f"reserve {format_size(length)} in", OSError(code, os.strerror(code)))
        return code == 0

    def release(self) -> None:
        """See `Backend`; setting the size that a file has drops what was allocated beyond (ext4, xfs, btrfs, tmpfs)."""
        self._set_size(self.size(), "truncate")

    def room(self, used_bytes: int) -> int:
        """See `Backend`."""
        try:
            status = os.fstat(self.fd)
        except OSError as error:
            raise self._failure("stat", error) from error
        return max(used_bytes, status.st_blocks * _STAT_BLOCK_BYTES) + self.free()

    def free(self) -> int:
        """See `Backend`; what the system holds back for its administrator does not count."""
        try:
            system = os.fstatvfs(self.fd)
        except OSError as error:
            raise self._failure("stat", error) from error
        return system.f_bavail * system.f_frsize

    def start_writing_out(self) -> None:
        """Have the system begin to write what it holds of the file; nothing is promised, so nothing can fail."""
        if sys.platform.startswith("linux"):
            _libc().sync_file_range(self.fd, 0, 0, _SYNC_WRITE)

    @property
    def is_open(self) -> bool:
        """Whether it was not closed yet."""
        return self.fd != _CLOSED

    def close(self) -> None:
        """See `Backend`."""
        fd, self.fd = self.fd, _CLOSED
        if fd != _CLOSED:
            os.close(fd)

    def _allocate(self, mode: int, offset: int, length: int) -> int:
        """Call fallocate(2) until no signal interrupts it; returns its error number, or 0."""
        while (code := _fallocate(self.fd, mode, offset, length)) == errno.EINTR:
            pass
        return code

    def _set_size(self, size: int, what: str) -> None:
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise self._failure(what, error) from error

    def _failure(self, what: str, error: OSError) -> SnapctlError:
        return _translate(error, f"cannot {what} {self.path}")


def pure_read_each(fd: int, places: list[tuple[int, int]], flags: int, /) -> list[Buffer] | None:
    """Read ranges of a file, given by offset and length, by a call of the system each, with its flags.

    Returns:
        Their bytes; None if one call does not give all of its range.
    """
    found: list[Buffer] = [bytearray(length) for _, length in places]
    try:
        if any(os.preadv(fd, (room,), at, flags) < len(room) for room, (at, _) in zip(found, places, strict=True)):
            return None
    except OSError:
        return None
    return found


def pure_write_each(fd: int, offsets: list[int], buffers: list[Buffer], size: int, portion: int, /) -> None:
    """Write pages to a file, each to its offset, neighbours at a stroke.

    Args:
        fd: of the file.
        offsets: of the pages.
        buffers: the pages, one or more in each, in order.
        size: of a page.
        portion: no more than that is written by one call of the system, or one page.

    Raises:
        ValueError: there is not one page for each offset; nothing was written.
        OSError: the system refuses.
    """
    if size < 1 or any(len(data) % size for data in buffers) or sum(map(len, buffers)) != len(offsets) * size:
        raise ValueError("not one page for each offset")
    for offset, pages in neighbours(offsets, buffers, size, most_bytes=portion):
        _write_all(fd, pages, offset, sum(map(len, pages)))


try:
    from snapctl._native import read_each, write_each
except ImportError:
    read_each, write_each = pure_read_each, pure_write_each


def neighbours(
    offsets: Sequence[int], buffers: Iterable[Buffer], size: int, *, most_bytes: int = 1 << 60
) -> Iterator[tuple[int, list[Buffer]]]:
    """Pages for `Backend.write_each` that follow each other, as (offset, their bytes), no more than so many bytes."""
    most, start, count = max(1, min(most_bytes // size, _IOV_MAX)), 0, len(offsets)
    given = iter(buffers)
    left = memoryview(b"")
    while start < count:
        stop, expected = start + 1, offsets[start] + size
        while stop < count and stop - start < most and offsets[stop] == expected:
            stop, expected = stop + 1, expected + size
        pages: list[Buffer] = []
        wanted = (stop - start) * size
        while wanted:
            left = left or memoryview(next(given))
            pages.append(left[:wanted])
            wanted -= len(pages[-1])
            left = left[len(pages[-1]) :]
        yield offsets[start], pages
        start = stop


def _write_all(fd: int, buffers: Sequence[Buffer], offset: int, length: int) -> None:
    """Write until nothing is left."""
    end = offset + length
    while offset < end:
        done = os.pwritev(fd, buffers, offset)
        if not done:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        offset += done
        if offset < end:
            buffers = _rest(buffers, done)


def _portions(buffers: Sequence[Buffer]) -> Iterable[Sequence[Buffer]]:
    """What is written at a stroke: about `_PORTION_BYTES`, of buffers as long as the first."""
    if len(buffers) == 1:
        view = memoryview(buffers[0])
        return ((view[at : at + _PORTION_BYTES],) for at in range(0, len(view), _PORTION_BYTES))
    step = min(max(1, _PORTION_BYTES // max(1, len(buffers[0]))), _IOV_MAX) if buffers else 1
    return (buffers[at : at + step] for at in range(0, len(buffers), step))


def _rest(buffers: Sequence[Buffer], done: int) -> Sequence[Buffer]:
    """What is left to write of buffers when `done` bytes are written."""
    left = list(buffers)
    while done >= len(left[0]):
        done -= len(left.pop(0))
    return [memoryview(left[0])[done:], *left[1:]]


def _fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """Call fallocate(2) of Linux, which Python does not have, once; returns its error number, or 0."""
    if not sys.platform.startswith("linux"):
        return errno.ENOSYS
    import ctypes

    return 0 if _libc().fallocate(fd, mode, offset, length) == 0 else ctypes.get_errno()


@cache
def _libc() -> ctypes.CDLL:
    """The system's C library, for what Python does not have of it."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return libc


def _translate(error: OSError, message: str) -> SnapctlError:
    if error.errno in _NO_SPACE:
        return NoSpace(f"{message}: {error.strerror}; free some space and try again")
    advice = "; see the system's log for the cause, then try again" if error.errno == errno.EIO else ""
    return IoFailure(f"{message}: {error.strerror}{advice}")
