"""libfuse's calls, which come on its own threads, carried over to the event loop and back.

`mfusepy` is imported here and nowhere else, and when something is mounted, not before: it looks for libfuse as it is
imported.

Files are opened with ``direct_io``: the system keeps no copy of what they hold. A read then sees what anybody else
wrote through the container's control socket a moment before, and what a loop device reads is not kept twice, as the
file system on it has a page cache of its own. The price is that files cannot be mapped with MAP_SHARED. For the same
reason no name and no attribute is believed for longer than one call.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable, Coroutine
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from snapctl.errors import BadName, NodeNotFound, NoSpace, OutOfRange, ReadOnlyNode, SnapctlError
from snapctl.services.mount.files import DIRECTORY_INODE, refusal

if TYPE_CHECKING:
    from snapctl.services.mount.files import Files

T = TypeVar("T")

ERROR_NUMBERS: dict[type[SnapctlError], int] = {
    BadName: errno.ENOENT,
    NodeNotFound: errno.ENOENT,
    NoSpace: errno.ENOSPC,
    OutOfRange: errno.EINVAL,
    ReadOnlyNode: errno.EROFS,
}
"""What a program sees of an error; of any other it sees EIO."""

_OPTIONS = {
    "attr_timeout": 0,
    "entry_timeout": 0,
    "negative_timeout": 0,
    "default_permissions": True,
    "direct_io": True,
    "use_ino": True,
    "subtype": "snapctl",
    "foreground": True,
    # Of its own default libfuse 3.14 complains.
    "max_idle_threads": 10,
}
_MOUNTING_FAILED = {3, 4}
"""Codes of `fuse_main_real` in libfuse: it found no way to make the file system, or to mount it."""


def error_number(error: SnapctlError) -> int:
    """The number that a program sees in place of an error."""
    return next((ERROR_NUMBERS[kind] for kind in type(error).__mro__ if kind in ERROR_NUMBERS), errno.EIO)


def load() -> Any:  # noqa: ANN401 it has no types
    """Import the binding.

    Raises:
        SnapctlError: it, or libfuse, is not installed.
    """
    try:
        import mfusepy
    except ImportError as error:
        raise SnapctlError("mounting needs mfusepy, which is not installed: pip install 'snapctl[fuse]'") from error
    except (OSError, AttributeError) as error:
        raise SnapctlError(f"mounting needs libfuse 3 ({error}); on Debian: apt-get install fuse3") from error
    return mfusepy


def serve(operations: Operations, directory: str, *, name: str, read_only: bool, allow_other: bool) -> None:
    """Mount on a directory, and return when it is not mounted any more.

    Args:
        operations: called on threads of libfuse's.
        directory: where; an absolute path.
        name: of the container, for the table of mounts.
        read_only: have the system refuse all writes.
        allow_other: let other users in.

    Raises:
        SnapctlError: libfuse, or the system, refuses.
    """
    mfusepy = load()

    class Fuse(mfusepy.FUSE):  # type: ignore[misc, name-defined]
        """The binding, with the one call that it does not know yet."""

        def lseek(self, _path: bytes, offset: int, whence: int, file: Any) -> int:  # noqa: ANN401 it has no types
            return operations.lseek(offset, whence, file.contents.fh)

    # libfuse takes the options as one string, and a backslash to mean what follows it.
    escaped = name.replace("\\", "\\\\").replace(",", "\\,")
    try:
        Fuse(
            operations,
            directory,
            ro=read_only,
            allow_other=allow_other,
            fsname=escaped,
            **_OPTIONS,
        )
    except RuntimeError as error:
        code = error.args[0] if error.args else 0
        what = "cannot be mounted on" if code in _MOUNTING_FAILED else "was mounted, and then libfuse failed, on"
        raise SnapctlError(f"{name} {what} {directory} (libfuse's code {code})") from error


class Operations:
    """What libfuse calls, one method for each of its operations; each may be called on several threads at once.

    Called with paths: ``/`` is the directory, ``/db`` a file.
    """

    use_ns = True

    def __init__(
        self,
        files: Files,
        loop: asyncio.AbstractEventLoop,
        *,
        ready: Callable[[], None],
        report: Callable[[SnapctlError], None],
    ) -> None:
        """Serve `files`.

        Args:
            files: what is mounted.
            loop: where they live.
            ready: called on the loop once the system has mounted them.
            report: called, on any thread, with an error of which programs see EIO alone.
        """
        self._files = files
        self._loop = loop
        self._ready = ready
        self._report = report
        self._synchronous: set[int] = set()
        self._has_stopped = False

    def stop(self) -> None:
        """Fail all calls from now on, those on their way included; to be called on the loop."""
        self._has_stopped = True

    def _check(self) -> None:
        if self._has_stopped:
            raise refusal(errno.EIO)

    def _run(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> T:
        """Let a coroutine run on the loop, and give its result or its error to libfuse."""

        async def work() -> T:
            self._check()
            return await function(*arguments)

        self._check()
        return self._result(asyncio.run_coroutine_threadsafe(work(), self._loop))

    def _call(self, function: Callable[..., T], *arguments: object) -> T:
        """As `_run`, of a plain function, for which the loop needs no task."""
        answer: futures.Future[T] = futures.Future()

        def work() -> None:
            try:
                self._check()
                answer.set_result(function(*arguments))
            except Exception as error:  # noqa: BLE001 it is raised where the answer is awaited
                answer.set_exception(error)

        self._check()
        self._loop.call_soon_threadsafe(work)
        return self._result(answer)

    def _result(self, answer: futures.Future[T]) -> T:
        try:
            return answer.result()
        except SnapctlError as error:
            number = error_number(error)
            if number == errno.EIO:
                self._report(error)
            raise refusal(number) from error
        except futures.CancelledError as error:
            raise refusal(errno.EIO) from error

    def init(self, _path: str) -> None:
        """Take note that the system has mounted it."""
        self._loop.call_soon_threadsafe(self._ready)

    def getattr(self, path: str, handle: int | None = None) -> dict[str, int]:
        """Tell the attributes of a file or of the directory."""
        if path == "/":
            return self._call(self._files.attributes_of_directory)
        return self._call(self._files.attributes, _name(path), handle)

    def readdir(self, _path: str, _handle: int) -> list[tuple[str, dict[str, int], int]]:
        """List the directory; the zero says that the list is always given as a whole."""
        itself = {"st_mode": stat.S_IFDIR, "st_ino": DIRECTORY_INODE}
        entries = self._call(self._files.entries)
        return [(name, attributes, 0) for name, attributes in ((".", itself), ("..", itself), *entries)]

    def statfs(self, _path: str) -> dict[str, int]:
        """Tell how full the container is."""
        return self._call(self._files.statistics)

    def open(self, path: str, flags: int) -> int:
        """Open a file for the process that libfuse names a thread of."""
        _, _, thread = load().fuse_get_context()
        handle = self._call(self._files.open, _name(path), flags, _describe(thread))
        if flags & os.O_DSYNC:  # O_SYNC includes it
            self._synchronous.add(handle)
        return handle

    def release(self, _path: str, handle: int) -> int:
        """Close a file."""
        self._synchronous.discard(handle)
        self._call(self._files.release, handle)
        return 0

    def read(self, _path: str, length: int, offset: int, handle: int) -> bytes:
        """Read from an open file."""
        return self._call(self._files.read, handle, offset, length)

    def write(self, _path: str, data: bytes, offset: int, handle: int) -> int:
        """Write to an open file."""
        return self._change(handle, self._files.write, offset, data)

    def fallocate(self, _path: str, mode: int, offset: int, length: int, handle: int) -> int:
        """Punch a hole, or make a range zero."""
        self._change(handle, self._files.allocate, mode, offset, length)
        return 0

    def _change(self, handle: int, change: Callable[..., int | None], *arguments: object) -> int:
        """Change a file as soon as the cache has room for it; durably if the file was opened so."""
        while (done := self._call(change, handle, *arguments)) is None:
            self._run(self._files.until_room)
        if handle in self._synchronous:
            self._run(self._files.flush, handle)
        return done

    def lseek(self, offset: int, whence: int, handle: int) -> int:
        """Find data or a hole."""
        return self._run(self._files.seek, handle, offset, whence)

    def fsync(self, _path: str, _data_only: int, handle: int) -> int:
        """Make everything durable."""
        self._run(self._files.flush, handle)
        return 0

    def fsyncdir(self, _path: str, _data_only: int, _handle: int) -> int:
        """Make everything durable."""
        self._run(self._files.flush)
        return 0

    def truncate(self, path: str, length: int, _handle: int | None = None) -> int:
        """Refuse to change a size."""
        self._call(self._files.truncate, _name(path), length)
        return 0

    def refuse(self, *_arguments: object) -> NoReturn:
        """Refuse what changes the tree of nodes, which has commands of its own, or what nodes do not have."""
        raise refusal(errno.EPERM)

    chmod = chown = create = link = mkdir = mknod = rename = rmdir = symlink = unlink = utimens = refuse


def _name(path: str) -> str:
    return path.removeprefix("/")


def _describe(thread: int) -> str:
    """Name the process of a thread, as far as the system tells."""
    try:
        status = Path(f"/proc/{thread}/status").read_text(encoding="utf-8", errors="replace")
        process = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)["Tgid"]
        command = Path(f"/proc/{process}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except (OSError, KeyError):
        return f"process {thread}"
    return f"process {process} ({command})"
