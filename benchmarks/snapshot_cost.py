"""What a snapshot costs in containers that hold few snapshots and many, of a small volume and the largest.

Before each snapshot that a container holds, a block of the volume was written, so that each has data of its own. The
claim under test: the cost of taking one more does not grow with their number beyond what reading the list of them
takes; less than twice as much with the most as with one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import _common as common

from snapctl import Container
from snapctl.format.geometry import DEFAULT_BLOCK_SIZE
from snapctl.units import format_size

SMALL_BYTES = 1024 * 1024
MOST_PLACES = 1000
"""Blocks of a volume that are written, evenly spread over it."""

PER_COMMIT = 1000
"""Snapshots made in one transaction while a container is prepared."""

LIMIT = 2.0
"""What the claim allows, in times."""


class Case(NamedTuple):
    """A container prepared for measuring.

    Attributes:
        snapshots: how many it holds.
    """

    path: Path
    snapshots: int

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.snapshots:,}"


def places(size_bytes: int) -> list[int]:
    """Offsets in bytes of the blocks to write, evenly spread over a volume."""
    blocks = max(1, size_bytes // DEFAULT_BLOCK_SIZE)
    number = min(blocks, MOST_PLACES)
    return [i * blocks // number * DEFAULT_BLOCK_SIZE for i in range(number)]


def prepare(path: Path, size_bytes: int, snapshots: int) -> Case:
    """Make a container with one volume and its snapshots ``s0`` (the oldest) and so on.

    After each snapshot another block of the volume is overwritten, all in turn, but the last of them never: the
    oldest snapshot finds that one in the volume, past all the others.
    """
    offsets = places(size_bytes)
    with Container.create(str(path)) as container:
        volume = container.create_volume("db", size_bytes)
        for offset in offsets:
            volume.write(offset, b"first".ljust(DEFAULT_BLOCK_SIZE, b"."))
        for number in range(snapshots):
            container.snapshot(f"db@s{number}")
            volume.write(offsets[number % max(1, len(offsets) - 1)], f"{number}".encode().ljust(DEFAULT_BLOCK_SIZE))
            if number % PER_COMMIT == 0:
                container.commit()
    return Case(path, snapshots)


def undo(case: Case) -> None:
    """Delete the snapshot that was measured, so that every round finds as many."""
    with Container.open(str(case.path), writable=True) as container:
        container.delete("db@measured")


def snapshot_by_process(case: Case) -> common.Cost:
    cost = common.run(common.snapctl("snapshot", f"{case.path}/db@measured"))
    undo(case)
    return cost


def snapshot_by_api(case: Case) -> common.Cost:
    with Container.open(str(case.path), writable=True) as container:

        def take() -> None:
            container.snapshot("db@measured")
            container.commit()

        cost = common.call(take)
    undo(case)
    return cost


def open_and_close(case: Case) -> common.Cost:
    return common.call(lambda: Container.open(str(case.path)).close())


def read_oldest(case: Case, offset: int) -> common.Cost:
    with Container.open(str(case.path)) as container:
        node = container["db@s0"]
        return common.call(lambda: node.read(offset, DEFAULT_BLOCK_SIZE))


def show_growth(title: str, cases: list[Case], measure: Callable[[Case], common.Cost], runs: int) -> common.Ratio:
    """Measure the same on every container and print it.

    Returns:
        How many times as much the last took as the first.
    """
    costs = common.Costs({case.name: partial(measure, case) for case in cases}, runs)
    first, last = cases[0].name, cases[-1].name
    rows = [
        (
            case.name,
            *common.milliseconds(costs.median(case.name)),
            *common.times(costs.ratio(case.name, first)),
        )
        for case in cases
    ]
    common.show(title, ("snapshots held", "time", "CPU", f"/ with {first}", "CPU"), rows)
    return costs.ratio(last, first)


def show_verdict(what: str, ratio: common.Ratio) -> None:
    verdict = "kept" if max(ratio) < LIMIT else "BROKEN"
    print(f"\n  {verdict}: {what}, {ratio.wall:.2f} times the time and {ratio.cpu:.2f} times the CPU (under {LIMIT:g})")


def show_looking(title: str, case: Case, offset: int, runs: int) -> None:
    """Measure the commands that look at all nodes, and the shortest and the longest way to a block."""
    version = "snapctl --version"
    container = f"a container of {case.snapshots + 1:,} nodes"
    costs = common.Costs(
        {
            version: partial(common.run, common.snapctl("--version")),
            f"snapctl list of {container}": partial(common.run, common.snapctl("list", case.path)),
            f"snapctl tree of {container}": partial(common.run, common.snapctl("tree", case.path)),
            "a block that the oldest snapshot holds, by API": partial(read_oldest, case, 0),
            "a block of the oldest found in the volume, by API": partial(read_oldest, case, offset),
        },
        runs,
    )
    rows = [
        (name, *common.milliseconds(costs.median(name)), *common.times(costs.ratio(name, version)))
        for name in costs.cases
    ]
    common.show(title, ("", "time", "CPU", "/ --version", "CPU"), rows)


def main() -> None:
    made = common.parser(str(__doc__), runs=11)
    common.add_size(made, "4T", "size of the largest volume")
    made.add_argument(
        "--snapshots",
        type=common.at_least_one,
        metavar="N",
        default=10_000,
        help="the most snapshots held (%(default)s)",
    )
    options = made.parse_args()
    print(common.heading(options.runs))
    numbers = sorted({1, min(100, options.snapshots), options.snapshots})
    for size_bytes in (SMALL_BYTES, options.size):
        with common.scratch(options.directory) as folder:
            cases = [prepare(folder / f"{number}.snap", size_bytes, number) for number in numbers]
            measure_all(cases, size_bytes, options.runs)


def measure_all(cases: list[Case], size_bytes: int, runs: int) -> None:
    volume = f"volume of {format_size(size_bytes)}"
    growth = f"{cases[-1].name} snapshots for {cases[0].name}"
    command, calls = "snapctl snapshot", "Container.snapshot and commit"
    ratio = show_growth(f"{command}, a process; {volume}", cases, snapshot_by_process, runs)
    show_verdict(f"{command}, {growth}", ratio)
    ratio = show_growth(f"{calls}, container open; {volume}", cases, snapshot_by_api, runs)
    show_verdict(f"{calls}, {growth}", ratio)
    show_growth(f"Container.open, for reading; {volume}", cases, open_and_close, runs)
    show_looking(f"Looking; {volume}", cases[-1], places(size_bytes)[-1], runs)


if __name__ == "__main__":
    main()
