"""A container file as one commit left it, read without a lock while a server writes to the same file.

The server keeps every page of that commit where it is (`snapctl.storage.pins`) for as long as the view lasts, and gives
a copy of the superblock area with it; all else is read from the file. Should the server go away, whoever opens the file
next may overwrite those pages, so nothing is believed that was read after that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from snapctl.errors import SnapctlError, ViewEnded
from snapctl.format.geometry import SUPERBLOCK_AREA
from snapctl.storage.backend import FileBackend

RENEWAL_SECONDS = 20.0
"""How old a view becomes before `renew` exchanges it: what is freed meanwhile takes room until then."""

_FAREWELL_SECONDS = 0.5
"""How long it may take at most from a server's end, which lets go of its lock, until that is seen."""


class Grant(Protocol):
    """A view as its server gave it.

    Attributes:
        fd: the container file, opened for reading.
        superblocks_fd: a file that holds the superblock area.
    """

    fd: int
    superblocks_fd: int

    def is_over(self, wait_seconds: float) -> bool:
        """Whether the server has ended it, or does so within `wait_seconds`."""

    def end(self) -> None:
        """Tell the server that nobody reads it any more; the descriptors are closed by others."""


class ViewBackend(FileBackend):
    """A file of which a server keeps one state; its descriptor allows reading only."""

    def __init__(self, path: str, grant: Grant, renewed: Callable[[], Grant | None] | None = None) -> None:
        """Take up a view.

        Args:
            path: of the container file, for messages.
            grant: the view, which is ended and whose descriptors are closed by `close`.
            renewed: gives a newer one, or None if nobody serves the container any more.

        Raises:
            IoFailure: the system refuses.
        """
        super().__init__(path, grant.fd)
        self._renewed = renewed
        self._area = bytearray(SUPERBLOCK_AREA)
        self._take(grant)

    def _take(self, grant: Grant) -> None:
        self.fd = grant.fd
        self._grant = grant
        self._taken_at = time.monotonic()
        FileBackend(self.path, grant.superblocks_fd).read_into(0, self._area)

    def renew(self) -> bool:
        """Exchange a view that has become old for a newer one.

        Returns:
            Whether it was; else it is not old yet, or the server has no newer one to give just now.

        Raises:
            ViewEnded: the server is gone.
        """
        if self._renewed is None or time.monotonic() < self._taken_at + RENEWAL_SECONDS:
            return False
        grant = None
        with suppress(SnapctlError):
            grant = self._renewed()
        if grant is None:
            self.check_lasts()
            self._taken_at = time.monotonic()
            return False
        self.close()
        self._take(grant)
        return True

    def check_lasts(self) -> None:
        """Refuse to believe what was read, damage above all, if the server may have ended before.

        Raises:
            ViewEnded: it has ended.
        """
        if self._grant.is_over(_FAREWELL_SECONDS):
            raise self._ended()

    def read_each(self, places: list[tuple[int, int]]) -> None:
        """See `Backend`; each read is judged by itself."""

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """See `Backend`.

        Raises:
            ViewEnded: the server has ended, and what was read may be anything.
        """
        view = memoryview(buffer)
        kept = view[: max(0, SUPERBLOCK_AREA - offset)]
        kept[:] = self._area[offset : offset + len(kept)]
        done = len(kept)
        if done < len(view):
            done += super().read_into(offset + done, view[done:])
            if self._grant.is_over(0):
                raise self._ended()
        return done

    def close(self) -> None:
        """See `Backend`; ends the view."""
        if self.is_open:
            os.close(self._grant.superblocks_fd)
            super().close()
            self._grant.end()

    def _ended(self) -> ViewEnded:
        return ViewEnded(f"the server of {self.path} ended while the container was being read; run the command again")
