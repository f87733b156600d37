"""What a person at a terminal sees: tables, a dump, questions, progress; and never a name's control characters."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from snapctl import Container
from tests.cli.harness import Terminal, command_line, digest, on_terminal, run


def plain(text: str) -> str:
    """The text without the codes for colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_read_is_a_dump_on_a_terminal(lab: Path):
    code, seen = on_terminal("read", lab / "db", "--offset", "5968", "--length", "128")
    assert code == 0
    assert seen.splitlines() == [
        "00001750  65 77 6e 65 77 6e 65 77  6e 65 77 6e 65 77 6e 65  |ewnewnewnewnewne|",
        "00001760  77 6e 65 77 6e 65 77 6e  65 77 6e 65 77 6e 65 77  |wnewnewnewnewnew|",
        "00001770  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|",
        "*",
        "000017d0",
    ]


def test_read_is_raw_on_a_terminal_if_so_wanted(lab: Path):
    assert on_terminal("read", lab / "db", "--length", "6", "--format", "raw") == (0, "newnew")


@pytest.mark.parametrize("command", ["list", "tree"])
def test_table_is_coloured_and_fits_the_terminal(command: str, lab: Path):
    run("clone", lab / "db@mon", "x" * 63)
    run("snapshot", f"{lab}/{'x' * 63}@{'y' * 63}")
    code, seen = on_terminal(command, lab)
    assert code == 0
    assert "\x1b[" in seen
    lines = plain(seen).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split()[:4] == ["NAME", "KIND", "SIZE", "OWN"]
    letters = "".join(line.split("  ")[0].strip(" ├─└◆○│") for line in lines)
    assert "x" * 63 in letters
    assert "y" * 63 in letters


def test_tree_on_a_terminal_is_the_same_as_through_a_pipe_without_colours(lab: Path):
    run("clone", lab / "db@mon", "dev")
    _, seen = on_terminal("tree", lab)
    piped = run("tree", lab, PYTHONIOENCODING="utf-8").lines
    assert [line.split()[:-1] for line in plain(seen).splitlines()] == [line.split()[:-1] for line in piped]


@pytest.mark.parametrize(
    "arguments",
    [
        ["delete", "LAB/db@mon"],
        ["trim", "LAB/db", "--offset", "0", "--length", "1M"],
        ["resize", "LAB/db", "--size", "1K", "--shrink"],
    ],
)
def test_question_is_asked_before_data_is_destroyed(arguments: list[str], lab: Path):
    words = [word.replace("LAB", str(lab)) for word in arguments]
    before = run("list", "--json", lab).out, run("read", lab / "db").out
    for answer in ("n\n", "\n", "\x04"):
        code, seen = on_terminal(*words, typed=answer)
        assert code == 1
        assert "nothing was changed" in seen
    code, seen = on_terminal(*words, typed="\x03")
    assert (code, seen.splitlines()[-1]) == (130, "snapctl: interrupted; nothing was changed")
    assert (run("list", "--json", lab).out, run("read", lab / "db").out) == before
    code, seen = on_terminal(*words, typed="y\n")
    assert code == 0
    assert "freed" in seen.splitlines()[-1]
    run("check", lab)


def test_question_says_what_would_go_and_how_much(lab: Path):
    _, seen = on_terminal("delete", lab / "db@mon", typed="n\n")
    foretold = re.search(r"\((\S+)\)", run("delete", lab / "db@mon", "-n").lines[-1])
    assert foretold is not None
    assert f"delete db@mon (frees {foretold[1]})? [y/N]" in seen


@pytest.mark.parametrize("option", ["-y", "--yes", "-n", "--dry-run"])
def test_question_is_not_asked_if_it_is_answered(option: str, lab: Path):
    code, seen = on_terminal("delete", lab / "db@mon", option)
    assert code == 0
    assert "[y/N]" not in seen


def test_growing_asks_nothing(lab: Path):
    code, seen = on_terminal("resize", lab / "db", "--size", "2M")
    assert code == 0
    assert "[y/N]" not in seen


def test_question_is_asked_though_standard_output_is_a_file(lab: Path, tmp_path: Path):
    with (tmp_path / "out").open("wb") as out:
        code, seen = on_terminal("delete", lab / "db@mon", typed="y\n", stdout=out.fileno())
    assert code == 0
    assert "[y/N]" in seen
    assert (tmp_path / "out").read_text().startswith("deleted db@mon\n")


def test_long_work_shows_its_progress_and_clears_it_away(tmp_path: Path):
    path = tmp_path / "x.snap"
    os.mkfifo(tmp_path / "fifo")
    run("create", path / "db", "--size", "64M")
    terminal = Terminal(command_line("write", path / "db", "--input", tmp_path / "fifo"))
    with (tmp_path / "fifo").open("wb", buffering=0) as fifo:
        for _ in range(6):
            fifo.write(os.urandom(5 << 20))
            terminal.expect_more(0.3)
    code, seen = terminal.close()
    assert code == 0
    assert "writing db" in seen
    assert seen.endswith("\x1b[2K")


def test_short_work_shows_nothing(lab: Path, tmp_path: Path):
    (tmp_path / "image").write_bytes(b"x")
    assert on_terminal("write", lab / "db", "--input", tmp_path / "image") == (0, "")
    assert on_terminal("import", lab / "x", tmp_path / "image") == (0, "")


def test_hostile_container_name_does_not_reach_the_terminal(lab: Path):
    hostile = lab.rename(lab.with_name("a\x1b]0;owned\x07b.snap"))
    for command in (
        ["info", hostile],
        ["check", hostile],
        ["scrub", hostile],
        ["read", hostile / "nosuch"],
        ["list", hostile / "x/y"],
    ):
        _, seen = on_terminal(*command)
        assert "\x07" not in seen
        assert "\x1b]" not in seen


def test_hostile_node_names_on_disk_do_not_reach_the_terminal(tmp_path: Path):
    path = tmp_path / "x.snap"
    with Container.create(str(path)) as container:
        container.create_volume("aaaabbbb", 4096)
    path.write_bytes(path.read_bytes().replace(b"aaaabbbb", b"\x1b[2Jbbbb"))
    before = digest(path)
    for command in ("list", "tree", "info", "check", "scrub"):
        _, seen = on_terminal(command, path)
        assert "\x1b[2J" not in seen
        assert "Traceback" not in seen
    assert digest(path) == before


def test_no_color_is_respected(lab: Path):
    _, seen = on_terminal("list", lab, NO_COLOR="1")
    assert not re.search(r"\x1b\[3\d", seen)
