"""Containers for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.harness import run

MIB = 1 << 20


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A container with a volume `db` of 1 MiB that holds ``old`` at its start in `db@mon` and ``new`` now."""
    path = tmp_path / "lab.snap"
    run("create", path / "db", "--size", "1M")
    run("write", path / "db", stdin=b"old" * 2000)
    run("snapshot", path / "db@mon")
    run("write", path / "db", stdin=b"new" * 2000)
    return path
