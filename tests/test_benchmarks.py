"""The benchmarks run, on inputs so small that their figures mean nothing, and docs/performance.md knows them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.requires import needs

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.name for path in ROOT.glob("benchmarks/[!_]*.py"))


def bench(script: str, *options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *map(str, options)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def figures(script: str, directory: Path, *options: object) -> str:
    """What a script prints on one round, once it has proved well-behaved."""
    directory.mkdir()
    done = bench(script, "--runs", 1, "--directory", directory, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("snapctl ")
    assert " 1.00 x" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert list(directory.iterdir()) == []
    return done.stdout


def test_startup_compares_with_python_and_with_the_imports(tmp_path: Path) -> None:
    printed = figures("startup.py", tmp_path / "work")

    for case in ('python -c "pass"', 'python -c "import typer, construct"', "snapctl snapshot", "snapctl list"):
        assert case in printed


def test_bulk_compares_with_cp_and_qemu_img(tmp_path: Path) -> None:
    needs("qemu-img", package="qemu-utils")

    printed = figures("bulk.py", tmp_path / "work", "--size", "2M")

    for case in ("cp", "qemu-img convert, raw to qcow2", "qemu-img convert, qcow2 to raw", "snapctl import"):
        assert printed.count(f"  {case}  ") >= 2, case


def test_bulk_says_what_to_install_for_a_comparison_that_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "cp").symlink_to(shutil.which("cp") or "/bin/cp")
    monkeypatch.setenv("PATH", str(programs))

    printed = figures("bulk.py", tmp_path / "work", "--size", "1M")

    assert "qemu-utils" in printed
    assert "qemu-img convert" not in printed


def test_snapshot_cost_gives_a_verdict_on_growth(tmp_path: Path) -> None:
    printed = figures("snapshot_cost.py", tmp_path / "work", "--size", "64M", "--snapshots", 3)

    verdicts = [line.split(":")[0].strip() for line in printed.splitlines() if "3 snapshots for 1" in line]
    assert len(verdicts) == 4
    assert set(verdicts) <= {"kept", "BROKEN"}


@pytest.mark.parametrize("option", [["--runs", "0"], ["--runs", "x"], ["--size", "0"], ["--size", "huge"]])
def test_bad_option_is_wrong_usage(option: list[str]) -> None:
    done = bench("bulk.py", *option)

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"bulk.py: error: argument {option[0]}")


def test_document_gives_figures_of_every_script() -> None:
    document = (ROOT / "docs" / "performance.md").read_text()

    for script in SCRIPTS:
        assert f"benchmarks/{script}" in document
