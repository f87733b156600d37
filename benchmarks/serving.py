"""Serving: snapctl beside qemu-nbd on qcow2 and nbdkit on a raw file, under the same load by fio over a Unix socket.

Each works on a file of its own that was filled with the same random data, is writeback, and is warm unless said
otherwise. Only one is under load at a time, and what it was given to write it has written out before the next begins.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event
from time import perf_counter, time_ns

from benchmarks.aims import ABOVE_SYNC, BASE, OLDEST
from benchmarks.measure import (
    MIB,
    MILLISECONDS,
    OPERATIONS,
    THROUGHPUT,
    Comparison,
    Failed,
    Part,
    Setting,
    compare,
)
from benchmarks.processes import TIMEOUT_SECONDS, drop_page_cache, random_image, timed
from benchmarks.servers import NBDKIT, QEMU, SNAPCTL, Nbdkit, Qemu, Server, Snapctl
from benchmarks.show import main
from snapctl import Container
from snapctl.format.geometry import BLOCK_SIZES
from snapctl.services.control.client import connect
from snapctl.units import format_size

ROUNDS = 5


@dataclass(frozen=True)
class Job:
    """A load.

    Attributes:
        name: short.
        work: the same for people.
        words: for fio.
        unit: of the figure.
        writes: whether it changes the volume.
        snapshots: whether a snapshot is taken before each piece. A piece then overwrites a quarter of the volume, no
            block twice.
    """

    name: str
    work: str
    words: Sequence[str]
    unit: str = OPERATIONS
    writes: bool = True
    snapshots: bool = False


_DEEP = "--iodepth=32"
UNAFFECTED = ("random-read-depth-1", "mixed")
"""Loads that tell nothing more of block sizes than others do."""

JOBS = (
    Job("random-read-4k", "random 4 KiB reads, depth 32", ("--rw=randread", "--bs=4k", _DEEP), writes=False),
    Job("random-read-depth-1", "random 4 KiB reads, depth 1", ("--rw=randread", "--bs=4k"), writes=False),
    Job("random-write-4k", "random 4 KiB writes, depth 32, no snapshot", ("--rw=randwrite", "--bs=4k", _DEEP)),
    Job("random-write-16k", "random 16 KiB writes, depth 32", ("--rw=randwrite", "--bs=16k", _DEEP)),
    Job(
        "first-overwrite",
        "first overwrite after a snapshot, random 4 KiB, depth 32",
        ("--rw=randwrite", "--bs=4k", _DEEP),
        snapshots=True,
    ),
    Job(
        "mixed",
        "random 4 KiB, 70 reads to 30 writes, depth 32",
        ("--rw=randrw", "--rwmixread=70", "--bs=4k", _DEEP),
    ),
    Job(
        "sequential-read",
        "sequential 1 MiB reads, depth 8",
        ("--rw=read", "--bs=1M", "--iodepth=8"),
        unit=THROUGHPUT,
        writes=False,
    ),
    Job(
        "sequential-write",
        "sequential 1 MiB writes, depth 8",
        ("--rw=write", "--bs=1M", "--iodepth=8"),
        unit=THROUGHPUT,
    ),
    Job("flushed-write", "random 4 KiB writes, each with a flush", ("--rw=randwrite", "--bs=4k", "--fsync=1")),
)


def image(where: Setting) -> Path:
    """The data that all begin with."""
    return random_image(where.folder / "disk.img", where.size)


def rivals(where: Setting) -> list[Server]:
    """All that are compared, whether they are installed or not."""
    return [Snapctl(SNAPCTL, where.folder), Qemu(QEMU, where.folder), Nbdkit(NBDKIT, where.folder)]


def piece(server: Server, job: Job, where: Setting, seeds: Iterator[int]) -> float:
    """Measure a load once."""
    if job.snapshots:
        server.snapshot()
        server.warm()
        part = f"--io_size={where.size // 4}"
        load = server.load(*job.words, part, seed=next(seeds))
    else:
        load = server.load(*job.words, seconds=where.seconds, seed=next(seeds))
    if job.writes:
        server.settle()
    return load.mib if job.unit == THROUGHPUT else load.operations


def under_load(
    name: str, job: Job, where: Setting, servers: Sequence[Server], missing: dict[str, str], rounds: int
) -> Comparison:
    """Compare servers under one load."""
    source = image(where)
    with ExitStack() as stack:
        for server in servers:
            server.prepare(source)
            stack.enter_context(server.running())
            server.warm()
        cases = {server.name: partial(piece, server, job, where, count(1)) for server in servers}
        note = f"a volume of {format_size(where.size)}, full"
        return compare(name, job.work, job.unit, cases, rounds, warm_up=job.writes, missing=missing, note=note)


def standard(job: Job, where: Setting) -> Iterator[Comparison]:
    """Compare all servers under one load."""
    servers, missing = present(rivals(where))
    if job.snapshots:
        servers = [server for server in servers if server.name != NBDKIT]
        missing.pop(NBDKIT, None)
    yield under_load(job.name, job, where, servers, missing, where.rounds(ROUNDS))


def present(servers: Sequence[Server]) -> tuple[list[Server], dict[str, str]]:
    """Tell servers that can take part from those that cannot, with why."""
    why = {server.name: server.missing() for server in servers}
    return [server for server in servers if why[server.name] is None], {n: said for n, said in why.items() if said}


def block_sizes(where: Setting) -> Iterator[Comparison]:
    """Compare containers of the three block sizes, under every load that may tell them apart."""
    folder = where.folder / "blocks"
    for job in JOBS:
        if job.name in UNAFFECTED:
            continue
        servers = [Snapctl(format_size(size), folder, block_size=size) for size in BLOCK_SIZES]
        yield under_load(f"blocks-{job.name}", job, where, servers, {}, where.rounds(3))
    shutil.rmtree(folder)


def large(where: Setting) -> Iterator[Comparison]:
    """Compare on a large volume: cold, then warm."""
    servers, missing = present(rivals(where))
    if shutil.disk_usage(where.folder).free < 1.1 * len(servers) * where.large:
        raise Failed(
            f"{len(servers)} times {format_size(where.large)} do not fit on this disk; see --large, --directory"
        )
    source = random_image(where.folder / "large.img", where.large)
    try:
        for server in servers:
            server.adopt(source)
        note = f"a volume of {format_size(where.large)}, full"
        how = drop_page_cache([])
        cold = Job("cold-read", "random 4 KiB reads, depth 32, cold", ("--rw=randread", "--bs=4k", _DEEP))
        cases = {server.name: partial(piece_when_cold, server, servers, cold, where, count(1)) for server in servers}
        cold_note = f"{note}; before each piece the server was started anew and the page cache dropped ({how})"
        yield compare(cold.name, cold.work, cold.unit, cases, where.rounds(3), missing=missing, note=cold_note)
        yield from large_and_warm(servers, missing, where, note)
    finally:
        for server in servers:
            server.file.unlink(missing_ok=True)
        source.unlink()


def piece_when_cold(server: Server, servers: Sequence[Server], job: Job, where: Setting, seeds: Iterator[int]) -> float:
    """Measure a load once, nothing of any file being in memory before."""
    drop_page_cache(other.file for other in servers)
    with server.running():
        return server.load(*job.words, seconds=2 * where.seconds, ramp=0, seed=next(seeds)).operations


def large_and_warm(
    servers: Sequence[Server], missing: dict[str, str], where: Setting, note: str
) -> Iterator[Comparison]:
    """Compare on the large volume again, all of it in the page cache: by pairs, which is what memory has room for."""
    pair = [server for server in servers if server.name != NBDKIT]
    if available_memory() < (len(pair) + 0.5) * where.large:
        return
    with ExitStack() as stack:
        for server in pair:
            stack.enter_context(server.running())
            server.warm(most_seconds=100)
        missing = {name: why for name, why in missing.items() if name != NBDKIT}
        for job in (job for job in JOBS if job.name in {"random-read-4k", "random-write-4k"}):
            cases = {server.name: partial(piece, server, job, where, count(1)) for server in pair}
            name = f"large-{job.name}"
            yield compare(name, job.work, job.unit, cases, where.rounds(3), missing=missing, note=note)


def available_memory() -> int:
    """Bytes that files may take in memory before others have to give way; 0 where that is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


SNAPSHOTS = 1000
BLOCKS_EACH = 8
"""Blocks that each of many snapshots holds of its own."""


def oldest_snapshot(where: Setting) -> Iterator[Comparison]:
    """Compare the oldest of many snapshots with their base."""
    server = Snapctl(SNAPCTL, where.folder)
    server.prepare(image(where))
    with Container.open(str(server.file), writable=True) as container:
        volume = container["db"]
        blocks = where.size // container.block_size
        for number in range(SNAPSHOTS):
            container.snapshot(f"db@s{number}")
            for place in range(BLOCKS_EACH):
                block = (number * BLOCKS_EACH + place) * 4099 % blocks
                volume.write(block * container.block_size, os.urandom(container.block_size))
    exports = {OLDEST: "db@s0", BASE: "db"}
    with server.running():
        for export in exports.values():
            server.warm(export)

        def read(export: str, seeds: Iterator[int]) -> float:
            words = ("--rw=randread", "--bs=4k", _DEEP)
            return server.load(*words, export=export, seconds=where.seconds, seed=next(seeds)).operations

        yield compare(
            "oldest-snapshot",
            "random 4 KiB reads, depth 32",
            OPERATIONS,
            {name: partial(read, export, count(1)) for name, export in exports.items()},
            where.rounds(ROUNDS),
            note=f"a volume of {format_size(where.size)}, each snapshot with {BLOCKS_EACH} blocks of its own",
        )


SNAPSHOT_INTERVAL_SECONDS = 0.5


def pause(where: Setting) -> Iterator[Comparison]:
    """Find the longest wait of a client under full write load, with snapshots taken beside it and without."""
    server = Snapctl(SNAPCTL, where.folder)
    server.prepare(image(where))
    seeds = count(1)
    words = ("--rw=randwrite", "--bs=4k", _DEEP)
    rounds = []
    with server.running():
        server.warm()
        for _ in range(where.rounds(ROUNDS)):
            alone = server.load(*words, seconds=2 * where.seconds, seed=next(seeds))
            server.settle()
            with snapshots_taken(server) as taken:
                beside = server.load(*words, seconds=2 * where.seconds, ramp=0, seed=next(seeds))
            server.settle()
            if not taken:
                raise Failed("no snapshot was taken under load; more --seconds are needed")
            sync = max(sync_seconds(where.folder, beside.written // len(taken)) for _ in taken)
            rounds.append(
                {
                    ABOVE_SYNC: max(0.0, beside.longest_seconds - sync) * 1000,
                    "longest wait, snapshots beside it": beside.longest_seconds * 1000,
                    "longest wait, no snapshots": alone.longest_seconds * 1000,
                    "the disk's own sync": sync * 1000,
                    "longest snapshot": max(taken) * 1000,
                }
            )
    yield Comparison(
        "pause",
        "random 4 KiB writes, depth 32, while snapshots are taken twice a second",
        MILLISECONDS,
        rounds,
        note="the disk's own sync: the longest fdatasync of a plain file with as many bytes as were written between "
        "two snapshots, as often as there were snapshots",
        related=False,
    )


@contextmanager
def snapshots_taken(server: Server) -> Iterator[list[float]]:
    """Take snapshots through the server for as long as the context lasts; gives the seconds that each took."""
    client = connect(str(server.file), 5)
    if client is None:
        raise Failed(f"{server.file} has no control socket")
    stopping = Event()
    took: list[float] = []

    def work() -> None:
        while not stopping.wait(SNAPSHOT_INTERVAL_SECONDS):
            took.append(timed(lambda: client.call("snapshot", {"names": [f"db@{time_ns()}"]})))

    with client, ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        try:
            yield took
        finally:
            stopping.set()
            working.result(TIMEOUT_SECONDS)


def sync_seconds(folder: Path, size_bytes: int) -> float:
    """How long the disk takes to make so many bytes of a plain file durable."""
    path = folder / "plain"
    data = os.urandom(MIB)
    with path.open("wb", buffering=0) as plain:
        for offset in range(0, size_bytes, MIB):
            plain.write(data[: min(MIB, size_bytes - offset)])
        began = perf_counter()
        os.fdatasync(plain.fileno())
        took = perf_counter() - began
    path.unlink()
    return took


PARTS = [
    *(Part(job.name, partial(standard, job)) for job in JOBS),
    Part("oldest-snapshot", oldest_snapshot),
    Part("pause", pause),
    Part("large", large),
    Part("blocks", block_sizes),
]


if __name__ == "__main__":
    main(str(__doc__), PARTS)
