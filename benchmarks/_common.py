"""What the benchmarks share: options, a scratch folder, timed calls and processes, and figures in aligned columns.

They are made for machines that are shared and noisy. Every round measures each case once, every other round in
reverse order; a ratio is taken within a round, between neighbours in time, and the median of the rounds is shown. One
round before the first warms the caches and is not counted.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from snapctl import __version__
from snapctl.errors import BadSize
from snapctl.format.geometry import DEFAULT_BLOCK_SIZE
from snapctl.units import parse_size


class Cost(NamedTuple):
    """What one call or process took.

    Attributes:
        wall: seconds that passed.
        cpu: seconds of processor time, user and system.
    """

    wall: float
    cpu: float


class Ratio(NamedTuple):
    """How many times as much one thing took as another, in time and in processor time."""

    wall: float
    cpu: float


def parser(description: str, *, runs: int) -> ArgumentParser:
    """Begin the command line of a script.

    Args:
        description: what it measures; a module's docstring.
        runs: how many rounds it measures unless told otherwise.
    """
    made = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    made.add_argument(
        "--runs",
        type=at_least_one,
        metavar="N",
        default=runs,
        help="rounds to measure, besides a first one (%(default)s)",
    )
    made.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="where to put the files that are written and synced, on the disk that counts (the temporary directory)",
    )
    return made


def add_size(made: ArgumentParser, default: str, description: str) -> None:
    """Give a script the option --size, in bytes or with a letter as snapctl itself takes it."""
    made.add_argument("--size", type=_size, default=_size(default), help=f"{description} ({default})")


def at_least_one(text: str) -> int:
    """Read a number for an option, as argparse wants it done."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _size(text: str) -> int:
    try:
        size_bytes = parse_size(text)
    except BadSize as error:
        raise ArgumentTypeError(str(error)) from error
    if size_bytes < DEFAULT_BLOCK_SIZE:
        raise ArgumentTypeError("at least one block, 4K")
    return size_bytes


@contextmanager
def scratch(directory: Path | None) -> Iterator[Path]:
    """Make a folder that is removed in the end, and give the processes that follow a known environment.

    They do not see how Python or snapctl are tuned for the person who calls, and keep bytecode as an installed
    program does, but in the folder.
    """
    with tempfile.TemporaryDirectory(prefix="snapctl-bench-", dir=directory) as name:
        for variable in list(os.environ):
            if variable.startswith(("PYTHON", "SNAPCTL_")) and variable not in {"PYTHONHOME", "PYTHONPATH"}:
                del os.environ[variable]
        os.environ["PYTHONPYCACHEPREFIX"] = str(Path(name, "bytecode"))
        yield Path(name)


def python(code: str) -> list[str]:
    """The command that runs a line of Python."""
    return [sys.executable, "-c", code]


def snapctl(*arguments: object) -> list[str]:
    """The command that runs snapctl: the installed program of this Python, else its module."""
    program = shutil.which("snapctl", path=sysconfig.get_path("scripts"))
    start = [program] if program else [sys.executable, "-m", "snapctl"]
    return [*start, *map(str, arguments)]


def run(command: Sequence[str | Path], *, synced: Path | None = None) -> Cost:
    """Run a command to its end, its output going nowhere.

    Args:
        command: its words.
        synced: a file that it writes; the time until that is durable counts too.

    Raises:
        CalledProcessError: it failed.
    """
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if synced is not None:
        sync(synced)
    wall = time.perf_counter() - start
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(wall, usage.ru_utime + usage.ru_stime)


def call(action: Callable[[], object]) -> Cost:
    """Call a function of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def sync(path: Path) -> None:
    """Wait until a file is durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Costs:
    """What every case took in every round.

    Attributes:
        cases: their names.
    """

    def __init__(self, cases: Mapping[str, Callable[[], Cost]], runs: int) -> None:
        """Measure: `runs` rounds of every case, after one that does not count."""
        self.cases = list(cases)
        self._rounds: list[dict[str, Cost]] = []
        for number in range(runs + 1):
            names = self.cases[:: -1 if number % 2 else 1]
            costs = {name: cases[name]() for name in names}
            if number:
                self._rounds.append(costs)

    def median(self, case: str) -> Cost:
        """What a case took."""
        costs = [costs[case] for costs in self._rounds]
        return Cost(median(cost.wall for cost in costs), median(cost.cpu for cost in costs))

    def ratio(self, case: str, base: str) -> Ratio:
        """How many times as much as `base` a case took, taken round by round."""
        pairs = [(costs[case], costs[base]) for costs in self._rounds]
        return Ratio(median(of.wall / to.wall for of, to in pairs), median(of.cpu / to.cpu for of, to in pairs))


def heading(runs: int) -> str:
    """One line on what is measured, and where."""
    load = os.getloadavg()[0]
    machine = f"{os.cpu_count()} cores, load {load:.1f}"
    return f"snapctl {__version__}, Python {platform.python_version()}, {machine}; medians of {runs} rounds"


def show(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column to the left, figures to the right."""
    print(f"\n{title}\n")
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
        print("  ".join(["", row[0].ljust(widths[0]), *cells[1:]]).rstrip(), flush=True)


def milliseconds(cost: Cost) -> tuple[str, str]:
    """Print time and processor time, where they are short."""
    return f"{cost.wall * 1000:.1f} ms", f"{cost.cpu * 1000:.1f} ms"


def times(ratio: Ratio) -> tuple[str, str]:
    """Print a ratio of times and one of processor times."""
    return f"{ratio.wall:.2f} x", f"{ratio.cpu:.2f} x"
