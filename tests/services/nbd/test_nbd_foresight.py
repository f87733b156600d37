"""A server that knows its clients: it makes durable what they are about to ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapctl.engine.container import Container
from snapctl.services.nbd.foresight import Foresight
from tests.services.nbd.client import FLUSH
from tests.services.nbd.serving import Served, serving
from tests.support.work import SYNCS, Work, in_new_threads


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Served, Work]]:
    monkeypatch.setattr("snapctl.services.live.cache._SHORT_SYNC_SECONDS", 60.0)  # this is not about the disk
    path = tmp_path / "lab.snap"
    with Container.create(str(path)) as container:
        container.create_volume("db", 1 << 20)
        container.commit()
    with in_new_threads() as work, serving(path) as running:
        yield running, work


def syncs(served: Served, work: Work, data: bytes) -> tuple[int, int]:
    """How often the disk is waited for with a write and, more often, until the flush behind it is answered."""
    with served.client("db") as client:
        for _ in range(6):
            client.write(0, b"before")
            client.ask(FLUSH)
        with work.counting():
            client.write(0, data)
            served.call(lambda: None)
            first = work.of(SYNCS)
            client.ask(FLUSH)
            return first, work.of(SYNCS)


def test_a_write_is_made_durable_at_once_when_the_client_has_flushed_each_before(served: tuple[Served, Work]):
    assert syncs(*served, b"after") == (1, 1)


def test_who_writes_more_between_two_flushes_is_not_expected_to_flush(served: tuple[Served, Work]):
    running, work = served
    with running.client("db") as client:
        for _ in range(6):
            client.write(0, b"one")
            client.write(4096, b"two")
            client.ask(FLUSH)
        with work.counting():
            client.write(0, b"three")
            running.call(lambda: None)
            assert work.of(SYNCS) == 0
            client.ask(FLUSH)
            assert work.of(SYNCS) == 1


def test_it_takes_a_few_flushes_to_know_a_client_and_one_surprise_to_begin_anew():
    client = Foresight()

    def write_and_flush() -> bool:
        is_expected = client.wrote()
        client.flushed()
        return is_expected

    assert [write_and_flush() for _ in range(6)] == [False] * 4 + [True] * 2
    assert [client.wrote(), client.wrote()] == [True, False]
    client.flushed()
    assert [write_and_flush() for _ in range(6)] == [False] * 4 + [True] * 2
    client.flushed()
    assert not write_and_flush()
