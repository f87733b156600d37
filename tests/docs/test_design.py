"""docs/design.md, docs/reliability.md and every other document name only code, tests, files and targets that exist."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, section, table, text_of

DESIGN = text_of("docs/design.md")
DOCUMENTS = ["README.md", "CHANGELOG.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]

NAMING = DESIGN + text_of("docs/reliability.md")
CODE = sorted(set(re.findall(r"`(snapctl\.[\w.]+):([\w.]+)`", NAMING)))
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", NAMING)))
INVARIANTS = table(section(DESIGN, "Invariants"), columns="no.,invariant,code,tests")


@pytest.mark.parametrize(("module", "name"), CODE, ids=map(":".join, CODE))
def test_code_that_is_named_exists(module: str, name: str):
    found: object = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)


@pytest.mark.parametrize(("file", "name"), TESTS, ids=map("::".join, TESTS))
def test_tests_that_are_named_exist(file: str, name: str):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert not name or name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_invariants_are_numbered_and_each_names_code_and_tests():
    assert [row["no."] for row in INVARIANTS] == [str(number + 1) for number in range(len(INVARIANTS))]
    for row in INVARIANTS:
        assert re.search(r"`snapctl\.[\w.]+:[\w.]+`", row["code"]), row
        assert re.search(r"`tests/[\w/]+\.py", row["tests"]), row


def test_invariants_that_the_code_cites_exist():
    numbers = {row["no."] for row in INVARIANTS}
    for path in (ROOT / "snapctl").rglob("*.py"):
        cited = set(re.findall(r"\binvariant (\d+)", path.read_text(encoding="utf-8")))
        assert cited <= numbers, path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_linked_exist(document: str):
    text = text_of(document)
    here = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)#\s]*)(?:#[^)]*)?\)", text):
        assert not target or target.startswith("https://") or (here / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_headings_that_are_linked_exist(document: str):
    text = text_of(document)
    for target, heading in re.findall(r"\]\(([^)#\s]*)#([^)]*)\)", text):
        there = text if not target else ((ROOT / document).parent / target).read_text(encoding="utf-8")
        headings = {
            re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-")
            for line in re.findall(r"^#+ (.*)$", there, re.MULTILINE)
        }
        assert heading in headings, heading


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_that_are_named_exist(document: str):
    named = re.findall(r"`((?:snapctl|tests|docs|man|benchmarks|completions|\.ci)/[\w./-]+)`", text_of(document))
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_targets_of_make_that_are_named_exist(document: str):
    named = set(re.findall(r"`(?:\w+=\w+ )?make ([\w-]+)", text_of(document)))
    assert named <= set(re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE))


def test_layers_are_those_that_the_test_of_layers_enforces():
    source = ast.parse(Path(ROOT / "tests/test_layers.py").read_text(encoding="utf-8"))
    (layers,) = [
        ast.literal_eval(node.value)
        for node in source.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS"
    ]
    drawn = re.findall(r"^   (\w+(?:, \w+)*)", section(DESIGN, "Layers"), re.MULTILINE)
    assert [name for line in reversed(drawn) for name in line.split(", ")] == [
        name for name in layers if name != "__main__"
    ]
