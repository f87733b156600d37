"""Flushes that are answered from the log, and what comes while a record of it waits for the disk."""

from __future__ import annotations

import asyncio

import pytest

from snapctl.services.live.container import LiveContainer
from snapctl.services.live.device import Device
from tests.support.live import BLOCK, GatedBackend, content, live, put, reopened, run


async def with_a_record_under_way(backend: GatedBackend) -> tuple[LiveContainer, Device, asyncio.Task[None]]:
    """A live container that has begun to write a flush down; the disk lets nothing be durable."""
    served = live(backend)
    device = served.device("db")
    device.write(0, b"a" * BLOCK)
    await served.flush()
    device.write(0, b"b" * BLOCK)
    backend.gate.clear()
    flush = asyncio.create_task(served.flush())
    await asyncio.sleep(0)
    await backend.until_syncing()
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
