"""What `scrub` prints, and how it ends."""

from __future__ import annotations

import re
from pathlib import Path

from snapctl.format.superblock import copy_offset
from tests.cli.harness import on_terminal, one_line, run, snapctl
from tests.cli.test_bad_input import without_privileges


def damage_data(path: Path) -> None:
    """Change a byte of what only `db@mon` holds."""
    path.write_bytes(path.read_bytes().replace(b"oldoldold", b"olDoldold", 1))


def damage_superblock(path: Path) -> bytes:
    """Change a byte of a superblock copy; gives what the file was."""
    whole = path.read_bytes()
    image = bytearray(whole)
    image[copy_offset(1, 1) + 64] ^= 1
    path.write_bytes(image)
    return whole


def test_a_sound_container_is_said_to_be_so(lab: Path):
    (line,) = run("scrub", lab).lines
    assert re.fullmatch(rf"{re.escape(str(lab))}: no errors; verified [\d.]+K in \d\.\d s \([\d.]+[KM]/s\)", line)
    document = run("scrub", "--json", lab).json
    assert (document["exit_code"], document["damages"], document["nodes"]) == (0, [], 2)
    assert document["pages_verified"] == run("check", "--json", lab).json["pages_checked"]


def test_a_damage_is_named_with_all_that_it_affects(lab: Path):
    run("clone", lab / "db@mon", "dev")
    damage_data(lab)
    result = snapctl("scrub", "lab.snap", cwd=lab.parent)
    assert (result.code, result.err) == (4, "")
    first, *affected, last = result.lines
    assert re.fullmatch(r"corruption: db@mon bytes 0 to 4096: data at page \d+ fails its checksum", first)
    assert affected == ["  affects db@mon  bytes 0 to 4096 (4K)", "  affects dev     bytes 0 to 4096 (4K)"]
    assert last.startswith("lab.snap: 1 finding, 2 nodes affected; verified ")
    assert max(map(len, result.lines)) <= 80
    document = snapctl("scrub", "--json", lab).json
    (damage,) = document["damages"]
    assert (document["exit_code"], damage["owner"], damage["start"], damage["end"]) == (4, "db@mon", 0, 4096)
    assert damage["affected"] == [{"node": name, "offset": 0, "length": 4096} for name in ("db@mon", "dev")]


def test_what_it_says_cannot_be_read_and_the_rest_can(lab: Path):
    damage_data(lab)
    assert snapctl("scrub", lab).code == 4
    assert snapctl("read", lab / "db@mon", "--length", "4096").code == 4
    assert run("read", lab / "db@mon", "--offset", "4096", "--length", "3").out == b"ldo"
    assert run("read", lab / "db", "--length", "3").out == b"new"


def test_a_damaged_superblock_copy_is_repaired_and_said_to_be(lab: Path):
    whole = damage_superblock(lab)
    (line, _) = run("scrub", lab).lines
    assert line == "repaired: superblock slot 1 copy 1: was damaged; written anew from the other copy"
    assert lab.read_bytes() == whole
    assert "no errors" in run("check", lab).text


def test_a_file_that_may_not_be_written_is_reported_and_left(lab: Path):
    damage_superblock(lab)
    before = lab.read_bytes()
    lab.chmod(0o444)
    result = without_privileges("scrub", lab)
    assert result.code == 4
    assert result.lines[0].startswith("corruption: superblock slot 1 copy 1: is damaged")
    assert lab.read_bytes() == before


def test_a_container_that_cannot_be_opened_is_reported_without_a_traceback(lab: Path):
    whole = lab.read_bytes()
    for broken in (whole.replace(b"mon\0\0", b"mOn\0\0"), whole[:-4096]):
        lab.write_bytes(broken)
        result = snapctl("scrub", lab)
        assert (result.code, result.err) == (4, "")
        assert result.lines[0].startswith("corruption: container: cannot be opened")


def test_a_node_is_refused(lab: Path):
    result = snapctl("scrub", lab / "db")
    assert result.code == 2
    assert "whole" in one_line(result)


def test_on_a_terminal_it_says_the_same(lab: Path):
    damage_data(lab)
    code, seen = on_terminal("scrub", "lab.snap", cwd=lab.parent)
    assert code == 4
    assert "affects db@mon  bytes 0 to 4096 (4K)" in seen
