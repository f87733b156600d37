"""docs/errors.md against the classes of snapctl.errors, both ways."""

from __future__ import annotations

import re
from collections.abc import Iterator

from snapctl import errors
from tests.docs.markdown import table, text_of, unquoted

ROWS = table(text_of("docs/errors.md"), columns="error,kind of,exit code,when,what to do")


def every_error(error: type[errors.SnapctlError] = errors.SnapctlError) -> Iterator[type[errors.SnapctlError]]:
    yield error
    for child in error.__subclasses__():
        yield from every_error(child)


def test_every_error_is_documented_in_the_order_of_the_tree():
    assert [unquoted(row["error"]) for row in ROWS] == [error.__name__ for error in every_error()]


def test_exit_codes_and_parents_are_documented_as_they_are():
    for row, error in zip(ROWS, every_error(), strict=True):
        parent = "" if error is errors.SnapctlError else error.__mro__[1].__name__
        assert (unquoted(row["kind of"]), int(row["exit code"])) == (parent, error.exit_code), error


def test_every_error_says_when_and_what_to_do():
    assert all(row["when"] and row["what to do"] for row in ROWS)


def test_fields_that_are_named_exist():
    for row, error in zip(ROWS, every_error(), strict=True):
        fields = set(re.findall(r"`(\w+)`", row["when"].partition(";")[2]))
        assert fields <= set(vars(error("", *([()] if error is errors.HasDependents else [])))), error
