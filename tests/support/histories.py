"""Histories: what people and machines may do to a container, searched at every operation for what a crash leaves.

A history is drawn from a seed. Sessions open the container, change it, commit, flush to its log, abort; they end in
peace, by the death of the process, a failed write, a failed sync or a full disk; now and then the power is cut for
good, and the next session goes on with what that left. After each operation, and most thoroughly before each sync, the
states that a power cut may leave there (`tests.support.crashes.Machine`) are judged: it opens, `check` finds nothing at
all, not even a leak, and all nodes read as at the last completed commit or flush or, while one is in flight, as at
that. Some are written to, committed and judged again.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.engine.node import Node
from snapctl.engine.recovery import Change, apply
from snapctl.errors import HasDependents, IoFailure, NoSpace, SnapctlError
from snapctl.format.geometry import SUPERBLOCK_AREA, Geometry
from snapctl.format.layout import SUPERBLOCK_BYTES
from snapctl.format.superblock import COPIES, SLOTS, copy_offset, parse
from snapctl.services.check import check_backend
from snapctl.services.check import superblocks as check_superblocks
from snapctl.storage import log, spacemap, superblocks
from tests.support.backends import MemoryBackend, Stopped
from tests.support.bugs import replaced
from tests.support.containers import change_of_blocks
from tests.support.crashes import Fate, Machine
from tests.support.states import NodeState, state_of

Known = frozenset[tuple[str, NodeState]]
"""A state that can be compared at a glance."""

_GEOMETRIES = [Geometry(512, 512)] * 6 + [Geometry(4096, 512), Geometry(512, 1024)]
_PUNCH_BYTES = 2048
_LOG_TABLES = 20
_SESSIONS = 6
_FATES = [None, None, Fate.DEATH, Fate.DEATH, *[Fate.FAILED_SYNC] * 3, Fate.FAILED_WRITE, Fate.FULL]
_GO_ON = 1 / 60
"""The share of states that are written to, committed and judged again."""
_SUPERBLOCKS = [copy_offset(slot, copy) for slot in range(SLOTS) for copy in range(COPIES)]


class Finding(AssertionError):
    """A crash that would have cost something, and what brings it about again."""


class Trace(NamedTuple):
    """All that a judgement has read of an image, and what it came to: a state, or what is wrong."""

    read: list[tuple[int, bytes]]
    verdict: Known | str


class _TracingBackend(MemoryBackend):
    """Remembers where it was read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.ranges: list[tuple[int, int]] = []

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        done = super().read_into(offset, buffer)
        self.ranges.append((offset, offset + done))
        return done


class Judge:
    """Opens, checks and reads images.

    What comes out depends on the length of the file and on the bytes that were read of it and on nothing else. So an
    image of the same length, with the same bytes wherever a former judgement has read, gets the same verdict.

    Attributes:
        in_full: judgements that were not found among the former ones.
    """

    def __init__(self) -> None:
        self.in_full = 0
        self._traces: dict[tuple[int, int], list[Trace]] = {}
        self._states: dict[Known, Known] = {}

    def know(self, container: Container) -> Known:
        """The state of an open container; equal states are the same object."""
        return self._known(frozenset(state_of(container).items()))

    def know_after(self, state: Known, changes: Sequence[Change]) -> Known:
        """What a state becomes by changes of blocks, without anything of snapctl's in between."""
        nodes = dict(state)
        for node, zeros, leaves in changes:
            was, size = nodes[node.name], node.container.block_size
            content = bytearray(was.content).ljust(-(-len(was.content) // size) * size, b"\0")
            for start, stop in zeros:
                content[start * size : stop * size] = bytes((stop - start) * size)
            for number, block in (pair for leaf in leaves.values() for pair in leaf.items()):
                content[number * size : (number + 1) * size] = block
            nodes[node.name] = was._replace(content=bytes(content[: len(was.content)]))
        return self._known(frozenset(nodes.items()))

    def _known(self, state: Known) -> Known:
        return self._states.setdefault(state, state)

    def __call__(self, image: bytes) -> Known | str:
        """The state that an image holds, or what is wrong with it."""
        key = len(image), hash(b"".join(image[at : at + SUPERBLOCK_BYTES] for at in _SUPERBLOCKS))
        traces = self._traces.setdefault(key, [])
        for trace in traces:
            if all(image.startswith(data, at) for at, data in trace.read):
                return trace.verdict
        self.in_full += 1
        backend = _TracingBackend(image)
        verdict = self._judge(backend)
        traces.append(Trace([(start, image[start:stop]) for start, stop in _joined(backend.ranges)], verdict))
        return verdict

    def _judge(self, backend: MemoryBackend) -> Known | str:
        try:
            findings = check_backend(backend).findings
            if findings:
                return f"check: {findings[:3]}"
            container = Container.adopt(backend, writable=False)
            if container.replayed_records and (findings := check_backend(container.pages.backend).findings):
                return f"check: after a replay: {findings[:3]}"
            return self.know(container)
        except SnapctlError as error:
            return f"{type(error).__name__}: {error}"


def _joined(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same bytes in fewer ranges."""
    start = stop = -1
    for begin, end in sorted(ranges):
        if begin > stop:
            if start >= 0:
                yield start, stop
            start, stop = begin, end
        stop = max(stop, end)
    if start >= 0:
        yield start, stop


class Workload:
    """Draws changes of a container."""

    def __init__(self, chance: random.Random, mark: str = "") -> None:
        """Draw from `chance`; the names of new nodes bear `mark`."""
        self._chance = chance
        self._mark = mark
        self._count = 0

    def change(self, container: Container) -> None:
        """Change something, or find that it cannot be.

        Raises:
            NoSpace: the open transaction can only be aborted.
        """
        volumes = container.volumes
        if not volumes:
            self._create(container)
            return
        volume = self._chance.choice(volumes)
        kinds = ("write", "snapshot", "clone", "trim", "delete", "resize", "rename", "create", "take over")
        match self._chance.choices(kinds, (8, 4, 2, 2, 4, 2, 1, 1, 1))[0]:
            case "write":
                self._write(volume)
            case "snapshot":
                among = self._chance.sample(volumes, min(len(volumes), self._chance.choice((1, 1, 2))))
                container.snapshot(*(f"{one.name}@{self._name('s')}" for one in among))
            case "clone":
                container.clone(self._chance.choice(container.nodes).name, self._name("c"))
            case "trim":
                start = self._chance.randrange(volume.size_bytes)
                volume.trim(start, self._chance.randrange(volume.size_bytes - start) + 1)
            case "delete":
                self.delete(container)
            case "resize":
                volume.resize(self._size(container.block_size), shrink=True)
            case "rename":
                container.rename(volume.name, self._name("r"))
            case "take over":
                self._take_over(container, volume)
            case _:
                self._create(container)

    def changes_of_blocks(self, container: Container) -> list[Change]:
        """Draw what a log can take: blocks written and zeroed, of any volumes."""
        changes = []
        volumes = container.volumes
        for volume in self._chance.sample(volumes, min(len(volumes), self._chance.choice((1, 1, 2)))):
            end, size = container.geometry.blocks(volume.size_bytes), container.block_size
            numbers = {self._chance.randrange(end) for _ in range(self._chance.choice((0, 1, 1, 2, 4)))}
            zeros = []
            if self._chance.random() < 0.3:
                start = self._chance.randrange(end)
                zeros = [(start, self._chance.randrange(start, min(end, start + 40)) + 1)]
            blocks = {number: self._chance.randbytes(size) for number in numbers}
            changes.append(change_of_blocks(volume, blocks, zeros))
        return changes

    def _create(self, container: Container) -> None:
        size = self._size(container.block_size)
        volume = container.create_volume(self._name("v"), size, cow=self._chance.choice(list(Cow)))
        if self._chance.random() < 0.7:
            self._write(volume)

    def _write(self, volume: Node) -> None:
        start = self._chance.randrange(volume.size_bytes)
        if self._chance.random() < 0.2:
            start = 0
        most = self._chance.choice((600, 600, 5000, 12000))
        volume.write(start, self._chance.randbytes(min(self._chance.randrange(1, most), volume.size_bytes - start)))

    def delete(self, container: Container) -> None:
        """Snapshots rather than volumes, and several at once, now and then whatever stands above them."""
        nodes = container.nodes
        snapshots = [node for node in nodes if node.origin is not None] or nodes
        among = snapshots if self._chance.random() < 0.8 else nodes
        doomed = self._chance.sample(among, min(len(among), self._chance.choice((1, 1, 1, 2))))
        try:
            container.delete(*(node.name for node in doomed), cascade=self._chance.random() < 0.4)
        except HasDependents:
            pass  # refused as a whole

    def _take_over(self, container: Container, volume: Node) -> None:
        """An RO snapshot with one clone and a newer snapshot above it goes; the clone inherits (docs/design.md)."""
        old = container.snapshot(f"{volume.name}@{self._name('s')}")[0]
        container.clone(old.name, self._name("c"))
        self._write(volume)
        container.snapshot(f"{volume.name}@{self._name('s')}")
        self._write(volume)
        try:
            container.delete(old.name)
        except HasDependents:
            pass  # there is an older snapshot still

    def _size(self, block_size: int) -> int:
        """A few blocks as a rule; at times more than one second table covers."""
        if self._chance.random() < 0.05:
            return 1024 * 512 + self._chance.randrange(1, 40 * 512)
        return self._chance.randrange(1, 40 * min(block_size, 1024))

    def _name(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._mark}{self._count}"


class History:
    """One history, searched as it goes.

    Attributes:
        figures: what was done and found, by name.
    """

    command = ""
    """What the command needs to bring about histories of this kind."""
    fates: Sequence[Fate | None] = _FATES
    """What may befall a process, each as likely as any other."""
    rounds = range(1, 5)
    """How many transactions a session may try, each number as likely as any other."""
    changes: Sequence[int] = (0, 1, 1, 2, 5)
    """How many changes a transaction may have, each as likely as any other."""
    ends_with_a_flush = 0.3
    """How likely a session ends after having flushed to its log."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._fate: Fate | None = None
        self.figures: Counter[str] = Counter(histories=1)
        self._chance = random.Random(f"history {seed}")
        self._looks = random.Random(f"looks {seed}")
        self._machine = Machine(random.Random(f"machine {seed}"), self._look)
        self._work = Workload(self._chance)
        self._judge = Judge()
        self._seen: set[int] = set()
        self._old: list[Known] = []
        """The states that the disk may hold beside that of a commit in flight; more than one until the first sync."""
        self._new: Known | None = None
        self._current: Known = frozenset()
        """The state of the last commit in the open session."""
        self._is_settled = True
        self._is_made = False
        self._logged: list[Change] = []
        """What was flushed in the open session and is not committed yet."""

    def run(self) -> Counter[str]:
        """Live through it.

        Raises:
            Finding: something was lost.
        """
        try:
            with _small_scale():
                self._make()
                for _ in range(_SESSIONS):
                    self._session()
        except Finding:
            raise
        except Exception as error:
            raise Finding(self._where(f"{type(error).__name__}: {error}")) from error
        self.figures["judged in full"] = self._judge.in_full
        self.figures["operations"] = self._machine.number
        return self.figures

    def _make(self) -> None:
        """A new container; until its first commit is durable, the file need not be one."""
        geometry = self._chance.choice(_GEOMETRIES)
        capacity = None
        if self._chance.random() < 0.3:
            capacity = SUPERBLOCK_AREA + self._chance.randrange(64, 90) * geometry.table_size
        container = Container.format(self._machine, geometry, capacity)
        self._is_made = True
        self._current = self._judge.know(container)
        self._expect([self._current], None)
        container.close()

    def _session(self) -> None:
        """One process, and perhaps a power cut after it."""
        self._begin_session()
        try:
            self._use()
        except Stopped:
            if self._chance.random() < 0.25:
                self._machine.lose_writes()
        except IoFailure:
            pass  # and the next session opens it again
        except NoSpace as error:
            self._count_refusal(error)  # for a replay; likewise
        self._end_session()

    def _begin_session(self) -> None:
        """Draw what is to befall the process."""
        fate = self._fate = self._chance.choice(self.fates)
        if self._chance.random() < 0.5:
            self._machine.meet(fate, self._chance.randrange(4, 30), in_superblock=True)
        else:
            self._machine.meet(fate, self._chance.choice((3, 10, 30, 60)) * self._chance.randrange(1, 11) // 10)
        self.figures["sessions"] += 1

    def _end_session(self) -> None:
        """The process is gone; perhaps the power, too."""
        if self._fate and self._machine.has_met:
            self.figures[self._fate.value] += 1
        self._machine.meet(None)
        self._machine.forget_dropped()
        if self._chance.random() < 0.25:
            self._cut_power()

    def _use(self) -> None:
        """Open, change, commit, and close, perhaps with changes that nobody committed."""
        self._logged.clear()
        self._is_settled = True
        with _closing(Container.adopt(self._machine)) as container:
            state = self._known(self._judge.know(container), "as opened again")
            self._settle_on(state)
            if container.replayed_records:
                self.figures["replays"] += 1
                self._is_settled = True
                self._expect([state], None)
            if self._chance.random() < 0.3:
                container.most_resident_tables = 1
            for _ in range(self._chance.choice(self.rounds)):
                if container.has_log:
                    self._flush_to_log(container)
                    if self._chance.random() < self.ends_with_a_flush:
                        return
                elif container.capacity_bytes is None and self._chance.random() < 0.9:
                    container.make_log()
                if self._logged and self._chance.random() < 0.2:
                    self._commit_before_the_log(container)
                elif self._changed(container, self._chance.choice(self.changes)):
                    self._commit(container)
            self._changed(container, self._chance.choice((0, 0, 0, 3)))

    def _changed(self, container: Container, changes: int) -> bool:
        """Change this and that; False if it had to be given up, or was."""
        try:
            for change in self._logged:
                for _ in apply(change):
                    pass
            for _ in range(changes):
                self._work.change(container)
                self._machine.forget_dropped()
            if self._chance.random() < 0.9:
                return True
        except NoSpace as error:
            self._count_refusal(error)
        self._abort(container)
        return False

    def _flush_to_log(self, container: Container) -> None:
        """Flush some writes one after the other, as long as they fit into the log."""
        for _ in range(self._chance.choice((1, 1, 2, 4))):
            changes = self._work.changes_of_blocks(container)
            (durable,) = self._old
            wanted = self._judge.know_after(durable, changes)
            self._expect([durable], wanted)
            try:
                is_logged = container.log(changes)
            except NoSpace as error:
                self._count_refusal(error)
                self._logged += changes
                self._expect([durable, wanted], None)  # until a commit takes it in, like all that was logged
                return
            if is_logged:
                container.sync_log()
                self._logged += changes
                self.figures["flushes"] += 1
            self._expect([wanted if is_logged else durable], None)
            self._machine.forget_dropped()

    def _commit(self, container: Container) -> None:
        """Commit; after a lack of space perhaps once more, else give up."""
        wanted, begun = self._judge.know(container), self._machine.number
        self._expect(self._old, wanted)
        for has_tried in (False, True):
            try:
                container.commit()
                break
            except NoSpace as error:
                self._count_refusal(error)
                if has_tried or self._chance.random() < 0.5:
                    self._expect(self._old, None)
                    self._abort(container)
                    return
        if self._machine.number == begun:
            # Nothing had been changed, so nothing was written. What an earlier process left in the cache is no more
            # durable than before: this commit promises nothing for that one's.
            self._expect(self._old, None)
            return
        self.figures["commits"] += 1
        self._logged.clear()
        self._current, self._is_settled = wanted, True
        self._expect([wanted], None)

    def _commit_before_the_log(self, container: Container) -> None:
        """Delete something, and commit that before what was logged."""
        container.keep_log()
        try:
            self._work.delete(container)
        except NoSpace as error:
            self._count_refusal(error)
            self._abort(container)
            return
        here = self._judge.know(container)
        self._logged = [change for change in self._logged if not change.node.is_gone]
        wanted, begun = self._judge.know_after(here, self._logged), self._machine.number
        self._expect(self._old, wanted)
        try:
            container.commit()
        except NoSpace as error:
            self._count_refusal(error)
            self._expect(self._old, None)
            self._abort(container)
            return
        self.figures["commits before the log"] += self._machine.number > begun
        self._current = here
        self._expect([wanted], None)

    def _abort(self, container: Container) -> None:
        container.abort()
        self.figures["aborts"] += 1
        if self._judge.know(container) != self._current:
            raise Finding(self._where("an aborted transaction left something behind"))

    def _count_refusal(self, error: NoSpace) -> None:
        self.figures["refused at capacity" if "capacity" in str(error) else "refused by a full disk"] += 1

    def _cut_power(self) -> None:
        self.figures["power cuts in mid-history"] += 1
        images = [self._machine.newest_image(), *self._machine.some_images(self._chance, 1)]
        image = self._chance.choice(images)
        state = self._known(self._judge(bytes(image)), "after a power cut")
        self._machine.cut_power(image)
        self._expect([state], None)

    def _settle_on(self, state: Known) -> None:
        """A session has opened `state`: from its first sync on nothing else will do."""
        self.figures["sessions that adopted a commit in flight"] += state == self._new
        self._current, self._is_settled = state, False
        self._expect([*self._old, *([self._new] if self._new is not None else [])], None)

    def _expect(self, old: list[Known], new: Known | None) -> None:
        self._old, self._new = old, new
        self._seen.clear()

    # The search

    def _look(self, method: str) -> None:
        """Judge states that a power cut may leave now; `Machine` calls it at every operation."""
        if method == "synced":
            if not self._is_settled:
                self._is_settled = True
                self._old = [self._current]
            self._seen.clear()
        elif method == "sync":
            self._look_at_window()
        else:
            for number, image in enumerate(self._machine.some_images(self._looks, 1)):
                self._examine(image, f"drawn state {number}")
        self._examine(self._machine.newest_image(), "nothing lost")

    def _look_at_window(self) -> None:
        """Judge what a power cut may leave just before a sync ends: all of it, or much if that is too much."""
        images = self._machine.every_image()
        if images is not None:
            self.figures["windows"] += len(images) > 1
            self.figures["windows searched in full"] += len(images) > 1
            for number, image in enumerate(images):
                self._examine(image, f"state {number} of all {len(images)}")
            return
        self.figures["windows"] += 1
        for number, image in enumerate(self._machine.whole_subsets()):
            self._examine(image, f"whole operations {number:b}")
        for number, image in enumerate(self._machine.some_images(self._looks, 12)):
            self._examine(image, f"drawn state {number}")

    def _examine(self, image: bytearray, which: str) -> None:
        frozen = bytes(image)
        if (mark := hash(frozen)) in self._seen:
            return
        self._seen.add(mark)
        self.figures["states"] += 1
        verdict = self._judge(frozen)
        if not self._is_made and isinstance(verdict, str):
            return
        self._known(verdict, which)
        if self._looks.random() < _GO_ON:
            self._go_on(frozen, which)

    def _known(self, verdict: Known | str, which: str) -> Known:
        """Hold a verdict against what may be found now."""
        if isinstance(verdict, str):
            raise Finding(self._where(f"{which}: {verdict}"))
        if self._is_made and verdict not in self._old and verdict != self._new:
            raise Finding(self._where(f"{which}: {self._difference(verdict)}"))
        return verdict

    def _go_on(self, image: bytes, which: str) -> None:
        """What the crash left can be changed, committed and judged again."""
        self.figures["states gone on with"] += 1
        backend = MemoryBackend(image)
        with Container.adopt(backend) as container:
            work = Workload(random.Random(self._looks.random()), "on")
            wanted = self._judge.know(container)
            try:
                work.change(container)
                wanted = self._judge.know(container)
                container.commit()
            except NoSpace:
                container.abort()
                wanted = self._judge.know(container)
        verdict = self._judge(bytes(backend.data))
        if verdict != wanted:
            what = verdict if isinstance(verdict, str) else "not what was committed"
            raise Finding(self._where(f"{which}, written to and committed: {what}"))

    def _difference(self, found: Known) -> str:
        """What is wrong with a state, in words."""
        nearest = min([*self._old, *([self._new] if self._new is not None else [])], key=lambda s: len(s ^ found))
        names = sorted({name for name, _ in nearest ^ found})
        return f"neither the last commit nor the one in flight: {', '.join(names)} differ from the nearer of them"

    def _where(self, what: str) -> str:
        machine = self._machine
        return (
            f"seed {self.seed}, operation {machine.number} ({machine.last}): {what}\n"
            f"again: python -m tests.reliability.crash_search 1 {self.command}--seed {self.seed}"
        )


class LogHistory(History):
    """One in which most of what happens is flushed to the log."""

    command = "--log "
    fates = (None, Fate.DEATH, Fate.DEATH, Fate.FAILED_SYNC)
    rounds = range(2, 10)
    changes = (0, 0, 1)
    ends_with_a_flush = 0.2

    def _make(self) -> None:
        super()._make()
        with Container.adopt(self._machine) as container:
            container.create_volume("db", 20 * container.block_size - 100)
            self._current = self._judge.know(container)
            self._expect(self._old, self._current)
            if container.capacity_bytes is None:
                container.make_log()
            container.commit()
            self._expect([self._current], None)


@contextmanager
def _closing(container: Container) -> Iterator[Container]:
    """Close at the end, unless the process died; after a failure nothing may be possible but that."""
    try:
        yield container
    except IoFailure:
        try:
            container.commit()
        except SnapctlError:
            container.close()
            raise
        raise Finding("a container was committed to after a failure") from None
    container.close()


@contextmanager
def _small_scale() -> Iterator[None]:
    """Small containers have no runs of 1 MiB; let shorter ones be punched out. Let logs be small as well.

    And let superblocks be parsed once: the same bytes come again with each state.
    """
    parse_once = lru_cache(1000)(parse)
    with (
        replaced(spacemap, "_PUNCH_BYTES", _PUNCH_BYTES),
        replaced(log, "_TABLES", _LOG_TABLES),
        replaced(superblocks, "parse", parse_once),
        replaced(check_superblocks, "parse", parse_once),
    ):
        yield
