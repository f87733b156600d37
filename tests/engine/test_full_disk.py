"""A disk without a free block: what does not fit fails as a whole, and what gives room back still works."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapctl.engine.container import Container
from snapctl.errors import IoFailure, NoSpace
from snapctl.format.geometry import SUPERBLOCK_AREA, Geometry
from snapctl.services.check import check_backend
from tests.support.backends import FailingBackend, MemoryBackend, RecordingBackend
from tests.support.disks import FILE_SYSTEMS, SmallDisk, fill_up, small_disk
from tests.support.images import allocated_bytes, noise

MIB = 1 << 20
SMALL = Geometry(512, 512)


@pytest.fixture(params=FILE_SYSTEMS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with small_disk(request.param, tmp_path, 24 * MIB) as path:
        yield path


def contents(container: Container) -> dict[str, bytes]:
    return {node.name: bytes(node.read(0, node.size_bytes)) for node in container.nodes}


@contextmanager
def opened(path: Path) -> Iterator[Container]:
    with Container.open(str(path), writable=True) as container:
        yield container


def scatter(container: Container, *, block_size: int, blocks: int) -> None:
    """Write to a volume here and there, and take snapshots, until there is no space."""
    volume = container.create_volume("db", blocks * block_size)
    chance = random.Random(1)
    try:
        for number in count():
            for _ in range(40):
                volume.write(chance.randrange(blocks) * block_size, chance.randbytes(block_size))
            container.snapshot(f"db@s{number}")
            container.commit()
    except NoSpace:
        container.abort()


@cache
def full_disk(size_bytes: int, blocks: int) -> SmallDisk:
    """A disk without a free block, and on it a container whose data lies scattered; to be copied."""
    disk = SmallDisk(size_bytes)
    scatter(Container.format(disk, SMALL), block_size=512, blocks=blocks)
    disk.taken += disk.free_blocks
    return disk


# The reserve


def test_a_commit_keeps_room_beyond_the_end_which_is_no_part_of_the_file():
    backend = MemoryBackend()
    container = Container.format(backend, Geometry(4096, 16384))
    assert backend.reserved_to == backend.size() + 17 * 16384
    container.create_volume("db", 1 << 30).write(0, noise(8 * MIB))
    container.commit()
    end = backend.size()
    assert backend.reserved_to == end + (end // 16 // 16384 + 1) * 16384


def test_the_reserve_of_a_large_container_is_bounded_but_for_the_bitmaps():
    container = Container.format(MemoryBackend(), Geometry(4096, 16384))
    length = container.pages.reserve.length
    assert length(64 * MIB // 4096) == (256 + 1) * 16384
    assert length((1 << 40) // 4096) == (256 + 2048) * 16384


def test_a_commit_that_does_not_move_the_end_asks_the_file_system_for_nothing():
    backend = RecordingBackend()
    container = Container.format(backend, SMALL)
    volume = container.create_volume("db", MIB)
    for length in (50_000, 512, 512):  # leaves free pages for what follows
        volume.write(0, noise(length))
        container.commit()
    backend.forget()
    volume.write(0, noise(512))
    size = backend.size()
    container.commit()
    assert backend.size() == size
    assert backend.calls["sync"] >= 2
    assert backend.calls["reserve"] == 0


def test_a_commit_without_room_for_the_reserve_fails_and_can_be_tried_again():
    backend = FailingBackend(error=NoSpace, methods=("reserve",))
    container = Container.format(backend, SMALL)
    container.create_volume("db", MIB)
    container.commit()
    before = bytes(backend.data)
    container["db"].write(0, noise(100_000))
    backend.fail_at = range(backend.begun, backend.begun + 1)
    with pytest.raises(NoSpace):
        container.commit()
    assert backend.data[:SUPERBLOCK_AREA] == before[:SUPERBLOCK_AREA]
    container.commit()
    assert Container.adopt(backend)["db"].read(0, 100_000) == noise(100_000)


@pytest.mark.parametrize("error", [NoSpace, IoFailure])
def test_a_delete_does_not_fail_for_want_of_a_new_reserve(error: type[NoSpace | IoFailure]):
    backend = FailingBackend(error=error, methods=("reserve",))
    container = Container.format(backend, SMALL)
    container.create_volume("db", MIB).write(0, noise(100_000))
    container.snapshot("db@mon")
    container.commit()
    backend.fail_at = range(10_000)
    container.delete("db@mon")
    container.commit()
    container.close()
    assert [node.name for node in Container.adopt(MemoryBackend(backend.data)).nodes] == ["db"]


def test_an_aborted_transaction_restores_the_reserve():
    backend = MemoryBackend()
    container = Container.format(backend, SMALL)
    container.create_volume("db", MIB)
    container.commit()
    before = backend.reserved_to
    container["db"].write(0, noise(100_000))
    assert backend.size() > before - SUPERBLOCK_AREA
    container.abort()
    assert backend.reserved_to == before


def test_a_dry_run_does_not_touch_the_file():
    backend = RecordingBackend()
    container = Container.format(backend, SMALL)
    container.create_volume("db", MIB).write(0, noise(10_000))
    container.snapshot("db@mon")
    container.commit()
    container = Container.adopt(backend)
    backend.forget()
    container.delete("db@mon")
    container.preview_used_bytes()
    container.abort()
    assert backend.log == []


# A disk in memory


def test_every_snapshot_on_a_full_disk_can_be_deleted_while_others_take_what_that_frees():
    disk = full_disk(2 * MIB, 900).copy()
    container = Container.adopt(disk)
    names = [node.name for node in container.nodes if node.kind.value == "ro"]
    assert len(names) > 20
    random.Random(2).shuffle(names)
    for name in names:
        container.delete(name)
        container.commit()
        disk.taken += disk.free_blocks
    assert [node.name for node in container.nodes] == ["db"]
    assert check_backend(disk).findings == []


@settings(max_examples=10)
@given(st.integers(0, 1 << 32))
def test_on_a_full_disk_each_change_happens_or_fails_as_a_whole(seed: int):
    chance = random.Random(seed)
    disk = full_disk(MIB // 4, 120).copy()
    container = Container.adopt(disk)
    after = contents(container)
    for _ in range(6):
        before = after
        volume = container["db"]
        snapshot = chance.choice([*volume.snapshots, volume]).name
        action = chance.choice(["write", "snapshot", "delete", "trim", "shrink", "clone"])
        try:
            if action == "write":
                volume.write(chance.randrange(volume.size_bytes // 2), chance.randbytes(chance.randrange(1, 20_000)))
            elif action == "snapshot":
                container.snapshot(f"db@x{chance.getrandbits(60)}")
            elif action == "clone":
                container.clone(snapshot, f"c{chance.getrandbits(60)}")
            elif action == "delete" and snapshot != "db":
                container.delete(snapshot, cascade=True)
            elif action == "trim":
                volume.trim(chance.randrange(volume.size_bytes // 2), volume.size_bytes // 3)
            elif action == "shrink":
                volume.resize(volume.size_bytes - chance.randrange(1000), shrink=True)
            after = contents(container)
            container.commit()  # to fail, it must not change what is read
        except NoSpace:
            assert action in {"write", "snapshot", "clone"}
            container.abort()
            after = before
        assert contents(Container.adopt(disk, writable=False)) == after
        if chance.random() < 0.5:
            disk.taken += disk.free_blocks
    assert check_backend(disk).findings == []


def test_what_a_delete_of_scattered_data_frees_can_be_written_at_once():
    disk = full_disk(2 * MIB, 900).copy()
    container = Container.adopt(disk)
    container.delete("db", cascade=True)
    container.commit()
    free = container.usage.free_bytes
    assert free > MIB
    tables = free // 512 // 32 + 20
    container.create_volume("new", 2 * MIB).write(0, noise(free - tables * 512))
    container.commit()


# Real file systems


def test_the_file_system_keeps_the_reserve_and_gets_it_back(disk: Path):
    path = disk / "lab.snap"
    with Container.create(str(path)) as container:
        reserve = container.usage.reserve_bytes
        assert reserve == 17 * 16384
    size, allocated = path.stat().st_size, allocated_bytes(path)
    with opened(path) as container:
        container.pages.backend.release()
    assert (path.stat().st_size, allocated_bytes(path)) == (size, allocated - reserve)


def test_a_new_container_takes_half_a_megabyte(disk: Path):
    Container.create(str(disk / "lab.snap")).close()
    assert allocated_bytes(disk / "lab.snap") <= 512 * 1024


def test_what_is_free_can_be_written_and_no_more(disk: Path):
    path = disk / "lab.snap"
    with Container.create(str(path)) as container:
        volume = container.create_volume("db", 1 << 30)
        container.commit()
        usage = container.usage
        status = os.statvfs(disk)
        free_and_own = status.f_bavail * status.f_frsize + allocated_bytes(path)
        assert usage.free_bytes == free_and_own - usage.used_bytes - usage.reserve_bytes
        volume.write(0, noise(usage.free_bytes))
        with pytest.raises(NoSpace):
            container.commit()
        container.abort()
        # Tables and a larger reserve for a larger container.
        volume.write(0, noise(usage.free_bytes * 7 // 8))
        container.commit()


def test_a_killed_writer_that_filled_the_disk_keeps_nobody_from_deleting(disk: Path):
    path = disk / "lab.snap"
    with Container.create(str(path)) as container:
        container.create_volume("db", 4 * MIB).write(0, noise(2 * MIB))
        container.snapshot("db@mon")
    fill_up(path)
    with opened(path) as container:
        container.delete("db@mon")
    with opened(path) as container:
        assert contents(container).keys() == {"db"}
        assert check_backend(container.pages.backend).findings == []


def test_scattered_snapshots_on_a_full_disk_can_all_be_deleted(disk: Path):
    path = disk / "lab.snap"
    with Container.create(str(path)) as container:
        scatter(container, block_size=4096, blocks=1 << 15)
        names = [node.name for node in container["db"].snapshots]
        assert len(names) > 3
    random.Random(3).shuffle(names)
    for name in names:
        fill_up(disk / "ballast")
        with opened(path) as container:
            container.delete(name)
    with opened(path) as container:
        assert [node.name for node in container.nodes] == ["db"]
        assert check_backend(container.pages.backend).findings == []
