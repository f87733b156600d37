"""Completion as the shells do it, with the scripts of completions/ and the program behind them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from snapctl import Container
from tests.cli.harness import ROOT, Terminal, environment, run, snapctl
from tests.support.requires import needs

SCRIPTS = ROOT / "completions"
INSIDE = ["lab.snap/db", "lab.snap/db@", "lab.snap/db@mon", "lab.snap/db@tue", "lab.snap/dev"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a container, another file, a folder, and a `snapctl` to call in bin/."""
    with Container.create(str(tmp_path / "lab.snap")) as container:
        container.create_volume("db", 10 << 20)
        container.snapshot("db@mon")
        container.snapshot("db@tue")
        container.clone("db@tue", "dev")
    (tmp_path / "labels.txt").write_text("not a container")
    (tmp_path / "sub").mkdir()
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "snapctl"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m snapctl "$@"\n')
    program.chmod(0o755)
    return tmp_path


def answers(line: str, folder: Path, *, variable: str = "") -> list[str]:
    """What the program offers for a line."""
    result = snapctl(cwd=folder, _SNAPCTL_COMPLETE="complete_line", SNAPCTL_LINE=line, SNAPCTL_CONTAINER=variable)
    assert result.err == ""
    return [candidate.partition("\t")[0] for candidate in result.lines if candidate]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("snapctl sn", ["snapshot"]),
        ("snapctl list --js", ["--json"]),
        ("snapctl tree --by ", ["parent", "origin"]),
        ("snapctl read l", ["lab.snap/"]),
        ("snapctl read s", ["sub/"]),
        ("snapctl check l", ["lab.snap"]),
        ("snapctl read lab.snap/", INSIDE),
        ("snapctl read ./lab.snap/de", ["./lab.snap/dev"]),
        ("snapctl read lab.snap/db", INSIDE[:4]),
        ("snapctl read lab.snap/db@", INSIDE[2:4]),
        ("snapctl read lab.snap/db@t", ["lab.snap/db@tue"]),
        ("snapctl delete lab.snap/db@mon lab.snap/db@t", ["lab.snap/db@tue"]),
        ("snapctl write lab.snap/", ["lab.snap/db", "lab.snap/dev"]),
        ("snapctl snapshot lab.snap/", ["lab.snap/db@", "lab.snap/dev@"]),
        ("snapctl snapshot lab.snap/db@", []),
        ("snapctl create l", ["lab.snap/"]),
        ("snapctl write lab.snap/db --input ", []),
        ("snapctl read lab.snap/nosuch", []),
        ("snapctl read nosuch/", []),
        ("snapctl mount l", ["lab.snap"]),
        ("snapctl mount lab.snap s", ["sub/"]),
        ("snapctl mount lab.snap l", []),
    ],
)
def test_program_offers_what_fits(line: str, offered: list[str], folder: Path):
    assert sorted(answers(line, folder)) == sorted(offered)


def test_program_offers_bare_names_with_the_variable(folder: Path):
    assert answers("snapctl read d", folder, variable="lab.snap") == ["db", "dev", "db@", "db@mon", "db@tue"]


def test_program_offers_nothing_of_a_container_that_is_locked_or_damaged(folder: Path):
    path = folder / "lab.snap"
    with Container.open(str(path), writable=True):
        assert answers("snapctl read lab.snap/d", folder) == []
    path.write_bytes(path.read_bytes()[:70_000])
    assert answers("snapctl read lab.snap/d", folder) == []


def test_program_offers_a_path_with_a_space(folder: Path):
    (folder / "lab.snap").rename(folder / "my lab.snap")
    assert answers(r"snapctl read my\ la", folder) == ["my lab.snap/"]
    assert answers("snapctl read 'my lab.snap/de", folder) == ["my lab.snap/dev"]


def path_with_snapctl(folder: Path) -> str:
    return f"{folder}/bin:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("snapctl sn", ["snapshot"]),
        ("snapctl read l", ["lab.snap/"]),
        ("snapctl read lab.snap/", INSIDE),
        ("snapctl read lab.snap/db@", INSIDE[2:4]),
        ("snapctl read lab.snap/db@t", ["lab.snap/db@tue"]),
        ("snapctl write lab.snap/db --input la", ["lab.snap", "labels.txt"]),
    ],
)
def test_fish_completes(line: str, offered: list[str], folder: Path):
    fish = needs("fish", package="fish")
    done = subprocess.run(
        [fish, "--no-config", "-c", f"source {SCRIPTS}/snapctl.fish; complete --do-complete '{line}'"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(PATH=path_with_snapctl(folder), HOME=str(folder)),
        check=True,
        timeout=60,
    )
    assert sorted(candidate.partition("\t")[0] for candidate in done.stdout.splitlines()) == sorted(offered)


TYPED = [
    ("snapctl snaps", "snapctl snapshot "),
    ("snapctl read la", "snapctl read lab.snap/"),
    ("snapctl check lab.s", "snapctl check lab.snap "),
    ("snapctl read su", "snapctl read sub/"),
    ("snapctl read lab.snap/de", "snapctl read lab.snap/dev "),
    ("snapctl read lab.snap/d", "snapctl read lab.snap/d"),
    ("snapctl write lab.snap/db", "snapctl write lab.snap/db "),
    ("snapctl read lab.snap/db@t", "snapctl read lab.snap/db@tue "),
    ("snapctl read ./lab.snap/db@m", "snapctl read ./lab.snap/db@mon "),
    ("snapctl snapshot lab.snap/de", "snapctl snapshot lab.snap/dev@"),
    ("snapctl delete lab.snap/dev lab.snap/db@m", "snapctl delete lab.snap/dev lab.snap/db@mon "),
    ("snapctl write lab.snap/db --input labe", "snapctl write lab.snap/db --input labels.txt "),
    ("snapctl read my", r"snapctl read my\ lab.snap/"),
]
SHELLS = {
    "bash": (["--norc", "--noprofile", "-i"], "PS1='> '; source {}/snapctl.bash"),
    "zsh": (["-f", "-i"], "PS1='> '; autoload -Uz compinit; compinit -u -D; source {}/_snapctl"),
}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_tab_key_completes_the_line(shell: str, folder: Path):
    """The line that is there after the key is read back by putting ``: '`` before and ``'`` behind it."""
    (folder / "my lab.snap").write_bytes((folder / "lab.snap").read_bytes())
    options, setup = SHELLS[shell]
    program = needs("zsh", package="zsh") if shell == "zsh" else "bash"
    terminal = Terminal([program, *options], cwd=folder, columns=200, PATH=path_with_snapctl(folder))
    terminal.type(f"{setup.format(SCRIPTS)}; echo rea''dy\n")
    terminal.expect("ready\r\n")
    for number, (typed, completed) in enumerate(TYPED):
        terminal.type(f"{typed}\t")
        terminal.type(f"%\x01: '\x05' > line; echo finished''{number}\n")
        terminal.expect(f"finished{number}\r\n")
        terminal.type(f"fc -ln -1 > line; echo written''{number}\n")
        terminal.expect(f"written{number}\r\n")
        assert f": '{completed}%'" in (folder / "line").read_text(), (typed, terminal.seen[-2000:])
    terminal.type("exit\n")
    terminal.close()


@pytest.mark.parametrize(("shell", "script"), [("bash", "snapctl.bash"), ("zsh", "_snapctl"), ("fish", "snapctl.fish")])
def test_completion_can_be_shown_and_installed(shell: str, script: str, tmp_path: Path):
    def asked(option: str) -> str:
        return run(option, shell, HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").text

    assert "_SNAPCTL_COMPLETE" in asked("--show-completion")
    assert "completion installed" in asked("--install-completion")
    installed = [path for path in tmp_path.rglob("*snapctl*") if path.is_file()]
    assert len(installed) == 1
    assert installed[0].read_text().strip() == (SCRIPTS / script).read_text().strip()
