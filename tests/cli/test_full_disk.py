"""The command line where there is no space left: on a full file system, and at the container's capacity."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from snapctl import Container, Usage
from snapctl.errors import NoSpace
from snapctl.services.check import check_container
from tests.cli.harness import digest, one_line, run, snapctl
from tests.support.disks import FILE_SYSTEMS, fill_up, small_disk
from tests.support.images import noise

MIB = 1 << 20


class Full:
    """A container that has no room for another write: `lab.snap` with a volume and two snapshots.

    Attributes:
        path: of the container.
        room: the directory that it is in.
        written: the end of what was written to the volume.
    """

    def __init__(self, room: Path, *, has_capacity: bool) -> None:
        self.room, self.path, self.written = room, room / "lab.snap", 4 * MIB
        self.has_capacity = has_capacity
        run("init", self.path, *(["--capacity", "8M"] if has_capacity else []))
        with Container.open(str(self.path), writable=True) as container:
            volume = container.create_volume("db", 32 * MIB)
            volume.write(0, noise(2 * MIB, 1))
            container.snapshot("db@mon")
            volume.write(MIB, noise(MIB, 2))
            container.snapshot("db@tue")
        self.fill()

    def fill(self) -> int:
        """Write on until nothing fits any more, on the file system, too; returns the bytes that went in."""
        start = self.written
        with Container.open(str(self.path), writable=True) as container:
            with suppress(NoSpace):
                while True:
                    container["db"].write(self.written, noise(MIB // 4))
                    container.commit()
                    self.written += MIB // 4
            container.abort()
        if not self.has_capacity:
            fill_up(self.room / "ballast")
        return self.written - start

    def state(self) -> dict[str, bytes]:
        """What each node reads as, in a container that is whole."""
        assert check_container(str(self.path), wait_seconds=5).findings == []
        with Container.open(str(self.path)) as container:
            return {node.name: bytes(node.read(0, min(node.size_bytes, 16 * MIB))) for node in container.nodes}


@pytest.fixture(params=["capacity", *FILE_SYSTEMS])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Full]:
    if request.param == "capacity":
        yield Full(tmp_path, has_capacity=True)
    else:
        with small_disk(request.param, tmp_path, 14 * MIB) as disk:
            yield Full(disk, has_capacity=False)


def test_what_does_not_fit_fails_as_a_whole_with_one_line(full: Full, tmp_path_factory: pytest.TempPathFactory) -> None:
    image = tmp_path_factory.mktemp("elsewhere") / "image"
    image.write_bytes(noise(9 * MIB, 3))
    state, names = full.state(), sorted(full.room.iterdir())
    for arguments in (
        ["write", full.path / "db", "--offset", full.written, "--input", image],
        ["write", full.path / "db", "--offset", 100, "--input", image],
        ["import", full.path / "new", image],
    ):
        result = snapctl(*arguments)
        assert result.code == 6
        one_line(result)
        assert full.state() == state
    assert sorted(full.room.iterdir()) == names


def test_what_gives_room_back_works_and_then_writes_do(full: Full) -> None:
    state = full.state()
    assert snapctl("delete", "-y", full.path / "db@mon").code == 0
    del state["db@mon"]
    assert full.state() == state
    assert full.fill() >= MIB // 2
    state = full.state()
    assert snapctl("trim", "-y", full.path / "db", "--offset", "4M", "--length", "1000001").code == 0
    state["db"] = state["db"][: 4 * MIB] + bytes(1000001) + state["db"][4 * MIB + 1000001 :]
    assert full.state() == state
    assert full.fill() >= MIB // 2
    state = full.state()
    assert snapctl("resize", "-y", full.path / "db", "--size", "3000001", "--shrink").code == 0
    assert full.state() == {**state, "db": state["db"][:3000001]}
    full.written = 0
    assert snapctl("delete", "-y", full.path / "db", "--cascade").code == 0
    assert full.state() == {}


def test_a_snapshot_is_taken_or_refused_as_a_whole(full: Full) -> None:
    state = full.state()
    result = snapctl("snapshot", full.path / "db@wed")
    assert result.code in {0, 6}
    assert result.err.count("\n") == (1 if result.code == 6 else result.err.count("warning"))
    assert full.state() == ({**state, "db@wed": state["db"]} if result.code == 0 else state)


@pytest.mark.parametrize("file_system", FILE_SYSTEMS)
def test_nothing_is_left_of_a_file_that_a_full_disk_does_not_take(file_system: str, tmp_path: Path):
    with small_disk(file_system, tmp_path, 14 * MIB) as disk:
        full = Full(disk, has_capacity=False)
        names, content = sorted(disk.iterdir()), digest(full.path)
        for arguments in (
            ["export", full.path / "db@mon", disk / "out"],
            ["init", disk / "new.snap"],
            ["create", disk / "new.snap" / "db", "--size", "1M"],
        ):
            result = snapctl(*arguments)
            assert result.code == 6
            one_line(result)
        assert sorted(disk.iterdir()) == names
        assert digest(full.path) == content


# How full it is


def test_info_tells_what_is_used_free_and_kept(tmp_path: Path):
    path = tmp_path / "lab.snap"
    run("init", path, "--capacity", "16M")
    with Container.open(str(path), writable=True) as container:
        for number in range(12):
            container.create_volume(f"v{number}", MIB).write(0, noise((number + 1) * 4096))
    document = run("info", "--json", path).json
    used, reserve = document["container"]["used_bytes"], (1024 // 16 + 1) * 16384
    assert document["usage"] == {
        "free_bytes": 16 * MIB - reserve - used,
        "reserve_bytes": reserve,
        "full_percent": 6,
        "data_bytes": 78 * 4096,
        "metadata_bytes": used - 78 * 4096,
        "owners": [{"name": f"v{n - 1}", "own_bytes": n * 4096} for n in range(12, 0, -1)],
    }
    lines = run("info", path).lines
    assert f"used         {used} (1M)" in lines
    assert "  data       319488 (312K)" in lines
    assert f"  metadata   {used - 319488} ({(used - 319488) // 1024}K)" in lines
    assert "reserve      1064960 (1M)" in lines
    assert "full         6 %" in lines
    table = lines[lines.index("") + 1 :]
    assert table[:2] == ["NAME  OWN   SHARE", "v11   48K  15.4 %"]
    assert table[10:] == ["v2    12K   3.8 %", "and 2 more"]
    assert max(map(len, lines[1:])) <= 80


def test_an_empty_container_has_no_owners_to_show(tmp_path: Path):
    path = tmp_path / "lab.snap"
    run("init", path)
    assert run("info", "--json", path).json["usage"]["owners"] == []
    assert "" not in run("info", path).lines


@pytest.mark.parametrize(
    ("used", "free", "percent", "is_nearly_full"),
    [(1, 99, 1, False), (84_999, 15_001, 84, False), (85, 15, 85, True), (999, 1, 99, True), (7, 0, 100, True)],
)
def test_full_is_rounded_down_and_warned_of_from_85_percent(used: int, free: int, percent: int, is_nearly_full: bool):
    usage = Usage(used, free, 12345)
    assert (usage.full_percent, usage.is_nearly_full) == (percent, is_nearly_full)


def test_whoever_changes_a_nearly_full_container_is_warned(tmp_path: Path):
    path = tmp_path / "lab.snap"
    run("init", path, "--capacity", "4M")
    run("create", path / "db", "--size", "8M")
    run("write", path / "db", stdin=noise(2 * MIB))
    result = snapctl("write", path / "db", "--offset", "2M", stdin=noise(MIB * 5 // 4))
    document = json.loads(snapctl("info", "--json", path).out)
    used, usage = document["container"]["used_bytes"], document["usage"]
    assert usage["full_percent"] == 92
    assert usage["free_bytes"] == 4 * MIB - used - usage["reserve_bytes"] == 288 * 1024
    warning = f"snapctl: warning: {path} is 92 % full (288K free); delete snapshots or trim volumes\n"
    assert (result.code, result.err) == (0, warning)
    for command in (["snapshot", path / "db@a"], ["rename", path / "db@a", "b"], ["delete", "-y", path / "db@b"]):
        result = snapctl(*command)
        assert result.code == 0
        assert result.err.startswith(f"snapctl: warning: {path} is ")
        assert result.err.count("\n") == 1
    assert snapctl("info", path).err == snapctl("info", "--json", path).err == warning
    run("list", path)
    run("tree", path)
    run("read", path / "db", "--length", "1")
    run("check", path)
    run("trim", "-n", path / "db", "--offset", "0", "--length", "1M")
    run("resize", path / "db", "--size", "8M")
    run("trim", "-y", path / "db", "--offset", "0", "--length", "1M")


def test_too_small_a_capacity_is_refused_with_the_least(tmp_path: Path):
    result = snapctl("init", tmp_path / "lab.snap", "--capacity", "1000K")
    assert result.code == 2
    assert one_line(result) == "a capacity of 1000K is too small; it must be at least 1088K"
    run("init", tmp_path / "lab.snap", "--capacity", "1088K")
