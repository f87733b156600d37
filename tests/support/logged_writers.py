"""Processes that change what is on a file system, and log what they had begun and what of it is there for good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.cli.harness import environment

_TIMEOUT_SECONDS = 60


class Change(NamedTuple):
    """One change of one thing.

    Attributes:
        name: of what is changed; it has one writer.
        version: the number of the change, which grows.
        kind: what is done to it.
    """

    name: str
    version: int
    kind: str


class Log(NamedTuple):
    """What writers had begun, and what of it was done, at some moment."""

    begun: list[Change]
    done: list[Change]


class Writers:
    """Processes that run one program, each with the arguments of `run_writer`.

    Attributes:
        logs: a file for each of them.
        processes: these.
    """

    def __init__(self, module: str, root: Path, logs: list[Path]) -> None:
        self.logs = logs
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", module, str(root), str(log), str(number)],
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for number, log in enumerate(logs)
        ]

    def log(self) -> Log:
        """What they have logged until now."""
        found = Log([], [])
        for log in self.logs:
            text = log.read_text() if log.exists() else ""
            for line in text[: text.rfind("\n") + 1].splitlines():
                what, kind, name, version = line.split()
                (found.begun if what == "begun" else found.done).append(Change(name, int(version), kind))
        return found

    def wait_for(self, changes: int) -> None:
        """Wait until so many more changes are done, by whichever of them."""
        wanted = self._done() + changes
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while self._done() < wanted:
            assert not any(process.poll() for process in self.processes), "a writer has failed"
            assert time.monotonic() < deadline, "the writers do not get on"
            time.sleep(0.01)

    def stop(self) -> None:
        """Let each finish the change that it is at."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            _, complaints = process.communicate(timeout=_TIMEOUT_SECONDS)
            assert process.returncode == 0, complaints.decode()

    def _done(self) -> int:
        return sum(log.read_bytes().count(b"done ") for log in self.logs if log.exists())


@contextmanager
def writers(module: str, root: Path, logs: Path, *, count: int) -> Iterator[Writers]:
    """Run a program in some processes; they are gone at the end.

    Args:
        module: the program, which calls `run_writer`.
        root: what it works on.
        logs: a directory to be made.
        count: of processes.
    """
    logs.mkdir()
    running = Writers(module, root, [logs / str(number) for number in range(count)])
    try:
        yield running
    finally:
        for process in running.processes:
            if process.poll() is None:
                process.kill()
                process.communicate(timeout=_TIMEOUT_SECONDS)


class Logger:
    """What a writer tells of its changes, each before it begins and once it is there for good."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @contextmanager
    def around(self, change: Change) -> Iterator[None]:
        """Log what the block does."""
        line = f"{change.kind} {change.name} {change.version}\n"
        os.write(self._file, f"begun {line}".encode())
        yield
        os.write(self._file, f"done {line}".encode())


def run_writer(make: Callable[[Path, Logger, int], Callable[[int], None]]) -> None:
    """Be a writer until SIGTERM; the arguments of the process are what to work on, the log, and a number.

    Args:
        make: with these, makes what is called again and again, with 1, 2, 3 and so on.
    """
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda signal_no, _frame: stopping.append(signal_no))
    change, number = make(Path(sys.argv[1]), Logger(Path(sys.argv[2])), int(sys.argv[3])), 0
    while not stopping:
        number += 1
        change(number)
