"""A server under load for minutes: fio writes and verifies, while snapshots come and go and are checked and exported.

``python -m tests.reliability.serve_load 120``, or ``make serve-load SECONDS=120``, does so for that many seconds, and
prints what came of it. Then it measures the longest time that a client waits while snapshots are taken, and while none
are. Needs fio.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.cli.harness import digest, run
from tests.support.requires import needs
from tests.support.served import Serving, serve

_CONNECTIONS = 4
_MIB = 1 << 20
_SIZE_MIB = 64
"""Each connection has a part of the volume of this size."""
_KEPT_SNAPSHOTS = 8
_TIMEOUT_SECONDS = 300


def resident_mib(server: Serving) -> float:
    """Tell how much memory a server has."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * 4096 / _MIB


def fio(server: Serving, *words: str) -> list[dict[str, Any]]:
    """Run fio over some connections, each on its own part of the volume; returns its report of each."""
    where = [f"--numjobs={_CONNECTIONS}", f"--size={_SIZE_MIB}M", f"--offset_increment={_SIZE_MIB}M", "--iodepth=8"]
    report = server.container.with_suffix(".json")
    export = ["--ioengine=nbd", f"--uri={server.door().uri('db')}"]
    output = ["--output-format=json", f"--output={report}"]
    done = subprocess.run(
        [needs("fio", package="fio"), "--name=load", *export, *where, *output, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done
    jobs: list[dict[str, Any]] = json.loads(report.read_text())["jobs"]
    assert len(jobs) == _CONNECTIONS
    assert not any(job["error"] for job in jobs), jobs
    return jobs


class Beside:
    """What goes on beside the load, in a thread of its own: snapshots, deletions, checks and exports.

    Attributes:
        done: how often what was done.
        digests: of the snapshots that there still are.
        longest_seconds: how long a snapshot took at most, with the start of the command.
    """

    def __init__(self, container: Path, interval_seconds: float, *, inspect_every: int = 0) -> None:
        self.done: Counter[str] = Counter()
        self.digests: dict[str, str] = {}
        self.longest_seconds = 0.0
        self._container = container
        self._interval_seconds = interval_seconds
        self._inspect_every = inspect_every
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stopping.set()
        self._thread.join(_TIMEOUT_SECONDS)
        if self._failure:
            raise self._failure

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as failure:  # noqa: BLE001 it is raised where the thread is awaited
            self._failure = failure

    def _work(self) -> None:
        kept: deque[str] = deque()
        while not self._stopping.wait(self._interval_seconds):
            self.done["snapshots"] += 1
            kept.append(f"db@{self._interval_seconds}-{self.done['snapshots']}")
            began = time.monotonic()
            run("snapshot", self._container / kept[-1])
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
            if len(kept) > _KEPT_SNAPSHOTS:
                self.done["deletions"] += 1
                oldest = kept.popleft()
                run("delete", "--yes", self._container / oldest)
                self.digests.pop(oldest, None)
            if self._inspect_every and self.done["snapshots"] % self._inspect_every == 0:
                self.done["checks and exports"] += 1
                run("check", self._container)
                self.digests[kept[-1]] = exported(self._container, kept[-1])


def exported(container: Path, name: str) -> str:
    """Export a node; returns the fingerprint of its bytes."""
    with tempfile.NamedTemporaryFile(dir=container.parent, suffix=".img") as image:
        run("export", "--force", container / name, image.name)
        return digest(Path(image.name))


def load(server: Serving, seconds: float) -> None:
    """Write, verify and look at everything for some time; print figures."""
    rounds, written, longest_ns, memory, began = 0, 0, 0, [resident_mib(server)], time.monotonic()
    with Beside(server.container, 1.0, inspect_every=5) as beside:
        while time.monotonic() - began < seconds:
            jobs = fio(
                server,
                *("--rw=randrw", "--bsrange=4k-64k", "--fsync=32", f"--randseed={rounds + 1}"),
                *("--verify=crc32c", "--verify_state_save=0", "--verify_fatal=1"),
            )
            rounds += 1
            written += sum(job["write"]["io_bytes"] for job in jobs)
            longest_ns = max(longest_ns, *(job["write"]["clat_ns"]["max"] for job in jobs))
            memory.append(resident_mib(server))
    for name, seen in beside.digests.items():
        assert exported(server.container, name) == seen, f"{name} has changed"
    volume = exported(server.container, "db")
    assert server.stop().code == 0
    run("check", server.container)
    assert exported(server.container, "db") == volume
    print(
        f"{rounds} rounds of fio wrote {written / _MIB:.0f} MiB and verified them in {time.monotonic() - began:.0f} s, "
        f"beside {', '.join(f'{count} {what}' for what, count in beside.done.items())}; a write took at most "
        f"{longest_ns / 1e6:.0f} ms, `snapctl snapshot` {beside.longest_seconds * 1000:.0f} ms; memory of the server "
        f"in MiB: {', '.join(f'{mib:.0f}' for mib in memory)}"
    )


def longest_waits(server: Serving, seconds: int) -> None:
    """Print how long clients wait while nothing else goes on, and while snapshots are taken."""
    for interval_seconds in (None, 0.2):
        with ExitStack() as stack:
            beside = None
            if interval_seconds is not None:
                beside = stack.enter_context(Beside(server.container, interval_seconds))
            jobs = fio(server, "--rw=randrw", "--bs=4k", "--fsync=64", "--time_based", f"--runtime={seconds}")
        for kind in ("read", "write"):
            waits = [job[kind]["clat_ns"] for job in jobs]
            longest = max(wait["max"] for wait in waits) / 1e6
            percentile = max(wait["percentile"]["99.900000"] for wait in waits) / 1e6
            rate = sum(job[kind]["iops"] for job in jobs)
            print(
                f"{beside.done['snapshots'] if beside else 'no'} snapshots: {kind}s {rate:.0f}/s, "
                f"99.9% within {percentile:.1f} ms, the longest {longest:.1f} ms"
            )


def main() -> None:
    """Do both."""
    seconds = float(sys.argv[1])
    with tempfile.TemporaryDirectory() as directory:
        for number, work in enumerate((lambda server: load(server, seconds), lambda server: longest_waits(server, 20))):
            container = Path(directory) / f"{number}.snap"
            run("create", container / "db", "--size", f"{_CONNECTIONS * _SIZE_MIB}M")
            with serve(container, "--unix", container.with_suffix(".nbd")) as server:
                work(server)


if __name__ == "__main__":
    main()
