"""A container managed while foreign clients use it: snapshots under load, and what clients see of every change."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from snapctl.services.control.client import connect
from tests.cli.harness import digest, one_line, run, snapctl
from tests.compat.conftest import DISK_BYTES, MIB, Lab
from tests.support.requires import needs
from tests.support.served import TIMEOUT_SECONDS, Door, Serving, client, interactive, serve

REQUEST_BYTES = 16 << 10
"""Four blocks, so that a write which a snapshot tears fails fio's checksum."""

WRITTEN_BYTES = 8 * MIB


@pytest.fixture
def serving(disk: Lab, tmp_path: Path) -> Iterator[Serving]:
    with serve(disk.container, "--unix", tmp_path / "nbd") as running:
        yield running


def fio(door: Door, name: str, *options: str) -> list[str]:
    """The words that have fio go over the same requests of an export, which carry their own checksums."""
    words = [f"--uri={door.uri(name)}", f"--bs={REQUEST_BYTES}", f"--size={WRITTEN_BYTES}", "--verify_state_save=0"]
    return [
        needs("fio", package="fio"),
        "--name=job",
        "--thread",
        "--ioengine=nbd",
        "--verify=crc32c",
        *words,
        *options,
    ]


@contextmanager
def started(*words: object) -> Iterator[subprocess.Popen[bytes]]:
    """Start a client; it is dead when the block ends."""
    process = subprocess.Popen(
        [*map(str, words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_SECONDS)


def users(container: Path, export: str) -> list[dict[str, Any]]:
    """Those who use an export, as the control socket tells."""
    server = connect(str(container), 0)
    assert server is not None
    with server:
        return [user for user in server.call("status", {})["clients"] if user["export"] == export]


def requests(container: Path, export: str, kind: str) -> int:
    """How many requests of a kind the clients of an export have made that are connected."""
    return sum(int(user["operations"].get(kind, {}).get("requests", 0)) for user in users(container, export))


def wait_until_unused(container: Path, *exports: str) -> None:
    """Wait until nobody is connected to any of some exports."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while any(users(container, export) for export in exports):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_requests(container: Path, export: str, kind: str, count: int) -> None:
    """Wait until the clients have made so many."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while requests(container, export, kind) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def exports(door: Door) -> list[str]:
    listed = json.loads(client(needs("nbdinfo", package="libnbd-bin"), "--list", "--json", door.uri("")))
    return [export["export-name"] for export in listed["exports"]]


def size(door: Door, name: str) -> int:
    return int(client(needs("nbdinfo", package="libnbd-bin"), "--size", door.uri(name)))


def test_every_operation_works_while_fio_writes_and_verifies(serving: Serving, tmp_path: Path):
    box, door, report = serving.container, serving.door(), tmp_path / "report"
    client(*fio(door, "db", "--rw=write", "--do_verify=0"))
    endless = ["--rw=randwrite", "--iodepth=8", "--time_based", "--runtime=60", "--rate=,24m", "--verify_backlog=128"]
    with started(*fio(door, "db", *endless, f"--output={report}", "--output-format=json")) as writer:
        for number, name in enumerate(("s1", "s2", "s3"), 1):
            wait_for_requests(box, "db", "write", 200 * number)
            run("snapshot", box / f"db@{name}")
            assert f"db@{name}" in exports(door)
        run("clone", box / "db@s2", "dev")
        run("clone", box / "db", "now")
        run("delete", "--yes", box / "db@s1")
        run("resize", box / "db", "--size", 2 * DISK_BYTES)
        assert [size(door, name) for name in ("db", "dev", "db@s3")] == [2 * DISK_BYTES, DISK_BYTES, DISK_BYTES]
        assert {"db", "db@mon", "db@s2", "db@s3", "dev", "now"} < set(exports(door))
        assert "db@s1" not in exports(door)
        refusal = snapctl("delete", "--yes", "--cascade", box / "db")
        assert refusal.code == 1
        assert "in use by a client; disconnect first, or give --force" in one_line(refusal)
        wait_for_requests(box, "db", "write", requests(box, "db", "write") + 200)
        wait_for_requests(box, "db", "read", 1)

        writer.send_signal(signal.SIGINT)
        assert writer.wait(TIMEOUT_SECONDS) == 128
    printed = report.read_text()
    (job,) = json.loads(printed[printed.index("{") :])["jobs"]
    assert job["error"] == 0
    assert job["read"]["io_bytes"] > 0
    for name in ("db@s2", "db@s3", "dev", "now", "db"):
        client(*fio(door, name, "--rw=read", "--iodepth=8", "--verify_fatal=1"))
    assert len({client_digest(door, name) for name in ("db@s2", "dev")}) == 1
    assert len({client_digest(door, name) for name in ("db@s2", "db@s3", "db")}) == 3
    assert serving.stop().code == 0
    run("check", box)


def client_digest(door: Door, name: str) -> str:
    """The digest of what fio works on, as nbdcopy reads it."""
    with started(needs("nbdcopy", package="libnbd-bin"), door.uri(name), "-") as copy:
        data, _ = copy.communicate(timeout=TIMEOUT_SECONDS)
    assert copy.returncode == 0
    return hashlib.sha256(data[:WRITTEN_BYTES]).hexdigest()


@contextmanager
def copying(serving: Serving, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Have nbdcopy in the middle of an export: it goes on when its standard output is read."""
    with started(needs("nbdcopy", package="libnbd-bin"), serving.door().uri(name), "-") as copy:
        wait_for_requests(serving.container, name, "read", 1)
        assert copy.poll() is None
        yield copy


def rest(copy: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Let a copy end; returns its exit code and the digest of what it has copied."""
    data, _ = copy.communicate(timeout=TIMEOUT_SECONDS)
    return copy.returncode, hashlib.sha256(data).hexdigest()


def test_a_copy_under_way_sees_nothing_of_what_happens_meanwhile(serving: Serving, disk: Lab):
    box = serving.container
    run("snapshot", box / "db@tue")
    with copying(serving, "db@tue") as copy:
        run("write", box / "db", "--offset", "1M", stdin=b"x" * MIB)
        run("snapshot", box / "db@wed")
        run("delete", "--yes", box / "db@mon")
        run("resize", box / "db", "--size", "4M", "--shrink", "--yes")
        refusal = snapctl("delete", "--yes", box / "db@tue")
        assert refusal.code == 1
        assert "db@tue: in use by a client" in one_line(refusal)
        (user,) = run("status", "--json", box).json["clients"]
        assert user["export"] == "db@tue"
        assert f"pid {copy.pid} " in user["description"]
        assert rest(copy) == (0, digest(disk.db))
    assert run("status", "--json", box).json["clients"] == []
    assert size(serving.door(), "db") == 4 * MIB


@pytest.mark.parametrize("command", ["delete", "resize"])
def test_force_takes_data_from_those_who_write_it_and_nobody_else(command: str, serving: Serving, disk: Lab):
    box, door = serving.container, serving.door()
    run("clone", box / "db@mon", "dev")
    words = [command, "--yes", box / "dev", *(["--size", "1M", "--shrink"] if command == "resize" else [])]
    endless = ["--rw=randwrite", "--iodepth=8", "--numjobs=2", "--time_based", "--runtime=60", "--rate=,24m"]
    with copying(serving, "db") as other, started(*fio(door, "dev", *endless)) as writers:
        wait_for_requests(box, "dev", "write", 200)
        refusal = snapctl(*words)
        assert refusal.code == 1
        assert "dev: in use by 2 clients" in one_line(refusal)
        assert writers.poll() is None
        run(*words, "--force")
        wait_until_unused(box, "dev", "(deleted)")  # what fio makes of that is its affair: it may go round in circles
        assert exports(door) == ["db", "db@mon", *(["dev"] if command == "resize" else [])]
        assert rest(other) == (0, digest(disk.db))
    assert serving.stop().code == 0
    run("check", box)


def test_force_disconnects_an_idle_client(serving: Serving):
    box, program = serving.container, needs("qemu-io", package="qemu-utils")
    run("clone", box / "db@mon", "dev")
    with interactive(program, "-f", "raw", serving.door().uri("dev")) as idle:
        idle.do("write -P 5 0 4k", "wrote 4096/4096")
        run("delete", "--yes", "--force", box / "dev")
        wait_until_unused(box, "dev", "(deleted)")
        assert idle.process.poll() is None
        idle.do("read 0 4k", "read failed")
