"""Reading the project's documents: sections, tables and blocks of code of a Markdown file."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

Row = dict[str, str]


def text_of(name: str) -> str:
    """The text of a document, named from the top of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What stands under a heading, to the next of the same level or above."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert found is not None, f"no heading {heading!r}"
    rest = text[found.end() :]
    following = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: following.start()] if following else rest


def tables(text: str) -> list[list[Row]]:
    """All tables of a text: for each its rows, by the names of the columns."""
    found = re.findall(r"^\|.*\|\n\|[-|: ]+\|\n(?:\|.*\|(?:\n|\Z))+", text, re.MULTILINE)
    return [_rows(table) for table in found]


def table(text: str, *, columns: str) -> list[Row]:
    """The one table of a text that has these columns, given with commas between them."""
    (found,) = [rows for rows in tables(text) if list(rows[0]) == columns.split(",")]
    return found


def code_blocks(text: str, language: str) -> list[str]:
    """The contents of the blocks of code that are marked with a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def unquoted(cell: str) -> str:
    """A cell without the quotes of code."""
    return cell.strip("`")


def _rows(table: str) -> list[Row]:
    headings, _, *rows = [_cells(line) for line in table.splitlines()]
    for row in rows:
        assert len(row) == len(headings), row
    return [dict(zip(headings, row, strict=True)) for row in rows]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
