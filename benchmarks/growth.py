"""Growth: what an operation costs with 1 GiB and with 1 TiB mapped, and what a server of so much takes in memory.

The load keeps to the same GiB in the middle of either volume, so that the tables of what is used fit the cache. Of
memory the most is told that the process ever had while writes went all over the volume, so that each finds a table of
its own; of metadata, what the tables take beside the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

from benchmarks.aims import GROWN, MEMORY, METADATA, SMALL
from benchmarks.generator import generate
from benchmarks.measure import (
    MEBIBYTES,
    MICROSECONDS,
    PERCENT,
    Comparison,
    Failed,
    Part,
    Setting,
    compare,
)
from benchmarks.processes import random_image, timed
from benchmarks.servers import SNAPCTL, Snapctl
from benchmarks.show import main
from snapctl import Container
from snapctl.services.control.client import connect
from snapctl.units import format_size, parse_size

SMALL_BYTES = parse_size("1G")
REGION_BYTES = parse_size("1G")
"""Where the load keeps to."""

SNAPSHOTS_EACH = 25
"""Taken, and deleted, for one figure."""


class Generated(Snapctl):
    """A volume that was not written but made up."""

    def __init__(self, name: str, folder: Path, size_bytes: int) -> None:
        """As `Server`, and make the file."""
        super().__init__(name, folder)
        self.size_bytes = size_bytes
        generate(self.file, size_bytes)

    def load_region(self, *words: str, seconds: float | None, seed: int) -> float:
        """Load the part in the middle; returns microseconds for each request."""
        region = min(REGION_BYTES, self.size_bytes)
        offset = (self.size_bytes - region) // 2
        where = (f"--offset={offset}", f"--size={region}", "--bs=4k", "--iodepth=32")
        return 1e6 / self.load(*words, *where, seconds=seconds, seed=seed).operations

    @property
    def peak_mib(self) -> float:
        """The most memory that the process had so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def growth(where: Setting) -> Iterator[Comparison]:
    """Compare costs on a large volume with those on a small one, then fill the memory of the large one's server."""
    folder = where.folder / "growth"
    large = Generated(GROWN, folder, where.mapped)
    servers = {GROWN: large, SMALL: Generated(SMALL, folder, min(SMALL_BYTES, where.mapped))}
    note = f"much: {format_size(where.mapped)}, made by a generator; the load keeps to 1 GiB in the middle"
    works: dict[str, tuple[str, Callable[[Generated, Setting, Iterator[int]], float]]] = {
        "growth-read": ("random 4 KiB reads, depth 32", reading),
        "growth-write": ("random 4 KiB writes, depth 32", writing),
        "growth-snapshot": ("a snapshot, through the server", taking),
        "growth-trim": ("random trims of 4 KiB, depth 32", trimming),
    }
    with ExitStack() as stack:
        for server in servers.values():
            stack.enter_context(server.running())
        for name, (work, measure) in works.items():
            cases = {contender: partial(measure, server, where, count(1)) for contender, server in servers.items()}
            yield compare(name, work, MICROSECONDS, cases, where.rounds(3), warm_up=not where.quick, note=note)
    servers[SMALL].file.unlink()
    yield memory(large, where)
    yield metadata(large, where)
    large.file.unlink()


def reading(server: Generated, where: Setting, seeds: Iterator[int]) -> float:
    return server.load_region("--rw=randread", seconds=where.seconds, seed=next(seeds))


def writing(server: Generated, where: Setting, seeds: Iterator[int]) -> float:
    took = server.load_region("--rw=randwrite", seconds=where.seconds, seed=next(seeds))
    server.settle()
    return took


def trimming(server: Generated, where: Setting, seeds: Iterator[int]) -> float:
    """Trim a part, no block twice: what is trimmed already costs nothing."""
    part = f"--io_size={min(REGION_BYTES, where.mapped) // 32}"
    took = server.load_region("--rw=randtrim", part, seconds=None, seed=next(seeds))
    server.settle()
    return took


def taking(server: Generated, _where: Setting, seeds: Iterator[int]) -> float:
    """Take some snapshots, and delete each before the next; the median counts."""
    client = connect(str(server.file), 5)
    if client is None:
        raise Failed(f"{server.file} has no control socket")
    took = []
    with client:
        for _ in range(SNAPSHOTS_EACH):
            names = {"names": [f"db@s{next(seeds)}"]}
            took.append(timed(partial(client.call, "snapshot", names)))
            client.call("delete", names)
    return median(took) * 1e6


def memory(server: Generated, where: Setting) -> Comparison:
    """Have a new server take random writes all over the volume."""
    seconds = 15 * where.seconds
    with server.running():
        at_first = server.peak_mib
        load = server.load("--rw=randwrite", "--bs=4k", "--iodepth=32", seconds=seconds, ramp=0)
        most = server.peak_mib
    return Comparison(
        "memory",
        f"random 4 KiB writes all over {format_size(where.mapped)} for {seconds:.0f} s",
        MEBIBYTES,
        [{MEMORY: most, "after the start": at_first}],
        note=f"resident, as the kernel tells (VmHWM); {load.operations:,.0f} writes a second",
        related=False,
    )


def metadata(server: Generated, where: Setting) -> Comparison:
    """Tell what tables, bitmaps and records take beside the data, of that volume and of one that was imported."""
    imported = Snapctl(SNAPCTL, where.folder / "growth")
    imported.adopt(random_image(where.folder / "disk.img", where.size))
    shares = {}
    names = (METADATA, f"the same, {format_size(where.mapped)} mapped and written to at random")
    for name, path in zip(names, (imported.file, server.file), strict=True):
        with Container.open(str(path)) as container:
            shares[name] = 100 * (container.used_bytes - container.data_bytes) / container.data_bytes
    imported.file.unlink()
    return Comparison(
        "metadata",
        f"an image of {format_size(where.size)} imported, blocks of 4 KiB",
        PERCENT,
        [shares],
        related=False,
    )


PARTS = [Part("growth", growth)]

if __name__ == "__main__":
    main(str(__doc__), PARTS)
