"""Every call that a workload makes on the container file goes wrong once, in every way; nothing may be lost by it.

``python -m tests.reliability.fault_search``, or ``make fault-search``, tries all of them and prints what it did;
`tests/reliability/test_io_faults.py` tries a part of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from snapctl.engine.container import Container
from snapctl.errors import IoFailure, NoSpace, Poisoned, SnapctlError
from snapctl.format.geometry import SUPERBLOCK_AREA, Geometry
from snapctl.services.check import check_container
from tests.cli.harness import command_line, environment
from tests.support import states
from tests.support.faults import EFFECTS, EFFECTS_OF, Effect, Fault, System
from tests.support.states import State, Step, images_of, state_in, state_of, workload

pattern = cache(states.pattern)

TINY = Geometry(512, 512)
WIDE = Geometry(4096, 512)
LARGE = Geometry(4096, 16384)
_BULK = 5 << 18
"""Bytes of which nearly all are given back in one run; runs of 1 MiB and more are."""

USES: list[Callable[[Container], object]] = [
    lambda c: c.create_volume("another", 512),
    lambda c: c.commit(),
    lambda c: c.abort(),
    lambda c: c.snapshot("none@such"),
    lambda c: c.volumes[0].read(0, 1),
    lambda c: c.volumes[0].write(0, b"x"),
    lambda c: c.volumes[0].trim(0, 1),
]
"""What a poisoned container refuses; the last three do so where there is a node."""


@dataclass(frozen=True)
class Task:
    """What is done with a container file that is opened once.

    Attributes:
        name: for the reader of a failure.
        image: the file before.
        steps: changes, each of them followed by a commit.
        states: what the container holds before the first step and after each.
        abandoned: a change that is not committed but given up by closing the file.
    """

    name: str
    image: bytes
    steps: Sequence[Step]
    states: Sequence[State]
    abandoned: Step | None = None


def bulk() -> Sequence[Step]:
    """Changes that are large enough for room to be given back to the file system, a transaction given up among them."""

    def fill(c: Container) -> None:
        c.create_volume("db", _BULK).write(0, pattern(1, _BULK))

    def give_up_and_overwrite(c: Container) -> None:
        c.snapshot("db@a")
        c["db"].write(0, pattern(2, _BULK))
        c.abort()
        c.snapshot("db@a")
        c["db"].write(4096, pattern(3, _BULK - 4096))

    def give_back(c: Container) -> None:
        c.delete("db@a")
        c["db"].trim(100, _BULK - 100)

    return [Step(change.__name__, change) for change in (fill, give_up_and_overwrite, give_back)]


def tasks(geometry: Geometry, steps: Sequence[Step], begins: range) -> Iterator[Task]:
    """Cut a workload into tasks that begin at some steps and are as long as these are apart."""
    images = images_of(geometry, steps)
    states = [state_in(image) for image in images]
    for first in begins:
        last = min(first + begins.step, len(steps))
        yield Task(
            f"{steps[first].name} to {steps[last - 1].name}, {geometry.block_size}/{geometry.table_size}",
            images[first],
            steps[first:last],
            states[first : last + 1],
            abandoned=steps[last] if last < len(steps) else None,
        )


@cache
def core_tasks() -> list[Task]:
    """The whole workload, two steps to an opening of the file, and one with large runs of pages."""
    return [*tasks(TINY, workload(TINY), range(0, 10, 2)), *tasks(WIDE, bulk(), range(0, 3, 3))]


def more_tasks() -> Iterator[Task]:
    """The other pairs of steps, the workload in one opening, large runs one by one, and the geometry of users."""
    yield from tasks(TINY, workload(TINY), range(1, 10, 2))
    yield from tasks(TINY, workload(TINY), range(0, 10, 10))
    yield from tasks(WIDE, bulk(), range(3))
    yield from tasks(LARGE, workload(LARGE), range(0, 10, 4))


def faults(calls: Counter[str], *, stride: int = 1) -> list[Fault]:
    """Every way in which some calls can go wrong, one at a time; of partial and lasting failures every `stride`-th."""
    found = []
    for call, count in sorted(calls.items()):
        for effect in EFFECTS_OF[call]:
            is_plain = not EFFECTS[effect].is_short and not EFFECTS[effect].is_lasting
            found += [Fault(call, number, effect) for number in range(1, count + 1, 1 if is_plain else stride)]
    return found


def assert_clear(error: SnapctlError, path: Path, fault: Fault, system: System) -> None:
    """An error that users get: of the right class, and one line that says what, where and what to do."""
    is_superblock = fault.call == "pwritev" and system.struck[0] < SUPERBLOCK_AREA
    is_final = is_superblock or fault.call in {"fdatasync", "fsync"}
    expected = NoSpace if "ENOSPC" in fault.effect and not is_final else IoFailure
    assert type(error) is expected, repr(error)
    assert_says_all(str(error), path)


def assert_says_all(message: str, path: Path) -> None:
    what, _, advice = message.partition("; ")
    assert str(path.parent) in what, message
    assert advice, f"{message} does not say what to do"
    assert "\n" not in message


class Trial:
    """A task with one fault in it."""

    def __init__(self, path: Path, task: Task, fault: Fault | None) -> None:
        self.path = path
        self.task = task
        self.fault = fault
        self.system = System(str(path), fault)
        self.done = 0
        self.is_committing = False
        self.error: SnapctlError | None = None
        self.may_be_ahead = False

    def run(self) -> None:
        """Do the task and look at what is left; any `AssertionError` is a finding."""
        self.path.write_bytes(self.task.image)
        with self.system:
            try:
                self._open_and_work()
            except SnapctlError as error:  # from opening, or from closing
                self._see(error)
        if self.fault is not None:
            assert self.system.was_struck, "the fault did not happen"
            self._assert_seen_or_invisible()
        self._reopen()

    def _open_and_work(self) -> None:
        container = Container.open(str(self.path), writable=True)
        try:
            self._work(container)
        except SnapctlError as error:
            self._see(error)
            if isinstance(error, NoSpace):
                assert container.pages.is_usable
            elif self._call in {"pwritev", "fdatasync"}:
                assert not container.pages.is_usable, "a failed write or sync does not poison"
            if not container.pages.is_usable:
                self._assert_poisoned(container)
            elif not self._effect.is_lasting:
                self._recover(container, error)
        finally:
            container.close()

    def _work(self, container: Container) -> None:
        for step in self.task.steps[self.done :]:
            self.is_committing = False
            step.change(container)
            self.is_committing = True
            container.commit()
            self.done += 1
        self.is_committing = False
        if self.task.abandoned:
            self.task.abandoned.change(container)

    def _see(self, error: SnapctlError) -> None:
        assert self.fault is not None
        if self.error is None or not self._effect.is_lasting:
            assert self.error is None, "a second error"
            assert_clear(error, self.path, self.fault, self.system)
        self.error = error

    @property
    def _call(self) -> str:
        assert self.fault is not None
        return self.fault.call

    @property
    def _effect_name(self) -> str:
        assert self.fault is not None
        return self.fault.effect

    @property
    def _effect(self) -> Effect:
        assert self.fault is not None
        return EFFECTS[self.fault.effect]

    def _assert_seen_or_invisible(self) -> None:
        if not self.system.struck or self._effect is EFFECTS["EOPNOTSUPP"]:
            assert self.error is None, repr(self.error)
        elif self.error is None and self._call == "preadv":
            # One copy of a superblock that cannot be read costs nothing, and an original that cannot be copied goes to
            # the snapshot itself.
            steps = (*self.task.steps, self.task.abandoned)
            is_copying = any(step is not None and step.name == "snapshot_all" for step in steps)
            assert is_copying or all(offset < SUPERBLOCK_AREA for offset in self.system.struck)
        elif self.error is None and self._call != "fallocate":  # a hole not punched, a reserve not restored
            # A transaction that gives room back had the reserve.
            assert "ENOSPC" in self._effect_name
            assert self._call in {"pwritev", "ftruncate"}

    def _assert_poisoned(self, container: Container) -> None:
        assert self.is_committing or self._call in {"pwritev", "fdatasync"}
        self.may_be_ahead = self.is_committing
        before = self.path.read_bytes()
        for use in USES[: 7 if len(container) and container.volumes else 4]:
            try:
                use(container)
            except Poisoned as error:
                assert "reopen" in str(error)  # noqa: PT017
            else:
                raise AssertionError("a poisoned container was used")
        assert self.path.read_bytes() == before, "a poisoned container was written to"

    def _recover(self, container: Container, error: SnapctlError) -> None:
        """Go on after an error that does not poison, as the documents say that one can."""
        assert self.fault is not None
        if isinstance(error, NoSpace) and self.is_committing and self.fault.effect == "ENOSPC":
            container.commit()
            self.done += 1
        else:
            container.abort()
            assert state_of(container) == self.task.states[self.done], "not as before after abort"
        self._work(container)

    def _reopen(self) -> None:
        """Open the file in a healthy system: sound, as before or after the commit in flight; and the work goes on."""
        found = self._look()
        states = self.task.states
        if self.may_be_ahead:
            # Other calls than these poison only if they fail when the superblock has been written.
            is_ahead = found == states[self.done + 1]
            assert is_ahead or self._call in {"pwritev", "fdatasync"}
            self.done += is_ahead
        assert found == states[self.done], "lost or mixed"
        if self.done < len(self.task.steps):
            with Container.open(str(self.path), writable=True) as container:
                for step in self.task.steps[self.done :]:
                    step.change(container)
                    container.commit()
            assert self._look() == states[-1], "different in the end"

    def _look(self) -> State:
        findings = check_container(str(self.path), 0).findings
        assert not findings, findings
        with Container.open(str(self.path)) as container:
            return state_of(container)


def try_task(path: Path, task: Task, *, calls: Collection[str] = EFFECTS_OF, stride: int = 1) -> Counter[str]:
    """Run a task once for every fault in some kinds of calls; returns how many of each kind there were.

    Raises:
        AssertionError: something was lost, or an error was not as it should be; its notes name the fault.
    """
    plain = Trial(path, task, None)
    plain.run()
    some = [fault for fault in faults(plain.system.calls, stride=stride) if fault.call in calls]
    return try_each(some, task.name, lambda fault: Trial(path, task, fault).run())


def try_each(some: Sequence[Fault], name: str, run: Callable[[Fault], object]) -> Counter[str]:
    """Run something once for each fault; see `try_task`."""
    for fault in some:
        try:
            run(fault)
        except BaseException as error:
            error.add_note(f"{name}: {fault}")
            raise
    return Counter(kind_of(fault) for fault in some)


def kind_of(fault: Fault) -> str:
    """How a fault is counted in the figures."""
    return f"{fault.call} {fault.effect}"


def try_reading(path: Path, *, stride: int = 1) -> Counter[str]:
    """Read everything, with each fault: the right bytes or an error, and the right bytes when asked again."""
    images = images_of(TINY, workload(TINY)[:8])
    wanted = state_in(images[-1])
    path.write_bytes(images[-1])

    def read(fault: Fault | None) -> Counter[str]:
        with System(str(path), fault) as system:
            try:
                container = Container.open(str(path))
            except IoFailure as error:
                assert fault
                assert_clear(error, path, fault, system)
                container = Container.open(str(path))
            with container:
                try:
                    assert state_of(container) == wanted
                except IoFailure as error:
                    assert fault
                    assert_clear(error, path, fault, system)
                    assert container.pages.is_usable
                    assert state_of(container) == wanted
        return system.calls

    some = [fault for fault in faults(read(None), stride=stride) if not EFFECTS[fault.effect].is_lasting]
    return try_each(some, "reading", read)


def try_creating(path: Path) -> Counter[str]:
    """Make a container, with each fault: it is there, or no file is."""

    def create(fault: Fault | None) -> Counter[str]:
        path.unlink(missing_ok=True)
        with System(str(path), fault) as system:
            try:
                Container.create(str(path), block_size=512, table_size=512).close()
            except SnapctlError as error:
                assert fault
                assert_clear(error, path, fault, system)
                assert not path.exists()
                return system.calls
        assert not check_container(str(path), 0).findings
        return system.calls

    return try_each(faults(create(None)), "creating", create)


COMMANDS: dict[str, tuple[tuple[str, ...], bytes]] = {
    "write": (("write", "LAB/db", "--offset", "700"), pattern(30, 9000)),
    "import": (("import", "LAB/new", "-"), pattern(31, 20_000)),
    "snapshot": (("snapshot", "LAB/db@now"), b""),
    "delete": (("delete", "--yes", "LAB/log"), b""),
    "read": (("read", "LAB/db"), b""),
}
"""What is done by the command line: its words and its standard input."""


class CommandTrial:
    """One command of the command line, in a process of its own."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self.report = path.with_suffix(".report")
        words, self.stdin = COMMANDS[name]
        self.words = [word.replace("LAB", str(path)) for word in words]
        self.image = images_of(TINY, workload(TINY)[:3])[-1]
        self.before = state_in(self.image)
        code, self.out, err = self._run(self.faulty(Fault("none", 0, "EIO")))
        assert (code, err) == (0, "")
        self.after = self._look()
        self.calls: Counter[str] = Counter(json.loads(self.report.read_text()))

    def faulty(self, fault: Fault) -> list[str]:
        """The program and its first arguments, for a fault that Python's calls make."""
        first = [sys.executable, "-m", "tests.support.faults", str(self.report), str(self.path)]
        return [*first, fault.call, str(fault.number), fault.effect, *self.words]

    def run(self, command: list[str], *, may_pass: bool) -> None:
        """Run it with a fault in it, and look at what it says and leaves."""
        code, out, err = self._run(command)
        assert self.out.startswith(out), "wrong bytes"
        found = self._look()
        if code == 0:
            assert may_pass, "the fault did not show"
            assert (out, err) == (self.out, "")
            assert found == self.after
        else:
            assert code in {1, 6}, (code, err)
            assert err.startswith("snapctl: "), err
            assert_says_all(err.removesuffix("\n"), self.path)
            assert found in (self.before, self.after)

    def _run(self, command: list[str]) -> tuple[int, bytes, str]:
        self.path.write_bytes(self.image)
        done = subprocess.run(
            command, input=self.stdin, capture_output=True, env=environment(), timeout=60, check=False
        )
        return done.returncode, done.stdout, done.stderr.decode()

    def _look(self) -> State:
        assert not check_container(str(self.path), 0).findings
        with Container.open(str(self.path)) as container:
            return state_of(container)


def try_command(path: Path, name: str, *, every: int = 1) -> Counter[str]:
    """Run one command with every fault, or every so many-th; with every fourth of those in part or for good."""
    trial = CommandTrial(path, name)

    def run(fault: Fault) -> None:
        is_read_or_hole = fault.call in {"preadv", "fallocate"}
        is_invisible = not EFFECTS[fault.effect].error or is_read_or_hole or borrows(name, fault)
        trial.run(trial.faulty(fault), may_pass=is_invisible)

    return try_each(faults(trial.calls, stride=4)[::every], name, run)


def borrows(command: str, fault: Fault) -> bool:
    """Whether a command gives room back, so that it has the reserve when there is no other room."""
    return command in {"delete", "trim"} and fault.effect.endswith("ENOSPC")


def try_command_under_strace(path: Path, name: str) -> Counter[str]:
    """Run one command with some faults that the kernel makes, for which strace has to be there and allowed to trace."""
    trial = CommandTrial(path, name)
    some = [
        Fault(call, number, effect)
        for call in ("preadv", "pwritev", "fdatasync")
        for effect in ("EIO", "ENOSPC", "EINTR")
        for number in range(1, trial.calls[call] + 1, 3)
    ]

    def run(fault: Fault) -> None:
        kernel_name = {"preadv": "preadv2", "pwritev": "pwritev2"}.get(fault.call, fault.call)
        inject = f"inject={kernel_name}:error={fault.effect}:when={fault.number}"
        strace = ["strace", "-f", "-qq", "-o", os.devnull, "-P", str(path), "-e", inject]
        is_invisible = fault.effect == "EINTR" or fault.call == "preadv" or borrows(name, fault)
        trial.run([*strace, *command_line(*trial.words)], may_pass=is_invisible)

    return try_each(some, f"{name} under strace", run)


def can_trace() -> bool:
    """Whether strace is installed and may trace a process here."""
    return (
        bool(shutil.which("strace"))
        and not subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode
    )


def main() -> None:
    """Try everything, and print one line of figures for each part and in all."""
    began = time.monotonic()
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "lab.snap"

        def count(what: str, counted: Counter[str]) -> None:
            total.update(counted)
            print(f"{what}: {counted.total()} faults", flush=True)

        count("reading", try_reading(path))
        count("creating", try_creating(path))
        for name in COMMANDS:
            count(f"snapctl {name}", try_command(path, name))
        for name in COMMANDS if can_trace() else ():
            count(f"snapctl {name} under strace", try_command_under_strace(path, name))
        if not can_trace():
            print("strace is not installed or may not trace: no faults made by the kernel")
        for task in (*core_tasks(), *more_tasks()):
            count(task.name, try_task(path, task))
    by_call = Counter[str]()
    for kind, number in total.items():
        by_call[kind.split()[0]] += number
    figures = ", ".join(f"{call} {number}" for call, number in sorted(by_call.items()))
    print(f"{total.total()} faults ({figures}) in {time.monotonic() - began:.0f} s: nothing lost")


if __name__ == "__main__":
    main()
