"""A system whose page cache holds of one file only what was read since, so that every first read is a cold one."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any, Self

from snapctl.storage import backend

PAGE = 4096


class ColdCache:
    """As a context manager, takes the place of the system's preadv(2) for one file, as far as Python calls it.

    So no loop that is compiled does meanwhile.

    Attributes:
        held: numbers of the pages that are in memory.
        refusals: reads so far that would have had to wait.
        waits: reads so far that had to wait.
    """

    def __init__(self, path: str) -> None:
        self.held: set[int] = set()
        self.refusals = self.waits = 0
        self._path = path

    def __enter__(self) -> Self:
        self._compiled, backend.read_each = backend.read_each, backend.pure_read_each
        self._real: Any = os.preadv
        self._status = os.stat(self._path)
        setattr(os, "preadv", self._preadv)  # noqa: B010 what mypy does not want replaced otherwise
        return self

    def __exit__(self, *_: object) -> None:
        setattr(os, "preadv", self._real)  # noqa: B010 likewise
        backend.read_each = self._compiled

    def _preadv(self, fd: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> Any:
        status = os.fstat(fd)
        if not os.path.samestat(status, self._status):
            return self._real(fd, buffers, offset, flags)
        end = min(offset + sum(map(len, buffers)), status.st_size)
        missing = [page for page in range(offset // PAGE, -(-end // PAGE)) if page not in self.held]
        if not flags & os.RWF_NOWAIT:
            self.waits += bool(missing)
            self.held.update(missing)
        elif missing:
            length = missing[0] * PAGE - offset
            if length <= 0:
                self.refusals += 1
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return self._real(fd, [memoryview(buffers[0])[:length]], offset)
        return self._real(fd, buffers, offset)
