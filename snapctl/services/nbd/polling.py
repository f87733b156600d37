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
from time import perf_counter_ns

_PATIENCE_NANOSECONDS = 100_000
"""How long to look: about what sleeping costs. To look in vain costs no more than that, and not twice in a row."""

_TRIAL = 64
"""One wait of so many is tried, to see whether requests come within that time of late."""


class PollingSelector(selectors.DefaultSelector):
    """The system's best selector, with patience."""

    def __init__(self) -> None:
        """Begin without patience."""
        super().__init__()
        self._waits = 0
        self._is_worth_it = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See `selectors.BaseSelector.select`."""
        if timeout is not None and timeout <= 0:
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


def polling_loop() -> asyncio.AbstractEventLoop:
    """A new event loop with patience; one processor alone has no time for that."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return asyncio.SelectorEventLoop(PollingSelector()) if processors > 1 else asyncio.new_event_loop()
