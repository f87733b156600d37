"""The container's lock: one writer or any number of readers, and the holder is named."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapctl.engine.container import Container
from snapctl.errors import Locked
from snapctl.storage import lock

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells who holds a lock")

HOLD = """
import fcntl, sys
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX if sys.argv[2] == "exclusive" else fcntl.LOCK_SH)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    with Container.create(str(tmp_path / "lab.snap"), block_size=512, table_size=512) as container:
        container.create_volume("db", 4096)
    return str(tmp_path / "lab.snap")


@pytest.fixture
def opened(path: str) -> Iterator[list[int]]:
    """Three descriptors of the same file, whose locks are apart as those of three processes would be."""
    fds = [os.open(path, os.O_RDWR) for _ in range(3)]
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.fixture
def holder(path: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, path, "exclusive"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_readers_share_the_lock_and_keep_writers_out(opened: list[int]):
    for fd in opened[:2]:
        lock.acquire(fd, "lab.snap", exclusive=False, wait_seconds=0)
    with pytest.raises(Locked):
        lock.acquire(opened[2], "lab.snap", exclusive=True, wait_seconds=0)


def test_a_writer_keeps_readers_and_writers_out(opened: list[int]):
    lock.acquire(opened[0], "lab.snap", exclusive=True, wait_seconds=0)
    for exclusive in (False, True):
        with pytest.raises(Locked):
            lock.acquire(opened[1], "lab.snap", exclusive=exclusive, wait_seconds=0)


@on_linux
def test_the_error_names_process_and_command_of_the_holder(path: str, holder: subprocess.Popen[str]):
    with pytest.raises(Locked) as caught:
        Container.open(path, wait_seconds=0)
    (named,) = caught.value.holders
    assert named.startswith(f"pid {holder.pid} ({sys.executable} -c ")
    assert path in str(caught.value)
    assert named in str(caught.value)
    assert caught.value.exit_code == 5


@on_linux
def test_the_error_is_one_line_whatever_the_holder_was_started_with(path: str, holder: subprocess.Popen[str]):
    """The holder's second argument is a program of several lines."""
    with pytest.raises(Locked) as caught:
        Container.open(path, writable=True, wait_seconds=0)
    assert "\n" not in str(caught.value)


@on_linux
def test_every_reader_in_the_way_of_a_writer_is_named(path: str):
    command = [sys.executable, "-c", HOLD, path, "shared"]
    readers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for reader in readers:
            assert reader.stdout is not None
            reader.stdout.readline()
        with pytest.raises(Locked) as caught:
            Container.open(path, writable=True, wait_seconds=0)
        assert [named.split()[1] for named in caught.value.holders] == sorted((str(r.pid) for r in readers), key=int)
        Container.open(path, wait_seconds=0).close()
    finally:
        for reader in readers:
            reader.communicate()


def test_a_lock_dies_with_its_holder(path: str, holder: subprocess.Popen[str]):
    holder.kill()
    holder.wait()
    Container.open(path, writable=True, wait_seconds=0).close()


def test_who_waits_gets_the_lock_when_it_is_let_go(path: str, opened: list[int]):
    lock.acquire(opened[0], path, exclusive=True, wait_seconds=0)
    waiting = threading.Thread(
        target=lock.acquire, args=(opened[1], path), kwargs={"exclusive": True, "wait_seconds": 60}
    )
    waiting.start()
    with pytest.raises(Locked):
        lock.acquire(opened[2], path, exclusive=True, wait_seconds=0.02)
    os.close(opened[0])
    opened[0] = os.open(path, os.O_RDWR)
    waiting.join(60)
    assert not waiting.is_alive()
    with pytest.raises(Locked):
        lock.acquire(opened[2], path, exclusive=False, wait_seconds=0)


def test_waiting_ends_when_its_time_is_up_and_says_how_long_it_was(path: str, opened: list[int]):
    lock.acquire(opened[0], path, exclusive=True, wait_seconds=0)
    with pytest.raises(Locked, match=r"waited 0\.05 s"):
        lock.acquire(opened[1], path, exclusive=False, wait_seconds=0.05)


def test_a_long_read_lets_a_waiting_writer_in(path: str, opened: list[int]):
    lock.acquire(opened[0], path, exclusive=False, wait_seconds=0)
    done = threading.Event()

    def write() -> None:
        lock.acquire(opened[1], path, exclusive=True, wait_seconds=60)
        done.set()
        os.close(opened[1])

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        lock.pause(opened[0], path, wait_seconds=60)
    writer.join()
    opened[1] = os.open(path, os.O_RDWR)
    with pytest.raises(Locked):
        lock.acquire(opened[1], path, exclusive=True, wait_seconds=0)


def test_a_container_that_could_not_be_opened_holds_no_lock(path: str):
    with open(path, "r+b") as file:
        file.write(bytes(65536))
    for writable in (False, True):
        with pytest.raises(Exception, match="container"):
            Container.open(path, writable=writable)
    fd = os.open(path, os.O_RDWR)
    lock.acquire(fd, path, exclusive=True, wait_seconds=0)
    os.close(fd)
