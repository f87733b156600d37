"""A system in which one call on the container file goes wrong.

What is replaced is the system, not snapctl: the functions of `os` that `snapctl.storage.backend` calls, and
fallocate(2), which it calls by itself. Only calls on one file are counted and can fail; every other file is left alone.
Syncs are not carried out: whoever opens the file next reads it through the same cache.

Python tries calls of `os` again after a signal (PEP 475), so that only fallocate(2) can be seen to end with EINTR here;
`tests.reliability.fault_search` lets the kernel do the same to the others.

As a program, it runs snapctl's command line in such a system::

    python -m tests.support.faults calls.json lab.snap pwritev 3 EIO write lab.snap/db
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from snapctl.storage import backend


class Effect(NamedTuple):
    """How a call goes wrong.

    Attributes:
        error: what it ends with; 0 for no error.
        is_short: only a part is read or written. The error, if there is one, is that of the call after it.
        is_lasting: so do all later calls of its kind.
    """

    error: int = 0
    is_short: bool = False
    is_lasting: bool = False


EFFECTS = {
    "EIO": Effect(errno.EIO),
    "ENOSPC": Effect(errno.ENOSPC),
    "EINTR": Effect(errno.EINTR),
    "EOPNOTSUPP": Effect(errno.EOPNOTSUPP),
    "short": Effect(is_short=True),
    "short, then EIO": Effect(errno.EIO, is_short=True),
    "short, then ENOSPC": Effect(errno.ENOSPC, is_short=True),
    "EIO from then on": Effect(errno.EIO, is_lasting=True),
    "ENOSPC from then on": Effect(errno.ENOSPC, is_lasting=True),
}

EFFECTS_OF = {
    "preadv": ["EIO", "short", "short, then EIO", "EIO from then on"],
    "pwritev": [
        "EIO",
        "ENOSPC",
        "short",
        "short, then EIO",
        "short, then ENOSPC",
        "EIO from then on",
        "ENOSPC from then on",
    ],
    "fdatasync": ["EIO", "ENOSPC", "EIO from then on"],
    "ftruncate": ["EIO", "ENOSPC", "EIO from then on"],
    "fallocate": ["EIO", "ENOSPC", "EINTR", "EOPNOTSUPP"],
    "fsync": ["EIO"],
}
"""The calls that can go wrong, and how; fsync is that of the directory that the file is in."""


class Fault(NamedTuple):
    """One call that goes wrong: the `number`-th of its kind, from 1."""

    call: str
    number: int
    effect: str


class System:
    """As a context manager, takes the place of the system for one file.

    Attributes:
        calls: how often each was made.
        struck: the offset of each call that ended with an error, in bytes, 0 for calls that have none.
        was_struck: whether the fault has happened.
    """

    def __init__(self, path: str, fault: Fault | None = None) -> None:
        """Watch a file, which need not exist yet; with no fault, the calls are only counted."""
        self.calls: Counter[str] = Counter()
        self.struck: list[int] = []
        self.was_struck = False
        self._path = path
        self._fault = fault
        self._replaced: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Self:
        self._replace(os, "preadv", self._preadv)
        self._replace(os, "pwritev", self._pwritev)
        self._replace(os, "fdatasync", self._fdatasync)
        self._replace(os, "ftruncate", self._ftruncate)
        self._replace(os, "fsync", self._fsync)
        self._replace(backend, "_fallocate", self._fallocate)
        # What the compiled core asks of the system nobody sees.
        self._replace(backend, "read_each", backend.pure_read_each)
        self._replace(backend, "write_each", backend.pure_write_each)
        return self

    def __exit__(self, *_: object) -> None:
        while self._replaced:
            setattr(*self._replaced.pop())

    def _replace(self, owner: Any, name: str, stand_in: Callable[..., object]) -> None:
        self._replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, stand_in)

    def _real(self, name: str) -> Any:
        return next(real for _, replaced, real in self._replaced if replaced == name)

    def _preadv(self, fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> Any:
        if self._watches(fd, self._path) and self._is_short("preadv", offset):
            buffers = _part(buffers)
        return self._real("preadv")(fd, buffers, offset, flags)

    def _pwritev(self, fd: int, buffers: Sequence[backend.Buffer], offset: int, flags: int = 0) -> Any:
        if self._watches(fd, self._path) and self._is_short("pwritev", offset):
            buffers = _part(buffers)
        return self._real("pwritev")(fd, buffers, offset, flags)

    def _fdatasync(self, fd: int) -> None:
        if self._watches(fd, self._path):
            self._is_short("fdatasync")
        else:
            self._real("fdatasync")(fd)

    def _fsync(self, fd: int) -> None:
        if self._watches(fd, os.path.dirname(self._path)):
            self._is_short("fsync")
        else:
            self._real("fsync")(fd)

    def _ftruncate(self, fd: int, length: int) -> None:
        if self._watches(fd, self._path):
            self._is_short("ftruncate")
        self._real("ftruncate")(fd, length)

    def _fallocate(self, fd: int, mode: int, offset: int, length: int) -> Any:
        try:
            if self._watches(fd, self._path):
                self._is_short("fallocate", offset)
        except OSError as error:
            return error.errno
        return self._real("_fallocate")(fd, mode, offset, length)

    def _watches(self, fd: int, path: str) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(path))
        except OSError:
            return False

    def _is_short(self, call: str, offset: int = 0) -> bool:
        """Count a call; whether it is to do a part of its work only.

        Raises:
            OSError: what it is to end with.
        """
        self.calls[call] += 1
        if self._fault is None or call != self._fault.call or self.calls[call] < self._fault.number:
            return False
        effect = EFFECTS[self._fault.effect]
        later = self.calls[call] - self._fault.number
        self.was_struck = True
        if effect.error and (later == effect.is_short or effect.is_lasting):
            self.struck.append(offset)
            raise OSError(effect.error, os.strerror(effect.error))
        return effect.is_short and later == 0


def _part(buffers: Sequence[Any]) -> list[memoryview]:
    """The first two thirds of some buffers, which ends in the middle of a sector, or the one byte that there is."""
    left = max(1, sum(map(len, buffers)) * 2 // 3)
    part = []
    for buffer in buffers:
        part.append(memoryview(buffer)[:left])
        left -= len(part[-1])
    return [view for view in part if view]


def main() -> None:
    """Run the command line with a fault in it, then tell in a file how often each call was made."""
    from snapctl.__main__ import main as snapctl

    report, path, call, number, effect, *arguments = sys.argv[1:]
    sys.argv = ["snapctl", *arguments]
    with System(path, Fault(call, int(number), effect)) as system:
        try:
            snapctl()
        finally:
            Path(report).write_text(json.dumps(system.calls), encoding="utf-8")


if __name__ == "__main__":
    main()
