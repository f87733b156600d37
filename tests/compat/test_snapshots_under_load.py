"""File systems in use, snapshots taken meanwhile: each is what a power cut at that moment would leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.harness import run
from tests.support import bank, busy_files
from tests.support.logged_writers import Change, Log, Writers, writers
from tests.support.mounts import loop_mounted, mounted, mounted_over_nbd, require_loop, tool
from tests.support.requires import needs

SNAPSHOTS = 4


Judge = Callable[[Path, list[Change], list[Change]], None]
"""Called with a place, the changes that have to be there, and those that may be."""


class FileSystem(NamedTuple):
    """How a file system is made, mounted and checked."""

    size: str
    make: Callable[[], list[str]]
    check: Callable[[], list[str]]
    forget: Callable[[], list[str]] | None = None


FILE_SYSTEMS = {
    "ext4": FileSystem(
        "32M",
        lambda: [needs("mkfs.ext4", package="e2fsprogs"), "-q"],
        lambda: [needs("e2fsck", package="e2fsprogs"), "-fn"],
    ),
    "xfs": FileSystem(
        "320M",
        lambda: [needs("mkfs.xfs", package="xfsprogs"), "-q"],
        lambda: [needs("xfs_repair", package="xfsprogs"), "-n", "-f"],
    ),
    "btrfs": FileSystem(
        "128M",
        lambda: [needs("mkfs.btrfs", package="btrfs-progs"), "-q"],
        lambda: [needs("btrfs", package="btrfs-progs"), "check", "--readonly"],
        # The system knows a btrfs by its uuid, which copies have in common.
        lambda: [needs("btrfs", package="btrfs-progs"), "device", "scan", "--forget"],
    ),
}


@contextmanager
def shown(way: str, container: Path, directory: Path) -> Iterator[Path]:
    """Have the volume `db` of a container as a file that is written through FUSE, or through NBD."""
    if way == "nbdfuse":
        with mounted_over_nbd(container, "db", directory) as file:
            yield file
    else:
        with mounted(container, directory) as mount:
            yield mount.directory / "db"
            assert mount.unmount().code == 0


def snapshots_meanwhile(container: Path, busy: Writers) -> dict[str, tuple[Log, Log]]:
    """Take snapshots; returns what was logged before and after each, and at the end when the writers have stopped."""
    taken = {}
    for number in range(SNAPSHOTS):
        busy.wait_for(15)
        before = busy.log()
        run("snapshot", container / f"db@s{number}")
        taken[f"s{number}"] = (before, busy.log())
    busy.stop()
    last = busy.log()
    assert sorted(last.done) == sorted(last.begun)
    return {**taken, "now": (last, last)}


def judge_all(container: Path, system: FileSystem, taken: dict[str, tuple[Log, Log]], judge: Judge) -> None:
    """Mount a clone of each snapshot, which replays the journal; judge what is there, and check the file system."""
    root = container.parent / "fs"
    with mounted(container, container.parent / "m") as mount:
        tool(*system.check(), mount.directory / "db")
        for name, (before, after) in taken.items():
            run("clone", container / (f"db@{name}" if name != "now" else "db"), container / name)
            if system.forget:
                tool(*system.forget())
            with loop_mounted(mount.directory / name, root):
                judge(root, before.done, after.begun)
                if name == "s0":  # else the judge could be blind
                    with pytest.raises(AssertionError):
                        judge(root, taken["now"][0].done, taken["now"][1].begun)
            tool(*system.check(), mount.directory / name)
        assert mount.unmount().code == 0
    run("check", container)


@pytest.mark.parametrize(
    ("kind", "way"), [("ext4", "mount"), ("ext4", "nbdfuse"), ("xfs", "mount"), ("btrfs", "mount")]
)
def test_a_snapshot_taken_while_files_are_written_holds_all_that_fsync_had_promised(
    kind: str, way: str, tmp_path: Path
):
    require_loop()
    system, lab = FILE_SYSTEMS[kind], tmp_path / "lab.snap"
    run("create", lab / "db", "--size", system.size)
    with shown(way, lab, tmp_path / "m") as volume:
        tool(*system.make(), volume)
        with (
            loop_mounted(volume, tmp_path / "fs", "loop,discard") as root,
            writers("tests.support.busy_files", root, tmp_path / "logs", count=3) as busy,
        ):
            taken = snapshots_meanwhile(lab, busy)
    judge_all(lab, system, taken, busy_files.assert_holds)


@pytest.mark.parametrize(("journal_mode", "way"), [("wal", "nbdfuse"), ("delete", "mount")])
def test_a_snapshot_taken_while_a_database_is_written_recovers_with_all_that_was_committed(
    journal_mode: str, way: str, tmp_path: Path
):
    require_loop()
    system, lab = FILE_SYSTEMS["ext4"], tmp_path / "lab.snap"
    run("create", lab / "db", "--size", system.size)
    with shown(way, lab, tmp_path / "m") as volume:
        tool(*system.make(), volume)
        with loop_mounted(volume, tmp_path / "fs") as root:
            bank.found(root / "bank", journal_mode=journal_mode)
            with writers("tests.support.bank", root / "bank", tmp_path / "logs", count=2) as busy:
                taken = snapshots_meanwhile(lab, busy)
    judge_all(lab, system, taken, lambda root, done, begun: bank.assert_holds(root / "bank", done, begun))
