"""One client's trouble is not another's: changes that want promised room, and volumes whose tables are damaged."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

import pytest

from snapctl.engine.container import Container
from snapctl.errors import Corruption, NoSpace, SnapctlError
from snapctl.format.geometry import Geometry
from snapctl.format.pointer import PAGE_MASK
from snapctl.services.live.container import LiveContainer
from tests.support.backends import MemoryBackend
from tests.support.live import BLOCK, SMALL, GatedBackend, content, picky, reopened, run

KIB = 1 << 10
DEFAULT = Geometry(4 * KIB, 16 * KIB)
MANY = [f"v{number}" for number in range(59)]


def nearly_full() -> MemoryBackend:
    """A container of 8 MiB with many volumes, in which a little over a megabyte is free again."""
    backend = MemoryBackend()
    container = Container.format(backend, DEFAULT, 8 << 20)
    for name in (*MANY, "other"):
        container.create_volume(name, 16 << 20)
    container.commit()
    volume = container["v0"]
    filled = 0
    try:
        while True:
            volume.write(filled, b"x" * (64 * KIB))
            filled += 64 * KIB
    except NoSpace:
        container.commit()
    volume.trim(0, 1200 * KIB)
    for name in ("one", "two"):
        container.commit()
        container.rename("other" if name == "one" else "one", name)
    container.commit()
    return backend


@pytest.mark.parametrize("is_first", [True, False], ids=["writes behind it", "writes before it"])
def test_a_change_does_not_take_the_room_that_was_promised_to_writes(is_first: bool):
    async def scenario() -> None:
        backend = nearly_full()
        served = LiveContainer(Container.adopt(backend), most_dirty_seconds=1000.0)
        device = served.device("v0")

        def snapshots() -> asyncio.Task[object]:
            return asyncio.create_task(served.change(lambda container: container.snapshot(*[f"{n}@x" for n in MANY])))

        change = snapshots() if is_first else None
        await asyncio.sleep(0)
        written = 0
        try:
            while device.write(written * 4 * KIB, written.to_bytes(4, "little") * KIB):
                written += 1
        except NoSpace:
            pass
        assert written > 100
        change = change or snapshots()
        await asyncio.sleep(0)
        await served.flush()
        with pytest.raises(NoSpace):
            await change
        await served.flush()
        await served.close()
        disk = reopened(bytes(backend.data))
        for number in range(written):
            assert disk["v0"].read(number * 4 * KIB, 4) == number.to_bytes(4, "little")

    run(scenario())


def damaged_leaf(container: Container, name: str) -> int:
    """Where the leaf of a node's first blocks stands, in bytes."""
    tree = container[name].tree
    table = tree.root
    for _ in range(tree.depth - 2):
        child = tree.child(table, 0)
        assert child is not None
        table = child
    return (table.words[0] & PAGE_MASK) * container.geometry.unit


def two_volumes() -> tuple[GatedBackend, int]:
    """Volumes `a` and `b`; of a@s the leaf of the first blocks is damaged, whose place is told."""
    backend = GatedBackend()
    container = Container.format(backend, SMALL)
    for name in ("a", "b"):
        container.create_volume(name, 8 * BLOCK).write(0, b"old")
    container.commit()
    container.snapshot("a@s")
    container["a"].write(BLOCK, b"new")
    container.commit()
    place = damaged_leaf(container, "a@s")
    container.close()
    return backend, place


def test_a_write_above_a_damaged_table_of_the_snapshot_is_refused_and_nothing_else_is():
    async def scenario() -> None:
        backend, place = two_volumes()
        backend.data[place] ^= 1
        served = LiveContainer(Container.adopt(backend), most_dirty_seconds=1000.0)
        with pytest.raises(Corruption):
            served.device("a").write(0, b"x" * BLOCK)
        with pytest.raises(Corruption):
            served.device("a").zero(0, 3 * BLOCK)
        served.device("b").write(0, b"fine")
        await served.flush()
        await served.close()
        assert Container.adopt(MemoryBackend(backend.data))["b"].read(0, 4) == b"fine"

    run(scenario())


def test_damage_that_is_found_when_it_is_too_late_to_refuse_costs_its_volume_alone():
    async def scenario() -> None:
        backend, place = two_volumes()
        served = LiveContainer(Container.adopt(backend), most_dirty_seconds=1000.0)
        a, b = served.device("a"), served.device("b")
        a.write(0, b"lost")
        b.write(0, b"fine")
        backend.data[place] ^= 1
        for node in served.nodes():
            node.relieve(may_write=False)  # what was read is forgotten, and read again
        with pytest.raises(Corruption):
            await served.flush()
        assert content(a)[:4] == b"lost"
        with pytest.raises(Corruption):
            a.write(0, b"more")
        b.write(4, b"too")
        await served.flush()
        await served.change(lambda container: container.snapshot("b@x"))
        await served.close()
        disk = Container.adopt(MemoryBackend(backend.data))
        assert disk["b@x"].read(0, 7) == b"finetoo"
        assert disk["a"].read(0, 3) == b"old"

    run(scenario())


def test_damage_keeps_nothing_of_the_writes_that_are_refused_because_of_it():
    class Data(bytearray):
        """That can be referred to weakly."""

    async def scenario() -> None:
        backend, place = two_volumes()
        served = LiveContainer(Container.adopt(backend), most_dirty_seconds=1000.0)
        device = served.device("a")
        device.write(0, b"lost")
        backend.data[place] ^= 1
        for node in served.nodes():
            node.relieve(may_write=False)
        with pytest.raises(Corruption):
            await served.flush()
        kept = []
        for _ in range(20):
            data = Data(BLOCK)
            kept.append(weakref.ref(data))
            with pytest.raises(Corruption):
                device.write(0, data)
            del data
        gc.collect()
        assert sum(ref() is not None for ref in kept) <= 1
        await served.close()

    run(scenario())


def test_a_flushed_write_that_a_damaged_table_does_not_take_stays_in_the_log():
    async def scenario() -> None:
        backend, _ = two_volumes()
        served = LiveContainer(Container.adopt(backend), most_dirty_seconds=1000.0)
        a, b = served.device("a"), served.device("b")
        for number in range(2):  # the first makes the log
            a.write(0, b"kept%d" % number)
            b.write(0, b"kept%d" % number)
            await served.flush()
        assert served.cache.records == 1
        a.write(0, b"lost")
        place = damaged_leaf(served.container, "a")
        backend.data[place] ^= 1
        for node in served.nodes():
            node.relieve(may_write=False)
        with pytest.raises(Corruption):
            await served.change(lambda container: container.snapshot("b@x"))
        with pytest.raises(SnapctlError):
            b.write(0, b"more")
        with pytest.raises(SnapctlError):
            await served.close()
        with pytest.raises(Corruption, match="check"):
            Container.adopt(MemoryBackend(backend.data))
        backend.data[place] ^= 1
        disk = reopened(bytes(backend.data))
        assert [disk[name].read(0, 5) for name in ("a", "b")] == [b"kept1", b"kept1"]

    run(scenario())


def test_a_delete_that_makes_room_keeps_the_flushed_writes_that_find_none():
    async def scenario() -> None:
        backend, served = picky()
        device = served.device("db")
        for number in range(2):
            device.write(number * BLOCK, b"x" * BLOCK)
            await served.flush()
        assert served.cache.records == 1
        backend.full = True
        assert await served.change(lambda container: container.delete("db@s"), gives_room=True) == ["db@s"]
        assert reopened(backend.synced)["db"].read(0, 2 * BLOCK) == b"x" * 2 * BLOCK
        backend.full = False
        await served.close()

    run(scenario())


def test_what_a_killed_server_had_been_promised_goes_back_to_the_file_system(tmp_path: Path):
    path = tmp_path / "lab.snap"
    with Container.create(str(path)) as container:
        container.create_volume("db", 1 << 20)

    async def scenario() -> None:
        killed = await LiveContainer.open(str(path))
        killed.device("db").write(0, b"x")
        await killed.flush()
        kept_bytes = path.stat().st_blocks * 512
        killed.container.pages.backend.close()  # as the system does it
        await killed.cache.close()
        served = await LiveContainer.open(str(path))
        assert path.stat().st_blocks * 512 < kept_bytes / 4
        await served.close()

    run(scenario())
