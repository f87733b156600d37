"""A live container in memory whose disk can be made to wait, and a bound on the time that a scenario takes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

from snapctl.engine.container import Container
from snapctl.errors import NoSpace
from snapctl.format.geometry import Geometry
from snapctl.services.check import check_backend
from snapctl.services.live.container import LiveContainer
from snapctl.services.live.device import Device
from snapctl.storage.backend import Buffer
from tests.support.backends import MemoryBackend

SMALL = Geometry(512, 512)
BLOCK = 512
SIZE = 40 * BLOCK + 100
PATIENCE_SECONDS = 20.0


class GatedBackend(MemoryBackend):
    """Its syncs wait while the gate is shut."""

    def __init__(self, data: bytes | bytearray = b"") -> None:
        super().__init__(data)
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.synced = bytes(data)

    def sync(self) -> None:
        self.waiting.set()
        assert self.gate.wait(PATIENCE_SECONDS)
        self.synced = bytes(self.data)
        self.waiting.clear()
        super().sync()

    async def until_syncing(self) -> None:
        assert await asyncio.to_thread(self.waiting.wait, PATIENCE_SECONDS)


class PickyBackend(GatedBackend):
    """Has no room for blocks of x while it is `full`; `refusals` and `syncs` can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        self.refusals = threading.Semaphore(0)
        self.syncs = threading.Semaphore(0)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        if self.full and b"xxxx" in b"".join(buffers):
            self.refusals.release()
            raise NoSpace("no room for that")
        super().write(offset, buffers)

    def sync(self) -> None:
        super().sync()
        self.syncs.release()


def a_container(backend: MemoryBackend, capacity_bytes: int | None = None) -> Container:
    container = Container.format(backend, SMALL, capacity_bytes)
    container.create_volume("db", SIZE)
    container.commit()
    return container


def picky() -> tuple[PickyBackend, LiveContainer]:
    """A live container of a volume and its snapshot `db@s`, on a disk that can be full for blocks of x."""
    backend = PickyBackend()
    container = a_container(backend)
    container.snapshot("db@s")
    container.commit()
    return backend, LiveContainer(container, most_dirty_seconds=1000.0)


def live(backend: MemoryBackend, **settings: Any) -> LiveContainer:
    return LiveContainer(a_container(backend), **{"most_dirty_seconds": 1000.0, **settings})


async def flush_under_way(served: LiveContainer, backend: GatedBackend) -> asyncio.Task[None]:
    """Begin a flush and shut the gate before it is durable."""
    backend.gate.clear()
    flush = asyncio.create_task(served.flush())
    await asyncio.sleep(0)
    await backend.until_syncing()
    return flush


def reopened(image: bytes) -> Container:
    backend = MemoryBackend(image)
    assert check_backend(backend).exit_code == 0
    return Container.adopt(backend)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await scenario

    asyncio.run(bounded())


def content(device: Device) -> bytes:
    buffer = bytearray(device.size_bytes)
    device.read_into(0, buffer)
    return bytes(buffer)


async def put(live: LiveContainer, device: Device, offset: int, data: bytes) -> None:
    while not device.write(offset, data):
        await live.until_room()
