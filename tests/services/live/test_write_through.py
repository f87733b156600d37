"""Writes that go past the cache: they never overtake what was acknowledged before, whatever is under way."""

from __future__ import annotations

import asyncio

import pytest

from snapctl.engine.container import Container
from snapctl.format.geometry import Geometry
from snapctl.services.live.container import LiveContainer
from snapctl.services.live.device import Device
from tests.support.backends import MemoryBackend
from tests.support.live import BLOCK, SMALL, GatedBackend, picky, reopened, run

BLOCKS = 2048
LEAF = SMALL.fanout
ENOUGH = 600
"""Blocks which a log does not take, so that they go to the open transaction at once."""


def served(backend: MemoryBackend, geometry: Geometry = SMALL) -> tuple[LiveContainer, Device]:
    container = Container.format(backend, geometry)
    container.create_volume("db", BLOCKS * geometry.block_size)
    container.commit()
    live = LiveContainer(container, most_dirty_seconds=1000.0)
    return live, live.device("db")


def row(letter: bytes, *numbers: int) -> list[tuple[int, memoryview]]:
    return [(number * BLOCK, memoryview(letter * BLOCK)) for number in numbers]


def take(device: Device, writes: list[tuple[int, memoryview]]) -> bool:
    """Write as a server does: at a stroke, or else one by one; returns whether it was at a stroke."""
    if device.write_together(writes):
        return True
    for offset, data in writes:
        assert device.write(offset, bytes(data))
    return False


@pytest.mark.parametrize("turns", range(8))
def test_a_crash_leaves_no_write_that_went_past_an_earlier_one_which_waits_in_memory(turns: int):
    async def scenario() -> None:
        backend = GatedBackend()
        live, device = served(backend)
        assert device.write(0, b"-" * ENOUGH * BLOCK)
        assert take(device, row(b"a", *range(ENOUGH, BLOCKS, LEAF)))
        device.write(1500 * BLOCK, b"small")
        flush = asyncio.create_task(live.flush())
        for _ in range(turns):
            await asyncio.sleep(0)
        device.write(0, b"earlier")
        take(device, row(b"l", *range(1000, 1010)))
        await flush
        left = reopened(backend.synced)["db"]
        assert left.read(1500 * BLOCK, 5) == b"small"
        if left.read(1000 * BLOCK, 1) == b"l":
            assert left.read(0, 7) == b"earlier"
        await live.close()

    run(scenario())


def test_what_goes_past_the_cache_and_finds_no_room_leaves_nothing_promised():
    async def scenario() -> None:
        backend, live = picky()
        await live.change(lambda container: container.create_volume("log", BLOCKS * BLOCK))
        device = live.device("log")
        backend.full = True
        assert not device.write_together(row(b"x", *range(ENOUGH)))
        assert live.cache._room.promised_units == 0
        backend.full = False
        assert device.write_together(row(b"x", *range(ENOUGH)))
        assert live.cache._room.promised_units > 0
        await live.flush()
        assert live.cache._room.promised_units == 0
        await live.close()
        assert reopened(backend.synced)["log"].read(0, ENOUGH * BLOCK) == b"x" * ENOUGH * BLOCK

    run(scenario())


def test_a_snapshot_that_was_asked_for_holds_nothing_that_came_past_the_cache_afterwards():
    async def scenario() -> None:
        backend = GatedBackend()
        live, device = served(backend)
        assert take(device, row(b"a", *range(ENOUGH)))
        backend.gate.clear()
        snapshot = asyncio.create_task(live.change(lambda container: container.snapshot("db@s")[0].name))
        await asyncio.sleep(0)
        for turn in range(6):
            assert not take(device, row(b"bcdefg"[turn : turn + 1], *range(turn, 1600, 100)))
            await asyncio.sleep(0)
        backend.gate.set()
        await snapshot
        take(device, row(b"z", *range(7, ENOUGH)))
        await live.flush()
        await live.close()
        left = reopened(backend.synced)
        assert left["db@s"].read(0, ENOUGH * BLOCK) == b"a" * ENOUGH * BLOCK
        assert left["db"].read(1500 * BLOCK, 1) == b"b"
        assert left["db"].read(0, 8 * BLOCK)[::BLOCK] == b"bcdefgaz"

    run(scenario())


def test_what_was_flushed_to_the_log_is_not_written_over_before_it_is_in_the_tables():
    async def scenario() -> None:
        backend = GatedBackend()
        live, device = served(backend)
        live.cache._wants_log = True
        device.write(0, b"0")
        await live.flush()
        for letter in b"ab":
            device.write(5 * BLOCK, bytes([letter]) * BLOCK)
            await live.flush()
        assert live.cache.records
        assert not device.write_together(row(b"c", *range(ENOUGH)))
        assert take(device, row(b"c", *range(6, 6 + ENOUGH)))
        assert device.read(5 * BLOCK, 2) == b"bb"
        device.write(5 * BLOCK, b"d")
        await live.flush()
        assert reopened(backend.synced)["db"].read(5 * BLOCK, BLOCK + 1) == b"d" + b"b" * (BLOCK - 1) + b"c"
        await live.close()

    run(scenario())


def test_rows_of_few_writes_wait_for_a_record_whatever_room_is_kept_for_others():
    async def scenario() -> None:
        live, device = served(MemoryBackend(), Geometry(4096, 16384))
        live.cache._wants_log = True
        device.write(0, b"0")
        await live.flush()
        commits = live.cache.commits
        for start in range(10):
            for number in range(3):
                blocks = [(4096 * block, memoryview(b"x" * 4096)) for block in range(start, 600, 100 + number)]
                assert not take(device, blocks)
            await live.flush()
        assert (live.cache.commits, live.cache.records) == (commits, 10)
        await live.close()

    run(scenario())
