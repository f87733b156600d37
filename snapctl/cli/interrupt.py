"""Signals that end a command: SIGINT, SIGTERM and SIGHUP.

Each raises `Interrupted` in the main thread, so that with-blocks abort transactions and remove partial files. From the
moment a commit begins they are ignored until it has ended: what the command then reports is what happened.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

BY_KEY = signal.SIGINT
"""What Ctrl-C sends."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked the command to end; not an `Exception`, so that no handler of errors takes it for one.

    Attributes:
        signal_no: the signal's number.
        nothing_changed: True once it is known that the container stays as it was.
    """

    def __init__(self, signal_no: int) -> None:
        super().__init__(signal_no)
        self.signal_no = signal_no
        self.nothing_changed = False

    def __str__(self) -> str:
        what = "interrupted" if self.signal_no == signal.SIGINT else "terminated"
        return f"{what}; nothing was changed" if self.nothing_changed else what


def _raise_interrupted(signal_no: int, _frame: FrameType | None) -> None:
    raise Interrupted(signal_no)


def install() -> None:
    """Turn the signals into `Interrupted`, except those that the caller of the process has set to be ignored."""
    for signal_no in _SIGNALS:
        if signal.getsignal(signal_no) is not signal.SIG_IGN:
            signal.signal(signal_no, _raise_interrupted)


def ignore() -> None:
    """Ignore the signals from now on: whatever the command does has been done."""
    for signal_no in _SIGNALS:
        signal.signal(signal_no, signal.SIG_IGN)


def to_loop(received: Callable[[int], object]) -> None:
    """Have the running event loop call `received` with each signal that is not set to be ignored."""
    import asyncio

    for signal_no in _SIGNALS:
        if signal.getsignal(signal_no) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(signal_no, received, signal_no)


@contextmanager
def until_committing() -> Iterator[Callable[[], None]]:
    """Let signals interrupt the block only until it calls the yielded function, just before its commit.

    Raises:
        Interrupted: before that call, marked with `nothing_changed`.
    """
    committing = False

    def begin_commit() -> None:
        nonlocal committing
        ignore()
        committing = True

    previous = [(signal_no, signal.getsignal(signal_no)) for signal_no in _SIGNALS]
    try:
        yield begin_commit
    except Interrupted as interrupted:
        interrupted.nothing_changed = not committing
        raise
    finally:
        for signal_no, handler in previous:
            signal.signal(signal_no, handler)
