"""Flushes that are answered from the log, and what comes while a record of it waits for the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from snapctl.engine.recovery import Change, apply
from snapctl.errors import Corruption
from snapctl.services.live.container import LiveContainer
from snapctl.services.live.device import Device
from snapctl.services.live.generation import Operation
from tests.support.live import (
    BLOCK,
    PATIENCE_SECONDS,
    SIZE,
    GatedBackend,
    PickyBackend,
    a_container,
    content,
    flush_under_way,
    live,
    put,
    reopened,
    run,
)


async def with_a_record_under_way(backend: GatedBackend) -> tuple[LiveContainer, Device, asyncio.Task[None]]:
    """A live container that has begun to write a flush down; the disk lets nothing be durable."""
    served = live(backend)
    device = served.device("db")
    device.write(0, b"a" * BLOCK)
    await served.flush()
    device.write(0, b"b" * BLOCK)
    flush = await flush_under_way(served, backend)
    return served, device, flush


def test_a_flush_that_finds_a_record_under_way_and_nothing_written_since_waits_for_that():
    async def scenario() -> None:
        backend = GatedBackend()
        served, _, flush = await with_a_record_under_way(backend)
        other = asyncio.create_task(served.flush())
        await asyncio.sleep(0)
        assert [flush.done(), other.done()] == [False, False]
        backend.gate.set()
        await other
        assert (served.cache.commits, served.cache.records) == (1, 1)
        assert reopened(backend.synced)["db"].read(0, BLOCK) == b"b" * BLOCK
        await flush
        await served.close()

    run(scenario())


@pytest.mark.parametrize("is_changed", [False, True])
@pytest.mark.parametrize("blocks", [1, 16])
def test_a_flush_waits_for_what_was_written_while_an_older_record_was_under_way(blocks: int, is_changed: bool):
    async def scenario() -> None:
        backend = GatedBackend()
        served, device, flush = await with_a_record_under_way(backend)
        await put(served, device, 2 * BLOCK, b"c" * blocks * BLOCK)
        change = None
        if is_changed:
            change = asyncio.create_task(served.change(lambda container: container.snapshot("db@s")[0].name))
            await asyncio.sleep(0)
        other = asyncio.create_task(served.flush())
        await asyncio.sleep(0)
        backend.gate.set()
        await other
        durable = reopened(backend.synced)["db"].read(0, (2 + blocks) * BLOCK)
        assert durable == b"b" * BLOCK + bytes(BLOCK) + b"c" * blocks * BLOCK
        await flush
        if change is not None:
            await change
        await served.close()
        assert reopened(backend.synced)["db"].read(0, BLOCK) == b"b" * BLOCK

    run(scenario())


def test_what_is_logged_is_read_beneath_what_was_written_and_zeroed_since():
    async def scenario() -> None:
        backend = GatedBackend()
        served = live(backend)
        device = served.device("db")
        device.write(0, b"a" * 4 * BLOCK)
        await served.flush()
        for data in (b"b", b"c"):
            device.write(BLOCK, data * 2 * BLOCK)
            await served.flush()
        assert served.cache.records == 2
        device.write(BLOCK, b"d" * BLOCK)
        device.zero(2 * BLOCK, BLOCK)
        expected = b"a" * BLOCK + b"d" * BLOCK + bytes(BLOCK) + b"a" * BLOCK
        assert content(device)[: 4 * BLOCK] == expected
        await served.flush()
        assert served.cache.records == 3
        assert content(device)[: 4 * BLOCK] == expected
        assert reopened(backend.synced)["db"].read(0, 4 * BLOCK) == expected
        await served.change(lambda container: container.snapshot("db@s"))
        assert reopened(backend.synced)["db@s"].read(0, 4 * BLOCK) == expected
        await served.close()

    run(scenario())


def test_a_write_after_a_logged_flush_needs_no_new_promise_of_room():
    async def scenario() -> None:
        served = live(GatedBackend())
        device = served.device("db")
        for number in range(3):
            device.write(0, bytes([number]) * BLOCK)
            await served.flush()
        promised = served.cache._room.promised_units
        device.write(BLOCK, b"x" * BLOCK)
        await served.flush()
        assert served.cache._room.promised_units == promised
        assert (served.cache.commits, served.cache.records) == (1, 3)
        await served.close()

    run(scenario())


def test_an_expected_flush_is_made_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("snapctl.services.live.cache._SHORT_SYNC_SECONDS", 60.0)

    async def scenario() -> None:
        backend = GatedBackend()
        served = live(backend)
        device = served.device("db")
        for data in (b"a", b"b"):
            device.write(0, data * BLOCK)
            await served.flush()
        device.write(0, b"c" * BLOCK)
        served.cache.flush_ahead()
        assert reopened(backend.synced)["db"].read(0, BLOCK) == b"c" * BLOCK
        assert served.cache.records == 2
        served.cache.flush_ahead()
        await served.flush()
        assert served.cache.records == 2
        await served.close()

    run(scenario())


def test_what_is_being_made_durable_counts_as_dirty_until_it_is():
    async def scenario() -> None:
        backend = GatedBackend()
        served, device, flush = await with_a_record_under_way(backend)
        assert served.cache.dirty_bytes == BLOCK
        backend.gate.set()
        await flush
        assert served.cache.dirty_bytes == 0
        device.write(BLOCK, b"c" * BLOCK)
        assert served.cache.dirty_bytes == BLOCK
        await served.flush()
        assert served.cache.dirty_bytes == 0
        await served.close()

    run(scenario())


def test_what_comes_while_a_commit_is_made_grows_old_as_well():
    async def scenario() -> None:
        backend = PickyBackend()
        served = live(backend, most_dirty_seconds=0.05)
        device = served.device("db")
        device.write(0, b"a" * BLOCK)
        flush = await flush_under_way(served, backend)
        device.write(BLOCK, b"b" * BLOCK)
        backend.gate.set()
        await flush
        while backend.syncs.acquire(blocking=False):
            pass
        for _ in range(2):
            assert await asyncio.to_thread(backend.syncs.acquire, timeout=PATIENCE_SECONDS)
        assert reopened(backend.synced)["db"].read(BLOCK, BLOCK) == b"b" * BLOCK
        await served.close()

    run(scenario())


@dataclass
class Broken:
    """Tables that cannot take one block, once its number is told; everything waits for its turn before that."""

    number: int | None = None
    applying: asyncio.Event = field(default_factory=asyncio.Event)

    def apply(self, change: Change) -> Iterator[None]:
        self.applying.set()
        for _ in range(5):
            yield
        if any(self.number in leaf for leaf in change.leaves.values()):
            raise Corruption("a table is damaged")
        yield from apply(change)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Broken:
    found = Broken()
    monkeypatch.setattr("snapctl.services.live.cache.apply", found.apply)
    monkeypatch.setattr("snapctl.services.live.cache._SLICE_SECONDS", 0.0)
    return found


def test_a_table_that_cannot_take_what_was_not_flushed_costs_one_volume_though_it_was_flushed_before(
    broken: Broken,
):
    async def scenario() -> None:
        container = a_container(GatedBackend())
        container.create_volume("other", SIZE)
        container.commit()
        served = LiveContainer(container, most_dirty_seconds=1000.0)
        device, other = served.device("db"), served.device("other")
        for data in (b"a", b"b", b"c"):
            device.write(0, data * BLOCK)
            await served.flush()
        broken.number = 9
        device.write(0, b"d" * BLOCK)
        device.write(9 * BLOCK, b"9" * BLOCK)
        await served.change(lambda container: container.snapshot("other@s"))
        with pytest.raises(Corruption):
            device.write(0, b"e" * BLOCK)
        assert device.read(0, BLOCK) == b"d" * BLOCK
        assert other.write(0, b"x" * BLOCK)
        await served.flush()
        await served.close()

    run(scenario())


@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_flush_of_what_a_damaged_table_cannot_take_fails_wherever_that_waits(is_sealed: bool, broken: Broken):
    async def scenario() -> None:
        served = live(GatedBackend())
        device = served.device("db")
        broken.number = 0
        device.write(0, b"a" * BLOCK)
        flush = asyncio.create_task(served.flush())
        await broken.applying.wait()
        device.write(BLOCK, b"b" * BLOCK)
        look = None
        if is_sealed:
            look = asyncio.create_task(served.cache.do(Operation(lambda _container: None, is_look=True)))
            await asyncio.sleep(0)
        other = asyncio.create_task(served.flush())
        for waiting in (flush, other):
            with pytest.raises(Corruption):
                await waiting
        assert device.read(0, 2 * BLOCK) == b"a" * BLOCK + b"b" * BLOCK
        if look is not None:
            await look
        await served.close()

    run(scenario())
