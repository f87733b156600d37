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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from snapctl.services.control.client import connect
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


@contextmanager
def snapshots(container: Path, *, kept: int | None) -> Iterator[list[float]]:
    """Take a snapshot five times a second, without a process for each; gives the seconds that each took.

    Args:
        container: that is served.
        kept: delete the oldest when there are more; None for no snapshots at all.
    """
    stopping = threading.Event()
    took: list[float] = []

    def work() -> None:
        client = connect(str(container), 5)
        assert client
        with client:
            while not stopping.wait(0.2):
                began = time.monotonic()
                client.call("snapshot", {"names": [f"db@{len(took)}"]})
                took.append(time.monotonic() - began)
                if kept is not None and len(took) > kept:
                    client.call("delete", {"names": [f"db@{len(took) - 1 - kept}"]})

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work) if kept is not None else None
        try:
            yield took
        finally:
            stopping.set()
            if working:
                working.result(_TIMEOUT_SECONDS)


def longest_waits(container: Path, seconds: int) -> None:
    """Print how long clients wait while nothing else goes on, while snapshots are taken, and deleted as well."""
    for what, kept in (("nothing", None), ("snapshots", 10**6), ("snapshots and deletions", 8)):
        run("create", container / "db", "--size", f"{_CONNECTIONS * _SIZE_MIB}M")
        with serve(container, "--unix", container.with_suffix(".nbd")) as server:
            fio(server, "--rw=write", "--bs=256k")
            with snapshots(container, kept=kept) as took:
                jobs = fio(server, "--rw=randrw", "--bs=4k", "--fsync=64", "--time_based", f"--runtime={seconds}")
        container.unlink()
        waits = [job[kind]["clat_ns"] for job in jobs for kind in ("read", "write")]
        print(
            f"beside {what}: {sum(job[kind]['iops'] for job in jobs for kind in ('read', 'write')):.0f} requests/s, "
            f"99.9% of them within {max(wait['percentile']['99.900000'] for wait in waits) / 1e6:.1f} ms, the longest "
            f"{max(wait['max'] for wait in waits) / 1e6:.1f} ms"
            + (f"; {len(took)} snapshots, at most {max(took) * 1000:.1f} ms each" if took else "")
        )


def main() -> None:
    """Do both."""
    with tempfile.TemporaryDirectory() as directory:
        container = Path(directory) / "lab.snap"
        run("create", container / "db", "--size", f"{_CONNECTIONS * _SIZE_MIB}M")
        with serve(container, "--unix", container.with_suffix(".nbd")) as server:
            load(server, float(sys.argv[1]))
        longest_waits(Path(directory) / "other.snap", 15)


if __name__ == "__main__":
    main()
