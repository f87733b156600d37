"""The benchmarks run, on inputs so small that their figures mean nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results import load
from tests.support.requires import needs

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT_SECONDS = 200


def bench(module: str, *options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, options)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def figures(module: str, directory: Path, *options: object) -> str:
    """What a script prints of one round, once it has proved well-behaved."""
    directory.mkdir()
    done = bench(f"benchmarks.{module}", "--quick", "--runs", 1, "--directory", directory, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("snapctl ")
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert list(directory.iterdir()) == []
    return done.stdout


def test_startup_compares_with_python_and_with_the_imports(tmp_path: Path):
    printed = figures("startup", tmp_path / "work")

    for case in ('python -c "pass"', 'python -c "import typer, construct"', "snapctl snapshot", "snapctl list"):
        assert f"  {case}  " in printed


def test_bulk_compares_with_copies_and_with_qemu_img(tmp_path: Path):
    needs("qemu-img", package="qemu-utils")

    printed = figures("bulk", tmp_path / "work", "--bulk", "4M", "--size", "2M")

    for case in ("snapctl", "cp", "cp --sparse=always", "dd conv=sparse", "qemu-img convert"):
        assert printed.count(f"\n  {case}  ") == 4, case
    assert "import: import of 4M, half of it holes of 1 MiB" in printed


def test_serving_compares_with_qemu_nbd_under_fio(tmp_path: Path):
    needs("fio", package="fio")
    needs("qemu-nbd", package="qemu-utils")

    options = ("--size", "4M", "--seconds", 0.2, "--only", "first-overwrite")
    printed = figures("serving", tmp_path / "work", *options)

    assert printed.count("\n  qemu-nbd, qcow2  ") == 1
    verdict = printed.partition("\nThe aims\n")[2]
    assert re.search(r"first-overwrite +snapctl / qemu-nbd, qcow2 +at least 4 +x [\d.]+ +(reached|missed)\n", verdict)


def test_growth_compares_much_with_little_and_tells_of_memory(tmp_path: Path):
    needs("fio", package="fio")

    printed = figures("growth", tmp_path / "work", "--mapped", "16M", "--size", "1M", "--seconds", 0.1)

    for name in ("growth-read", "growth-write", "growth-snapshot", "growth-trim", "memory", "metadata"):
        assert re.search(rf"\n{name}: .*\n(  .*\n)+", printed), name
    assert "\n  most in memory  " in printed


def test_results_and_a_document_are_written_and_a_run_of_some_parts_leaves_the_own_one_alone(tmp_path: Path):
    own = ROOT / "docs" / "performance.md"
    before = own.read_bytes()

    options = ("--quick", "--runs", 1, "--only", "startup", "--results", tmp_path / "out" / "results.json")
    done = bench("benchmarks", *options)

    assert (done.returncode, done.stderr) == (0, "")
    assert own.read_bytes() == before
    assert list(load(tmp_path / "out" / "results.json").comparisons) == ["startup"]
    written = (tmp_path / "out" / "results.md").read_text()
    assert "\n| snapctl snapshot " in written
    assert "- thoroughness: quick" in written
    assert (tmp_path / "out" / "plots" / "startup.svg").exists()


@pytest.mark.parametrize("module", ["bulk", "serving"])
def test_what_is_not_installed_is_left_out_by_name(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    needs("fio", package="fio")
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in ("cp", "dd", "fio"):
        (programs / program).symlink_to(shutil.which(program) or f"/bin/{program}")
    monkeypatch.setenv("PATH", str(programs))

    small = ("--bulk", "2M", "--size", "1M", "--seconds", 0.2)
    part = "import" if module == "bulk" else "random-read-4k"
    printed = figures(module, tmp_path / "work", *small, "--only", part)

    assert "is not installed (Debian has it in qemu-utils)" in printed
    assert "\n  snapctl  " in printed


@pytest.mark.parametrize(
    "option", [["--runs", "0"], ["--runs", "x"], ["--size", "0"], ["--bulk", "huge"], ["--only", "everything"]]
)
def test_bad_option_is_wrong_usage(option: list[str]):
    done = bench("benchmarks", *option)

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"__main__.py: error: argument {option[0]}")
    assert os.fspath(ROOT) not in done.stdout
