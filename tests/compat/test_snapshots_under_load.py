"""Snapshots of a volume while programs write to the file system on it: each is what a power cut would leave, or better.

Whatever a program was told is durable before the snapshot is in it: synced files whole, committed transactions of
SQLite there, and the file system clean once its journal has been replayed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.harness import ROOT, run
from tests.support import fs_writer
from tests.support.mounts import TIMEOUT_SECONDS, loop_mounted, mounted, require_loop, tool
from tests.support.requires import needs

SNAPSHOTS = 3
LINES_BETWEEN = 40
FILE_SYSTEMS = {
    # name: (package, size, what makes it, what checks it, options for a second copy of the same file system)
    "ext4": ("e2fsprogs", "96M", ["mkfs.ext4", "-q"], ["e2fsck", "-fn"], "loop"),
    "xfs": ("xfsprogs", "320M", ["mkfs.xfs", "-q"], ["xfs_repair", "-n", "-f"], "loop,nouuid"),
    "btrfs": ("btrfs-progs", "160M", ["mkfs.btrfs", "-q"], ["btrfs", "check", "--readonly"], "loop"),
}


class Writer:
    """The program that writes, and what it was told is durable."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.done: list[list[str]] = []

    def go_on(self) -> list[list[str]]:
        """Wait until it has done some more; returns all that it was told so far."""
        assert self.process.stdout is not None
        for _ in range(LINES_BETWEEN):
            line = self.process.stdout.readline()
            assert line, "the writer has failed"
            self.done.append(line.split())
        return list(self.done)


def check_content(root: Path, acknowledged: list[list[str]]) -> None:
    newest = {name.partition("-")[0]: (name, digest) for kind, name, *rest in acknowledged for digest in rest}
    for slot, (name, digest) in newest.items():
        found = next(file for file in (root / "files").glob(f"{slot}-*"))
        if found.name == name:  # else it had been replaced by a newer one by the time of the snapshot
            assert hashlib.sha256(found.read_bytes()).hexdigest() == digest
        else:
            assert int(found.name.partition("-")[2]) > int(name.partition("-")[2])
    for mode in fs_writer.MODES:
        least = max(int(number) for kind, number, *_ in acknowledged if kind == mode)
        database = fs_writer.open_database(root, mode)
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        total = database.execute("SELECT sum(balance) FROM account").fetchone()[0]
        assert total == fs_writer.ACCOUNTS * fs_writer.OPENING_BALANCE
        numbers = [number for (number,) in database.execute("SELECT number FROM transfer ORDER BY number")]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) >= least
        database.close()


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_every_snapshot_under_load_recovers_with_all_that_was_durable(kind: str, tmp_path: Path):
    require_loop()
    package, size, mkfs, fsck, options = FILE_SYSTEMS[kind]
    maker, checker = needs(mkfs[0], package=package), needs(fsck[0], package=package)
    lab, place = tmp_path / "lab.snap", tmp_path / "fs"
    run("create", lab / "db", "--size", size)
    with mounted(lab, tmp_path / "m") as mount:
        tool(maker, *mkfs[1:], mount.directory / "db")
        told = {}
        with (
            loop_mounted(mount.directory / "db", place) as root,
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.fs_writer", root],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as process,
        ):
            try:
                writer = Writer(process)
                for number in range(SNAPSHOTS):
                    told[f"s{number}"] = writer.go_on()
                    run("snapshot", lab / f"db@s{number}")
                writer.go_on()
                process.communicate(timeout=TIMEOUT_SECONDS)
                assert process.returncode == 0
            finally:
                process.kill()
        for name, acknowledged in told.items():
            run("clone", lab / f"db@{name}", f"clone-{name}")
            image = mount.directory / f"clone-{name}"
            with loop_mounted(image, place, options) as root:  # which replays its journal
                check_content(root, acknowledged)
            tool(checker, *fsck[1:], image)
        assert mount.unmount().code == 0
    run("check", lab)
