"""How everything here is measured: in rounds, by pairs.

The machines are shared and noisy. Every round measures each contender once, every other round in reverse order; a
ratio is taken within a round, between neighbours in time, and the median of the rounds is shown.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

from snapctl.errors import BadSize
from snapctl.format.geometry import DEFAULT_BLOCK_SIZE
from snapctl.units import parse_size

OPERATIONS = "op/s"
THROUGHPUT = "MiB/s"
SECONDS = "s"
MILLISECONDS = "ms"
MICROSECONDS = "us"
MEBIBYTES = "MiB"
PERCENT = "%"
RATES = (OPERATIONS, THROUGHPUT)
"""Units of which more is better; of all others less is."""

MIB = 1 << 20


class Failed(Exception):
    """Something could not be measured; the message says what and why."""


@dataclass(frozen=True)
class Comparison:
    """What contenders made of one piece of work.

    Attributes:
        name: of the work, short, as `--only` takes it and as aims name it.
        work: the same for people.
        unit: of the values.
        rounds: what was measured: in every round, contender and value.
        missing: contenders that could not take part, and why.
        note: what a reader has to know of how it was measured.
        related: whether the values are of one thing done by several; else of several things, and ratios mean nothing.
    """

    name: str
    work: str
    unit: str
    rounds: list[dict[str, float]]
    missing: dict[str, str] = field(default_factory=dict)
    note: str = ""
    related: bool = True

    @property
    def contenders(self) -> list[str]:
        """Those that took part, in the order given."""
        return list(self.rounds[0]) if self.rounds else []

    def median(self, contender: str) -> float:
        """What one reached, in the unit."""
        return median(values[contender] for values in self.rounds)

    def spread(self, contender: str) -> tuple[float, float]:
        """The least and the most that one reached in a round."""
        values = [values[contender] for values in self.rounds]
        return min(values), max(values)

    def ratio(self, contender: str, base: str) -> float:
        """How many times the value of `base` one reached: taken round by round, then the median."""
        return median(values[contender] / values[base] for values in self.rounds)


def compare(
    name: str,
    work: str,
    unit: str,
    cases: Mapping[str, Callable[[], float]],
    runs: int,
    *,
    warm_up: bool = False,
    missing: Mapping[str, str] | None = None,
    note: str = "",
) -> Comparison:
    """Measure every case once a round.

    Args:
        name: see `Comparison`, as for `work`, `unit`, `missing` and `note`.
        work: what is done.
        unit: of what the cases return.
        cases: contenders, and what measures them.
        runs: rounds.
        warm_up: have a round before the first that is not counted.
        missing: who cannot take part.
        note: on how it is measured.
    """
    rounds = []
    for number in range(-1 if warm_up else 0, runs):
        values = {contender: cases[contender]() for contender in list(cases)[:: -1 if number % 2 else 1]}
        if number >= 0:
            rounds.append({contender: values[contender] for contender in cases})
    return Comparison(name, work, unit, rounds, dict(missing or {}), note)


@dataclass(frozen=True)
class Setting:
    """How thoroughly to measure, and where.

    Attributes:
        folder: for all files, on the disk that counts.
        quick: only to see that it works, and about how fast.
        runs: rounds asked for, None for each part's own number.
        seconds: that a load is measured for.
        size: of an ordinary volume or image, in bytes.
        large: of the volume that is read cold, in bytes.
        bulk: of the image that is copied, in bytes.
        mapped: of the volume to which costs may grow, in bytes.
    """

    folder: Path
    quick: bool
    runs: int | None
    seconds: float
    size: int
    large: int
    bulk: int
    mapped: int

    def rounds(self, usual: int, quick: int = 1) -> int:
        """How many rounds a part measures that would have `usual`, or only `quick`."""
        return self.runs or (quick if self.quick else usual)


class Part(NamedTuple):
    """Something to measure by itself.

    Attributes:
        name: for `--only`.
        measure: does so.
    """

    name: str
    measure: Callable[[Setting], Iterable[Comparison]]


SIZES = {
    "size": ("512M", "128M", "an ordinary volume"),
    "large": ("8G", "512M", "the volume that is read cold"),
    "bulk": ("4G", "512M", "the image that is imported and exported"),
    "mapped": ("1T", "16G", "the volume to which costs may grow; only its tables are written"),
}
"""Options: what they are unless told otherwise, the same with --quick, and what they are the size of."""


def parser(description: str, parts: Sequence[Part]) -> ArgumentParser:
    """Make the command line that all scripts have."""
    made = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    made.add_argument(
        "--only",
        action="append",
        choices=[part.name for part in parts],
        metavar="NAME",
        help=f"measure this alone; may be repeated: {', '.join(part.name for part in parts)}",
    )
    made.add_argument("--quick", action="store_true", help="few and short rounds on small volumes, to try it out")
    made.add_argument("--runs", type=_at_least_one, metavar="N", help="rounds (each part has its own number)")
    made.add_argument("--seconds", type=float, metavar="S", help="that each load is measured for (2; quick: 0.5)")
    made.add_argument(
        "--directory", type=Path, metavar="DIR", help="where all files go, on the disk to measure (the temporary one)"
    )
    for name, (usual, quick, what) in SIZES.items():
        made.add_argument(f"--{name}", type=_size, help=f"size of {what} ({usual}; quick: {quick})")
    return made


@contextmanager
def setting(options: Namespace) -> Iterator[Setting]:
    """Make a folder, removed in the end, and give processes a known environment.

    They do not see how Python or snapctl are tuned for the person who calls, and keep bytecode as an installed
    program does, but in the folder.
    """
    with TemporaryDirectory(prefix="snapctl-bench-", dir=options.directory) as name:
        for variable in list(os.environ):
            if variable.startswith(("PYTHON", "SNAPCTL_")) and variable not in {"PYTHONHOME", "PYTHONPATH"}:
                del os.environ[variable]
        os.environ["PYTHONPYCACHEPREFIX"] = str(Path(name, "bytecode"))
        sizes = {
            option: getattr(options, option) or parse_size(quick if options.quick else usual)
            for option, (usual, quick, _) in SIZES.items()
        }
        seconds = options.seconds or (0.5 if options.quick else 2.0)
        yield Setting(Path(name), options.quick, options.runs, seconds, **sizes)


def chosen(parts: Sequence[Part], options: Namespace) -> list[Part]:
    """The parts that the command line names; all if it names none."""
    return [part for part in parts if not options.only or part.name in options.only]


def measured(parts: Sequence[Part], where: Setting) -> Iterator[Comparison]:
    """Measure one part after the other; what fails is said on stderr, and the others go on."""
    for part in parts:
        try:
            yield from part.measure(where)
        except (Failed, OSError) as error:
            print(f"{part.name}: {error}", file=sys.stderr, flush=True)
            yield Comparison(part.name, part.name, SECONDS, [], {"all": str(error)})


def _at_least_one(text: str) -> int:
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
