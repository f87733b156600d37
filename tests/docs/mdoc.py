"""Reading the manual pages: enough of mdoc(7) to find their sections, tables and options."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.docs.markdown import text_of

_CALLABLE = {"Ar", "Cm", "Em", "Fl", "Li", "Nm", "No", "Ns", "Op", "Pa", "Sy", "Ta", "Xr"}


class Page:
    """One manual page.

    Attributes:
        name: its file, from the top of the repository.
        text: its source, comments left out.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = re.sub(r'^\.\\".*\n', "", text_of(name), flags=re.MULTILINE)

    def section(self, heading: str) -> str:
        """The source of a section."""
        return self._part("Sh", heading)

    def subsections(self, heading: str) -> dict[str, str]:
        """The source of each subsection of a section, by heading."""
        _, *parts = re.split(r"^\.Ss (.*)\n", self.section(heading), flags=re.MULTILINE)
        return dict(zip(parts[::2], parts[1::2], strict=True))

    def columns(self, heading: str, number: int = 0) -> list[list[str]]:
        """The rows of a section's table, without its headings."""
        lists = re.findall(r"^\.Bl -column [^\n]*\n(.*?)^\.El$", self.section(heading), re.MULTILINE | re.DOTALL)
        rows = [line.removeprefix(".It ") for line in lists[number].splitlines()]
        return [[cell.strip() for cell in f"{row} ".split("Ta ")] for row in rows[1:]]

    def _part(self, macro: str, heading: str) -> str:
        found = re.search(
            rf"^\.{macro} {re.escape(heading)}\n(.*?)(?=^\.{macro} |\Z)", self.text, re.MULTILINE | re.DOTALL
        )
        assert found is not None, f"{self.name} has no section {heading}"
        return found[1]


def options(source: str) -> Iterator[str]:
    """The options named in a source, as they are typed: ``--size``, ``-n``."""
    for line in source.splitlines():
        if line.startswith("."):
            for name in re.findall(r"\bFl (-?[A-Za-z][-A-Za-z]*)", line):
                yield f"-{name}"


def tagged(source: str) -> list[list[str]]:
    """The options that each item of the source's lists of options describes."""
    items = re.findall(r"^\.It (Fl .*)$", source, re.MULTILINE)
    return [list(options(f".{item}")) for item in items]


def words(line: str) -> list[str]:
    """The words of a line of macros, the macros left out."""
    return [word for word in line.lstrip(".").split() if word not in _CALLABLE]
