"""A live container: what clients read while others write, what a snapshot holds, and what a flush has made durable."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapctl.engine.container import Container
from snapctl.errors import HasDependents, IoFailure, NameTaken, NodeNotFound, NoSpace, Poisoned
from snapctl.services.live.container import LiveContainer
from tests.support.backends import FailingBackend, MemoryBackend
from tests.support.live import BLOCK, SIZE, SMALL, GatedBackend, content, flush_under_way, live, put, reopened, run


def test_reads_and_writes_go_on_while_a_commit_waits_for_the_disk():
    async def scenario() -> None:
        backend = GatedBackend()
        served = live(backend)
        device = served.device("db")
        assert device.write(0, b"a" * BLOCK)
        flush = await flush_under_way(served, backend)
        assert device.write(BLOCK - 1, b"bb")
        assert content(device)[: BLOCK + 2] == b"a" * (BLOCK - 1) + b"bb\0"
        assert not flush.done()
        backend.gate.set()
        await flush
        disk = reopened(backend.synced)["db"].read(0, BLOCK + 1)
        assert disk == b"a" * BLOCK + b"\0"
        await served.close()
        assert reopened(backend.synced)["db"].read(0, BLOCK + 1) == b"a" * (BLOCK - 1) + b"bb"

    run(scenario())


def test_flushes_that_come_during_a_commit_share_the_next_one():
    async def scenario() -> None:
        backend = GatedBackend()
        served = live(backend)
        device = served.device("db")
        device.write(0, b"a")
        first = await flush_under_way(served, backend)
        device.write(1, b"b")
        others = [asyncio.create_task(served.flush()) for _ in range(20)]
        await asyncio.sleep(0)
        before = served.cache.commits + served.cache.records
        backend.gate.set()
        await asyncio.gather(first, *others)
        assert served.cache.commits + served.cache.records == before + 2
        await served.close()

    run(scenario())


def test_a_snapshot_holds_what_was_acknowledged_before_it_and_nothing_after():
    async def scenario() -> None:
        backend = GatedBackend()
        served = live(backend)
        device = served.device("db")
        device.write(0, b"before")
        flush = await flush_under_way(served, backend)
        device.write(2, b"FORE")
        snapshot = asyncio.create_task(served.change(lambda container: container.snapshot("db@s")[0].name))
        await asyncio.sleep(0)
        device.write(0, b"after!")
        backend.gate.set()
        assert await snapshot == "db@s"
        await flush
        assert content(served.device("db@s"))[:7] == b"beFORE\0"
        assert content(device)[:7] == b"after!\0"
        assert reopened(backend.synced)["db@s"].read(0, 6) == b"beFORE"
        await served.close()

    run(scenario())


def test_a_write_waits_for_room_in_the_cache_and_no_longer():
    async def scenario() -> None:
        backend = GatedBackend()
        served = live(backend, most_dirty_bytes=4 * BLOCK)
        device = served.device("db")
        device.write(39 * BLOCK, b"y")
        flush = await flush_under_way(served, backend)
        accepted = 0
        while device.write(accepted * BLOCK, b"x" * BLOCK):
            accepted += 1
        assert 1 <= accepted <= 4
        assert served.cache.held_bytes <= 4 * BLOCK
        waiter = asyncio.create_task(put(served, device, accepted * BLOCK, b"x" * BLOCK))
        await asyncio.sleep(0)
        assert not waiter.done()
        backend.gate.set()
        await waiter
        await flush
        assert content(device)[: (accepted + 1) * BLOCK] == b"x" * BLOCK * (accepted + 1)
        await served.close()

    run(scenario())


def test_what_fills_the_cache_leaves_it_without_a_commit():
    async def scenario() -> None:
        backend = GatedBackend()
        served = live(backend, most_dirty_bytes=4 * BLOCK)
        device = served.device("db")
        backend.gate.clear()
        for block in range(40):
            await put(served, device, block * BLOCK, b"%02d" % block * (BLOCK // 2))
        assert served.cache.commits == 0
        assert content(device)[: 40 * BLOCK] == b"".join(b"%02d" % block * (BLOCK // 2) for block in range(40))
        backend.gate.set()
        await served.flush()
        assert reopened(backend.synced)["db"].read(0, SIZE) == content(device)
        await served.close()

    run(scenario())


def test_what_is_old_becomes_durable_by_itself():
    async def scenario() -> None:
        backend = GatedBackend()
        served = live(backend, most_dirty_seconds=0.01)
        served.device("db").write(0, b"old")
        backend.waiting.clear()
        await backend.until_syncing()
        await served.cache.until_room()
        assert reopened(backend.synced)["db"].read(0, 3) == b"old"
        await served.close()

    run(scenario())


def test_an_operation_that_fails_halfway_leaves_nothing_and_no_write_is_lost():
    async def scenario() -> None:
        backend = GatedBackend()
        served = live(backend)
        device = served.device("db")
        device.write(0, b"kept")

        def half(container: Container) -> None:
            container.snapshot("db@half")
            container.create_volume("db", 100)

        with pytest.raises(NameTaken):
            await served.change(half)
        await served.flush()
        assert [node.name for node in served.nodes()] == ["db"]
        assert content(device)[:4] == b"kept"
        disk = reopened(backend.synced)
        assert disk["db"].read(0, 4) == b"kept"
        with pytest.raises(NodeNotFound):
            disk.node("db@half")
        await served.close()

    run(scenario())


def test_a_look_leaves_nothing_changed():
    async def scenario() -> None:
        backend = GatedBackend()
        served = live(backend)
        served.device("db").write(0, b"kept")

        def look(container: Container) -> bytearray:
            seen = container["db"].read(0, 4)
            container.delete("db")
            return seen

        assert await served.at_rest(look) == b"kept"
        assert content(served.device("db"))[:4] == b"kept"
        await served.close()

    run(scenario())


def test_a_full_disk_keeps_what_was_acknowledged_for_the_next_flush():
    async def scenario() -> None:
        backend = FailingBackend(error=NoSpace)
        served = live(backend)
        device = served.device("db")
        device.write(0, b"kept")
        backend.fail_at = range(backend.begun, 1 << 30)
        with pytest.raises(NoSpace):
            await served.flush()
        assert content(device)[:4] == b"kept"
        device.write(4, b"too")
        backend.fail_at = range(0)
        await served.flush()
        assert reopened(bytes(backend.data))["db"].read(0, 7) == b"kepttoo"
        await served.close()

    run(scenario())


def test_after_a_failed_sync_nothing_is_acknowledged_any_more():
    async def scenario() -> None:
        backend = FailingBackend()
        served = live(backend)
        device = served.device("db")
        device.write(0, b"gone")
        backend.methods = ("sync",)
        backend.fail_at = range(backend.begun, 1 << 30)
        with pytest.raises(IoFailure):
            await served.flush()
        backend.fail_at = range(0)
        with pytest.raises(Poisoned):
            device.write(0, b"more")
        with pytest.raises(IoFailure):
            await served.flush()
        with pytest.raises(IoFailure):
            await served.change(lambda container: container.snapshot("db@s"))
        with pytest.raises(IoFailure):
            await served.close()

    run(scenario())


OFFSETS = st.one_of(st.integers(0, SIZE - 1), st.integers(0, SIZE // BLOCK).map(lambda block: block * BLOCK))
LENGTHS = st.one_of(st.integers(1, 5 * BLOCK), st.integers(1, 30).map(lambda blocks: blocks * BLOCK))
NODES = st.integers(0, 5)
STEPS = st.one_of(
    st.tuples(st.just("write"), NODES, OFFSETS, LENGTHS, st.integers(1, 255)),
    st.tuples(st.just("zero"), NODES, OFFSETS, LENGTHS, st.just(0)),
    st.tuples(st.sampled_from(("flush", "hold", "go", "settle", "look")), *[st.just(0)] * 4),
    st.tuples(st.sampled_from(("snapshot", "clone", "delete", "grow", "shrink")), NODES, *[st.just(0)] * 3),
)


class Model:
    """Each node is a bytearray; what happens to the container happens here at the moment of the call."""

    def __init__(self, served: LiveContainer, backend: GatedBackend) -> None:
        self.served = served
        self.backend = backend
        self.devices = {"db": served.device("db")}
        self.contents = {"db": bytearray(SIZE)}
        self.pending: list[asyncio.Task[Any]] = []
        self.names = 0

    def volumes(self) -> list[str]:
        return [name for name in self.contents if "@" not in name]

    async def step(self, what: str, node: int, offset: int, length: int, value: int) -> None:
        if what in {"write", "zero"}:
            await self.put(what, node, offset, length, value)
        elif what == "hold":
            self.backend.gate.clear()
        elif what == "go":
            self.backend.gate.set()
        elif what == "flush":
            self.start(self.served.flush())
        elif what == "look":
            self.compare()
        elif what == "settle":
            await self.settle()
        else:
            await self.change(what, node)
        await asyncio.sleep(0)

    async def put(self, what: str, node: int, offset: int, length: int, value: int) -> None:
        volumes = self.volumes()
        name = volumes[node % len(volumes)]
        device, expected = self.devices[name], self.contents[name]
        offset %= len(expected)
        length = min(length, len(expected) - offset)
        data = bytes([value]) * length
        while not (device.zero(offset, length) if what == "zero" else device.write(offset, data)):
            self.backend.gate.set()
            await self.served.until_room()
        expected[offset : offset + length] = data

    async def change(self, what: str, node: int) -> None:
        self.names += 1
        volumes = self.volumes()
        name = volumes[node % len(volumes)]
        if what == "snapshot":
            new = f"{name}@s{self.names}"
            self.start(self.served.change(lambda container: container.snapshot(new)))
            self.contents[new] = bytearray(self.contents[name])
            return
        # What comes next looks at the tree of nodes, so it has to be there.
        await self.settle()
        if what == "clone":
            new = f"c{self.names}"
            await self.served.change(lambda container: container.clone(name, new))
            taken = [node.name for node in self.served.nodes() if node.name not in self.contents]
            for each in taken:
                self.contents[each] = bytearray(self.contents[name])
        elif what == "delete":
            doomed = sorted(self.contents)[node % len(self.contents)]
            try:
                await self.served.change(lambda container: container.delete(doomed), gives_room=True)
            except HasDependents:
                return
            del self.contents[doomed]
            self.devices.pop(doomed, None)
            if not self.volumes():
                await self.served.change(lambda container: container.create_volume("db", SIZE))
                self.contents["db"] = bytearray(SIZE)
        else:
            size = SIZE if what == "grow" else 7 * BLOCK + 3
            await self.served.change(lambda container: container.node(name).resize(size, shrink=True))
            old = self.contents[name]
            self.contents[name] = old[:size] + bytes(max(0, size - len(old)))
        self.find()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        self.pending.append(asyncio.create_task(work))

    async def settle(self) -> None:
        self.backend.gate.set()
        await asyncio.gather(*self.pending)
        self.pending.clear()
        self.find()
        self.compare()

    def find(self) -> None:
        for name in self.contents:
            self.devices[name] = self.served.device(name)

    def compare(self) -> None:
        for name, device in self.devices.items():
            expected = bytes(self.contents[name])
            assert content(device) == expected, name
            told = bytearray(b"?" * len(expected))
            for extent in device.extents(0, len(expected)):
                begin, end = extent.offset_bytes, extent.offset_bytes + extent.length_bytes
                told[begin:end] = bytes(end - begin) if extent.is_zero else expected[begin:end]
            assert told == expected, name
            assert sum(length for length, _ in device.depths(0, len(expected))) == len(expected)


@given(st.lists(STEPS, max_size=40), st.integers(1, 60))
def test_every_node_reads_as_in_the_model_whatever_is_in_flight(steps: list[tuple[Any, ...]], cache_blocks: int):
    async def scenario() -> None:
        backend = GatedBackend()
        model = Model(live(backend, most_dirty_bytes=cache_blocks * BLOCK), backend)
        try:
            for step in steps:
                await model.step(*step)
            await model.settle()
            await model.served.flush()
            disk = reopened(backend.synced)
            assert {node.name: node.read(0, node.size_bytes) for node in disk.nodes} == {
                name: bytes(expected) for name, expected in model.contents.items()
            }
        finally:
            backend.gate.set()
            await model.served.close()

    run(scenario())


def test_tables_that_promises_take_into_memory_while_a_commit_is_under_way_are_bounded():
    async def scenario() -> None:
        leaves, leaf_bytes = 64, SMALL.fanout * BLOCK
        image = MemoryBackend()
        container = Container.format(image, SMALL)
        container.create_volume("db", leaves * leaf_bytes).write(0, b"old" * (leaves * leaf_bytes // 3))
        container.commit()
        backend = GatedBackend(image.data)
        container = Container.adopt(backend, writable=True)
        container.most_resident_tables = 10
        served = LiveContainer(container, most_dirty_seconds=1000.0)
        device = served.device("db")
        for _ in range(2):
            await served.flush()
            device.write(0, b"a" * BLOCK)
        flush = await flush_under_way(served, backend)
        taken = 0
        while device.write(taken * leaf_bytes, b"b" * BLOCK):
            taken += 1
        assert 0 < taken < leaves
        assert container.pages.resident_tables <= 10 + 3
        backend.gate.set()
        await flush
        for number in range(leaves):
            await put(served, device, number * leaf_bytes, b"b" * BLOCK)
        await served.close()
        node = reopened(backend.synced)["db"]
        assert [node.read(number * leaf_bytes, BLOCK) for number in range(leaves)] == [b"b" * BLOCK] * leaves

    run(scenario())
