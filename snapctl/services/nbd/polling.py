"""An event loop that looks for requests for a moment longer before it goes to sleep.

Many a client waits for an answer before it asks again. It does so within some ten microseconds, while to be put to
sleep and woken takes the system longer than that, on a virtual machine ten times as long. So the loop asks again and
again, as the loops of qemu (poll-max-ns) and the idle processors of KVM (halt_poll_ns) do: not for long, only if it was
worth it the last time, and anyone else who wants the processor meanwhile gets it.
"""

from __future__ import annotations

import asyncio
import os
import selectors
from collections.abc import Callable
from concurrent.futures import Executor
from time import perf_counter_ns
from typing import Any, TypeVar

T = TypeVar("T")

_PATIENCE_NANOSECONDS = 100_000
"""How long to look: about what sleeping costs. To look in vain costs no more than that, and not twice in a row."""

_TRIAL = 64
"""One wait of so many is tried, to see whether requests come within that time of late."""


class PollingSelector(selectors.DefaultSelector):
    """The system's best selector, with patience.

    Attributes:
        at_work: how many threads do something for the loop. While there are any it has no patience: they need the lock
            of the interpreter, and a processor.
    """

    def __init__(self) -> None:
        """Begin without patience."""
        super().__init__()
        self.at_work = 0
        self._waits = 0
        self._is_worth_it = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See `selectors.BaseSelector.select`."""
        if self.at_work or (timeout is not None and timeout <= 0):
            return super().select(timeout)
        self._waits += 1
        if self._is_worth_it or self._waits % _TRIAL == 0:
            ends = perf_counter_ns() + _PATIENCE_NANOSECONDS
            if timeout is not None:
                ends = min(ends, perf_counter_ns() + int(timeout * 1e9))
            self._is_worth_it = True
            while perf_counter_ns() < ends:
                if ready := super().select(0):
                    return ready
                os.sched_yield()
            self._is_worth_it = False
        return super().select(timeout)


class PollingLoop(asyncio.SelectorEventLoop):
    """An event loop with patience, but for when threads work for it."""

    def __init__(self) -> None:
        """Begin without patience."""
        self._polling = PollingSelector()
        super().__init__(self._polling)

    def thread_begins(self) -> None:
        """Take note that a thread has got something to do."""
        self._polling.at_work += 1

    def thread_is_done(self, _future: object = None) -> None:
        """Take note that it is done with that."""
        self._polling.at_work -= 1

    def run_in_executor(  # type: ignore[override]
        self,
        executor: Executor | None,
        func: Callable[..., T],
        *args: Any,  # noqa: ANN401 as asyncio has it
    ) -> asyncio.Future[T]:
        """See `asyncio.AbstractEventLoop.run_in_executor`."""
        future = super().run_in_executor(executor, func, *args)
        self.thread_begins()
        future.add_done_callback(self.thread_is_done)
        return future


def polling_loop() -> asyncio.AbstractEventLoop:
    """A new event loop with patience; one processor alone has no time for that."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return PollingLoop() if processors > 1 else asyncio.new_event_loop()
