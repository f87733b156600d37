"""The files of a mount: what programs see of them while the container changes beneath."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapctl import Container, errors
from snapctl.services.live.container import LiveContainer
from snapctl.services.mount.binding import error_number
from snapctl.services.mount.directory import Mount
from snapctl.services.mount.files import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, Files
from tests.cli.harness import run
from tests.support.images import noise
from tests.support.mounts import TIMEOUT_SECONDS, Mounted, mounted, require_fuse, tool

KIB = 1 << 10
SIZE = 256 * KIB

_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(file: int, mode: int, offset: int, length: int) -> None:
    """Call fallocate(2) in a mode that Python has no function for."""
    if _libc.fallocate(file, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A container with a volume `db` of 256 KiB, and `db@mon` from when it was full of noise."""
    require_fuse()
    path = tmp_path / "lab.snap"
    with Container.create(str(path)) as container:
        container.create_volume("db", SIZE).write(0, noise(SIZE))
        container.snapshot("db@mon")
    return path


@pytest.fixture
def mount(lab: Path, tmp_path: Path) -> Iterator[Mounted]:
    """The container mounted by a process."""
    with mounted(lab, tmp_path / "m") as mount:
        yield mount


@asynccontextmanager
async def mounted_here(lab: Path, directory: Path) -> AsyncIterator[tuple[LiveContainer, list[errors.SnapctlError]]]:
    """Mount in this process, where the test has to use files in threads; yields also the errors that are reported."""
    await asyncio.to_thread(directory.mkdir)
    reported: list[errors.SnapctlError] = []
    live = await LiveContainer.open(str(lab))
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), Mount(live, str(directory), report=reported.append):
            yield live, reported
    finally:
        await live.close()


def opened(path: Path, flags: int = os.O_RDWR) -> int:
    return os.open(path, flags)


def number_of(call: Callable[..., Any], *arguments: Any) -> int | None:
    """The number of the error that a call ends with; None if there is none."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return None


def test_each_volume_and_snapshot_is_a_file_of_its_size(mount: Mounted, lab: Path):
    status = {path.name: path.stat() for path in mount.directory.iterdir()}
    assert {name: (entry.st_size, entry.st_mode & 0o777) for name, entry in status.items()} == {
        "db": (SIZE, lab.stat().st_mode & 0o666),
        "db@mon": (SIZE, lab.stat().st_mode & 0o444),
    }
    assert status["db"].st_ino != status["db@mon"].st_ino
    assert {entry.name: entry.inode() for entry in os.scandir(mount.directory)} == {
        name: entry.st_ino for name, entry in status.items()
    }
    assert os.statvfs(mount.directory).f_bsize == 4096


def test_a_snapshot_is_as_old_as_what_it_holds_and_a_volume_as_new_as_its_last_write(mount: Mounted):
    db, mon = mount.directory / "db", mount.directory / "db@mon"
    taken_ns = mon.stat().st_mtime_ns
    before_ns = db.stat().st_mtime_ns
    assert taken_ns <= before_ns
    with db.open("r+b") as file:
        file.write(b"new")
    assert db.stat().st_mtime_ns > before_ns
    assert mon.stat().st_mtime_ns == taken_ns


def test_a_container_that_is_moved_away_stays_mounted(mount: Mounted, lab: Path):
    before = (mount.directory / "db@mon").stat()
    lab.rename(lab.with_name("moved.snap"))
    assert (mount.directory / "db@mon").stat() == before
    assert (mount.directory / "db").read_bytes() == noise(SIZE)
    assert sorted(os.listdir(mount.directory)) == ["db", "db@mon"]
    assert mount.unmount().code == 0


def test_unmounting_commits_what_nobody_synced(mount: Mounted, lab: Path):
    with (mount.directory / "db").open("r+b") as file:
        file.write(b"new" * 10_000)
    ended = mount.unmount()
    assert (ended.code, ended.err) == (0, "")
    with Container.open(str(lab)) as container:
        assert container["db"].read(0, SIZE) == b"new" * 10_000 + noise(SIZE)[30_000:]
        assert container["db@mon"].read(0, SIZE) == noise(SIZE)


def test_a_snapshot_can_only_be_read(mount: Mounted):
    path = mount.directory / "db@mon"
    assert number_of(opened, path, os.O_RDWR) == errno.EROFS
    assert number_of(opened, path, os.O_WRONLY | os.O_TRUNC) == errno.EROFS
    assert number_of(os.truncate, path, 0) == errno.EROFS
    assert path.read_bytes() == noise(SIZE)


def test_files_are_not_made_renamed_or_removed(mount: Mounted):
    db, new = mount.directory / "db", mount.directory / "new"
    refused = {
        "create": number_of(opened, new, os.O_RDWR | os.O_CREAT),
        "unlink": number_of(db.unlink),
        "rename": number_of(db.rename, new),
        "mkdir": number_of(new.mkdir),
        "link": number_of(new.hardlink_to, db),
        "symlink": number_of(new.symlink_to, db),
        "chmod": number_of(db.chmod, 0o600),
        "utime": number_of(os.utime, db),
    }
    assert refused == dict.fromkeys(refused, errno.EPERM)
    assert sorted(os.listdir(mount.directory)) == ["db", "db@mon"]
    assert number_of(os.stat, mount.directory / "nosuch") == errno.ENOENT
    assert number_of(os.stat, mount.directory / "a..b") == errno.ENOENT


def test_a_file_ends_where_its_volume_ends_as_a_block_device_does(mount: Mounted):
    db = mount.directory / "db"
    os.truncate(db, SIZE)
    assert number_of(os.truncate, db, SIZE + 1) == errno.EPERM
    assert number_of(os.truncate, db, 0) == errno.EPERM
    file = opened(db, os.O_RDWR | os.O_TRUNC)
    try:
        assert os.pread(file, SIZE, 0) == noise(SIZE)
        assert os.pwrite(file, b"x" * 10, SIZE - 4) == 4
        assert number_of(os.pwrite, file, b"x", SIZE) == errno.ENOSPC
        assert os.pread(file, 10, SIZE - 4) == b"xxxx"
        assert os.pread(file, 10, SIZE) == b""
        assert number_of(fallocate, file, 0, 0, 4096) == errno.EOPNOTSUPP
        assert number_of(fallocate, file, ZERO_RANGE, SIZE - 1, 2) == errno.EPERM
        fallocate(file, PUNCH_HOLE | KEEP_SIZE, SIZE - 2, 100)
        fallocate(file, PUNCH_HOLE | KEEP_SIZE, SIZE + 5, 100)
        assert os.pread(file, 10, SIZE - 4) == b"xx\0\0"
    finally:
        os.close(file)
    assert db.stat().st_size == SIZE


def test_a_read_only_mount_refuses_writes_and_lets_others_read(lab: Path, tmp_path: Path):
    with mounted(lab, tmp_path / "m", "--read-only") as mount:
        assert number_of(opened, mount.directory / "db", os.O_RDWR) == errno.EROFS
        assert number_of(os.truncate, mount.directory / "db", 0) == errno.EROFS
        assert (mount.directory / "db").read_bytes() == noise(SIZE)
        assert run("read", lab / "db").out == noise(SIZE)
        assert mount.unmount().code == 0


def test_copying_and_archiving_find_the_holes_of_a_volume_and_all_data_of_a_snapshot(mount: Mounted, tmp_path: Path):
    file = opened(mount.directory / "db")
    fallocate(file, PUNCH_HOLE | KEEP_SIZE, 0, SIZE - 4096)
    os.fsync(file)
    os.close(file)
    for name, data in (("db", bytes(SIZE - 4096) + noise(SIZE)[-4096:]), ("db@mon", noise(SIZE))):
        tool("cp", "--sparse=auto", mount.directory / name, tmp_path / name)
        tool("tar", "--sparse", "-C", mount.directory, "-cf", tmp_path / "archive", name)
        tool("tar", "-C", tmp_path, "--one-top-level=out", "-xf", tmp_path / "archive")
        assert (tmp_path / name).read_bytes() == (tmp_path / "out" / name).read_bytes() == data
    assert (tmp_path / "db").stat().st_blocks * 512 < SIZE / 2


def test_nodes_come_and_go_while_mounted(lab: Path, tmp_path: Path):
    directory = tmp_path / "m"

    async def scenario() -> None:
        async with mounted_here(lab, directory) as (live, _):
            db = await asyncio.to_thread((directory / "db").stat)
            await live.change(lambda container: container.clone("db@mon", "dev"))
            assert await asyncio.to_thread((directory / "dev").read_bytes) == noise(SIZE)
            assert sorted(await asyncio.to_thread(os.listdir, directory)) == ["db", "db@mon", "dev"]
            await live.change(lambda container: container.node("dev").resize(2 * SIZE))
            assert (await asyncio.to_thread((directory / "dev").stat)).st_size == 2 * SIZE
            await live.change(lambda container: container.delete("dev"))
            assert not await asyncio.to_thread((directory / "dev").exists)
            assert sorted(await asyncio.to_thread(os.listdir, directory)) == ["db", "db@mon"]
            assert (await asyncio.to_thread((directory / "db").stat)).st_ino == db.st_ino

    asyncio.run(scenario())


def test_what_others_write_is_read_at_once_from_a_file_that_was_read_before(lab: Path, tmp_path: Path):
    async def scenario() -> None:
        async with mounted_here(lab, tmp_path / "m") as (live, _):
            file = await asyncio.to_thread(opened, tmp_path / "m" / "db")
            try:
                assert await asyncio.to_thread(os.pread, file, 8, 4096) == noise(SIZE)[4096:4104]
                assert live.device("db").write(4096, b"changed!")
                assert await asyncio.to_thread(os.pread, file, 8, 4096) == b"changed!"
                await asyncio.to_thread(os.pwrite, file, b"back", 4100)
                seen = bytearray(8)
                live.device("db").read_into(4096, seen)
                assert seen == b"chanback"
            finally:
                await asyncio.to_thread(os.close, file)

    asyncio.run(scenario())


def test_an_open_file_is_a_user_until_it_is_closed_and_fails_once_it_is_disconnected(lab: Path, tmp_path: Path):
    async def scenario() -> None:
        async with mounted_here(lab, tmp_path / "m") as (live, _):
            node_id = live.device("db").node.id
            file = await asyncio.to_thread(opened, tmp_path / "m" / "db")
            try:
                (user,) = live.users[node_id]
                assert re.fullmatch(rf"process {os.getpid()} \(.+\)", user.description)
                user.disconnect("db is deleted")
                for call in (
                    lambda: os.pread(file, 1, 0),
                    lambda: os.pwrite(file, b"x", 0),
                    lambda: fallocate(file, PUNCH_HOLE | KEEP_SIZE, 0, 4096),
                    lambda: os.lseek(file, 0, os.SEEK_DATA),
                    lambda: os.fsync(file),
                ):
                    assert await asyncio.to_thread(number_of, call) == errno.EIO
                assert await asyncio.to_thread((tmp_path / "m" / "db").read_bytes) == noise(SIZE)
            finally:
                await asyncio.to_thread(os.close, file)
            while live.users:  # the system tells of it a little later
                await asyncio.to_thread(os.listdir, tmp_path / "m")

    asyncio.run(scenario())


def test_damage_is_an_input_output_error_and_reported_with_its_place(lab: Path, tmp_path: Path):
    damaged = bytearray(lab.read_bytes())
    damaged[damaged.index(noise(SIZE)[8192:8200])] ^= 1
    lab.write_bytes(damaged)

    def read() -> bytes:
        with (tmp_path / "m" / "db").open("rb") as file:
            return file.read(SIZE)

    async def scenario() -> list[errors.SnapctlError]:
        async with mounted_here(lab, tmp_path / "m") as (_, reported):
            assert await asyncio.to_thread(number_of, read) == errno.EIO
            return reported

    (error, *_) = asyncio.run(scenario())
    assert isinstance(error, errors.Corruption)
    assert "db" in str(error)


def test_each_error_has_the_number_that_programs_expect():
    expected = {
        errors.NodeNotFound: errno.ENOENT,
        errors.BadName: errno.ENOENT,
        errors.NoSpace: errno.ENOSPC,
        errors.OutOfRange: errno.EINVAL,
        errors.ReadOnlyNode: errno.EROFS,
        errors.Corruption: errno.EIO,
        errors.DataLost: errno.EIO,
        errors.Poisoned: errno.EIO,
    }
    assert {kind: error_number(kind("")) for kind in expected} == expected


def fill(file: int) -> None:
    for at in range(0, 16 << 20, 64 * KIB):
        os.pwrite(file, noise(64 * KIB), at)


def test_a_full_container_refuses_a_write_and_goes_on(tmp_path: Path):
    require_fuse()
    lab = tmp_path / "lab.snap"
    run("init", lab, "--capacity", "2M")
    run("create", lab / "db", "--size", "16M")
    with mounted(lab, tmp_path / "m") as mount:
        file = opened(mount.directory / "db")
        try:
            assert (
                number_of(lambda: [os.pwrite(file, noise(64 * KIB), at * 64 * KIB) for at in range(100)])
                == errno.ENOSPC
            )
            assert os.pread(file, 64 * KIB, 0) == noise(64 * KIB)
            fallocate(file, PUNCH_HOLE | KEEP_SIZE, 0, 16 << 20)
            os.fsync(file)
            os.pwrite(file, noise(64 * KIB), 0)
        finally:
            os.close(file)
        assert mount.unmount().code == 0
    run("check", lab)


@pytest.mark.parametrize("flag", ["O_SYNC", "O_DSYNC"])
def test_a_write_to_a_file_opened_as_synchronous_survives_the_death_of_the_process(
    flag: str, mount: Mounted, lab: Path
):
    write = f"import os; os.write(os.open({str(mount.directory / 'db')!r}, os.O_RDWR | os.{flag}), b'durable')"
    subprocess.run([sys.executable, "-c", write], check=True, timeout=TIMEOUT_SECONDS)
    mount.process.kill()
    mount.process.wait(TIMEOUT_SECONDS)
    assert run("read", lab / "db", "--length", "7").out == b"durable"


Step = tuple[str, int, int, bytes]

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "read", "punch", "zero", "sync", "holes"]),
        st.one_of(st.integers(0, SIZE - 1), st.integers(0, SIZE // 4096 - 1).map(lambda block: block * 4096)),
        st.one_of(st.integers(1, 3 * 4096), st.sampled_from([4096, 65536])),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=30,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mounted, int]]:
    """A mount for many examples, and its volume, open; what they leave has to be in the container afterwards."""
    require_fuse()
    folder = tmp_path_factory.mktemp("shared")
    run("create", folder / "lab.snap" / "db", "--size", SIZE)
    with mounted(folder / "lab.snap", folder / "m") as mount:
        file = opened(mount.directory / "db")
        try:
            yield mount, file
            left = os.pread(file, SIZE, 0)
        finally:
            os.close(file)
        assert mount.unmount().code == 0
    assert run("read", folder / "lab.snap" / "db").out == left


@given(steps=STEPS)
def test_a_file_reads_as_an_array_of_bytes_that_was_changed_alike(shared: tuple[Mounted, int], steps: list[Step]):
    _, file = shared
    fallocate(file, PUNCH_HOLE | KEEP_SIZE, 0, SIZE)
    model = bytearray(SIZE)
    for step, offset, wanted, pattern in steps:
        length = min(wanted, SIZE - offset)
        if step == "write":
            data = (pattern * length)[:length]
            assert os.pwrite(file, data, offset) == length
            model[offset : offset + length] = data
        elif step == "read":
            assert os.pread(file, length, offset) == model[offset : offset + length]
        elif step in {"punch", "zero"}:
            fallocate(file, PUNCH_HOLE | KEEP_SIZE if step == "punch" else ZERO_RANGE, offset, length)
            model[offset : offset + length] = bytes(length)
        elif step == "sync":
            os.fsync(file)
        else:
            hole = os.lseek(file, offset, os.SEEK_HOLE)
            following = data_after(file, hole)
            assert not any(model[hole:following])
    assert os.pread(file, SIZE, 0) == model


def data_after(file: int, offset: int) -> int:
    """Where data goes on from a hole; the end if nowhere."""
    try:
        return os.lseek(file, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return SIZE


def test_search_for_data_in_a_large_file_lets_others_have_their_turn(lab: Path):
    async def scenario() -> None:
        live = await LiveContainer.open(str(lab))
        try:
            await live.change(lambda container: container.create_volume("huge", 64 << 30))
            files = Files(live)
            handle = files.open("huge", os.O_RDWR, "the test")
            last = (64 << 30) - 4096
            assert files.write(handle, last, b"x") == 1
            search = asyncio.create_task(files.seek(handle, 0, os.SEEK_DATA))
            turns = 0
            while not search.done():
                await asyncio.sleep(0)
                turns += 1
            assert search.result() == last
            assert turns > 60
            files.release_all()
        finally:
            await live.close()

    asyncio.run(scenario())
