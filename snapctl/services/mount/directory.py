"""The directory that is mounted on: fit for it before, free of it afterwards, and a mount from its start to its end."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from snapctl.errors import SnapctlError
from snapctl.services.mount import binding
from snapctl.services.mount.files import Files

if TYPE_CHECKING:
    from snapctl.services.live.container import LiveContainer

_UNMOUNT = "fusermount3"
_DEVICE = "/dev/fuse"


def check(directory: str) -> None:
    """Refuse what cannot be mounted on.

    Raises:
        SnapctlError: no directory, or one that is not empty or has something mounted on it, dead or alive.
    """
    try:
        entries = os.listdir(directory)
    except FileNotFoundError:
        raise SnapctlError(f"{directory}: no such directory; make one to mount on") from None
    except NotADirectoryError:
        raise SnapctlError(f"{directory}: not a directory") from None
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise SnapctlError(f"{directory}: {(error.strerror or str(error)).lower()}") from error
        raise SnapctlError(
            f"{directory}: what was mounted here is dead, its process was killed; '{_UNMOUNT} -u {directory}' clears it"
        ) from None
    if os.path.ismount(directory):
        raise SnapctlError(f"{directory}: something is mounted here already; '{_UNMOUNT} -u {directory}' unmounts it")
    if entries:
        raise SnapctlError(f"{directory}: not empty; what is in it could not be reached while mounted")


def check_system() -> None:
    """Refuse a system that cannot mount.

    Raises:
        SnapctlError: the binding, libfuse, its program or the kernel's device is missing.
    """
    binding.load()
    if shutil.which(_UNMOUNT) is None:
        raise SnapctlError(f"mounting needs {_UNMOUNT}, which is not installed; on Debian: apt-get install fuse3")
    if not os.path.exists(_DEVICE):
        raise SnapctlError(f"mounting needs {_DEVICE}, which is not there: load the kernel's module 'fuse'")


class Mount:
    """A live container mounted on a directory, from the beginning of a with-block on.

    When the block ends the directory is free, and whoever still has a file open gets errors.
    """

    def __init__(
        self,
        live: LiveContainer,
        directory: str,
        *,
        allow_other: bool = False,
        report: Callable[[SnapctlError], None] = lambda _error: None,
    ) -> None:
        """Prepare to mount.

        Args:
            live: what; on the running event loop.
            directory: where; `check` has passed it.
            allow_other: let other users in, as far as the permissions of the container file go.
            report: called, on any thread, with an error of which programs see EIO alone.
        """
        self.directory = os.path.abspath(directory)
        self._live = live
        self._allow_other = allow_other
        self._files = Files(live)
        self._loop = asyncio.get_running_loop()
        self._is_ready = asyncio.Event()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._operations = binding.Operations(self._files, self._loop, ready=self._is_ready.set, report=report)

    async def __aenter__(self) -> Self:
        """Return once programs can use the directory.

        Raises:
            SnapctlError: it cannot be mounted.
        """
        check_system()
        # A daemon, so that a process that does not wait for its users can end.
        threading.Thread(target=self._serve, name="fuse", daemon=True).start()
        ready = asyncio.ensure_future(self._is_ready.wait())
        either: list[asyncio.Future[Any]] = [ready, self._ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._ended.done():
            self._ended.result()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.unmount()
        self._operations.stop()
        self._files.release_all()

    async def wait(self) -> None:
        """Return when the directory is unmounted and nobody has a file open; raises as `binding.serve`."""
        await asyncio.shield(self._ended)

    async def unmount(self) -> list[str]:
        """Take the directory away.

        Returns:
            Who has files open; these go on working until they are closed, and `wait` waits for that.
        """
        if self._ended.done():
            return []
        if not await asyncio.to_thread(_unmount, self.directory):
            await asyncio.to_thread(_unmount, self.directory, "-z")
        return self._files.users()

    def _serve(self) -> None:
        failure: SnapctlError | None = None
        try:
            binding.serve(
                self._operations,
                self.directory,
                name=self._live.container.path,
                read_only=not self._live.container.writable,
                allow_other=self._allow_other,
            )
        except SnapctlError as error:
            failure = error
        try:
            self._loop.call_soon_threadsafe(self._end, failure)
        except RuntimeError:  # the loop is closed: nobody has waited for this end
            pass

    def _end(self, failure: SnapctlError | None) -> None:
        if failure is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(failure)


def _unmount(directory: str, *options: str) -> bool:
    """Unmount as whoever mounted it may; False if it cannot be, because it is in use or not mounted at all."""
    command = [_UNMOUNT, "-q", "-u", *options, "--", directory]
    return subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0  # noqa: S603
