"""What a dead server has left in the log of a container: every command sees it, and a repair keeps it."""

from __future__ import annotations

import fcntl
import os
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from snapctl.engine.container import Container
from snapctl.engine.recovery import Change, apply
from snapctl.errors import Corruption, DataLost
from snapctl.format.geometry import Geometry
from snapctl.format.superblock import COPIES, copy_offset
from snapctl.services import opening, transfer
from snapctl.services.check import check_backend, check_container
from snapctl.services.repair import repair_backend, undo_repair_of
from snapctl.services.scrub import scrub_container
from snapctl.storage import lock
from snapctl.storage.superblocks import choose_superblocks
from snapctl.storage.view import ViewBackend
from tests.cli.harness import run
from tests.support.backends import MemoryBackend
from tests.support.containers import change_of_blocks
from tests.support.states import state_in

SIZE = 4096
NOISE = random.Random(11)


def flush(container: Container, name: str, *numbers: int) -> Change:
    change = change_of_blocks(container[name], {number: NOISE.randbytes(container.block_size) for number in numbers})
    assert container.log([change])
    container.sync_log()
    return change


def left_by_a_dead_server(path: Path) -> dict[int, bytes]:
    """A container whose volume got two blocks that only the log has; gives them."""
    container = Container.create(str(path))
    container.create_volume("db", 64 * SIZE).write(0, b"old" * SIZE)
    container.snapshot("db@mon")
    assert container.make_log()
    container.commit()
    blocks = {**flush(container, "db", 1).leaves[0], **flush(container, "db", 40).leaves[0]}
    container.close()
    return {number: bytes(block) for number, block in blocks.items()}


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    return tmp_path / "lab.snap"


def test_commands_that_read_see_what_was_flushed_and_leave_the_file_as_it_is(lab: Path, tmp_path: Path):
    blocks = left_by_a_dead_server(lab)
    before = lab.read_bytes()
    for number, block in blocks.items():
        read = run("read", lab / "db", "--offset", str(number * SIZE), "--length", str(SIZE))
        assert read.out == block
    run("export", lab / "db", tmp_path / "db.img")
    image = (tmp_path / "db.img").read_bytes()
    assert [image[number * SIZE : (number + 1) * SIZE] for number in blocks] == list(blocks.values())
    assert run("read", lab / "db@mon", "--offset", str(SIZE), "--length", "6").out == (b"old" * SIZE)[SIZE:][:6]
    assert ["logged", "flushes", "2"] in [line.split() for line in run("info", lab).lines]
    assert "2 records of the log" in run("check", lab).text
    assert run("check", "--json", lab).json["logged_flushes"] == 2
    assert scrub_container(str(lab), 5.0).damages == ()
    assert lab.read_bytes() == before


def test_a_command_that_writes_commits_what_was_flushed_and_leaves_no_log(lab: Path):
    blocks = left_by_a_dead_server(lab)
    run("snapshot", lab / "db@tue")
    with Container.open(str(lab)) as container:
        assert container.replayed_records == container.superblock.log_pages == container.superblock.incompatible == 0
        assert [container["db@tue"].read(number * SIZE, SIZE) for number in blocks] == list(blocks.values())
    report = check_container(str(lab), 5.0)
    assert (report.findings, report.logged_flushes) == ([], 0)
    assert "logged" not in run("info", lab).text


def test_a_reader_that_has_replayed_lets_writers_in_and_sees_what_they_have_done(
    lab: Path, monkeypatch: pytest.MonkeyPatch
):
    blocks = left_by_a_dead_server(lab)
    pause = lock.pause
    with opening.reading(str(lab), 5.0) as reader:
        snapshot = reader["db@mon"]
        reader.let_writers_in(5.0)
        assert reader.replayed_records == 2

        def with_a_writer(fd: int, path: str, *, wait_seconds: float) -> None:
            fcntl.flock(fd, fcntl.LOCK_UN)
            with Container.open(str(lab), writable=True) as writer:
                writer["db"].write(0, b"new")
            pause(fd, path, wait_seconds=wait_seconds)

        monkeypatch.setattr(lock, "pause", with_a_writer)
        reader.let_writers_in(5.0)
        assert reader.replayed_records == 0
        assert reader["db"].read(0, 3) == b"new"
        assert reader["db"].read(40 * SIZE, SIZE) == blocks[40]
        assert snapshot.read(0, 3) == b"old"


def test_an_export_of_a_snapshot_of_a_container_with_a_log_gives_the_snapshot(lab: Path, tmp_path: Path):
    left_by_a_dead_server(lab)
    transfer.export_node(str(lab), "db@mon", str(tmp_path / "image"), wait_seconds=5.0)
    assert (tmp_path / "image").read_bytes()[: 3 * SIZE] == b"old" * SIZE


@dataclass
class Grant:
    """A view without a server."""

    fd: int
    superblocks_fd: int

    def is_over(self, wait_seconds: float) -> bool:
        return False

    def end(self) -> None:
        pass


def test_a_view_is_of_a_commit_and_replays_nothing_though_its_server_goes_on_logging(lab: Path, tmp_path: Path):
    container = Container.create(str(lab))
    container.create_volume("db", 64 * SIZE).write(0, b"old" * SIZE)
    assert container.make_log()
    container.commit()
    flush(container, "db", 0)
    pinned = container.pin()
    (tmp_path / "area").write_bytes(pinned.area)
    flush(container, "db", 1)
    read_only = os.O_RDONLY | os.O_CLOEXEC
    view = ViewBackend(str(lab), Grant(os.open(lab, read_only), os.open(tmp_path / "area", read_only)))
    found = Container.adopt(view, writable=False)
    assert found.replayed_records == 0
    assert found["db"].read(0, 3 * SIZE) == b"old" * SIZE
    report = check_backend(view)
    assert (report.findings, report.logged_flushes) == ([], 0)
    view.close()
    container.unpin(pinned)
    container.close()


# Repair


@pytest.fixture
def made() -> tuple[MemoryBackend, Container]:
    backend = MemoryBackend()
    container = Container.format(backend, Geometry(512, 512))
    container.create_volume("db", 100 * 512).write(0, NOISE.randbytes(100 * 512))
    container.create_volume("log", 100 * 512).write(0, NOISE.randbytes(100 * 512))
    container.snapshot("db@mon")
    assert container.make_log()
    container.commit()
    container.note_commit()
    container.commit()  # so that there is no other state for a repair to go back to
    return backend, container


def test_a_repair_of_something_else_keeps_what_was_flushed(made: tuple[MemoryBackend, Container]):
    backend, container = made
    flush(container, "db", 3, 70)
    flush(container, "log", 5)
    image = bytes(backend.data)
    wanted = state_in(image)
    damaged = MemoryBackend(image)
    page_no = choose_superblocks(damaged)[0].space_map.page_no
    damaged.data[page_no * 512] ^= 1
    outcome = repair_backend(damaged, agree=lambda _: True)
    assert outcome.applied
    assert "flushed" in next(action.message for action in outcome.actions if action.where == "log")
    assert state_in(damaged.data) == wanted
    report = check_backend(damaged)
    assert (report.findings, report.logged_flushes) == ([], 0)


def test_a_damaged_table_keeps_the_log_for_a_repair_which_heals_what_was_written_whole(
    made: tuple[MemoryBackend, Container],
):
    backend, container = made
    change = flush(container, "db", 3, 40)
    image = bytes(backend.data)
    damaged = MemoryBackend(image)
    leaf = next(leaf for _, _, leaf, _ in container["db"].tree.spans(0, 1))
    assert leaf is not None
    damaged.data[leaf.page_no * 512] ^= 1
    before = bytes(damaged.data)
    for writable in (False, True):
        with pytest.raises(Corruption, match="cannot be replayed"):
            Container.adopt(damaged, writable=writable)
        assert damaged.data == before
    repair_backend(damaged, agree=lambda _: True)
    found = Container.adopt(damaged, writable=False)
    assert found["db"].read(3 * 512, 512) == change.leaves[0][3]
    assert found["db"].read(40 * 512, 512) == change.leaves[1][40]
    with pytest.raises(DataLost):
        found["db"].read(4 * 512, 512)


def test_a_damaged_log_is_repaired_to_what_came_before_and_the_loss_is_told(made: tuple[MemoryBackend, Container]):
    backend, container = made
    first = flush(container, "db", 3)
    flush(container, "db", 4)
    flush(container, "db", 5)
    before = state_in(backend.data)
    backend.data[container.superblock.log_page * 512 + 1024 + 700] ^= 1
    outcome = repair_backend(backend, agree=lambda _: True)
    assert any("is lost" in action.message for action in outcome.actions if action.where == "log")
    found = Container.adopt(backend, writable=False)
    assert found["db"].read(3 * 512, 512) == first.leaves[0][3]
    assert found["db"].read(4 * 512, 512) != before["db"].content[4 * 512 : 5 * 512]
    assert check_backend(backend).findings == []


def test_an_undone_repair_has_the_log_again(lab: Path):
    blocks = left_by_a_dead_server(lab)
    with Container.open(str(lab)) as container:
        transaction = container.transaction
    data = bytearray(lab.read_bytes())
    sound = bytes(data)
    backend = MemoryBackend(data)
    page_no = choose_superblocks(backend)[0].space_map.page_no
    data[page_no * SIZE] ^= 1
    lab.write_bytes(data)
    run("check", "--repair", "--yes", lab)
    assert check_container(str(lab), 5.0).logged_flushes == 0
    undo_repair_of(str(lab), 5.0, agree=lambda _: True)
    data = bytearray(lab.read_bytes())
    data[page_no * SIZE] ^= 1
    lab.write_bytes(data)
    assert check_container(str(lab), 5.0).logged_flushes == 2
    with Container.open(str(lab)) as container:
        assert container.transaction > transaction
        assert [container["db"].read(number * SIZE, SIZE) for number in blocks] == list(blocks.values())
    assert state_in(data) == state_in(sound)


def test_without_the_last_commit_there_is_the_one_before_with_what_was_flushed_after_it_if_that_still_stands(
    made: tuple[MemoryBackend, Container],
):
    """Both copies of the newest slot go bad. What it logged stands where its predecessor's records stood."""
    backend, container = made
    committed = state_in(backend.data)
    change = flush(container, "db", 3)
    flushed = state_in(backend.data)
    for _ in apply(change):
        pass
    container["log"].write(0, b"later")
    container.commit()
    assert state_in(without_the_last_commit(backend).data) == flushed
    flush(container, "log", 4)
    assert state_in(without_the_last_commit(backend).data) == committed


def without_the_last_commit(backend: MemoryBackend) -> MemoryBackend:
    lost = MemoryBackend(backend.data)
    for copy in range(COPIES):
        lost.data[copy_offset(choose_superblocks(backend)[0].slot, copy)] ^= 1
    return lost
