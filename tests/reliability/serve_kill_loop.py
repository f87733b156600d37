"""Servers are killed while clients write and snapshots are taken; nothing acknowledged as durable may be missing.

``python -m tests.reliability.serve_kill_loop 40``, or ``make serve-kill-loop N=40``, kills that many and prints what
came of it; a second number is the seed. `tests/reliability/test_serve_kill.py` kills a few.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from threading import Timer
from typing import NamedTuple

from snapctl.engine.container import Container
from snapctl.errors import IoFailure
from snapctl.services.check import check_container
from snapctl.services.control.client import connect
from tests.reliability import libnbd_writer
from tests.reliability.libnbd_writer import BLOCK_BYTES, BLOCKS, content, number_in, request
from tests.support.requires import needs
from tests.support.served import serve
from tests.support.states import content_of

_MOST_SNAPSHOTS = 4
_LONGEST_SECONDS = 1.5
_TIMEOUT_SECONDS = 60
ZEROS = 0


class Log(NamedTuple):
    """The requests that a client had sent at some moment, those that were answered, and those that were durable."""

    begun: list[int]
    answered: list[int]
    durable: list[int]


def read_log(path: Path) -> Log:
    """Read what a client has logged until now."""
    found = Log([], [], [])
    text = path.read_text() if path.exists() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():
        what, *numbers = line.split()
        getattr(found, what).extend(map(int, numbers))
    return found


def judge(image: bytes, seed: int, base: list[int], durable: list[int], begun: list[int]) -> list[int]:
    """Compare an image with what it has to hold, and what it may.

    Args:
        image: of the volume, or a snapshot of it.
        seed: of the requests.
        base: what each block held before them: the number of the write, or `ZEROS`.
        durable: the requests that have to be there, where no later one of `begun` is.
        begun: those that may be, `durable` among them.

    Returns:
        What each block holds, in the form of `base`.

    Raises:
        AssertionError: something is missing, there by half, or was never written.
    """
    possible = [{number} for number in base]
    is_durable = set(durable)
    for number in sorted(begun):
        asked = request(seed, number)
        for block in asked.blocks:
            value = number if asked.kind == "write" else ZEROS
            possible[block] = {value} | (set() if number in is_durable else possible[block])
    held = []
    for block in range(BLOCKS):
        data = image[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        number = number_in(data)
        whole = content(seed, number, block) if number != ZEROS else bytes(BLOCK_BYTES)
        assert data == whole, f"block {block} is not whole: it begins with the number {number}"
        assert number in possible[block], f"block {block} is of request {number}, not of {sorted(possible[block])}"
        held.append(number)
    return held


class Servers:
    """One container, and the servers that follow each other.

    Attributes:
        path: of the container, which is made.
        outcomes: how often what came about.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.outcomes: Counter[str] = Counter()
        self._seed = seed
        self._choose = Random(seed)
        self._base = [ZEROS] * BLOCKS
        self._next = 1
        self._round = 0
        self._snapshots: dict[str, bytes] = {}
        with Container.create(str(path)) as container:
            container.create_volume("db", BLOCKS * BLOCK_BYTES)

    def kill_one(self) -> None:
        """Serve, write, snapshot and delete; kill the server, and look at what it leaves."""
        self._round += 1
        log = self.path.with_suffix(f".log{self._round}")
        needs("nbdsh", package="python3-libnbd")
        arguments = [str(log), str(self._seed), str(self._next)]
        with serve(self.path, "--unix", self.path.with_suffix(".nbd")) as server:
            client = subprocess.Popen(
                ["/usr/bin/python3", "-I", libnbd_writer.__file__, server.door().uri("db"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            try:
                self._wait_for_first(log, client)
                taken, deleted = self._commands(log, server.process)
                said, _ = client.communicate(timeout=_TIMEOUT_SECONDS)
            finally:
                client.kill()
                client.communicate(timeout=_TIMEOUT_SECONDS)
        assert client.returncode == 0, said.decode()
        self._judge(read_log(log), taken, deleted)
        self.outcomes["kills"] += 1

    @staticmethod
    def _wait_for_first(log: Path, client: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not read_log(log).durable:
            assert client.poll() is None, client.communicate()
            assert time.monotonic() < deadline, "nothing becomes durable"
            time.sleep(0.01)

    def _commands(self, log: Path, server: subprocess.Popen[bytes]) -> tuple[dict[str, tuple[Log, bool]], set[str]]:
        """Take and delete snapshots until the server is killed, be it amid a command.

        Returns:
            Of each snapshot that may have been taken what was logged before, and whether it was acknowledged; and the
            snapshots that may have been deleted, which `self._snapshots` keeps if that was not acknowledged.
        """
        taken: dict[str, tuple[Log, bool]] = {}
        deleted: set[str] = set()
        control = connect(str(self.path), _TIMEOUT_SECONDS)
        assert control
        killer = Timer(self._choose.random() * _LONGEST_SECONDS, server.kill)
        killer.start()
        with control, suppress(IoFailure):  # that the server is gone
            while not control.is_hung_up(self._choose.random() / 4):
                old = sorted(self._snapshots.keys() - deleted)
                if len(old) + len(taken) >= _MOST_SNAPSHOTS and old:
                    name = self._choose.choice(old)
                    deleted.add(name)
                    control.call("delete", {"names": [name]})
                    del self._snapshots[name]
                elif len(taken) < _MOST_SNAPSHOTS:
                    name, before = f"db@s{self._round}.{len(taken)}", read_log(log)
                    taken[name] = (before, False)
                    control.call("snapshot", {"names": [name]})
                    taken[name] = (before, True)
        killer.join()
        server.wait(_TIMEOUT_SECONDS)
        return taken, deleted

    def _judge(self, log: Log, taken: dict[str, tuple[Log, bool]], deleted: set[str]) -> None:
        findings = check_container(str(self.path), 0).findings
        assert not findings, findings
        with Container.open(str(self.path)) as container:
            found = {node.name: content_of(node) for node in container.nodes}
        sure = self._snapshots.keys() - deleted | {name for name, (_, is_sure) in taken.items() if is_sure}
        possible = self._snapshots.keys() | taken.keys()
        assert sure <= found.keys() - {"db"} <= possible, (sure, found.keys(), possible)
        for name in found.keys() & self._snapshots.keys():
            assert found[name] == self._snapshots[name], f"{name} has changed"
        for name in found.keys() & taken.keys():
            # A snapshot has not only what was durable before, but all that was answered.
            judge(found[name], self._seed, self._base, taken[name][0].answered, log.begun)
        held = judge(found["db"], self._seed, self._base, log.durable, log.begun)
        self._base = held
        self._snapshots = {name: image for name, image in found.items() if name != "db"}
        self._next = max(log.begun) + 1
        self.outcomes["requests"] += len(log.begun)
        self.outcomes["durable"] += len(log.durable)
        self.outcomes["snapshots"] += len([name for name, (_, is_sure) in taken.items() if is_sure])
        self.outcomes["deleted"] += len(deleted)
        self.outcomes["commands interrupted"] += sum(not is_sure for _, is_sure in taken.values()) + len(
            deleted & possible & found.keys()
        )


def main() -> None:
    """Kill servers; print one line of figures."""
    wanted = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns()
    # The same seed makes the same requests; the moments of the kills are the machine's as well.
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        servers = Servers(Path(directory) / "lab.snap", seed)
        for _ in range(wanted):
            servers.kill_one()
    figures = servers.outcomes
    print(
        f"{figures['kills']} servers killed after {figures['requests']} requests, of which {figures['durable']} were "
        f"acknowledged as durable, {figures['snapshots']} snapshots and {figures['deleted']} deletions; "
        f"{figures['commands interrupted']} commands without an answer; in {time.monotonic() - began:.0f} s: "
        "nothing lost"
    )


if __name__ == "__main__":
    main()
