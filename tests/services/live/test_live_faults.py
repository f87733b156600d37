"""Each operation on the file fails once, or for good, while clients work: nobody hangs, and what is durable opens."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from snapctl.engine.container import Container
from snapctl.errors import IoFailure, NoSpace, SnapctlError
from snapctl.services.live.container import LiveContainer
from tests.support.backends import FailingBackend
from tests.support.live import BLOCK, SIZE, a_container, content, reopened, run

METHODS = ("write", "sync", "extend", "punch", "reserve", "release")
LASTING = 1 << 30
State = dict[str, bytes]


class Clients:
    """What several clients do at once, and what they were told.

    Attributes:
        model: what every node reads as.
        durable: every state that may be found after a crash, the oldest first; older ones are gone.
        told: the errors that anybody got.
    """

    def __init__(self, backend: FailingBackend) -> None:
        self.backend = backend
        self.served = LiveContainer(Container.adopt(backend), most_dirty_bytes=30 * BLOCK, most_dirty_seconds=1e6)
        self.model: State = {"db": bytes(SIZE), "log": bytes(SIZE)}
        self.durable = [dict(self.model)]
        self.told: list[SnapctlError] = []
        self.chance = random.Random(3)

    async def work(self) -> None:
        """The same every time, as far as the disk lets it."""
        for number in range(4):
            for name in ("db", "log", "db"):
                await self.put(name)
            await asyncio.gather(
                self.try_to(self.flush),
                self.try_to(self.flush),
                self.try_to(partial(self.change, f"db@s{number}", "db")),
                self.try_to(lambda: self.served.at_rest(len)),
            )
            if number:
                await self.try_to(partial(self.delete, f"db@s{number - 1}"))
            await self.put("log", is_zero=True)
        await self.try_to(self.flush)

    async def put(self, name: str, *, is_zero: bool = False) -> None:
        start = self.chance.randrange(SIZE)
        data = self.chance.randbytes(self.chance.randrange(1, 8 * BLOCK))[: SIZE - start]
        if is_zero:
            data = bytes(len(data))
        try:
            device = self.served.device(name)
            while not (device.zero(start, len(data)) if is_zero else device.write(start, data)):
                await self.served.until_room()
        except SnapctlError as error:
            self.told.append(error)
            return
        old = self.model[name]
        self.model = {**self.model, name: old[:start] + data + old[start + len(data) :]}
        self.durable.append(self.model)

    async def flush(self) -> None:
        point = len(self.durable) - 1
        await self.served.flush()
        self.durable[:point] = [self.durable[point]] * point

    async def change(self, new: str, volume: str) -> None:
        wanted = {**self.model, new: self.model[volume]}
        self.durable.append(wanted)
        await self.served.change(lambda container: container.snapshot(new))
        self.model = {**self.model, new: wanted[new]}
        self.durable.append(self.model)

    async def delete(self, name: str) -> None:
        if name in self.model:
            wanted = {key: data for key, data in self.model.items() if key != name}
            self.durable.append(wanted)
            await self.served.change(lambda container: container.delete(name), gives_room=True)
            self.model = wanted

    async def try_to(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        try:
            await work()
        except SnapctlError as error:
            self.told.append(error)


def made() -> bytes:
    backend = FailingBackend()
    container = a_container(backend)
    container.create_volume("log", SIZE)
    container.commit()
    return bytes(backend.data)


IMAGE = made()


def operations() -> int:
    """How many operations there are in all."""
    backend = FailingBackend(IMAGE, methods=METHODS)

    async def scenario() -> None:
        clients = Clients(backend)
        await clients.work()
        assert clients.told == []
        await clients.served.close()
        assert state_in(backend) == clients.model

    run(scenario())
    return backend.begun


def state_in(backend: FailingBackend) -> State:
    return {node.name: bytes(node.read(0, node.size_bytes)) for node in reopened(bytes(backend.data)).nodes}


@pytest.mark.parametrize("lasts", [1, 40, LASTING], ids=["once", "for a while", "for good"])
def test_a_lack_of_room_at_any_operation_loses_nothing_that_was_acknowledged(lasts: int):
    async def scenario(at: int) -> None:
        backend = FailingBackend(IMAGE, methods=METHODS, error=NoSpace, fail_at=range(at, at + lasts))
        clients = Clients(backend)
        await clients.work()
        is_poisoned = any(isinstance(error, IoFailure) for error in clients.told)
        if not is_poisoned:
            # From a sync, or in the middle of a superblock, it is a failure like any other.
            for name, expected in clients.model.items():
                assert content(clients.served.device(name)) == expected, name
            backend.fail_at = range(0)
            await clients.served.flush()
            assert state_in(backend) == clients.model
        await clients.try_to(clients.served.close)
        assert state_in(backend) in clients.durable

    for at in range(0, operations(), 2 if lasts == 1 else 5):
        run(scenario(at))


@pytest.mark.parametrize("lasts", [1, LASTING], ids=["once", "for good"])
def test_a_failure_at_any_operation_is_told_and_ends_nobody_in_waiting(lasts: int):
    async def scenario(at: int) -> bool:
        backend = FailingBackend(IMAGE, methods=METHODS, fail_at=range(at, at + lasts))
        clients = Clients(backend)
        await clients.work()
        was_told = bool(clients.told)
        if was_told and not clients.served.container.pages.is_usable:
            with pytest.raises(SnapctlError):
                clients.served.device("db").write(0, b"more")
            for refused in (clients.served.flush, clients.served.until_room):
                await clients.try_to(refused)
        await clients.try_to(clients.served.close)
        assert not backend.is_open
        found = state_in(backend)
        assert found in clients.durable if was_told else found == clients.model
        return was_told

    told = 0
    for at in range(0, operations(), 2):

        async def one(at: int = at) -> None:
            nonlocal told
            told += await scenario(at)

        run(one())
    assert told > operations() // 4
