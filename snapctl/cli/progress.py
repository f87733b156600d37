"""Progress of long work, on standard error and only if that is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from snapctl.cli import output

if TYPE_CHECKING:
    from snapctl.cli.render import ProgressBar

Report = Callable[[int, int | None], None]
"""Told the bytes done so far, and of how many if that is known."""

_PATIENCE_SECONDS = 0.5


@contextmanager
def reporting(label: str, *, shown: bool = True) -> Iterator[Report]:
    """Show how far the block has come, if it takes long enough for anyone to wonder.

    Args:
        label: what is being done, in a word or two.
        shown: False to show nothing in any case.

    Yields:
        The function to call after each piece of work; a cheap one.
    """
    if not (shown and output.is_terminal(sys.stderr)):
        yield lambda _done_bytes, _total_bytes: None
        return
    started = time.monotonic()
    bar: ProgressBar | None = None

    def report(done_bytes: int, total_bytes: int | None) -> None:
        nonlocal bar
        if bar is None and time.monotonic() - started > _PATIENCE_SECONDS:
            from snapctl.cli.render import ProgressBar

            bar = ProgressBar(label)
        if bar is not None:
            bar.update(done_bytes, total_bytes)

    try:
        yield report
    finally:
        if bar is not None:
            bar.close()
