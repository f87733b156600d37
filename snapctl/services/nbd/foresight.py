"""Whether a flush is going to follow a write: many a client, a database above all, asks for one after each.

Such a client waits twice, for the answer to its write and for the disk. Known beforehand, the disk can be at work while
the answer is on its way.
"""

from __future__ import annotations

_SURE_AFTER = 4
"""Writes, each with a flush behind it, in a row."""


class Foresight:
    """What one client has done of late."""

    def __init__(self) -> None:
        """Expect nothing."""
        self._writes = 0
        self._flushed = 0

    def wrote(self) -> bool:
        """Take note of writes that came together; returns whether a flush is to be expected next."""
        self._writes += 1
        return self._writes == 1 and self._flushed >= _SURE_AFTER

    def flushed(self) -> None:
        """Take note of a flush."""
        self._flushed = self._flushed + 1 if self._writes == 1 else 0
        self._writes = 0
