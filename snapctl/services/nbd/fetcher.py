"""Threads that wait for the disk, so that the event loop need not: each has what a read lacks put in the page cache.

The threads touch the file alone and nothing of the engine, which stays on the loop. What they are done with goes back
to the loop together: one wake-up for all that has come in meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from snapctl.services.nbd.polling import PollingLoop
from snapctl.services.nbd.requests import Request
from snapctl.storage.backend import FileBackend

_MAX_THREADS = 16
_JOBS_PER_THREAD = 2
"""Another thread begins when those there are have more than this many jobs each."""


class Reader(Protocol):
    """Somebody who wants to read what is not in memory."""

    def fetched(self, request: Request, tries: int) -> None:
        """Take note that what was missing has been fetched, or could not be."""

    def settle(self) -> None:
        """Read again, as no more has been fetched just now."""


class Fetcher:
    """The threads of one server, begun when they are needed.

    Attributes:
        backend: the file.
    """

    def __init__(self, backend: FileBackend) -> None:
        """Begin without threads."""
        self.backend = backend
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[int, int, Reader, Request, int] | None] = SimpleQueue()
        self._fetched: deque[tuple[Reader, Request, int]] = deque()
        self._threads: list[Thread] = []
        self._under_way = 0
        self._is_told = False

    def fetch(self, offset: int, length: int, reader: Reader, request: Request, tries: int) -> None:
        """Have `reader.fetched(request, tries)` called when a range of the file is in memory, or cannot be read."""
        self._under_way += 1
        if isinstance(self._loop, PollingLoop):
            self._loop.thread_begins()
        if self._under_way > _JOBS_PER_THREAD * len(self._threads) and len(self._threads) < _MAX_THREADS:
            thread = Thread(target=self._work, name="cold read", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put((offset, length, reader, request, tries))

    async def close(self) -> None:
        """End the threads when they have done what they were asked for."""
        threads, self._threads = self._threads, []
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            await asyncio.to_thread(thread.join)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            offset, length, reader, request, tries = job
            with suppress(Exception):  # whoever reads it meets the error, and tells
                self.backend.warm(offset, length)
            self._fetched.append((reader, request, tries))
            if not self._is_told:
                self._is_told = True
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._is_told = False  # before the first look: what comes in later is told of again
        readers: set[Reader] = set()
        while self._fetched:
            reader, request, tries = self._fetched.popleft()
            self._under_way -= 1
            if isinstance(self._loop, PollingLoop):
                self._loop.thread_is_done()
            readers.add(reader)
            reader.fetched(request, tries)
        for reader in readers:
            reader.settle()
