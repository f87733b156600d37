"""Commands that are stopped in the middle: by a signal, or because nobody reads their output."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.harness import (
    command_line,
    digest,
    environment,
    finish,
    redirected,
    run,
    start,
    wait_until_locked,
    wait_until_open,
)

MIB = 1 << 20
SIGNALS = [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "terminated")]


def visible(container: Path) -> list[object]:
    """All that others see of a container with a volume `db`."""
    document = run("list", "--json", container).json
    return [document, run("read", container / "db", "--length", "1M").out]


@pytest.mark.parametrize(("signal_no", "says"), SIGNALS)
@pytest.mark.parametrize("command", ["write", "import"])
def test_write_that_is_stopped_midway_leaves_nothing(command: str, signal_no: int, says: str, lab: Path):
    run("resize", lab / "db", "--size", "1G")
    before = visible(lab)
    process = start(*(["write", lab / "db"] if command == "write" else ["import", lab / "x", "-"]))
    assert process.stdin is not None
    for _ in range(12):
        process.stdin.write(os.urandom(MIB))
    process.stdin.flush()
    process.send_signal(signal_no)
    result = finish(process)
    assert result.code == 128 + signal_no
    assert result.err == f"snapctl: {says}; nothing was changed\n"
    assert visible(lab) == before
    run("check", lab)


def test_create_that_is_stopped_while_it_waits_changes_nothing(lab: Path):
    before = digest(lab)
    holder = start("write", lab / "db")
    wait_until_locked(lab, holder)
    process = start("create", lab / "x", "--size", "1M", "--wait", "60")
    wait_until_open(lab, process)
    process.send_signal(signal.SIGINT)
    assert finish(process).code == 130
    holder.send_signal(signal.SIGINT)
    finish(holder)
    assert digest(lab) == before


def test_signal_that_the_caller_ignores_stays_ignored(lab: Path):
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = start("write", lab / "db", preexec_fn=ignore)
    wait_until_open(lab, process)
    process.send_signal(signal.SIGINT)
    assert finish(process, b"done") == (0, b"", "")
    assert run("read", lab / "db", "--length", "4").out == b"done"


def test_export_that_is_stopped_leaves_no_file(lab: Path, tmp_path: Path):
    run("resize", lab / "db", "--size", "1G")
    run("write", lab / "db", stdin=os.urandom(64 * MIB))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = start("read", lab / "db", "--output", fifo)
    with fifo.open("rb") as reader:
        reader.read(1)
        process.send_signal(signal.SIGTERM)
        result = finish(process)
    assert result.code == 143
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "lab.snap"]


@pytest.mark.parametrize(
    "arguments",
    [["read", "LAB/db"], ["read", "LAB/db", "--format", "hex"], ["export", "LAB/db", "-"], ["tree", "LAB"], ["--help"]],
)
def test_closed_pipe_ends_a_command_silently(arguments: list[str], lab: Path):
    run("write", lab / "db", stdin=os.urandom(MIB))
    process = start(*(word.replace("LAB", str(lab)) for word in arguments))
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(60) == 128 + signal.SIGPIPE
    process.stderr.close()
    if process.stdin:
        process.stdin.close()


def test_head_is_enough(lab: Path):
    done = subprocess.run(
        ["sh", "-c", '"$@" | head -c 6', "sh", *command_line("read", lab / "db")],
        capture_output=True,
        env=environment(),
        check=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == (b"newnew", b"")


@pytest.mark.parametrize(
    "arguments", [["list", "LAB"], ["read", "LAB/db"], ["export", "LAB/db", "-"], ["list", "--help"], ["--version"]]
)
def test_closed_standard_output_is_an_error(arguments: list[str], lab: Path):
    words = [word.replace("LAB", str(lab)) for word in arguments]
    before = digest(lab)
    assert redirected(">&-", *words) == (1, b"", "snapctl: standard output is closed\n")
    assert digest(lab) == before


@pytest.mark.parametrize("arguments", [["write", "LAB/db"], ["import", "LAB/x", "-"]])
def test_closed_standard_input_is_an_error(arguments: list[str], lab: Path):
    words = [word.replace("LAB", str(lab)) for word in arguments]
    assert redirected("<&-", *words) == (1, b"", "snapctl: standard input is closed\n")


def test_closed_standard_error_does_not_end_up_elsewhere(lab: Path):
    assert redirected("2>&-", "read", lab / "nosuch") == (1, b"", "")


def test_container_never_gets_the_descriptor_of_a_closed_stream(lab: Path):
    before = digest(lab)
    assert redirected("<&- >&- 2>&-", "tree", lab).code == 1
    assert redirected("2>&-", "read", "--debug", lab / "nosuch").code == 1
    assert redirected("<&- 2>&-", "write", lab / "db", "--input", "/dev/fd/0").code == 0
    assert digest(lab) == before
