"""How much a server does for a request, counted: system calls, and calls of functions as the measure of the rest.

Unlike time, the counts are the same on every machine and whatever else runs there.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from snapctl.storage import backend

READS = ("preadv", "pread")
WRITES = ("pwritev", "pwrite")
SYNCS = ("fdatasync", "fsync")
RECEIVES = ("recv_into", "readv")
SENDS = ("send", "sendmsg", "writev")
_SYSTEM_CALLS = frozenset((*READS, *WRITES, *SYNCS, *RECEIVES, *SENDS, "poll", "fallocate", "ftruncate", "fstat"))


class Work:
    """What threads did while it was being counted.

    Attributes:
        calls: of functions, those of C included.
        system_calls: by name.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.system_calls: Counter[str] = Counter()
        self._is_on = False

    def of(self, names: tuple[str, ...]) -> int:
        """How many system calls of these names there were."""
        return sum(self.system_calls[name] for name in names)

    def note(self, _frame: FrameType, event: str, argument: Any) -> None:
        """Take note of an event, as `sys.setprofile` tells it."""
        if self._is_on and event in {"call", "c_call"}:
            self.calls += 1
            if event == "c_call" and argument.__name__ in _SYSTEM_CALLS:
                self.system_calls[argument.__name__] += 1

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count from nothing until the block ends."""
        self.calls = 0
        self.system_calls.clear()
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False


@contextmanager
def in_new_threads() -> Iterator[Work]:
    """Be able to count in all threads that are begun in the block.

    Calls of the system that the compiled core makes are not seen. So its twin takes its place where it makes some.
    """
    work = Work()
    compiled = backend.read_each, backend.write_each
    backend.read_each, backend.write_each = backend.pure_read_each, backend.pure_write_each
    threading.setprofile(work.note)
    try:
        yield work
    finally:
        threading.setprofile(None)
        backend.read_each, backend.write_each = compiled
