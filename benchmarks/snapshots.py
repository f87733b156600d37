"""Snapshots, few and many: what one more costs in containers that hold 1, 100 and 10,000, of the largest volume.

Before each snapshot that a container holds, a block of the volume was written, so that each has data of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.aims import MANY_HELD, ONE_HELD
from benchmarks.measure import MILLISECONDS, Comparison, Part, Setting, compare
from benchmarks.processes import run, snapctl, timed
from benchmarks.show import main
from snapctl import Container
from snapctl.format.geometry import DEFAULT_BLOCK_SIZE
from snapctl.units import parse_size

SIZE_BYTES = parse_size("4T")
PLACES = 1000
"""Blocks of the volume that are written, evenly spread over it."""

PER_COMMIT = 1000
"""Snapshots made in one transaction while a container is prepared."""

HELD = {MANY_HELD: 10_000, "100 held": 100, ONE_HELD: 1}
"""Contenders, and how many snapshots their containers hold."""


def prepare(path: Path, snapshots: int) -> Path:
    """Make a container with one volume and its snapshots ``s0`` (the oldest) and so on.

    After each snapshot another block of the volume is overwritten, all in turn.
    """
    blocks = SIZE_BYTES // DEFAULT_BLOCK_SIZE
    offsets = [i * blocks // PLACES * DEFAULT_BLOCK_SIZE for i in range(PLACES)]
    with Container.create(str(path)) as container:
        volume = container.create_volume("db", SIZE_BYTES)
        for offset in offsets:
            volume.write(offset, b"first".ljust(DEFAULT_BLOCK_SIZE, b"."))
        for number in range(snapshots):
            container.snapshot(f"db@s{number}")
            volume.write(offsets[number % PLACES], f"{number}".encode().ljust(DEFAULT_BLOCK_SIZE))
            if number % PER_COMMIT == 0:
                container.commit()
    return path


def by_process(path: Path) -> float:
    took = run(*snapctl("snapshot", f"{path}/db@measured"))
    undo(path)
    return took


def by_api(path: Path) -> float:
    with Container.open(str(path), writable=True) as container:

        def take() -> None:
            container.snapshot("db@measured")
            container.commit()

        took = timed(take)
    undo(path)
    return took


def undo(path: Path) -> None:
    """Delete the snapshot that was measured, so that every round finds as many."""
    with Container.open(str(path), writable=True) as container:
        container.delete("db@measured")


def opening(path: Path) -> float:
    return timed(lambda: Container.open(str(path)).close())


def listing(path: Path) -> float:
    return run(*snapctl("list", path))


def snapshots(where: Setting) -> Iterator[Comparison]:
    """Compare containers that hold many snapshots with ones that hold few."""
    held = {name: number for name, number in HELD.items() if not (where.quick and name == MANY_HELD)}
    containers = {name: prepare(where.folder / f"{number}.snap", number) for name, number in held.items()}
    works: dict[str, tuple[str, Callable[[Path], float]]] = {
        "snapshot-process": ("`snapctl snapshot`, a process", by_process),
        "snapshot-call": ("`Container.snapshot` and `commit`, container open", by_api),
        "open": ("`Container.open`, for reading", opening),
        "list": ("`snapctl list`, a process", listing),
    }
    for name, (work, measure) in works.items():
        cases = {held: partial(_milliseconds, measure, path) for held, path in containers.items()}
        yield compare(name, work, MILLISECONDS, cases, where.rounds(11, quick=3), warm_up=True)


def _milliseconds(measure: Callable[[Path], float], path: Path) -> float:
    return measure(path) * 1000


PARTS = [Part("snapshots", snapshots)]

if __name__ == "__main__":
    main(str(__doc__), PARTS)
