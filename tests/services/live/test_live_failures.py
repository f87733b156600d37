"""A live container when things fail or happen at once: nobody hangs, nothing acknowledged is lost, no room leaks."""

from __future__ import annotations

import asyncio
import gc
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from snapctl.engine.container import Container
from snapctl.errors import NoSpace, SnapctlError
from snapctl.services.live.container import LiveContainer
from tests.support.backends import FailingBackend
from tests.support.live import (
    BLOCK,
    PATIENCE_SECONDS,
    SIZE,
    GatedBackend,
    PickyBackend,
    content,
    flush_under_way,
    live,
    picky,
    reopened,
    run,
)

MIB = 1 << 20


def full(backend: FailingBackend) -> None:
    backend.fail_at = range(backend.begun, 1 << 30)


def with_room(backend: FailingBackend) -> None:
    backend.fail_at = range(0)


async def once(happened: threading.Semaphore) -> None:
    """Return when it has happened once more."""
    assert await asyncio.to_thread(happened.acquire, timeout=PATIENCE_SECONDS)


def snapshot(container: Container, name: str) -> None:
    container.snapshot(name)


async def settled(*tasks: asyncio.Future[Any]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


# Closing


def test_closing_while_a_later_commit_is_in_flight_leaves_both_whole():
    async def scenario() -> None:
        backend = GatedBackend()
        served = live(backend)
        device = served.device("db")
        backend.gate.clear()
        device.write(0, b"first")
        closing = asyncio.create_task(served.close())
        await asyncio.sleep(0)
        await backend.until_syncing()
        device.write(20 * BLOCK, b"x" * 20 * BLOCK)
        late = asyncio.create_task(served.flush())
        await asyncio.sleep(0)
        backend.gate.set()
        await closing
        await settled(late)
        assert reopened(bytes(backend.data))["db"].read(0, 5) == b"first"

    run(scenario())


def test_a_round_that_is_cancelled_does_not_take_back_what_the_disk_has_already():
    async def scenario() -> None:
        backend = GatedBackend()
        served = live(backend)
        backend.gate.clear()
        served.device("db").write(0, b"x" * SIZE)
        closing = asyncio.create_task(served.close())
        await asyncio.sleep(0)
        await backend.until_syncing()
        closing.cancel()
        threading.Timer(0.05, backend.gate.set).start()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert not backend.is_open
        assert reopened(bytes(backend.data))["db"].read(0, SIZE) in (b"x" * SIZE, bytes(SIZE))

    run(scenario())


def test_closing_tells_everybody_who_waits():
    async def scenario() -> None:
        backend = GatedBackend()
        served = live(backend, most_dirty_bytes=2 * BLOCK)
        device = served.device("db")
        device.write(0, b"x" * BLOCK)
        flush = await flush_under_way(served, backend)
        device.write(BLOCK, b"x" * BLOCK)
        waiting = [
            asyncio.create_task(served.flush()),
            asyncio.create_task(served.until_room()),
            asyncio.create_task(served.change(lambda container: container.snapshot("db@s"))),
            asyncio.create_task(served.at_rest(lambda _container: None)),
        ]
        await asyncio.sleep(0)
        threading.Timer(0.05, backend.gate.set).start()
        await served.cache.close()
        served.container.close()
        await settled(flush, *waiting)
        with pytest.raises(SnapctlError):
            await served.flush()
        with pytest.raises(SnapctlError):
            await served.change(lambda container: container.snapshot("db@t"))

    run(scenario())


# A lack of room


def test_on_a_full_disk_everybody_who_waits_is_told():
    async def scenario() -> None:
        backend = FailingBackend(error=NoSpace)
        served = live(backend)
        device = served.device("db")
        device.write(0, b"kept")
        full(backend)
        names = [f"db@{number}" for number in range(3)]
        waiting = [asyncio.create_task(served.change(partial(snapshot, name=name))) for name in names]
        await asyncio.sleep(0)
        device.write(4, b"too")
        waiting.append(asyncio.create_task(served.flush()))
        assert [type(told) for told in await settled(*waiting)] == [NoSpace] * 4
        with_room(backend)
        await served.flush()
        assert reopened(bytes(backend.data))["db"].read(0, 7) == b"kepttoo"
        await served.close()

    run(scenario())


def test_a_flush_behind_a_change_that_finds_no_room_is_told():
    async def scenario() -> None:
        backend = FailingBackend(error=NoSpace)
        served = live(backend)
        device = served.device("db")
        device.write(0, b"kept")
        full(backend)
        change = asyncio.create_task(served.change(lambda container: container.snapshot("db@s")))
        await asyncio.sleep(0)
        device.write(4, b"too")
        flush = asyncio.create_task(served.flush())
        assert [type(told) for told in await settled(change, flush)] == [NoSpace] * 2
        with_room(backend)
        await served.close()

    run(scenario())


def test_a_delete_that_makes_too_little_room_is_done_and_the_writes_wait_for_more():
    async def scenario() -> None:
        backend, served = picky()
        device = served.device("db")
        device.write(0, b"x" * 10 * BLOCK)
        backend.full = True
        assert await served.change(lambda container: container.delete("db@s"), gives_room=True) == ["db@s"]
        with pytest.raises(NoSpace):
            await served.flush()
        backend.full = False
        await served.flush()
        assert content(device)[: 10 * BLOCK] == b"x" * 10 * BLOCK
        await served.close()

    run(scenario())


def test_what_found_no_room_is_tried_again_by_itself_as_often_as_it_takes():
    async def scenario() -> None:
        backend = PickyBackend()
        served = live(backend, most_dirty_seconds=0.01)
        device = served.device("db")
        backend.full = True
        device.write(0, b"xxxxx")
        for _ in range(4):
            await once(backend.refusals)
        while backend.syncs.acquire(blocking=False):
            pass
        backend.full = False
        await once(backend.syncs)
        await once(backend.syncs)
        assert reopened(backend.synced)["db"].read(0, 5) == b"xxxxx"
        # And so is what comes after.
        device.write(0, b"yyyyy")
        await once(backend.syncs)
        await once(backend.syncs)
        assert reopened(backend.synced)["db"].read(0, 5) == b"yyyyy"
        await served.close()

    run(scenario())


# Giving up


def test_a_pin_whose_taker_is_cancelled_does_not_stay(tmp_path: Path):
    async def scenario() -> None:
        served = await LiveContainer.open(str(made(tmp_path)))
        pins = served.container.space._pins

        async def take() -> None:
            async with served.view():
                pass

        for turns in range(60):
            task = asyncio.create_task(take())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await settled(task)
            await served.at_rest(lambda _container: None)
            assert not pins, turns
        await served.close()

    run(scenario())


def made(folder: Path) -> Path:
    path = folder / "lab.snap"
    with Container.create(str(path), block_size=512, table_size=512) as container:
        container.create_volume("db", SIZE)
    return path


def test_whoever_gives_up_waiting_keeps_nobody_from_anything():
    async def scenario() -> None:
        for turns in range(12):
            backend = GatedBackend()
            served = live(backend, most_dirty_bytes=2 * BLOCK)
            device = served.device("db")
            device.write(0, b"a" * BLOCK)
            waiting = [
                asyncio.create_task(served.flush()),
                asyncio.create_task(served.until_room()),
                asyncio.create_task(served.change(lambda container: container.snapshot("db@s"))),
                asyncio.create_task(served.at_rest(lambda container: container.delete("db", cascade=True))),
                asyncio.create_task(served.change(lambda container: container.snapshot("db@t"))),
            ]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in waiting:
                task.cancel()
            await settled(*waiting)
            device.write(0, b"b" * BLOCK)
            await served.flush()
            disk = reopened(backend.synced)
            assert disk["db"].read(0, BLOCK) == b"b" * BLOCK
            for node in disk.nodes[1:]:
                assert node.read(0, BLOCK) == b"a" * BLOCK
            await served.close()

    run(scenario())


# The tree of nodes changes under what is in flight


def test_what_a_shrink_cut_off_does_not_come_back_when_the_volume_grows_again():
    async def scenario() -> None:
        backend = GatedBackend()
        served = live(backend)
        device = served.device("db")
        at = 3 * BLOCK + 10
        device.write(0, b"a" * SIZE)
        flush = await flush_under_way(served, backend)

        def grow(container: Container) -> None:
            backend.gate.clear()
            container.node("db").resize(SIZE)

        shrinking = asyncio.create_task(served.change(lambda container: container.node("db").resize(at, shrink=True)))
        await asyncio.sleep(0)
        device.write(0, b"b" * SIZE)  # after the shrink was asked for, and before it is done
        growing = asyncio.create_task(served.change(grow))
        await asyncio.sleep(0)
        backend.gate.set()
        await flush
        await shrinking
        await backend.until_syncing()
        expected = b"b" * at + bytes(SIZE - at)
        assert content(device) == expected
        device.write(at + 1, b"d")
        expected = expected[: at + 1] + b"d" + expected[at + 2 :]
        assert content(device) == expected
        backend.gate.set()
        await growing
        await served.flush()
        assert content(device) == expected
        assert reopened(backend.synced)["db"].read(0, SIZE) == expected
        await served.close()

    run(scenario())


def test_a_volume_can_be_deleted_under_writes_in_flight_and_in_the_open_generation():
    async def scenario() -> None:
        backend = GatedBackend()
        served = live(backend)
        device = served.device("db")
        device.write(0, b"a" * SIZE)
        flush = await flush_under_way(served, backend)
        device.write(0, b"b" * SIZE)
        delete = asyncio.create_task(served.change(lambda container: container.delete("db"), gives_room=True))
        extents = device.extents(0, SIZE)
        next(extents)
        await asyncio.sleep(0)
        device.write(0, b"c" * SIZE)
        backend.gate.set()
        await settled(flush, delete)
        with pytest.raises(SnapctlError):
            device.write(0, b"d")
        with pytest.raises(SnapctlError):
            content(device)
        await served.flush()
        assert served.cache.dirty_bytes == 0
        assert reopened(backend.synced).nodes == []
        await served.close()

    run(scenario())


# Memory


def test_the_bound_counts_the_memory_that_small_writes_take():
    async def scenario() -> None:
        served = live(GatedBackend(), most_dirty_bytes=MIB)
        device = served.device("db")
        for block in range(1, 40, 2):
            device.write(block * BLOCK - 1, b"xy")
        held = sum(
            len(block) for leaf in served.cache.overlays(device.node)[0].leaves.values() for block in leaf.values()
        )
        assert held <= served.cache.held_bytes
        await served.close()

    run(scenario())


def test_thousands_of_generations_leave_nothing_behind():
    async def scenario() -> None:
        served = live(GatedBackend())
        device = served.device("db")
        before = 0
        for number in range(1500):
            device.write(number % 40 * BLOCK, b"%d" % number)
            flush = asyncio.create_task(served.flush())
            await asyncio.sleep(0)
            device.write(number % 40 * BLOCK, b"%d" % number)
            await flush
            if number == 500:
                gc.collect()
                before = len(gc.get_objects())
        await served.at_rest(lambda _container: None)
        gc.collect()
        assert len(gc.get_objects()) - before < 500
        assert served.cache.dirty_bytes == served.cache._room.promised_units == 0
        await served.close()

    run(scenario())
