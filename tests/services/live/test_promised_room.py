"""Room that is promised: a write is refused at once, or what it brought becomes durable, however full it is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.errors import NodeNotFound, NoSpace
from snapctl.format.geometry import SUPERBLOCK_AREA, Geometry
from snapctl.services.check import check_backend
from snapctl.services.live.container import LiveContainer
from tests.support.backends import MemoryBackend
from tests.support.disks import SmallDisk
from tests.support.live import content, run

SMALL = Geometry(512, 512)
KIB = 1 << 10


class Filler:
    """A client of a container that has little room, and what it knows of it."""

    def __init__(self, chance: random.Random, container: Container) -> None:
        self.chance = chance
        self.served = LiveContainer(container, most_dirty_bytes=64 * KIB, most_dirty_seconds=1e6)
        self.contents = {node.name: bytearray(node.read(0, node.size_bytes)) for node in container.nodes}
        self.refused = 0
        self.taken = 0

    async def put(self, *, is_zero: bool) -> None:
        volumes = [name for name in self.contents if "@" not in name]
        name = self.chance.choice(volumes)
        device, expected = self.served.device(name), self.contents[name]
        start = self.chance.randrange(len(expected))
        length = min(self.chance.randrange(1, self.chance.choice((600, 6000, 40_000))), len(expected) - start)
        data = bytes(length) if is_zero else self.chance.randbytes(length)
        try:
            while not (device.zero(start, length) if is_zero else device.write(start, data)):
                await self.served.until_room()
        except NoSpace:
            self.refused += 1
            return
        self.taken += 1
        expected[start : start + length] = data

    async def snapshot(self, number: int) -> None:
        volume = self.chance.choice([name for name in self.contents if "@" not in name])
        name = f"{volume}@s{number}"
        try:
            await self.served.change(lambda container: container.snapshot(name))
        except NoSpace:
            return
        self.contents[name] = bytearray(self.contents[volume])

    async def delete(self) -> None:
        names = [name for name in self.contents if "@" in name]
        if names:
            name = self.chance.choice(names)
            await self.served.change(lambda container: container.delete(name), gives_room=True)
            del self.contents[name]

    def compare(self) -> None:
        for name, expected in self.contents.items():
            assert content(self.served.device(name)) == expected, name

    async def fill(self, steps: int) -> None:
        """What was acknowledged is flushed, always."""
        kinds = ("write", "zero", "snapshot", "delete", "flush")
        for number in range(steps):
            match self.chance.choices(kinds, (10, 2, 1, 0.7, 3))[0]:
                case "write" | "zero" as kind:
                    await self.put(is_zero=kind == "zero")
                case "snapshot":
                    await self.snapshot(number)
                case "delete":
                    await self.delete()
                case _:
                    await self.served.flush()
        await self.served.flush()
        self.compare()
        await self.delete()
        await self.served.close()


def with_volumes(container: Container, size: int) -> Container:
    container.create_volume("db", size)
    container.create_volume("copy", size, cow=Cow.COPY)
    container.commit()
    return container


@settings(max_examples=25)
@given(st.integers(0, 1 << 32), st.sampled_from((300, 700, 1600)))
def test_what_a_container_with_a_capacity_acknowledges_becomes_durable(seed: int, units: int):
    async def scenario() -> None:
        chance = random.Random(seed)
        backend = MemoryBackend()
        container = Container.format(backend, SMALL, SUPERBLOCK_AREA + units * 512)
        filler = Filler(chance, with_volumes(container, units * 300))
        await filler.fill(60)
        assert filler.taken
        assert_holds(backend, filler)

    run(scenario())


@settings(max_examples=25)
@given(st.integers(0, 1 << 32), st.booleans())
def test_what_is_acknowledged_on_a_small_disk_becomes_durable_though_others_fill_it(seed: int, is_large: bool):
    async def scenario() -> None:
        chance = random.Random(seed)
        geometry = Geometry(4096, 16384) if is_large else SMALL
        disk = SmallDisk((3 << 20) if is_large else (640 << 10))
        container = with_volumes(Container.format(disk, geometry), (2 << 20) if is_large else (256 << 10))
        filler = Filler(chance, container)

        def ballast() -> None:
            disk.taken += chance.randrange(disk.free_blocks + 1) if chance.random() < 0.3 else 0

        put = filler.put

        async def beside(**settings: Any) -> None:
            await put(**settings)
            ballast()

        filler.put = beside  # type: ignore[method-assign]
        await filler.fill(60)
        assert_holds(disk, filler)

    run(scenario())


@settings(max_examples=25)
@given(st.integers(0, 1 << 32), st.booleans())
def test_what_is_acknowledged_on_a_small_disk_that_keeps_no_room_becomes_durable(seed: int, is_large: bool):
    async def scenario() -> None:
        geometry = Geometry(4096, 16384) if is_large else SMALL
        disk = SmallDisk((3 << 20) if is_large else (640 << 10), keeps_room=False)
        container = with_volumes(Container.format(disk, geometry), (2 << 20) if is_large else (256 << 10))
        filler = Filler(random.Random(seed), container)
        await filler.fill(60)
        assert_holds(disk, filler)

    run(scenario())


def assert_holds(backend: MemoryBackend, filler: Filler) -> None:
    assert check_backend(backend).findings == []
    disk = Container.adopt(MemoryBackend(backend.data), writable=False)
    assert {node.name: node.read(0, node.size_bytes) for node in disk.nodes} == filler.contents


@pytest.mark.parametrize("cow", list(Cow))
def test_a_full_container_takes_overwrites_of_what_it_has_again_and_again(cow: Cow):
    async def scenario() -> None:
        backend = MemoryBackend()
        container = Container.format(backend, SMALL, SUPERBLOCK_AREA + 1000 * 512)
        container.create_volume("db", 1000 * 512, cow=cow)
        container.commit()
        served = LiveContainer(container, most_dirty_bytes=64 * KIB, most_dirty_seconds=1e6)
        device = served.device("db")
        chance = random.Random(5)

        async def put(block: int) -> None:
            while not device.write(block * 512, chance.randbytes(512)):
                await served.until_room()

        filled = await until_refused(put)
        assert filled > 500
        assert device.zero(0, 100 * 512)  # leaves what a round takes
        await served.flush()
        for _ in range(3000):
            await put(chance.randrange(100, filled))
        await served.close()

    run(scenario())


@pytest.mark.parametrize("keeps_room", [True, False])
@pytest.mark.parametrize("geometry", [SMALL, Geometry(4096, 16384)], ids=str)
def test_a_disk_that_is_filled_in_one_go_keeps_room_for_all_that_was_acknowledged(geometry: Geometry, keeps_room: bool):
    async def scenario() -> None:
        disk = SmallDisk(8 << 20, keeps_room=keeps_room)
        container = Container.format(disk, geometry)
        container.create_volume("db", 16 << 20)
        container.commit()
        served = LiveContainer(container, most_dirty_seconds=1e6)
        device = served.device("db")
        chance = random.Random(5)
        size = 8 * KIB

        async def put(piece: int) -> None:
            if not device.write(piece * size, chance.randbytes(size)):
                raise NoSpace("before the next round")

        assert await until_refused(put) > 500
        if keeps_room:
            disk.taken += disk.free_blocks
        with pytest.raises(NodeNotFound):  # the transaction is given up with everything in it, and all is done again
            await served.change(lambda container: (container.snapshot("db@s"), container.node("none")))
        await served.flush()
        assert container.space.used * geometry.unit > 4 << 20
        await served.close()
        assert check_backend(disk).findings == []

    run(scenario())


class Releasing(SmallDisk):
    """A disk that counts how often what was kept was let go."""

    releases = 0

    def release(self) -> None:
        self.releases += 1
        super().release()


def test_room_that_was_lent_to_a_write_into_a_hole_is_kept_again_before_more_is_acknowledged():
    async def scenario() -> None:
        disk = Releasing(64 << 20)
        size = 4 * KIB
        container = Container.format(disk, Geometry(size, size))
        container.create_volume("db", 32 << 20)
        container.commit()
        served = LiveContainer(container, most_dirty_seconds=1e6)
        device = served.device("db")
        for block_no in range(0, 4096, 64):
            assert device.write(block_no * size, b"1" * 64 * size)
        await served.flush()
        device.zero(1024 * size, 2048 * size)
        for number in range(3):  # a commit later the room of that is a hole
            await served.flush()
            assert device.write(0, bytes([number]) * size)
        assert device.write(4000 * size, b"3" * 64 * size)
        disk.taken += disk.free_blocks  # by somebody else, and whatever comes free
        disk.releases = 0
        for block_no in range(1024, 3072, 16):
            assert device.write(block_no * size, b"2" * 16 * size)
            if disk.releases:
                break
        assert disk.releases
        disk.taken += disk.free_blocks
        with suppress(NoSpace):
            for block_no in range(3072, 3272):
                if not device.write(block_no * size, b"4" * size):
                    break
        await served.flush()
        await served.close()
        assert check_backend(disk).findings == []

    run(scenario())


def test_room_that_was_given_ahead_is_given_back_as_it_was_promised():
    """One volume has its first writes copied and no snapshot yet, the other has one: a copy is promised to neither."""

    async def scenario() -> None:
        container = Container.format(MemoryBackend(), Geometry(4 * KIB, 4 * KIB))
        container.create_volume("copied", 8 << 20, cow=Cow.COPY)
        container.create_volume("db", 8 << 20)
        container.snapshot("db@s")
        container.commit()
        served = LiveContainer(container, most_dirty_seconds=1e6)
        for name in ("copied", "db"):
            assert served.device(name).write(0, b"x" * 4 * KIB)
        cache = served.cache
        credit = sum(overlay.credit_blocks for overlay in cache._open.overlays.values())
        promised = cache._room.promised_units
        cache._revoke(cache._open)
        assert cache._room.promised_units == cache._open.promised_units == promised - credit
        await served.close()

    run(scenario())


async def until_refused(put: Callable[[int], Awaitable[None]]) -> int:
    """Write block after block until there is no room; returns how many there was room for."""
    for block in count():
        try:
            await put(block)
        except NoSpace:
            return block
    raise AssertionError


def test_a_delete_is_done_when_what_is_in_the_cache_finds_no_room_and_all_goes_on():
    async def scenario() -> None:
        disk = SmallDisk(640 << 10)
        container = Container.format(disk, SMALL)
        container.create_volume("db", 256 << 10).write(0, random.Random(0).randbytes(200 << 10))
        container.snapshot("db@s")
        container.commit()
        container["db"].write(0, random.Random(1).randbytes(64 << 10))
        container.commit()
        served = LiveContainer(container, most_dirty_seconds=1e6)
        device = served.device("db")
        data = random.Random(2).randbytes(48 << 10)
        for at in range(0, len(data), 4 << 10):  # a large piece would not stay in the cache
            assert device.write((100 << 10) + at, data[at : at + (4 << 10)])
        # Somebody else takes even what was promised.
        disk.release()
        disk.taken += disk.free_blocks
        with pytest.raises(NoSpace):
            await served.flush()
        assert content(device)[100 << 10 : 148 << 10] == data
        delete = asyncio.create_task(served.change(lambda container: container.delete("db@s"), gives_room=True))
        assert await delete == ["db@s"]
        disk.taken -= 10
        await served.flush()
        disk.taken -= 10
        assert device.write(0, data[: 8 << 10])
        await served.close()
        assert check_backend(disk).findings == []

    run(scenario())
