"""docs/claims.md names code and tests that exist, and leaves no test of the claims out."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TEXT = (HERE.parent.parent / "docs/claims.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.partition("## Claim 1")[2].splitlines()
    if line.startswith("| ") and not line.startswith("| element ")
]
CODE = sorted(set(re.findall(r"`(snapctl[\w.]*):([\w.]+)`", TEXT)))
NAMED_TESTS = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", TEXT))


def written_tests() -> set[tuple[str, str]]:
    return {
        (path.name, node.name)
        for path in HERE.glob("test_claim*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_claim_has_a_section():
    sections = re.findall(r"^## (Claims? .*)$", TEXT, re.MULTILINE)
    assert sections == ["Claim 1", "Claim 2", "Claims 3 and 7", "Claim 4", "Claim 5", "Claim 6"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_element_names_code_and_test(row: list[str]):
    _, code, test = row
    assert re.match(r"`snapctl[\w.]*:[\w.]+`", code)
    assert re.fullmatch(r"`test_\w+\.py::test_\w+`", test)


@pytest.mark.parametrize(("module", "name"), CODE, ids=":".join)
def test_code_that_is_named_exists(module: str, name: str):
    found: object = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)


def test_tests_that_are_named_exist_and_no_test_is_left_out():
    assert written_tests() == NAMED_TESTS
