"""Progress of long work, on standard error and only if that is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from snapctl.cli import output

if TYPE_CHECKING:
    from snapctl.cli.render import ProgressBar

_PATIENCE_SECONDS = 0.5


class Reporter:
    """Shows how far a piece of work has come; to be called after each step, which is cheap."""

    def __init__(self, label: str, *, shown: bool) -> None:
        self._label = label
        self._shown = shown and output.is_terminal(sys.stderr)
        self._bar: ProgressBar | None = None
        self._started = time.monotonic()

    def __call__(self, done_bytes: int, total_bytes: int | None) -> None:
        """Take note of the bytes done so far, and of how many if that is known."""
        if not self._shown:
            return
        if self._bar is None and time.monotonic() - self._started > _PATIENCE_SECONDS:
            from snapctl.cli.render import ProgressBar

            self._bar = ProgressBar(self._label)
        if self._bar is not None:
            self._bar.update(done_bytes, total_bytes)

    def pause(self) -> None:
        """Take the bar away, as something else is to be shown; it comes back with work that takes long."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._started = time.monotonic()


@contextmanager
def reporting(label: str, *, shown: bool = True) -> Iterator[Reporter]:
    """Show how far the block has come, if it takes long enough for anyone to wonder.

    Args:
        label: what is being done, in a word or two.
        shown: False to show nothing in any case.

    Yields:
        What to call after each piece of work.
    """
    reporter = Reporter(label, shown=shown)
    try:
        yield reporter
    finally:
        reporter.pause()
