"""The benchmarks run, on inputs so small that their figures mean nothing, and docs/performance.md knows them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.requires import needs

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.name for path in ROOT.glob("benchmarks/[!_]*.py"))
TINY = {
    "bulk.py": ["--size", "2M"],
    "snapshot_cost.py": ["--size", "64M", "--snapshots", "3"],
    "startup.py": [],
}


def bench(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def test_every_script_is_run_here() -> None:
    assert list(TINY) == SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_prints_figures_and_leaves_nothing_behind(script: str, tmp_path: Path) -> None:
    done = bench(script, "--runs", "1", "--directory", str(tmp_path), *TINY[script])

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("snapctl ")
    assert " 1.00 x" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert list(tmp_path.iterdir()) == []


def test_bulk_compares_with_qemu_img_if_it_is_there(tmp_path: Path) -> None:
    needs("qemu-img", package="qemu-utils")

    done = bench("bulk.py", "--runs", "1", "--directory", str(tmp_path), "--size", "1M")

    assert "qemu-img convert, raw to qcow2" in done.stdout
    assert "qemu-img convert, qcow2 to raw" in done.stdout


def test_bulk_says_what_to_install_for_a_comparison_that_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "cp").symlink_to("/bin/cp")
    monkeypatch.setenv("PATH", str(programs))

    done = bench("bulk.py", "--runs", "1", "--directory", str(tmp_path), "--size", "1M")

    assert (done.returncode, done.stderr) == (0, "")
    assert "qemu-utils" in done.stdout
    assert "qemu-img convert" not in done.stdout


def test_snapshot_cost_gives_a_verdict_on_growth(tmp_path: Path) -> None:
    done = bench("snapshot_cost.py", "--runs", "1", "--directory", str(tmp_path), "--size", "1M", "--snapshots", "2")

    verdicts = [line.split(":")[0].strip() for line in done.stdout.splitlines() if "2 snapshots for 1" in line]
    assert len(verdicts) == 4
    assert set(verdicts) <= {"kept", "BROKEN"}


@pytest.mark.parametrize("option", [["--runs", "0"], ["--runs", "x"], ["--size", "-1"], ["--directory", "/nowhere"]])
def test_bad_option_is_refused(option: list[str]) -> None:
    assert bench("bulk.py", *option).returncode != 0


def test_document_gives_figures_of_every_script() -> None:
    document = (ROOT / "docs" / "performance.md").read_text()

    for script in SCRIPTS:
        assert f"benchmarks/{script}" in document
