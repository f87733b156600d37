"""Drawing for terminals: the only module that uses rich, imported only when something is drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    from snapctl.cli.output import Table

_STYLES = {"base": "bold", "ro": "cyan", "rw": "green"}


def table(content: Table, row_styles: Sequence[str] | None = None) -> str:
    """Draw a table for the terminal that is standard output, no wider than it.

    Args:
        content: cells that are safe to print.
        row_styles: the kind of node of each row, which chooses its colour.

    Returns:
        The lines, with the terminal's codes for colour.
    """
    console = Console(file=sys.stdout, highlight=False)
    drawn = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, heading in enumerate(content.headings):
        if index in content.numeric:
            drawn.add_column(heading, justify="right", no_wrap=True)
        else:
            drawn.add_column(heading, overflow="fold", no_wrap=index > 0)
    for index, row in enumerate(content.rows):
        style = _STYLES[row_styles[index]] if row_styles else ""
        drawn.add_row(*(Text(cell) for cell in row), style=style)
    with console.capture() as capture:
        console.print(drawn)
    return capture.get()


@contextmanager
def in_place() -> Iterator[Callable[[Sequence[str], Table], None]]:
    """Yield what draws lines and a table below them, all safe to print, in the place of those before."""
    from rich.live import Live

    with Live(console=Console(file=sys.stdout, highlight=False), auto_refresh=False) as live:

        def draw(lines: Sequence[str], content: Table) -> None:
            drawn = table(content) if content.rows else ""
            live.update(Text.from_ansi("\n".join([*lines, "", drawn]).rstrip("\n")), refresh=True)

        yield draw


class ProgressBar:
    """A bar on standard error, with the amount done, the rate and the time left."""

    def __init__(self, label: str) -> None:
        from rich import progress

        self._progress = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.DownloadColumn(binary_units=True),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            transient=True,
        )
        self._task = self._progress.add_task(label, total=None)
        self._progress.start()

    def update(self, done_bytes: int, total_bytes: int | None) -> None:
        """Show how much is done, and of how much if that is known."""
        self._progress.update(self._task, completed=done_bytes, total=total_bytes)

    def close(self) -> None:
        """Remove the bar from the terminal."""
        self._progress.stop()
