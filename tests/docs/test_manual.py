"""The manual pages against the program, both ways: commands, options, exit codes, the environment, the sizes."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from snapctl import errors
from snapctl.cli import app, path, serve
from snapctl.format.geometry import BLOCK_SIZES
from snapctl.units import format_size
from tests.cli.harness import run, snapctl
from tests.docs import mdoc
from tests.docs.markdown import ROOT
from tests.support.requires import needs

PAGES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "man").iterdir())
MANUAL = mdoc.Page("man/snapctl.1")

PROGRAM = typer.main.get_command(app.app)
COMMANDS = {name: PROGRAM.get_command(click.Context(PROGRAM), name) for name in app.COMMANDS}  # type: ignore[attr-defined]
SUBSECTIONS = MANUAL.subsections("COMMANDS")
SHARED = {frozenset(names) for names in mdoc.tagged(MANUAL.section("OPTIONS"))}

# Codes that are results of `check`, not errors; the class of its report has the same.
RESULTS = {0, 3}


def names_of(command: click.Command | None) -> set[frozenset[str]]:
    """The options that a command takes, each with all its names, but for those that every command takes."""
    assert command is not None
    found = {frozenset(p.opts + p.secondary_opts) for p in command.params if isinstance(p, click.Option)}
    return found - {frozenset({"--debug"})}


def described(command: str) -> set[frozenset[str]]:
    return {frozenset(names) for names in mdoc.tagged(SUBSECTIONS[command])}


def synopsis(command: str) -> str:
    text, paragraph, _ = SUBSECTIONS[command].partition("\n.Pp\n")
    assert paragraph, f"no description of {command}"
    return text


def arguments_in(command: str) -> Iterator[str]:
    """The arguments of a command's synopsis; those of its options left out."""
    for line in synopsis(command).splitlines():
        if "Fl " not in line and "Ar " in line:
            yield line


def test_every_command_is_described_and_no_other():
    assert list(SUBSECTIONS) == list(app.COMMANDS)


@pytest.mark.parametrize("command", app.COMMANDS)
def test_synopsis_begins_with_the_command(command: str):
    assert synopsis(command).startswith(f".Nm\n.Cm {command}\n")


@pytest.mark.parametrize("command", app.COMMANDS)
def test_synopsis_has_every_option_and_no_other(command: str):
    options = names_of(COMMANDS[command])
    stated = set(mdoc.options(synopsis(command)))
    assert stated <= set().union(*options)
    assert not [sorted(option) for option in options if not option & stated]


@pytest.mark.parametrize("command", app.COMMANDS)
def test_every_option_is_described_under_all_its_names(command: str):
    options = names_of(COMMANDS[command])
    assert described(command) == options - SHARED
    assert not described(command) & SHARED


@pytest.mark.parametrize("command", app.COMMANDS)
def test_options_that_must_be_given_stand_without_brackets(command: str):
    target = COMMANDS[command]
    assert target is not None
    required = {frozenset(p.opts) for p in target.params if isinstance(p, click.Option) and p.required}
    lines = [line for line in synopsis(command).splitlines() if line.startswith(".Fl ")]
    assert {frozenset(mdoc.options(line)) for line in lines} == required


@pytest.mark.parametrize("command", app.COMMANDS)
def test_synopsis_has_the_arguments_in_their_order(command: str):
    target = COMMANDS[command]
    assert target is not None
    arguments = [p for p in target.params if isinstance(p, click.Argument)]
    lines = list(arguments_in(command))
    assert len(lines) == len(arguments)
    for line, argument in zip(lines, arguments, strict=True):
        assert line.startswith(".Op ") == (not argument.required)
        assert line.endswith(" ...") == (argument.nargs == -1)
        metavar = (argument.metavar or "").lower()
        assert "".join(mdoc.words(line)).removesuffix("...") == re.sub(r"[\[\].]", "", metavar)


@pytest.mark.parametrize("command", app.COMMANDS)
def test_choices_of_options_are_listed(command: str):
    target = COMMANDS[command]
    assert target is not None
    for option in target.params:
        if isinstance(option.type, click.Choice):
            listed = f"{option.opts[-1].removeprefix('-')} Cm {' | '.join(option.type.choices)}"
            assert f".It Fl {listed}\n" in SUBSECTIONS[command]
            assert f"Fl {listed}\n" in synopsis(command)


def test_options_of_the_program_itself_are_described():
    own = {frozenset(p.opts) for p in PROGRAM.params if isinstance(p, click.Option)}
    help_option = frozenset(PROGRAM.context_settings["help_option_names"])
    assert own | {help_option} <= SHARED
    taken_by_commands = set().union(*(names_of(command) for command in COMMANDS.values()))
    assert own | {help_option} | taken_by_commands >= SHARED


def test_every_option_named_anywhere_exists():
    known = set().union(*SHARED, *(option for c in COMMANDS.values() for option in names_of(c)))
    assert set(mdoc.options(MANUAL.text)) <= known


def test_exit_codes_are_those_of_the_errors():
    codes = {error.exit_code for error in every_error(errors.SnapctlError)} | RESULTS
    stated = re.findall(r"^\.It (\d+)$", MANUAL.section("EXIT STATUS"), re.MULTILINE)
    assert [int(code) for code in stated] == sorted(codes)


def every_error(error: type[errors.SnapctlError]) -> Iterator[type[errors.SnapctlError]]:
    yield error
    for child in error.__subclasses__():
        yield from every_error(child)


def test_environment_is_described():
    stated = re.findall(r"^\.It Ev (\w+)$", MANUAL.section("ENVIRONMENT"), re.MULTILINE)
    assert stated == [path.VARIABLE, *serve.VARIABLES]


def test_block_sizes_are_those_of_the_format():
    sizes = [format_size(size) for size in BLOCK_SIZES]
    assert f"{', '.join(sizes[:-1])} or {sizes[-1]};" in SUBSECTIONS["init"]


def test_fields_of_json_are_described(tmp_path: Path):
    lab = tmp_path / "lab.snap"
    run("create", lab / "db", "--size", "1M")
    of_container, of_node, of_details, of_usage, of_check, of_scrub = (
        {field for field, _ in MANUAL.columns("JSON", number)} for number in range(6)
    )
    listed, tree = run("list", lab, "--json").json, run("tree", lab, "--json").json
    info, check = run("info", lab / "db", "--json").json, run("check", lab, "--json").json
    scrub = run("scrub", lab, "--json").json
    assert {"version": 1, "container": of_container, "nodes": of_node} == shape(listed)
    assert shape(tree) == {"version": 1, "container": of_container, "nodes": of_node | {"children"}}
    assert shape(info) == {"version": 1, "container": of_container, "node": of_node | of_details}
    assert run("info", lab, "--json").json["usage"].keys() == of_usage
    assert check.keys() - {"version", "container"} == of_check
    of_status = {field for field, _ in MANUAL.columns("JSON", 7)}
    assert run("status", lab, "--json").json.keys() - {"version", "container"} == of_status
    assert scrub.keys() - {"version", "container"} == of_scrub


def test_fields_of_a_damage_are_described(tmp_path: Path):
    lab = tmp_path / "lab.snap"
    run("create", lab / "db", "--size", "1M")
    run("write", lab / "db", stdin=b"old" * 2000)
    lab.write_bytes(lab.read_bytes().replace(b"oldoldold", b"olDoldold"))
    (found,) = snapctl("scrub", lab, "--json").json["damages"]
    assert found.keys() == {field for field, _ in MANUAL.columns("JSON", 6)}


def shape(document: dict[str, Any]) -> dict[str, Any]:
    """A JSON document with the names of fields in place of objects, or of arrays of one object."""
    return {
        name: set(value[0] if isinstance(value, list) else value) if isinstance(value, dict | list) else value
        for name, value in document.items()
    }


@pytest.mark.parametrize("page", PAGES)
def test_page_is_well_formed(page: str):
    mandoc = needs("mandoc", package="mandoc")
    done = subprocess.run(
        [mandoc, "-T", "lint", "-W", "warning", page], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_pages_refer_to_each_other_and_exist():
    for page in PAGES:
        for name, number in re.findall(r"^\.Xr (snapctl\S*) (\d)", mdoc.Page(page).text, re.MULTILINE):
            assert f"man/{name}.{number}" in PAGES


def complete(line: str) -> list[str]:
    """What the completions of all shells offer at the end of a line."""
    answer = run(_SNAPCTL_COMPLETE="complete_line", SNAPCTL_LINE=line)
    return [candidate.split("\t")[0] for candidate in answer.lines]


def test_completions_know_every_command():
    assert complete("snapctl ") == list(app.COMMANDS)


@pytest.mark.parametrize("command", app.COMMANDS)
def test_completions_know_every_option(command: str):
    offered = set(complete(f"snapctl {command} --"))
    assert all(option & offered for option in names_of(COMMANDS[command]))


def test_completions_ask_the_program_in_the_way_that_is_tested():
    scripts = sorted((ROOT / "completions").iterdir())
    assert len(scripts) == 3
    for script in scripts:
        assert "_SNAPCTL_COMPLETE=complete_line SNAPCTL_LINE=" in script.read_text()
        assert os.access(script, os.R_OK)
