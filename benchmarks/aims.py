"""What is to be reached, line by line, and whether a run reached it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from benchmarks.measure import Comparison
from benchmarks.servers import NBDKIT, QEMU, SNAPCTL

REACHED = "reached"
MISSED = "missed"
NOT_MEASURED = "not measured"


class Aim(NamedTuple):
    """A line: a figure of ours, or how many times as much it is as another's, and its bound.

    Attributes:
        name: of the comparison.
        base: the contender it is compared with; None where the figure itself is bounded.
        limit: the bound.
        at_most: whether it is an upper one.
        ours: the contender that is to reach it.
    """

    name: str
    base: str | None
    limit: float
    at_most: bool = False
    ours: str = SNAPCTL

    @property
    def bound(self) -> str:
        """The bound in words."""
        return f"at {'most' if self.at_most else 'least'} {self.limit:g}"


SPARSE_COPY = "cp --sparse=always"
IMPORTS = 'python -c "import typer, construct"'
SNAPSHOT_COMMAND = "snapctl snapshot"
OLDEST, BASE = "the oldest of 1,000 snapshots", "the base"
ABOVE_SYNC = "above the disk's own sync"
GROWN, SMALL = "much mapped", "1 GiB mapped"
MANY_HELD, ONE_HELD = "10,000 held", "1 held"
MEMORY, METADATA = "most in memory", "metadata beside data"

AIMS = (
    Aim("random-read-4k", QEMU, 3.0),
    Aim("random-read-4k", NBDKIT, 1.2),
    Aim("random-write-4k", QEMU, 3.0),
    Aim("random-write-16k", QEMU, 2.0),
    Aim("first-overwrite", QEMU, 4.0),
    Aim("mixed", QEMU, 2.5),
    Aim("sequential-read", QEMU, 1.5),
    Aim("sequential-read", NBDKIT, 0.9),
    Aim("sequential-write", QEMU, 1.5),
    Aim("sequential-write", NBDKIT, 0.9),
    Aim("flushed-write", QEMU, 1.0),
    Aim("random-read-depth-1", QEMU, 1.0),
    Aim("cold-read", NBDKIT, 0.9),
    Aim("oldest-snapshot", BASE, 0.5, ours=OLDEST),
    Aim("import", SPARSE_COPY, 0.8),
    Aim("export", SPARSE_COPY, 0.8),
    Aim("startup", IMPORTS, 1.5, at_most=True, ours=SNAPSHOT_COMMAND),
    Aim("pause", None, 20, at_most=True, ours=ABOVE_SYNC),
    Aim("snapshot-process", ONE_HELD, 2.0, at_most=True, ours=MANY_HELD),
    Aim("snapshot-call", ONE_HELD, 2.0, at_most=True, ours=MANY_HELD),
    Aim("memory", None, 300, at_most=True, ours=MEMORY),
    Aim("metadata", None, 0.5, at_most=True, ours=METADATA),
    Aim("growth-read", SMALL, 1.5, at_most=True, ours=GROWN),
    Aim("growth-write", SMALL, 1.5, at_most=True, ours=GROWN),
    Aim("growth-snapshot", SMALL, 1.5, at_most=True, ours=GROWN),
    Aim("growth-trim", SMALL, 1.5, at_most=True, ours=GROWN),
)


class Verdict(NamedTuple):
    """What came of an aim.

    Attributes:
        value: the figure or the ratio; None if it was not measured.
        word: `REACHED`, `MISSED` or `NOT_MEASURED`.
        why: there is no value.
    """

    aim: Aim
    value: float | None
    word: str
    why: str = ""


def judge(aim: Aim, comparison: Comparison | None) -> Verdict:
    """Hold a comparison against an aim."""
    if comparison is None:
        return Verdict(aim, None, NOT_MEASURED, "left out of this run")
    wanted = [contender for contender in (aim.ours, aim.base) if contender is not None]
    absent = [contender for contender in wanted if contender not in comparison.contenders]
    if absent:
        why = comparison.missing.get(absent[0]) or "; ".join(comparison.missing.values()) or f"without {absent[0]}"
        return Verdict(aim, None, NOT_MEASURED, why)
    value = comparison.median(aim.ours) if aim.base is None else comparison.ratio(aim.ours, aim.base)
    reached = value <= aim.limit if aim.at_most else value >= aim.limit
    return Verdict(aim, value, REACHED if reached else MISSED)


def verdicts(comparisons: Mapping[str, Comparison], aims: Iterable[Aim] = AIMS) -> list[Verdict]:
    """Hold a whole run against all aims."""
    return [judge(aim, comparisons.get(aim.name)) for aim in aims]
