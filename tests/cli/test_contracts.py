"""What holds for every command alike: one table of commands, and the promises that each of them keeps."""

from __future__ import annotations

import random
from pathlib import Path

import click
import pytest
import typer

from snapctl.cli.app import COMMANDS, app
from tests.cli.harness import READ_ONLY_COMMANDS, digest, one_line, run, snapctl

# A command that works in a folder with lab.snap (see the fixture `lab`) and image.bin. CONTAINER stands for lab.snap.
WORKING = {
    "init": ["new.snap", "--block-size", "16K"],
    "create": ["CONTAINER/x", "--size", "1M"],
    "write": ["CONTAINER/db", "--input", "image.bin"],
    "read": ["CONTAINER/db@mon"],
    "trim": ["CONTAINER/db", "--offset", "0", "--length", "4K"],
    "import": ["CONTAINER/x", "image.bin"],
    "export": ["CONTAINER/db", "-"],
    "snapshot": ["CONTAINER/db@tue"],
    "clone": ["CONTAINER/db@mon", "dev"],
    "rename": ["CONTAINER/db", "prod"],
    "resize": ["CONTAINER/db", "--size", "2M"],
    "delete": ["CONTAINER/db@mon"],
    "list": ["CONTAINER"],
    "tree": ["CONTAINER"],
    "info": ["CONTAINER"],
    "status": ["CONTAINER"],
    "check": ["CONTAINER"],
    "scrub": ["CONTAINER"],
    "serve": ["CONTAINER"],
    "mount": ["CONTAINER", "empty"],
}
OPENING = [name for name in WORKING if name != "init"]
LASTING = ["serve", "mount"]
"""Commands that go on until somebody ends them; each has tests of its own for how it works."""
ENDING = [name for name in WORKING if name not in LASTING]
DRY = {"trim": WORKING["trim"], "delete": WORKING["delete"], "resize": ["CONTAINER/db", "--size", "4K", "--shrink"]}


def line(command: str, container: str = "lab.snap", *, table: dict[str, list[str]] = WORKING) -> list[str]:
    return [command, *(word.replace("CONTAINER", container) for word in table[command])]


@pytest.fixture
def folder(lab: Path) -> Path:
    (lab.parent / "image.bin").write_bytes(b"image" * 1000)
    (lab.parent / "empty").mkdir()
    return lab.parent


def click_command(name: str) -> click.Command:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    command = group.get_command(click.Context(group), name)
    assert command is not None
    return command


def test_table_has_every_command():
    assert list(WORKING) == list(COMMANDS)


def test_help_lists_every_command_whole():
    text = run("--help").text
    for name in COMMANDS:
        assert f"\n  {name} " in text
    assert "..." not in text.split("Commands:")[1].split("Paths")[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_parameter(command: str):
    text = run(command, "--help").text
    assert text.startswith(f"Usage: snapctl {command} ")
    assert "Example" in text
    for parameter in click_command(command).params:
        assert getattr(parameter, "help", None), parameter.name
        for option in parameter.opts if isinstance(parameter, click.Option) else []:
            assert option in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("command", OPENING)
def test_every_command_that_opens_a_container_can_wait(command: str):
    assert "--wait" in [option for parameter in click_command(command).params for option in parameter.opts]


@pytest.mark.parametrize("command", DRY)
def test_every_command_that_destroys_can_be_tried_and_confirmed_beforehand(command: str):
    options = {option for parameter in click_command(command).params for option in parameter.opts}
    assert {"-n", "--dry-run", "-y", "--yes"} <= options


@pytest.mark.parametrize("command", ENDING)
def test_working_example_works(command: str, folder: Path):
    run(*line(command), cwd=folder)


@pytest.mark.parametrize("command", ENDING)
def test_working_example_works_with_the_variable(command: str, folder: Path):
    words = [word for word in line(command) if word != "lab.snap"]
    run(*(word.removeprefix("lab.snap/") for word in words), cwd=folder, SNAPCTL_CONTAINER="lab.snap")


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_option_is_wrong_usage(command: str, folder: Path):
    result = snapctl(*line(command), "--no-such-option", cwd=folder)
    assert result.code == 2
    assert "--no-such-option" in one_line(result)
    assert f"snapctl {command} --help" in one_line(result)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"snapshot", "delete"}))
def test_surplus_argument_is_wrong_usage(command: str, folder: Path):
    result = snapctl(*line(command), "surplus", cwd=folder)
    assert result.code == 2
    one_line(result)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_argument_is_wrong_usage(command: str):
    result = snapctl(command)
    assert result.code == 2
    one_line(result)


@pytest.mark.parametrize("command", sorted(set(OPENING) - {"create"}))
def test_missing_container_is_an_error_and_is_not_made(command: str, folder: Path):
    result = snapctl(*line(command, "missing.snap"), cwd=folder)
    assert result.code == 1
    assert "missing.snap" in one_line(result)
    assert not (folder / "missing.snap").exists()


@pytest.mark.parametrize("size", [0, 4095, 70_000])
@pytest.mark.parametrize("command", OPENING)
def test_file_that_is_no_container_is_refused_and_stays(command: str, size: int, folder: Path):
    other = folder / "other"
    other.write_bytes(b"x" * size)
    result = snapctl(*line(command, "other"), cwd=folder)
    assert result.code == 1
    assert "other" in one_line(result)
    assert other.read_bytes() == b"x" * size


@pytest.mark.parametrize("command", OPENING)
def test_directory_for_a_container_is_refused(command: str, folder: Path):
    (folder / "sub").mkdir()
    result = snapctl(*line(command, "sub"), cwd=folder)
    assert result.code == 1
    assert "directory" in one_line(result)
    assert list((folder / "sub").iterdir()) == []


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero"])
@pytest.mark.parametrize("command", OPENING)
def test_device_for_a_container_is_refused(command: str, device: str, folder: Path):
    result = snapctl(*line(command, device), cwd=folder)
    assert result.code == 1
    assert device in one_line(result)


@pytest.mark.parametrize("command", sorted(set(OPENING) - {"check", "scrub"}))
def test_superblocks_of_garbage_are_one_line(command: str, folder: Path):
    damaged = bytearray((folder / "lab.snap").read_bytes())
    damaged[64 : 64 * 1024] = random.Random(7).randbytes(64 * 1024 - 64)
    (folder / "lab.snap").write_bytes(damaged)
    result = snapctl(*line(command), cwd=folder)
    assert result.code in {1, 4}
    assert "lab.snap" in one_line(result)
    assert (folder / "lab.snap").read_bytes() == damaged


@pytest.mark.parametrize("command", sorted(set(OPENING) - set(LASTING)))
def test_damage_anywhere_is_corruption_or_does_not_matter(command: str, folder: Path):
    whole = (folder / "lab.snap").read_bytes()
    for seed in range(2):
        damaged = bytearray(whole)
        for at in random.Random(seed).sample(range(64 * 1024, len(whole)), 20):
            damaged[at] ^= 0x10
        (folder / "lab.snap").write_bytes(damaged)
        result = snapctl(*line(command), cwd=folder)
        assert result.code in {0, 4}, result
        assert "Traceback" not in result.err
        assert "internal error" not in result.err


@pytest.mark.parametrize("command", READ_ONLY_COMMANDS)
def test_reading_leaves_the_container_as_it_is(command: str, folder: Path):
    before = digest(folder / "lab.snap"), (folder / "lab.snap").stat().st_mtime_ns
    run(*line(command), cwd=folder)
    assert (digest(folder / "lab.snap"), (folder / "lab.snap").stat().st_mtime_ns) == before


@pytest.mark.parametrize("command", DRY)
def test_dry_run_leaves_the_container_as_it_is(command: str, folder: Path):
    before = run("tree", "--json", "lab.snap", cwd=folder).out, run("read", "lab.snap/db", cwd=folder).out
    assert "would free" in run(*line(command, table=DRY), "-n", cwd=folder).text
    assert (run("tree", "--json", "lab.snap", cwd=folder).out, run("read", "lab.snap/db", cwd=folder).out) == before


@pytest.mark.parametrize("command", DRY)
def test_dry_run_foretells_the_bytes_that_are_freed(command: str, folder: Path):
    def used() -> int:
        return int(run("info", "--json", "lab.snap", cwd=folder).json["container"]["used_bytes"])

    before = used()
    foretold = run(*line(command, table=DRY), "--dry-run", cwd=folder).text
    done = run(*line(command, table=DRY), cwd=folder).text
    freed = before - used()
    assert f"would free {freed} bytes" in foretold
    assert f"freed {freed} bytes" in done


def test_every_json_document_has_a_version(folder: Path):
    for command in ENDING:
        if any("--json" in parameter.opts for parameter in click_command(command).params):
            assert run(*line(command), "--json", cwd=folder).json["version"] == 1
