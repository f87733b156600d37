"""Writes that go past the cache: they never overtake what was acknowledged before, whatever is under way."""

from __future__ import annotations

import asyncio

import pytest

from snapctl.engine.container import Container
from snapctl.services.live.container import LiveContainer
from snapctl.services.live.device import Device
from tests.support.backends import MemoryBackend
from tests.support.live import BLOCK, SMALL, GatedBackend, reopened, run

BLOCKS = 2048
LEAF = SMALL.fanout
ENOUGH = 600
"""Blocks which a log does not take, so that they go to the open transaction at once."""


def served(backend: MemoryBackend) -> tuple[LiveContainer, Device]:
    container = Container.format(backend, SMALL)
    container.create_volume("db", BLOCKS * BLOCK)
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
