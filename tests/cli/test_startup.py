"""A command imports only what it uses; start-up is paid at every call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.harness import environment

HEAVY = {"asyncio", "numpy", "pydantic", "unittest", "email", "http", "logging", "tempfile"}
DRAWING = {"rich", "pygments", "markdown_it"}


def imported(*arguments: object) -> set[str]:
    """All modules that a command imports, its standard output being a pipe."""
    script = """
import atexit, sys
atexit.register(lambda: sys.stderr.write("\\n".join(sys.modules)))
from snapctl.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
        timeout=60,
    )
    names = set(done.stderr.splitlines())
    assert "snapctl" in names
    return names


def tops(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_version_imports_nothing_of_the_command_line():
    modules = imported("--version")
    assert not {name for name in modules if name.startswith("snapctl.")} - {"snapctl.__main__"}
    assert not tops(modules) & {"typer", "click", "construct", "crc32c", "json", "re", "dataclasses", *HEAVY, *DRAWING}


@pytest.mark.parametrize("command", ["snapshot", "list", "write", "read", "create", "tree", "info"])
def test_command_imports_no_more_than_it_uses(command: str, lab: Path):
    words: dict[str, list[object]] = {
        "snapshot": [lab / "db@tue"],
        "create": [lab / "x", "--size", "1M"],
        "write": [lab / "db", "--input", "/dev/null"],
        "read": [lab / "db"],
    }
    modules = imported(command, *words.get(command, [lab]))
    assert not tops(modules) & {"json", "csv", *HEAVY, *DRAWING}
    services = {name.removeprefix("snapctl.services.") for name in modules if name.startswith("snapctl.services.")}
    assert services <= {"operations", "opening", "control", "control.address"}
    commands = {"create", "data", "transfer", "snapshots", "volumes", "show", "check", "scrub"}
    assert len({name for name in modules if name in {f"snapctl.cli.{module}" for module in commands}}) == 1


def test_json_is_imported_where_it_is_printed(lab: Path):
    modules = imported("list", "--json", lab)
    assert "json" in modules
    assert not tops(modules) & DRAWING


def test_help_does_not_import_the_engine():
    modules = imported("list", "--help")
    assert not {name for name in modules if name.startswith(("snapctl.engine", "snapctl.storage", "snapctl.format"))}
    assert not tops(modules) & DRAWING
