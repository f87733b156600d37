"""The README's tour and docs/tour.sh, run as a reader runs them; and what the README says of commands and files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from snapctl.cli.app import COMMANDS
from tests.cli.harness import environment
from tests.docs.markdown import code_blocks, section, text_of
from tests.support.requires import needs

README = text_of("README.md")
SCRIPT = text_of("docs/tour.sh")

FILE_SYSTEM_PART = re.compile(r"^if command -v mke2fs.*?^fi\n", re.MULTILINE | re.DOTALL)


class Step(NamedTuple):
    """A command of the tour, and what it prints according to the README."""

    command: str
    output: list[str]


def steps() -> Iterator[Step]:
    for block in code_blocks(README, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *output = part.splitlines()
            yield Step(command, output)


STEPS = list(steps())


def normalised(line: str) -> str:
    """A line without what differs from run to run: dates and ages, and the widths of columns."""
    line = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "DATE", line.rstrip())
    line = re.sub(r"(?<= )\d+[smhdy]$", "AGE", line)
    return re.sub(r" +", " ", line)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `snapctl` and `python3`, both of the Python that runs the tests."""
    folder = tmp_path_factory.mktemp("bin")
    for name, arguments in (("snapctl", ' -m snapctl "$@"'), ("python3", ' "$@"')):
        script = folder / name
        script.write_text(f"#!/bin/sh\nexec {sys.executable}{arguments}\n")
        script.chmod(0o755)
    return folder


def shell(programs: Path, *arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)])
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        ["sh", *arguments],
        cwd=cwd,
        env=environment(PATH=path, **env),
        text=True,
        encoding="utf-8",
        check=False,
        **streams,
    )


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> tuple[Path, list[str]]:
    """The folder in which the README's commands have run, and what is wrong with their answers."""
    folder = tmp_path_factory.mktemp("tour")
    wrong: list[str] = []
    for step in STEPS:
        done = shell(programs, "-c", step.command, cwd=folder)
        is_refused = bool(step.output) and step.output[-1].startswith("snapctl: ")
        found, expected = map(normalised, done.stdout.splitlines()), map(normalised, step.output)
        if list(found) != list(expected) or (done.returncode != 0) != is_refused:
            wrong.append(f"$ {step.command}\n{done.stdout}[exit code {done.returncode}]")
    return folder, wrong


def test_commands_answer_as_the_readme_shows(tour: tuple[Path, list[str]]):
    assert not tour[1], "\n".join(tour[1])


def test_tour_ends_with_the_tree():
    assert STEPS[-1].command == "snapctl tree lab.snap"


def test_python_example_runs_in_the_container_of_the_tour(tour: tuple[Path, list[str]], programs: Path):
    (example,) = code_blocks(README, "python")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tour[0], env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    read = shell(programs, "-c", "snapctl read lab.snap/web@wed --offset 4K --length 11", cwd=tour[0])
    assert read.stdout == "from Python"


def test_script_has_the_commands_of_the_readme():
    commands = re.findall(r"^(?:run|refused) '(.*)'$", FILE_SYSTEM_PART.sub("", SCRIPT), re.MULTILINE)
    assert commands == [step.command for step in STEPS]


def test_script_has_the_sentences_of_the_readme():
    said = re.findall(r"^ *say '([^:;,.]*)", FILE_SYSTEM_PART.sub("", SCRIPT), re.MULTILINE)
    tour = " ".join(section(README, "Tour").split())
    assert not [sentence for sentence in said if sentence not in tour]


def tour_script(text: str, programs: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a tour in a folder of its own, in which it has to leave nothing."""
    (folder / "tour.sh").write_text(text)
    temporary = folder / "tmp"
    temporary.mkdir()
    done = shell(programs, "tour.sh", cwd=folder, TMPDIR=str(temporary))
    assert list(temporary.iterdir()) == []
    return done


def test_script_prints_what_the_readme_shows_without_tools_for_file_systems(tmp_path: Path, programs: Path):
    done = tour_script(FILE_SYSTEM_PART.sub("", SCRIPT), programs, tmp_path)
    printed = [normalised(line) for line in done.stdout.splitlines() if line and not line.startswith("# ")]
    shown = [normalised(line) for block in code_blocks(README, "console") for line in block.splitlines()]
    assert printed == shown
    assert done.returncode == 0


def test_script_goes_on_with_a_file_system_where_it_can_make_one(tmp_path: Path, programs: Path):
    needs("mke2fs", package="e2fsprogs")
    needs("e2fsck", package="e2fsprogs")
    done = tour_script(SCRIPT, programs, tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Pass 5: Checking group summary information" in done.stdout
    assert re.search(r"^● disk .*^○ disk@clean ", done.stdout, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("command", "broken"), [("run 'snapctl init lab.snap'", "run 'false'"), ("refused 'echo", "refused 'true #")]
)
def test_script_stops_at_a_surprise(command: str, broken: str, tmp_path: Path, programs: Path):
    done = tour_script(SCRIPT.replace(command, broken), programs, tmp_path)
    assert done.returncode == 1
    assert "snapctl clone" not in done.stdout


def test_commands_that_the_readme_names_exist():
    used = {
        name for line in (step.command for step in STEPS) for name in re.findall(r"(?:^|\| )snapctl (\w+)", line)
    } | set(re.findall(r"`snapctl (\w+)", README))
    assert used <= set(COMMANDS)


def test_targets_of_make_that_the_readme_names_exist():
    named = set(re.findall(r"(?:^    |`)make (\w+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= set(re.findall(r"^(\w+):", text_of("Makefile"), re.MULTILINE))


def test_make_demo_runs_the_script():
    assert "sh docs/tour.sh" in text_of("Makefile")
