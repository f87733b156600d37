"""Real file systems in volumes that are files of a mount: made, filled, checked and trimmed by their own programs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cli.harness import digest, run
from tests.support.images import noise
from tests.support.mounts import TIMEOUT_SECONDS, loop_mounted, mounted, require_loop, tool
from tests.support.requires import needs

MIB = 1 << 20

FILES = {
    "readme.txt": b"as it was on Monday\n",
    "data/table.bin": noise(3 * MIB + 123, 1),
    "data/small.bin": noise(70_001, 2),
}


def fill(root: Path) -> None:
    for name, content in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)


def contents(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in FILES}


def own_bytes(container: Path, name: str) -> int:
    nodes = run("list", "--json", container).json["nodes"]
    return int(next(node["own_bytes"] for node in nodes if node["name"] == name))


def read_out(container: Path, name: str, target: Path) -> Path:
    run("read", container / name, "--output", target)
    return target


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    require_loop()
    return tmp_path / "lab.snap"


def test_ext4_is_made_filled_and_checked_on_a_mounted_volume_and_its_snapshot_stays(lab: Path, tmp_path: Path):
    mkfs, fsck = needs("mkfs.ext4", package="e2fsprogs"), needs("e2fsck", package="e2fsprogs")
    run("create", lab / "db", "--size", "24M")
    with mounted(lab, tmp_path / "m") as mount:
        tool(mkfs, "-q", mount.directory / "db")
        with loop_mounted(mount.directory / "db", tmp_path / "fs") as root:
            fill(root)
        tool(fsck, "-fn", mount.directory / "db")
        seen = digest(mount.directory / "db")
        assert mount.unmount().code == 0
    assert digest(read_out(lab, "db", tmp_path / "monday")) == seen
    run("snapshot", lab / "db@mon")

    with mounted(lab, tmp_path / "m") as mount:
        with loop_mounted(mount.directory / "db", tmp_path / "fs") as root:
            assert contents(root) == FILES
            (root / "data/table.bin").write_bytes(noise(2 * MIB, 3))
            (root / "readme.txt").unlink()
        with loop_mounted(mount.directory / "db@mon", tmp_path / "fs") as root:  # mount falls back to reading only
            assert contents(root) == FILES
            with pytest.raises(OSError, match="Read-only file system"):
                (root / "new").touch()
        tool(fsck, "-fn", mount.directory / "db")
        tool(fsck, "-fn", mount.directory / "db@mon")
        assert mount.unmount().code == 0
    assert digest(read_out(lab, "db@mon", tmp_path / "again")) == seen
    assert digest(read_out(lab, "db", tmp_path / "tuesday")) != seen
    run("check", lab)


def made_durable(path: Path) -> None:
    file = os.open(path, os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def test_blocks_of_deleted_files_are_freed_by_fstrim(lab: Path, tmp_path: Path):
    mkfs, fstrim = needs("mkfs.ext4", package="e2fsprogs"), needs("fstrim", package="util-linux")
    run("create", lab / "db", "--size", "64M")
    with mounted(lab, tmp_path / "m") as mount:
        tool(mkfs, "-q", mount.directory / "db")
        with loop_mounted(mount.directory / "db", tmp_path / "fs") as root:
            (root / "large").write_bytes(noise(16 * MIB))
            os.sync()
            full = (mount.directory / "db").stat().st_blocks * 512
            (root / "large").unlink()
            os.sync()  # what is freed may be trimmed once the journal says so
            tool(fstrim, root)
            made_durable(mount.directory / "db")
            trimmed = (mount.directory / "db").stat().st_blocks * 512
        assert mount.unmount().code == 0
    assert full - trimmed >= 15 * MIB
    assert own_bytes(lab, "db") <= trimmed + MIB


def test_xfs_lives_on_a_mounted_volume(lab: Path, tmp_path: Path):
    mkfs, repair = needs("mkfs.xfs", package="xfsprogs"), needs("xfs_repair", package="xfsprogs")
    run("create", lab / "db", "--size", "320M")
    with mounted(lab, tmp_path / "m") as mount:
        tool(mkfs, "-q", mount.directory / "db")
        with loop_mounted(mount.directory / "db", tmp_path / "fs") as root:
            fill(root)
        tool(repair, "-n", "-f", mount.directory / "db")
        with loop_mounted(mount.directory / "db", tmp_path / "fs", "loop,ro") as root:
            assert contents(root) == FILES
        assert mount.unmount().code == 0


def test_btrfs_lives_on_a_mounted_volume(lab: Path, tmp_path: Path):
    mkfs, btrfs = needs("mkfs.btrfs", package="btrfs-progs"), needs("btrfs", package="btrfs-progs")
    run("create", lab / "db", "--size", "128M")
    with mounted(lab, tmp_path / "m") as mount:
        tool(mkfs, "-q", mount.directory / "db")
        with loop_mounted(mount.directory / "db", tmp_path / "fs") as root:
            fill(root)
        tool(btrfs, "check", "--readonly", mount.directory / "db")
        with loop_mounted(mount.directory / "db", tmp_path / "fs", "loop,ro") as root:
            assert contents(root) == FILES
        assert mount.unmount().code == 0


def test_what_was_synced_survives_the_death_of_the_process(lab: Path, tmp_path: Path):
    run("create", lab / "db", "--size", "8M")
    old, new = noise(2 * MIB, 1), noise(2 * MIB, 2)
    with mounted(lab, tmp_path / "m") as mount:
        file = os.open(mount.directory / "db", os.O_RDWR)
        try:
            os.pwrite(file, old, 0)
            os.fsync(file)
            os.pwrite(file, new, 4 * MIB)
            mount.process.send_signal(signal.SIGKILL)
            assert mount.process.wait(TIMEOUT_SECONDS) == -signal.SIGKILL
            with pytest.raises(OSError, match="not connected"):
                os.pread(file, 1, 0)
        finally:
            with pytest.raises(OSError, match="not connected"):
                os.close(file)
    run("check", lab)
    assert run("read", lab / "db", "--length", "2M").out == old
    late = run("read", lab / "db", "--offset", "4M", "--length", "2M").out
    assert all(late[at : at + 4096] in {new[at : at + 4096], bytes(4096)} for at in range(0, 2 * MIB, 4096))
