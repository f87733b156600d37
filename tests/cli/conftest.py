"""Containers for the tests of the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.harness import run


@pytest.fixture(scope="session")
def finished_lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `lab` gives each test a copy of."""
    path = tmp_path_factory.mktemp("finished") / "lab.snap"
    run("create", path / "db", "--size", "1M")
    run("write", path / "db", stdin=b"old" * 2000)
    run("snapshot", path / "db@mon")
    run("write", path / "db", stdin=b"new" * 2000)
    return path


@pytest.fixture
def lab(finished_lab: Path, tmp_path: Path) -> Path:
    """A container with a volume `db` of 1 MiB that holds 6000 bytes of ``old`` in `db@mon` and of ``new`` now."""
    return Path(shutil.copy(finished_lab, tmp_path / "lab.snap"))
