"""The list of mutations fits the code, and the check of them tells a mutation that is noticed from one that is not."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from tests.docs.markdown import table, text_of, unquoted
from tests.reliability.mutation_check import MUTATIONS, ROOT, Mutation, attempt, make_copy

each_mutation = pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)


def test_no_two_mutations_bear_the_same_name():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


@each_mutation
def test_the_line_stands_once_in_the_code_and_what_comes_of_breaking_it_is_another_program(mutation: Mutation):
    sound = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(mutation.apply(sound))) != ast.dump(ast.parse(sound))


@each_mutation
def test_tests_that_are_to_notice_it_exist(mutation: Mutation):
    assert mutation.noticed_by
    for test in mutation.noticed_by:
        file, _, name = test.partition("::")
        source = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in source.body if isinstance(node, ast.FunctionDef)}


def test_the_document_lists_them():
    rows = table(text_of("docs/reliability.md"), columns="mutation,what would be lost")
    assert [(unquoted(row["mutation"]), row["what would be lost"]) for row in rows] == [
        (mutation.name, mutation.loss) for mutation in MUTATIONS
    ]


def test_a_mutation_is_killed_only_by_a_test_that_fails_by_what_it_asserts(tmp_path: Path):
    copy = make_copy(tmp_path)
    (broken,) = (mutation for mutation in MUTATIONS if mutation.name == "writers-share-the-lock")
    harmless = replace(broken, instead=broken.line + "    # as it was\n")
    unrunnable = replace(broken, instead="    operation = nonsense\n")
    assert not attempt(broken, copy).unnoticed
    assert attempt(harmless, copy).unnoticed == dict.fromkeys(broken.noticed_by, "passed")
    assert ["NameError" in what for what in attempt(unrunnable, copy).unnoticed.values()] == [True]
    assert (copy / broken.file).read_text(encoding="utf-8") == (ROOT / broken.file).read_text(encoding="utf-8")
