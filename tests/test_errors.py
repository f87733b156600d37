"""The tree of errors is the one drawn in its module, exit codes and all."""

from __future__ import annotations

import inspect
import re

import pytest

from snapctl import errors
from snapctl.errors import Corruption, HasDependents, Locked, NoSpace, SnapctlError

CLASSES = {
    name: found for name, found in vars(errors).items() if inspect.isclass(found) and issubclass(found, SnapctlError)
}
_LINE = re.compile(r"^ {4}(?P<branches>[ |`-]*)(?P<name>[A-Z]\w+) \[(?P<code>\d+)\]", re.MULTILINE)


def drawn() -> list[tuple[str, str, int]]:
    """The (class, base, exit code) of each line of the drawing, in order."""
    found: list[tuple[str, str, int]] = []
    path: list[str] = []
    for line in _LINE.finditer(inspect.getdoc(errors) or ""):
        depth = len(line["branches"]) // 4
        path = [*path[:depth], line["name"]]
        found.append((line["name"], path[-2] if depth else "Exception", int(line["code"])))
    return found


def test_the_drawing_shows_every_class_once_under_its_base():
    assert sorted((name, base) for name, base, _ in drawn()) == sorted(
        (name, found.__base__.__name__) for name, found in CLASSES.items() if found.__base__ is not None
    )


def test_the_drawing_shows_every_exit_code():
    assert {name: code for name, _, code in drawn()} == {name: found.exit_code for name, found in CLASSES.items()}


def test_every_class_has_one_base_and_no_exit_code_of_a_result():
    for found in CLASSES.values():
        assert len(found.__bases__) == 1
        assert found.exit_code in {1, 2, 4, 5, 6}


@pytest.mark.parametrize("error", CLASSES.values(), ids=CLASSES)
def test_every_error_is_documented_and_prints_as_its_message(error: type[SnapctlError]):
    assert error.__doc__
    made = error("what happened", ()) if error is HasDependents else error("what happened")
    assert str(made) == "what happened"
    assert isinstance(made, SnapctlError)


def test_fields_say_what_was_affected():
    found = Corruption("bad", node="db@mon", page_no=7)
    assert (found.node, found.page_no) == ("db@mon", 7)
    assert Locked("locked", ["pid 1 (init)"]).holders == ("pid 1 (init)",)
    assert HasDependents("no", ["db@a"]).dependents == ("db@a",)
    assert NoSpace("full").exit_code == 6
