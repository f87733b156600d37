"""The package as it is installed and imported, and the list of what its tests need from the system."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import snapctl

ROOT = Path(__file__).resolve().parent.parent


def modules_after(statement: str) -> set[str]:
    code = f"import sys; before = set(sys.modules)\n{statement}\nprint(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(run.stdout.split())


def test_importing_the_package_imports_nothing_else():
    assert modules_after("import snapctl") == {"snapctl"}


def test_installed_version_is_that_of_the_source():
    assert version("snapctl") == snapctl.__version__


def test_installed_command_leads_to_a_function():
    (script,) = entry_points(group="console_scripts", name="snapctl")
    assert callable(script.load())


@pytest.mark.parametrize("name", snapctl.__all__)
def test_every_public_name_can_be_used_and_is_listed(name: str):
    assert getattr(snapctl, name) is not None
    assert name in dir(snapctl)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Contaner'"):
        getattr(snapctl, "Contaner")  # noqa: B009


def test_packages_that_tests_need_are_installed_by_ci():
    declared = re.search(r"^packages=\((.*?)^\)", (ROOT / ".ci/run").read_text(), re.MULTILINE | re.DOTALL)
    assert declared is not None
    installed = set(declared[1].split())

    needed: dict[str, str] = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"needs", "needs_header"}:
                (package,) = [keyword.value for keyword in node.keywords if keyword.arg == "package"]
                assert isinstance(package, ast.Constant), f"{path}:{node.lineno}: name the package with a literal"
                needed[str(package.value)] = f"{path.relative_to(ROOT)}:{node.lineno}"
    missing = {package: where for package, where in needed.items() if package not in installed}
    assert not missing, "add these packages to .ci/run"
