"""One writer or any number of readers; the others wait, then give up and name the holder."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.harness import environment, finish, one_line, run, snapctl, start, wait_until_open

_HOLD = """
import sys
from snapctl import Container
with Container.open(sys.argv[1], writable=sys.argv[2] == "writing") as container:
    print("held", flush=True)
    if container.writable:
        container.create_volume("unseen", 4096)
    sys.stdin.readline()
"""


@contextmanager
def held(path: Path, how: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a container for reading or for writing, until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, path, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.communicate()


@pytest.mark.parametrize(
    ("how", "arguments"),
    [
        ("writing", ["list", "LAB"]),
        ("writing", ["read", "LAB/db"]),
        ("writing", ["export", "LAB/db", "-"]),
        ("writing", ["check", "LAB"]),
        ("writing", ["scrub", "LAB"]),
        ("writing", ["snapshot", "LAB/db@tue"]),
        ("reading", ["snapshot", "LAB/db@tue"]),
        ("reading", ["write", "LAB/db"]),
        ("reading", ["import", "LAB/x", "-"]),
        ("reading", ["delete", "LAB/db@mon", "-n"]),
    ],
)
def test_container_held_by_another_is_given_up_and_the_holder_named(how: str, arguments: list[str], lab: Path):
    with held(lab, how) as holder:
        began = time.monotonic()
        result = snapctl(*(word.replace("LAB", str(lab)) for word in arguments), "--wait", "0.3")
        assert time.monotonic() - began > 0.3
    assert result.code == 5
    message = one_line(result)
    assert f"pid {holder.pid}" in message
    assert sys.executable in message
    assert "--wait" in message


def test_no_wait_is_no_wait(lab: Path):
    with held(lab, "writing"):
        assert snapctl("list", lab, "--wait", "0").code == 5


def test_negative_wait_is_wrong_usage(lab: Path):
    for seconds in ("-1", "soon", "nan", "-inf"):
        assert snapctl("list", lab, "--wait", seconds).code == 2


def test_wait_can_be_for_ever(lab: Path):
    run("list", lab, "--wait", "inf")


def test_readers_share(lab: Path):
    with held(lab, "reading"):
        run("list", lab, "--wait", "0")
        run("check", lab, "--wait", "0")


def test_waiting_ends_when_the_holder_lets_go_and_then_all_is_seen(lab: Path):
    with held(lab, "writing") as holder:
        waiting = start("list", lab, "--wait", "60")
        wait_until_open(lab, waiting)
        assert waiting.poll() is None
        assert holder.stdin is not None
        holder.stdin.write("\n")
        holder.stdin.flush()
        result = finish(waiting)
    assert result.code == 0
    assert "unseen" in result.text


def test_holder_that_dies_leaves_nothing_behind(lab: Path):
    before = run("list", lab).out
    with held(lab, "writing") as holder:
        holder.kill()
        holder.wait()
        assert run("list", lab, "--wait", "5").out == before


def test_volumes_created_at_once_make_one_container(tmp_path: Path):
    names = ["a", "b", "c"]
    makers = [start("create", tmp_path / "new.snap" / name, "--size", "1M", "--wait", "60") for name in names]
    assert [finish(process) for process in makers] == [(0, b"", "")] * len(makers)
    assert sorted(node["name"] for node in run("list", "--json", tmp_path / "new.snap").json["nodes"]) == names


_FAIL_TO_MAKE = """
import sys
from snapctl.cli import session
with session.making(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
    raise SystemExit(1)
"""


def test_container_is_not_taken_from_one_who_waited_for_it(tmp_path: Path):
    """A container made for nothing is gone before its lock is; whoever waited makes one anew."""
    path = tmp_path / "new.snap"
    with subprocess.Popen(
        [sys.executable, "-c", _FAIL_TO_MAKE, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == b"held\n"
        waiting = start("create", path / "db", "--size", "1M", "--wait", "60")
        wait_until_open(path, waiting)
        maker.communicate(b"\n")
    assert finish(waiting) == (0, b"", "")
    assert [node["name"] for node in run("list", "--json", path).json["nodes"]] == ["db"]


def test_two_writers_take_turns(lab: Path):
    both = [start("snapshot", lab / f"db@{name}", "--wait", "60") for name in ("a", "b")]
    assert [finish(process).code for process in both] == [0, 0]
    assert {"db@a", "db@b"} <= {node["name"] for node in run("list", "--json", lab).json["nodes"]}
