"""What each command does when all is well."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from snapctl import Container
from tests.cli.harness import command_line, environment, one_line, run, snapctl

MIB = 1 << 20


def names(container: Path) -> list[str]:
    return [node["name"] for node in run("list", "--json", container).json["nodes"]]


@pytest.mark.parametrize(("size", "size_bytes"), [("4K", 4096), ("16KiB", 16384), ("64k", 65536)])
def test_init_makes_a_container_of_the_block_size(size: str, size_bytes: int, tmp_path: Path):
    assert run("init", tmp_path / "x.snap", "--block-size", size, "--capacity", "1G").out == b""
    container = run("info", "--json", tmp_path / "x.snap").json["container"]
    assert container["block_size_bytes"] == size_bytes
    assert container["capacity_bytes"] == 1 << 30


def test_create_makes_a_container_where_there_is_none(tmp_path: Path):
    path = tmp_path / "x.snap"
    assert run("create", path / "db", "--size", "10G").out == b""
    run("create", path / "log", "--size", "1.5K", "--cow", "copy")
    db, log = run("list", "--json", path).json["nodes"]
    assert (db["name"], db["kind"], db["size_bytes"], db["own_bytes"]) == ("db", "base", 10 << 30, 0)
    assert (log["name"], log["size_bytes"]) == ("log", 1536)
    assert run("info", "--json", path / "log").json["node"]["cow"] == "copy"
    assert path.stat().st_blocks * 512 < MIB


@pytest.mark.parametrize("offset", [0, 1, 511, 4095, 4096, 5000, 4 * MIB - 1, 4 * MIB, 5 * MIB + 7])
def test_what_is_written_at_any_offset_is_read_back(offset: int, tmp_path: Path):
    path = tmp_path / "x.snap"
    with Container.create(str(path)) as container:
        container.create_volume("db", 16 * MIB)
    expected = bytearray(16 * MIB)
    for length in (9 * MIB + 13, 1, *((4096, 0) if offset == 5000 else ())):
        data = os.urandom(length)
        run("write", path / "db", "--offset", str(offset), stdin=data)
        expected[offset : offset + length] = data
    assert run("read", path / "db", "--offset", str(offset), "--length", "4097").out == expected[offset : offset + 4097]
    assert run("read", path / "db").out == expected


def test_write_takes_a_file_from_where_the_shell_has_read_to(lab: Path, tmp_path: Path):
    (tmp_path / "image").write_bytes(b"0123456789")
    with (tmp_path / "image").open("rb", buffering=0) as file:
        file.seek(7)
        subprocess.run(command_line("write", lab / "db"), stdin=file, env=environment(), check=True, timeout=60)
    assert run("read", lab / "db", "--length", "5").out == b"789ne"


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_write_takes_standard_input_by_name(name: str, lab: Path):
    run("write", lab / "db", "--input", name, stdin=b"abc")
    assert run("read", lab / "db", "--length", "5").out == b"abcne"


def test_write_goes_up_to_the_very_end(lab: Path):
    run("write", lab / "db", stdin=b"x" * MIB)
    assert run("read", lab / "db").out == b"x" * MIB


def test_snapshot_holds_what_the_volume_held(lab: Path):
    assert run("read", lab / "db@mon").out == (b"old" * 2000).ljust(MIB, b"\0")
    assert run("read", lab / "db").out == (b"new" * 2000).ljust(MIB, b"\0")


def test_read_to_a_file_puts_it_in_place_whole(lab: Path, tmp_path: Path):
    target = tmp_path / "out"
    target.write_bytes(b"before")
    assert run("read", lab / "db", "--length", "9", "--output", target).out == b""
    assert target.read_bytes() == b"newnewnew"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lab.snap", "out"]


def test_read_to_a_file_keeps_its_mode_and_goes_where_links_lead(lab: Path, tmp_path: Path):
    target, link = tmp_path / "out", tmp_path / "link"
    target.write_bytes(b"before")
    target.chmod(0o640)
    link.symlink_to("out")
    run("read", lab / "db", "--offset", "3", "--length", "9", "--format", "hex", "--output", link)
    assert link.is_symlink()
    assert target.read_text().startswith("00000003  6e 65 77 6e")
    assert target.stat().st_mode & 0o777 == 0o640


def test_read_to_a_dash_is_to_standard_output(lab: Path, tmp_path: Path):
    assert run("read", lab / "db", "--length", "3", "--output", "-", cwd=tmp_path).out == b"new"
    assert not (tmp_path / "-").exists()


def test_read_to_a_device_writes_into_it(lab: Path):
    run("read", lab / "db", "--output", "/dev/null")
    assert Path("/dev/null").is_char_device()


def test_read_as_hex_is_a_dump(lab: Path):
    lines = run("read", lab / "db", "--format", "hex", "--offset", "5990", "--length", "64").lines
    assert lines == [
        "00001766  77 6e 65 77 6e 65 77 6e  65 77 00 00 00 00 00 00  |wnewnewnew......|",
        "00001776  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|",
        "*",
        "000017a6",
    ]


def test_trim_makes_zeros_of_the_volume_and_not_of_the_snapshot(lab: Path):
    run("trim", lab / "db", "--offset", "3", "--length", "1000000")
    assert run("read", lab / "db").out == b"new".ljust(MIB, b"\0")
    assert run("read", lab / "db@mon", "--length", "6000").out == b"old" * 2000


def test_snapshots_of_several_volumes_are_one_transaction(lab: Path):
    run("create", lab / "log", "--size", "1M")
    before = run("info", "--json", lab).json["container"]["transaction"]
    assert run("snapshot", lab / "db@tue", lab / "log@tue").lines == ["db@tue", "log@tue"]
    assert run("info", "--json", lab).json["container"]["transaction"] == before + 1


def test_snapshot_of_the_container_is_one_of_every_volume(lab: Path):
    run("clone", lab / "db@mon", "dev")
    assert run("snapshot", f"{lab}@all").lines == ["db@all", "dev@all"]
    assert run("delete", f"{lab}@all").lines[:2] == ["deleted db@all", "deleted dev@all"]
    assert names(lab) == ["db", "db@mon", "dev"]


def test_snapshots_that_cannot_all_be_taken_are_not_taken(lab: Path):
    result = snapctl("snapshot", lab / "db@tue", lab / "nosuch@tue")
    assert result.code == 1
    assert names(lab) == ["db", "db@mon"]


def test_clone_of_a_snapshot_is_a_volume(lab: Path):
    assert run("clone", lab / "db@mon", "dev").lines == ["dev"]
    run("write", lab / "dev", stdin=b"dev")
    assert run("read", lab / "dev", "--length", "6").out == b"devold"
    assert run("read", lab / "db@mon", "--length", "6").out == b"oldold"
    node = run("info", "--json", lab / "dev").json["node"]
    assert (node["kind"], node["parent"], node["origin"]) == ("rw", "db@mon", "db@mon")


def test_clone_of_a_volume_takes_a_dated_snapshot_first(lab: Path):
    clone, snapshot = run("clone", lab / "db", f"{lab}/dev").lines
    assert clone == "dev"
    assert snapshot.startswith("db@2")
    assert run("info", "--json", lab / "dev").json["node"]["origin"] == snapshot
    assert run("read", lab / "dev").out == run("read", lab / "db").out


def test_clone_of_an_unchanged_volume_takes_no_other_snapshot(lab: Path):
    run("snapshot", lab / "db@tue")
    assert run("clone", lab / "db", "dev").lines == ["dev"]
    assert run("info", "--json", lab / "dev").json["node"]["origin"] == "db@tue"


@pytest.mark.parametrize("new", ["tue", "@tue", "db@tue", "LAB/db@tue"])
def test_snapshot_is_renamed_by_its_own_part_of_the_name(new: str, lab: Path):
    assert run("rename", lab / "db@mon", new.replace("LAB", str(lab))).out == b""
    assert names(lab) == ["db", "db@tue"]


@pytest.mark.parametrize("new", ["prod", "LAB/prod"])
def test_volume_is_renamed_with_its_snapshots(new: str, lab: Path):
    run("rename", lab / "db", new.replace("LAB", str(lab)))
    assert names(lab) == ["prod", "prod@mon"]


def test_snapshot_is_not_renamed_into_another_volume(lab: Path):
    result = snapctl("rename", lab / "db@mon", "log@mon")
    assert result.code == 2
    assert "db@mon" in one_line(result)


def test_volume_grows_and_shrinks_and_its_snapshot_does_not(lab: Path):
    assert run("resize", lab / "db", "--size", "3M").lines[0] == "resized db from 1M to 3M"
    assert run("read", lab / "db").out == (b"new" * 2000).ljust(3 * MIB, b"\0")
    run("resize", lab / "db", "--size", "5", "--shrink")
    assert run("read", lab / "db").out == b"newne"
    assert run("read", lab / "db@mon").out == (b"old" * 2000).ljust(MIB, b"\0")


def test_sizes_that_are_not_round_are_told_in_bytes(lab: Path):
    would = run("resize", lab / "db", "--size", "1048577", "-n").lines
    assert would == ["would resize db from 1048576 to 1048577 bytes", "would free 0 bytes (0)"]


def test_change_that_takes_room_says_so(lab: Path):
    """A trim inside a block of a clone gives it a block, and tables, of its own."""
    run("clone", lab / "db@mon", "dev")
    command = ["trim", lab / "dev", "--offset", "1", "--length", "1"]
    before = run("info", "--json", lab).json["container"]["used_bytes"]
    would = run(*command, "-n").lines[-1]
    done = run(*command).lines[-1]
    taken = run("info", "--json", lab).json["container"]["used_bytes"] - before
    assert taken > 0
    assert would.startswith(f"would take {taken} bytes more (")
    assert done.startswith(f"took {taken} bytes more (")


def test_delete_lists_what_is_gone(lab: Path):
    run("clone", lab / "db@mon", "dev")
    would = run("delete", lab / "db", "--cascade", "-n").lines
    assert sorted(would[:3]) == ["would delete db", "would delete db@mon", "would delete dev"]
    done = run("delete", lab / "db", "--cascade").lines
    assert done == [line.replace("would delete", "deleted").replace("would free", "freed") for line in would]
    assert names(lab) == []
    run("check", lab)


def test_delete_in_mid_chain_keeps_older_snapshots_whole(lab: Path):
    run("snapshot", lab / "db@tue")
    run("write", lab / "db", stdin=b"now")
    run("snapshot", lab / "db@wed")
    run("delete", lab / "db@tue")
    assert run("read", lab / "db@mon", "--length", "6").out == b"oldold"
    assert run("read", lab / "db@wed", "--length", "6").out == b"nownew"


def test_deleting_something_twice_in_one_command_deletes_it_once(lab: Path):
    assert run("delete", lab / "db@mon", lab / "db@mon").lines[0] == "deleted db@mon"


def test_import_and_export_give_back_the_same_bytes_with_their_holes(tmp_path: Path):
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.write(os.urandom(100_000))
        file.seek(20 * MIB)
        file.write(b"tail" * 5000)
        file.truncate(32 * MIB)
    run("init", tmp_path / "lab.snap")
    assert run("import", tmp_path / "lab.snap/db", image).out == b""
    assert run("export", tmp_path / "lab.snap/db", tmp_path / "back").out == b""
    assert (tmp_path / "back").read_bytes() == image.read_bytes()
    assert (tmp_path / "back").stat().st_blocks * 512 < MIB
    assert run("list", "--json", tmp_path / "lab.snap").json["nodes"][0]["own_bytes"] < MIB


def test_import_and_export_through_pipes(lab: Path):
    data = os.urandom(100_001)
    run("import", lab / "x", "-", stdin=data)
    assert run("export", lab / "x", "-").out == data


def test_failed_import_leaves_no_volume(lab: Path, tmp_path: Path):
    assert snapctl("import", lab / "x", tmp_path / "nosuch").code == 1
    assert names(lab) == ["db", "db@mon"]


def test_check_of_a_sound_container_says_so(lab: Path):
    assert "no errors" in run("check", lab).text
    document = run("check", "--json", lab).json
    assert (document["exit_code"], document["findings"], document["nodes"]) == (0, [], 2)


def test_check_of_a_damaged_container_says_where(lab: Path):
    lab.write_bytes(lab.read_bytes().replace(b"oldoldold", b"olDoldold"))
    result = snapctl("check", lab)
    assert result.code == 4
    assert "db@mon" in result.text
    document = snapctl("check", "--json", lab).json
    assert document["exit_code"] == 4
    assert {"severity", "where", "message"} == set(document["findings"][0])


def test_version_is_the_same_however_it_is_asked_for():
    assert run("--version").text.startswith("snapctl ")
    assert run("--debug", "--version").out == run("--version").out
