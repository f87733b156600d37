"""Everything that a command prints, except what rich draws.

Text from a container or an argument passes `printable` before it reaches a terminal: a name on a hostile disk must not
move the cursor. A standard output that fails is an error like any other; a closed pipe is left to `snapctl.cli.run`.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TextIO

from snapctl.errors import NoSpace, SnapctlError

_STANDARD_OUTPUT, _STANDARD_ERROR = 1, 2


class Table(NamedTuple):
    """Rows of text under headings.

    Attributes:
        headings: one per column.
        rows: as many cells each as there are headings.
        numeric: indexes of the columns that are aligned to the right.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int]

    def cleaned(self) -> Table:
        """The same with every cell safe to print."""
        return self._replace(rows=[[printable(cell) for cell in row] for row in self.rows])


def make_encodable() -> None:
    """Have the standard streams escape what their encoding lacks, rather than fail on it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    r"""Escape control characters and others that do not print, as in ``\x1b`` or ``\u202e``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def is_terminal(stream: TextIO | None) -> bool:
    """Tell whether a standard stream is open and a terminal."""
    return stream is not None and stream.isatty()


def can_print(text: str) -> bool:
    """Tell whether standard output's encoding has all characters of `text`."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _standard_output() -> TextIO:
    if sys.stdout is None:
        raise SnapctlError("standard output is closed")
    return sys.stdout


def _translated(error: OSError) -> SnapctlError | BrokenPipeError:
    if isinstance(error, BrokenPipeError):
        return error
    return os_error("standard output", error)


def os_error(name: str, error: OSError) -> SnapctlError:
    """Translate what the system said about a file other than the container.

    Args:
        name: the file, as the user knows it.
        error: as caught.
    """
    kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else SnapctlError
    return kind(f"{printable(name)}: {(error.strerror or str(error)).lower()}")


def emit(text: str) -> None:
    """Print text to standard output as it is.

    Raises:
        SnapctlError: standard output is closed or full.
        BrokenPipeError: nobody reads it any more.
    """
    stream = _standard_output()
    try:
        stream.write(text)
    except OSError as error:
        raise _translated(error) from error


def emit_lines(lines: Iterable[str]) -> None:
    """Print lines, each one made printable, to standard output; raises as `emit` does."""
    for line in lines:
        emit(printable(line) + "\n")


def emit_bytes(data: memoryview) -> None:
    """Write raw bytes to standard output; raises as `emit` does."""
    stream = _standard_output().buffer
    try:
        while data:
            data = data[stream.write(data) :]
    except OSError as error:
        raise _translated(error) from error


def emit_json(document: dict[str, object]) -> None:
    """Print a JSON object that begins with the version of its shape; raises as `emit` does."""
    import json

    emit(json.dumps({"version": 1, **document}, indent=2) + "\n")


def emit_table(table: Table, row_styles: Sequence[str] | None = None) -> None:
    """Print a table: drawn by rich on a terminal, else in columns aligned with spaces.

    Args:
        table: its cells need not be printable yet.
        row_styles: the kind of node of each row ("base", "ro", "rw"), which chooses its colour.
    """
    clean = table.cleaned()
    if is_terminal(sys.stdout):
        from snapctl.cli import render

        emit(render.table(clean, row_styles))
    else:
        emit_lines(_aligned(clean))


def emit_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print one line per field, its name padded so that the values line up."""
    emit_lines(aligned_fields(fields))


def aligned_fields(fields: Iterable[tuple[str, str]]) -> list[str]:
    """Return one line per field, safe to print, its name padded so that the values line up."""
    pairs = list(fields)
    width = max(len(name) for name, _ in pairs) + 2
    return [printable(f"{name:<{width}}{value}") for name, value in pairs]


def _aligned(table: Table) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(table.headings, *table.rows, strict=True)]
    for row in (table.headings, *table.rows):
        cells = (
            f"{cell:>{width}}" if column in table.numeric else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def count(number: int, what: str) -> str:
    """Write how many there are: ``1 node``, ``2 nodes``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def show_to_stderr(show: Callable[[], None]) -> None:
    """Call what prints to standard error, where failure leaves nobody to tell."""
    try:
        show()
    except OSError:
        discard(_STANDARD_ERROR)


def complain(message: str, *, traceback: bool = False, after_echo: bool = False) -> None:
    """Print a one-line message to standard error.

    Args:
        message: what went wrong.
        traceback: print the current exception's traceback before it.
        after_echo: a terminal may have shown ``^C``; begin a new line there.
    """
    if sys.stderr is None:
        return
    try:
        if traceback:
            from traceback import print_exc

            print_exc(file=sys.stderr)
        start = "\n" if after_echo and is_terminal(sys.stderr) else ""
        print(f"{start}snapctl: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)
    except OSError:  # nobody is left to tell; the exit code still does
        discard(_STANDARD_ERROR)


def can_ask() -> bool:
    """Tell whether a person sits at the terminal."""
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


def confirmed(question: str) -> bool:
    """Ask a person, if there is one at the terminal; True if there is none, False if the input ends."""
    if not can_ask():
        return True
    print(printable(question), "[y/N]", end=" ", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def flush() -> None:
    """Hand what was printed to the system; raises as `emit` does."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        discard()
        raise _translated(error) from error


def discard(descriptor: int = _STANDARD_OUTPUT) -> None:
    """Drop what a standard stream still buffers, so that the interpreter does not fail on it when it ends."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, descriptor)
    os.close(sink)
