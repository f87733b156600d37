"""The loop that looks again before it sleeps."""

from __future__ import annotations

import asyncio
import os
import selectors
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from snapctl.services.nbd import polling
from snapctl.services.nbd.polling import PollingLoop, PollingSelector, polling_loop


class Pipe:
    """A pipe that is waited for."""

    def __init__(self, selector: PollingSelector) -> None:
        self.selector = selector
        self._ends = os.pipe()
        selector.register(self._ends[0], selectors.EVENT_READ)
        self.polls = 0

    def write(self) -> None:
        os.write(self._ends[1], b"x")

    def drain(self) -> None:
        os.read(self._ends[0], 1)

    def is_ready(self, timeout: float | None) -> bool:
        """Wait; counts how often the system was asked."""
        self.polls = 0

        def note(_frame: FrameType, event: str, argument: Any) -> None:
            self.polls += event == "c_call" and argument.__name__ == "poll"

        sys.setprofile(note)
        try:
            return bool(self.selector.select(timeout))
        finally:
            sys.setprofile(None)

    def close(self) -> None:
        self.selector.close()
        for end in self._ends:
            os.close(end)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    found = Pipe(PollingSelector())
    yield found
    found.close()


@contextmanager
def patience(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(polling, "_PATIENCE_NANOSECONDS", int(seconds * 1e9))
        yield


def test_nor_is_it_where_threads_are_at_work(pipe: Pipe, monkeypatch: pytest.MonkeyPatch):
    pipe.selector.at_work = 1
    with patience(monkeypatch, 60):
        for _ in range(2 * polling._TRIAL):
            assert not pipe.is_ready(0.0001)
            assert pipe.polls == 1


def trial(pipe: Pipe) -> None:
    """Wait as often as it takes for the next wait to be tried."""
    for _ in range(polling._TRIAL - 1):
        pipe.is_ready(0.0001)


def test_nothing_is_asked_again_where_nothing_comes_soon(pipe: Pipe):
    for _ in range(polling._TRIAL - 1):
        assert not pipe.is_ready(0.0001)
        assert pipe.polls == 1


def test_a_wait_now_and_then_finds_out_whether_something_comes_soon(pipe: Pipe, monkeypatch: pytest.MonkeyPatch):
    with patience(monkeypatch, 60):
        trial(pipe)
        pipe.write()
        assert pipe.is_ready(None)
        pipe.drain()
        assert not pipe.is_ready(0.01)  # which was worth it once, and is now found not to be
        assert pipe.polls > 2
        assert not pipe.is_ready(0.01)
        assert pipe.polls == 1


def test_patience_ends(pipe: Pipe, monkeypatch: pytest.MonkeyPatch):
    trial(pipe)
    with patience(monkeypatch, 0.01):
        pipe.write()
        assert pipe.is_ready(60)
        assert pipe.polls == 1
        pipe.drain()
        assert not pipe.is_ready(0.1)


@pytest.mark.parametrize("timeout", [0, -1.0])
def test_who_does_not_wait_asks_once(pipe: Pipe, timeout: float):
    for _ in range(2 * polling._TRIAL):
        assert not pipe.is_ready(timeout)
        assert pipe.polls == 1


def test_while_a_thread_works_for_the_loop_nothing_is_asked_again(monkeypatch: pytest.MonkeyPatch):
    loop = PollingLoop()
    selector = loop._polling
    done = threading.Event()

    def work() -> str:
        assert done.wait(20)
        return "done"

    async def scenario() -> str:
        found = asyncio.get_running_loop().run_in_executor(None, work)
        assert selector.at_work == 1
        done.set()
        return await found

    with patience(monkeypatch, 60):
        assert loop.run_until_complete(scenario()) == "done"
    assert selector.at_work == 0
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_one_processor_alone_has_no_time_for_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3})
    loop = polling_loop()
    assert not isinstance(loop, PollingLoop)
    loop.close()
