"""Writers are killed in the middle of their work, again and again; nothing that they had reported may be missing.

``python -m tests.reliability.kill_loop 300``, or ``make kill-loop N=300``, kills that many and prints what came of it;
a second number is the seed. `tests/reliability/test_kill.py` kills a few.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.format.geometry import Geometry
from snapctl.services.check import check_container
from tests.cli.harness import command_line, environment
from tests.support.killed_writer import REPORT_BYTES, Model, change
from tests.support.states import state_of

GEOMETRIES = (Geometry(4096, 16384), Geometry(512, 512))
_MOST_COMMITS = 15
"""A writer is killed after so many reports at most, and a part of the time that a commit takes."""
_START_SECONDS = 0.2
_COMMIT_SECONDS = 0.02


def assert_holds_one_of(path: Path, *models: Model) -> int:
    """Check a container and compare all of it; returns the number of the model that it equals.

    Raises:
        AssertionError: it is not sound, or equals none.
    """
    findings = check_container(str(path), 0).findings
    assert not findings, findings
    with Container.open(str(path)) as container:
        found = {name: (bytearray(node.content), node.origin or "") for name, node in state_of(container).items()}
    for number, model in enumerate(models):
        if found == model.nodes:
            return number
    raise AssertionError(f"lost or mixed: it holds {sorted(found)}, and should {[sorted(m.nodes) for m in models]}")


@dataclass
class Writers:
    """One container, and the writers that follow each other in it.

    Attributes:
        path: of the container, which is made.
        geometry: its sizes.
        seed: of what is written and of when it is interrupted.
        model: what the container holds as of commit `number`.
        number: of the last commit that is known to stand; the model is that of this commit.
        outcomes: how many kills came to what.
    """

    path: Path
    geometry: Geometry
    seed: int
    model: Model = field(default_factory=Model)
    number: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        Container.create(
            str(self.path), block_size=self.geometry.block_size, table_size=self.geometry.table_size
        ).close()
        self._choose = Random(self.seed)

    def kill_one(self) -> None:
        """Start a writer, kill it, and look at what it leaves."""
        reported = self._run_and_kill()
        assert reported >= self.number
        while self.number < reported:
            self.number += 1
            change(self.model, self.seed, self.number)
        ahead = self.model.copy()
        change(ahead, self.seed, self.number + 1)
        if assert_holds_one_of(self.path, self.model, ahead):
            self.model = ahead
            self.number += 1
            self.outcomes["ahead"] += 1
        self.outcomes["kills"] += 1

    def _run_and_kill(self) -> int:
        """Kill a writer at some moment; returns the last commit that it reported."""
        program = [sys.executable, "-m", "tests.support.killed_writer"]
        process = subprocess.Popen(
            [*program, str(self.path), str(self.seed), str(self.number + 1)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            bufsize=0,  # `communicate` does not see what a buffer has taken in
        )
        assert process.stdout
        reports = b""
        if self._choose.random() < 0.05:  # while it starts and opens the file
            time.sleep(self._choose.random() * _START_SECONDS)
        else:
            for _ in range(1 + self._choose.randint(0, _MOST_COMMITS)):
                reports += process.stdout.read(REPORT_BYTES)
            time.sleep(self._choose.random() * _COMMIT_SECONDS)
        process.send_signal(signal.SIGKILL)
        rest, complaints = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, complaints.decode()
        reports += rest
        return int.from_bytes(reports[-REPORT_BYTES:], "little") if reports else self.number


class Commands:
    """One container, and commands of the command line that are killed while they change it.

    Attributes:
        path: of the container, which is made.
        model: what it holds.
        outcomes: how many commands came to what.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.model = Model()
        self.outcomes: Counter[str] = Counter()
        self._choose = Random(seed)
        self._made = 0
        began = time.monotonic()
        assert self._run(["create", f"{path}/db", "--size", "300000"], b"", kill_after=None) == 0
        self._usual_seconds = time.monotonic() - began
        self.model.create("db", 300_000, Cow.REDIRECT)

    def kill_one(self) -> None:
        """Start a command, kill it unless it ends before, and look whether it was done."""
        after = self.model.copy()
        arguments, stdin = self._draw(after)
        code = self._run(arguments, stdin, kill_after=self._choose.uniform(0.4, 1.1) * self._usual_seconds)
        was_done = assert_holds_one_of(self.path, self.model, after)
        if code == 0:
            assert was_done, f"{arguments} had ended well, and what it did is not there"
        self.outcomes["ended" if code == 0 else "kills"] += 1
        self.outcomes["ahead"] += code != 0 and was_done
        if was_done:
            self.model = after

    def _draw(self, after: Model) -> tuple[list[str], bytes]:
        """The words of a command and its standard input, which `after` is changed by as well."""
        self._made += 1
        name, data = f"n{self._made}", self._choose.randbytes(self._choose.randint(1, 200_000))
        volumes = sorted(name for name, node in after.outline().items() if not node.is_snapshot)
        what = self._choose.choice(("import", "write", "snapshot", "delete"))
        volume = self._choose.choice(volumes)
        if what == "import":
            after.create(name, len(data), Cow.REDIRECT)
            after.write(name, 0, data)
            return ["import", f"{self.path}/{name}", "-"], data
        if what == "delete" and len(after.nodes) > 4:
            doomed = self._choose.choice(sorted(after.nodes.keys() - {"db"}))
            after.delete(doomed)
            return ["delete", "--yes", "--cascade", f"{self.path}/{doomed}"], b""
        if what == "snapshot":
            after.snapshot(f"{volume}@{name}")
            return ["snapshot", f"{self.path}/{volume}@{name}"], b""
        size = after.outline()[volume].size
        offset = self._choose.randrange(size)
        data = data[: size - offset]
        after.write(volume, offset, data)
        return ["write", f"{self.path}/{volume}", "--offset", str(offset)], data

    def _run(self, arguments: list[str], stdin: bytes, *, kill_after: float | None) -> int:
        """Run a command, and kill it after so many seconds; returns its code, or minus the signal's number."""
        with tempfile.TemporaryFile() as file:
            file.write(stdin)
            file.seek(0)
            process = subprocess.Popen(
                command_line(*arguments),
                stdin=file,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment(),
            )
        try:
            _, complaints = process.communicate(timeout=60 if kill_after is None else kill_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            _, complaints = process.communicate(timeout=60)
        assert process.returncode in {0, -signal.SIGKILL}, complaints.decode()
        return process.returncode


def main() -> None:
    """Kill writers and, a quarter as often, commands; print one line of figures."""
    wanted = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns()
    # The same seed makes the same changes; the moments of the kills are the machine's as well.
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        lines = [
            Writers(Path(directory) / f"{geometry.block_size}.snap", geometry, seed + number)
            for number, geometry in enumerate(GEOMETRIES)
        ]
        commands = Commands(Path(directory) / "commands.snap", seed)
        for number in range(wanted):
            lines[number % len(lines)].kill_one()
            if number % 4 == 0:
                commands.kill_one()
    figures = sum((line.outcomes for line in lines), Counter())
    print(
        f"{figures['kills']} writers killed after {sum(line.number for line in lines)} commits, "
        f"{figures['ahead']} times with the commit in flight already standing; "
        f"{commands.outcomes['kills']} commands killed, {commands.outcomes['ahead']} of them done already, "
        f"and {commands.outcomes['ended']} that ended; in {time.monotonic() - began:.0f} s: nothing lost"
    )


if __name__ == "__main__":
    main()
