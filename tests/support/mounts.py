"""Containers and file systems mounted for a test, and gone when it ends, however it ends."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.harness import Result, finish, start
from tests.support.requires import needs

TIMEOUT_SECONDS = 60


def require_fuse() -> str:
    """Skip where nothing can be mounted; returns the program that unmounts."""
    unmount = needs("fusermount3", package="fuse3")
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be used")
    return unmount


def require_loop() -> None:
    """Skip where no file system can be mounted from a file."""
    needs("losetup", package="util-linux")
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
        pytest.skip("mounting a file system takes root and /dev/loop-control")


def tool(*words: object, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program of the system to its end, within a bounded time; unless `ok` is False it has to succeed."""
    done = subprocess.run(
        [*map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0 or not ok, (words, done.stdout)
    return done


def unmount(directory: Path) -> None:
    """Unmount as users do, as soon as it can be: the kernel keeps a loop device's file for a moment after its end."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while (done := tool(require_fuse(), "-u", directory, ok=False)).returncode != 0:
        assert "busy" in done.stdout, done.stdout
        assert time.monotonic() < deadline, done.stdout
        time.sleep(0.05)


def wait_until_unmounted(directory: Path) -> None:
    """Wait until nothing is mounted on a directory any more."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while os.path.ismount(directory):
        assert time.monotonic() < deadline, f"{directory} is still mounted"
        time.sleep(0.01)


class Mounted:
    """A container that a process of its own has mounted.

    Attributes:
        directory: where.
        process: the one that serves it.
    """

    def __init__(self, directory: Path, process: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self.process = process

    def unmount(self) -> Result:
        """Unmount, and wait for the process to have committed; returns how it ended."""
        unmount(self.directory)
        return finish(self.process)


@contextmanager
def mounted(container: Path, directory: Path, *options: str) -> Iterator[Mounted]:
    """Mount a container with `snapctl mount`; what is left of that at the end is cleared away, and dead."""
    clear_away = [require_fuse(), "-q", "-u", "-z", str(directory)]
    directory.mkdir(exist_ok=True)
    process = start("mount", *options, container, directory, stdin=subprocess.DEVNULL)
    try:
        _wait_for_line(process, b" is mounted on ")
        yield Mounted(directory, process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=TIMEOUT_SECONDS)
        subprocess.run(clear_away, check=False, capture_output=True, timeout=TIMEOUT_SECONDS)


def _wait_for_line(process: subprocess.Popen[bytes], wanted: bytes) -> None:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], TIMEOUT_SECONDS)
    line = process.stdout.readline() if ready else b""
    assert wanted in line, (
        line,
        process.poll(),
        process.stderr and process.poll() and process.stderr.read(),
    )


@contextmanager
def loop_mounted(image: Path, directory: Path, options: str = "loop") -> Iterator[Path]:
    """Mount the file system in a file; unmounted at the end, which makes it write everything to the file."""
    directory.mkdir(exist_ok=True)
    tool(needs("mount", package="util-linux"), "-o", options, image, directory)
    try:
        yield directory
    except BaseException:
        tool(needs("umount", package="util-linux"), "--lazy", directory, ok=False)
        raise
    tool(needs("umount", package="util-linux"), directory)


@contextmanager
def mounted_over_nbd(container: Path, name: str, directory: Path) -> Iterator[Path]:
    """Have a container served, and one of its exports shown as a file by nbdfuse; returns the file.

    The server ends as servers do, and is dead in any case, as is nbdfuse.
    """
    clear_away = [require_fuse(), "-q", "-u", "-z", str(directory)]
    socket = directory.with_suffix(".sock")
    directory.mkdir(exist_ok=True)
    nbdfuse = needs("nbdfuse", package="libnbd-bin")
    server = start("serve", container, "--unix", socket, stdin=subprocess.DEVNULL)
    client = None
    try:
        _wait_for_line(server, b"nbd+unix://")
        pid_file = directory.with_suffix(".pid")
        client = subprocess.Popen([nbdfuse, "-P", pid_file, directory / name, f"nbd+unix:///{name}?socket={socket}"])
        _wait_for_file(pid_file)
        yield directory / name
        unmount(directory)
        assert client.wait(TIMEOUT_SECONDS) == 0
        server.terminate()
        assert finish(server).code == 0
    finally:
        subprocess.run(clear_away, check=False, capture_output=True, timeout=TIMEOUT_SECONDS)
        for process in filter(None, (client, server)):
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=TIMEOUT_SECONDS)


def _wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (path.exists() and path.read_bytes()):
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.01)
