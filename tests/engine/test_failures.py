"""What is left in memory and on disk when an operation, a commit or a lock fails."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from snapctl.engine.container import Container
from snapctl.engine.reading import resolve
from snapctl.errors import HasDependents, IoFailure, Locked, NodeNotFound, NoSpace, Poisoned
from snapctl.format.geometry import Geometry
from snapctl.format.superblock import copy_offset
from snapctl.services.check import check_backend
from tests.support.backends import FailingBackend, MemoryBackend, UnreadableSector

SMALL = Geometry(512, 512)


class Interrupting(MemoryBackend):
    """Ends the n-th sync as a signal would."""

    def __init__(self, data: bytes | bytearray, at: int) -> None:
        super().__init__(data)
        self.left = at

    def sync(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        super().sync()


def test_every_snapshot_of_a_container_filled_with_snapshots_can_be_deleted():
    container = Container.format(MemoryBackend(), SMALL, capacity_bytes=1 << 20)
    volume = container.create_volume("db", 1 << 20)
    taken = 0
    try:
        while True:
            volume.write(taken % 50 * 512, os.urandom(512))
            container.snapshot(f"db@s{taken}")
            container.commit()
            taken += 1
    except NoSpace:
        container.abort()
    assert taken > 50
    for number in range(taken):
        container.delete(f"db@s{number}")
        container.commit()
    assert container["db"].snapshots == []


def test_a_new_container_has_its_reserve_at_once():
    container = Container.format(MemoryBackend(), SMALL, capacity_bytes=1 << 20)
    assert container.space.reserve > 0


def test_an_interrupt_after_the_superblock_is_written_poisons():
    backend = MemoryBackend()
    Container.format(backend, SMALL).create_volume("db", 5000)
    for at in (2, 3):
        interrupted = Interrupting(backend.data, at)
        container = Container.adopt(interrupted)
        container.create_volume("log", 5000).write(0, b"x" * 5000)
        with pytest.raises(KeyboardInterrupt):
            container.commit()
        if at == 3:
            with pytest.raises(Poisoned):
                container.abort()
        assert check_backend(interrupted).findings == []


def test_deleting_a_snapshot_and_what_its_clone_would_hang_from_is_refused_before_anything_changes():
    container = Container.format(MemoryBackend(), SMALL)
    container.create_volume("db", 5000)
    for name in ("s1", "s2", "s3"):
        container.snapshot(f"db@{name}")
    container.clone("db@s1", "dev")
    with pytest.raises(HasDependents):
        container.delete("db@s1", "db@s2")
    container.commit()
    assert len(container) == 5
    assert container.delete("db@s1") == ["db@s1"]


def test_nodes_deleted_in_an_aborted_transaction_are_there_again():
    container = Container.format(MemoryBackend(), SMALL)
    volume = container.create_volume("db", 5000)
    volume.write(0, b"kept")
    snapshot = container.snapshot("db@mon")[0]
    container.commit()
    container.delete("db", cascade=True)
    with pytest.raises(NodeNotFound):
        volume.read(0, 4)
    container.abort()
    assert volume.read(0, 4) == snapshot.read(0, 4) == b"kept"


def test_a_read_never_fails_for_lack_of_space():
    backend = FailingBackend(error=NoSpace, methods=("write",))
    container = Container.format(backend, SMALL)
    container.most_resident_tables = 1
    volume = container.create_volume("db", 1 << 20)
    volume.write(0, b"x" * 2000)
    backend.fail_at = range(10_000)
    assert volume.read(0, 2000) == b"x" * 2000


def unreadable_superblocks(*copies: tuple[int, int]) -> UnreadableSector:
    """A container of three commits, the last of which made the second volume, on a disk that hides some copies."""
    backend = UnreadableSector()
    container = Container.format(backend, SMALL)
    for name in ("db", "log"):
        container.create_volume(name, 5000).write(0, b"x" * 5000)
        container.commit()
    assert container.transaction == 4
    backend.bad_offsets = tuple(copy_offset(slot, copy) for slot, copy in copies)
    return backend


@pytest.mark.parametrize("copies", [((0, 0),), ((0, 1),), ((1, 0),), ((1, 1),), ((0, 0), (1, 1)), ((1, 0), (0, 0))])
@pytest.mark.parametrize("writable", [False, True])
def test_an_unreadable_copy_of_either_superblock_costs_nothing(copies: tuple[tuple[int, int], ...], writable: bool):
    assert len(Container.adopt(unreadable_superblocks(*copies), writable=writable)) == 2


@pytest.mark.parametrize("writable", [False, True])
def test_a_last_commit_whose_superblock_cannot_be_read_at_all_is_not_taken_for_one_that_never_was(writable: bool):
    """To open the commit before would cut off the last one's pages; the next read may well succeed."""
    backend = unreadable_superblocks((1, 0), (1, 1))
    before = bytes(backend.data)
    with pytest.raises(IoFailure, match="try again"):
        Container.adopt(backend, writable=writable)
    assert backend.data == before
    backend.bad_offsets = ()
    assert len(Container.adopt(backend, writable=writable)) == 2


def test_an_aborted_transaction_gives_its_room_back(tmp_path: Path):
    path = tmp_path / "lab.snap"
    with Container.create(str(path)) as container:
        container.create_volume("db", 1 << 30).write(0, os.urandom(4 << 20))
        container.snapshot("db@mon")
    before = path.stat()
    container = Container.open(str(path), writable=True)
    container["db"].write(0, os.urandom(16 << 20))
    assert path.stat().st_size > before.st_size
    container.close()
    assert path.stat().st_size == before.st_size
    assert path.stat().st_blocks <= before.st_blocks


def test_what_a_killed_writer_left_beyond_the_end_is_cut_off(tmp_path: Path):
    path = tmp_path / "lab.snap"
    with Container.create(str(path)) as container:
        container.create_volume("db", 1 << 30)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(bytes(1 << 20))
    with Container.open(str(path), writable=True):
        pass
    assert path.stat().st_size == size


def test_a_reader_that_does_not_get_its_lock_back_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = str(tmp_path / "lab.snap")
    with Container.create(path) as container:
        container.create_volume("db", 5000)
    reader = Container.open(path)

    writers: list[Container] = []
    monkeypatch.setattr(time, "sleep", lambda _seconds: writers.append(Container.open(path, writable=True)))
    with pytest.raises(Locked):
        reader.let_writers_in(0)
    with writers[0], pytest.raises(IoFailure):
        reader["db"].read(0, 1)


def test_a_file_replaced_while_its_lock_was_awaited_is_opened_anew(tmp_path: Path):
    path = tmp_path / "lab.snap"
    other = tmp_path / "other.snap"
    for file, name in ((path, "old"), (other, "new")):
        with Container.create(str(file)) as container:
            container.create_volume(name, 5000)
    holder = Container.open(str(path), writable=True)
    holder.destroy()
    other.rename(path)
    holder.close()
    with Container.open(str(path)) as container:
        assert container["new"].size_bytes == 5000


def test_walking_the_extents_of_a_large_volume_holds_few_tables():
    container = Container.format(MemoryBackend(), SMALL)
    volume = container.create_volume("db", 16 << 20)
    for offset in range(0, 16 << 20, 32 * 512):
        volume.write(offset, b"x" * 512)
    container.commit()
    container.most_resident_tables = 40
    container.relieve(may_write=True)
    assert sum(not extent.is_zero for extent in volume.extents()) == 1024
    assert container.pages.resident_tables < 400
    assert sum(1 for _ in resolve(volume, 0, 64)) == 4
