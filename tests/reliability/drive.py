"""Everything that people do to a container, done to a hostile image; and what must hold whatever stands in it.

`drive` opens the image for reading and looks at it in all ways, scrubs it, repairs it and undoes that, then opens it
for writing and takes the steps of the input. A `SnapctlError` is a right answer to anything. What is not:

- any other exception, more work or memory than the image warrants, a message or a name that does not print;
- bytes that the oracle finds nowhere behind a right checksum;
- a lack of space that is reported as a failure of the disk;
- a write or a punch that hits the superblock area (but for a whole superblock in its place) or a unit that one of the
  two last commits has in use;
- in a container that `check` finds clean: a `Corruption` from anything but a LOST block, a finding after a change, or
  another node's content changed by it.

What an image brought about comes back as a set of notes, by which the fuzzer tells new behaviour from old.
"""

from __future__ import annotations

import re
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from snapctl.cli import ancestry, report
from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.engine.node import Node
from snapctl.errors import Corruption, DataLost, IoFailure, NoSpace, Poisoned, SnapctlError
from snapctl.format.geometry import SUPERBLOCK_AREA
from snapctl.format.superblock import COPIES, SLOTS, copy_offset, parse
from snapctl.services.check import check_backend
from snapctl.services.repair import repair_backend
from snapctl.services.scrub import scrub_backend
from snapctl.storage.backend import Buffer
from snapctl.storage.store import undo_repair
from snapctl.storage.superblocks import choose_superblocks
from tests.reliability.forgery import Step
from tests.reliability.oracle import Oracle, Piece
from tests.support.backends import MemoryBackend

MOST_READS = 20_000
"""Reads of the file for all that is done while it is open; without damage it is some hundreds."""
MOST_SECONDS = 20
"""Processor time after which an image counts as hanging though it reads nothing: the last resort."""
_MOST_BYTES = 256 << 20
"""Memory that the process may take beyond what it has."""
_DISK_BYTES = 64 << 20
"""Size of the disk that a container stands on; a forged map may send the allocator anywhere."""
_RELATIONS: tuple[ancestry.Relation, ...] = ("parent", "origin")
_BLOCKS_AT_FRONT, _BLOCKS_AT_END = 1 << 16, 1 << 10
"""How much of a node is read."""
_FAILED_READS = 48
"""Reads of one node that may fail before the rest of it is left alone."""

Notes = set[str]
T = TypeVar("T")


class Broken(AssertionError):
    """Something happened that must not happen, whatever stands in the file."""


class Endless(BaseException):
    """More work than any image of this size warrants. Not an `Exception`, so that nobody catches it on the way."""


class SmallDisk(MemoryBackend):
    """A file in memory on a disk that is soon full."""

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        if offset + sum(map(len, buffers)) > _DISK_BYTES:
            raise NoSpace("the disk is full")
        super().write(offset, buffers)

    def extend(self, size: int) -> None:
        if size > _DISK_BYTES:
            raise NoSpace("the disk is full")
        super().extend(size)


class GuardedBackend(SmallDisk):
    """A file in memory that watches how much is read and where is written."""

    def __init__(self, data: bytes | bytearray) -> None:
        super().__init__(data)
        self._reads = 0
        self._oracle: Oracle | None = None

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        self._reads += 1
        if self._reads > MOST_READS:
            raise Endless(f"more than {MOST_READS} reads")
        if offset < 0:
            raise Broken(f"read at {offset}")
        return super().read_into(offset, buffer)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        if offset < SUPERBLOCK_AREA:
            places = {copy_offset(slot, copy) for slot in range(SLOTS) for copy in range(COPIES)}
            try:
                parse(data)
            except SnapctlError as error:
                raise Broken(f"a write to {offset}, in the superblock area, of no superblock: {error}") from error
            if offset not in places:
                raise Broken(f"a superblock at {offset}, where none belongs")
            self._oracle = None
        else:
            self._check_free("write", offset, len(data))
        super().write(offset, [data])

    def punch(self, offset: int, length: int) -> None:
        self._check_free("punch", offset, length)
        super().punch(offset, length)

    def _check_free(self, what: str, offset: int, length: int) -> None:
        if self._oracle is None:
            self._oracle = Oracle(self.data)
        unit = self._oracle.superblock.geometry.unit
        for number in range(offset // unit, -(-(offset + length) // unit)):
            if self._oracle.is_in_use(number):
                raise Broken(f"{what} at {offset} hits unit {number}, which is in use as far as the map tells")


class Run:
    """One image under test.

    Attributes:
        image: its bytes as forged.
        notes: what happened so far.
        is_clean: `check` found nothing in it.
        oracle: reads it; None if it has no superblock.
    """

    def __init__(self, image: bytes) -> None:
        self.image = image
        self.notes: Notes = set()
        self.is_clean = False
        self.oracle: Oracle | None = None
        with suppress(SnapctlError):
            self.oracle = Oracle(image)

    def attempt(self, call: Callable[..., T], *arguments: Any) -> T | None:
        """What a call returns; None after a `SnapctlError`, of which note is taken."""
        try:
            return call(*arguments)
        except SnapctlError as error:
            self.note_error(error)
            return None

    def note_error(self, error: SnapctlError) -> None:
        require_printable(str(error))
        if self.is_clean and isinstance(error, Corruption) and not isinstance(error, DataLost):
            raise Broken(f"check finds the container clean, yet: {error}") from error
        if isinstance(error, IoFailure) and not isinstance(error, Poisoned):
            raise Broken(f"a lack of space became a failure: {error}") from error
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        code = trace.tb_frame.f_code if trace else None
        where = f"{code.co_filename.rpartition('snapctl/')[2]}:{code.co_name}" if code else "?"
        self.notes.add(f"{type(error).__name__} {where}: {shape(str(error))}")

    def check(self, data: bytes | bytearray) -> int | None:
        """The exit code of a check; None if there is no container."""
        checked = self.attempt(check_backend, GuardedBackend(data))
        if checked is None:
            return None
        for finding in checked.findings:
            require_printable(finding.where + finding.message)
            self.notes.add(f"check {shape(finding.message)}")
        return int(checked.exit_code)


def drive(image: bytes, steps: Sequence[Step]) -> Notes:
    """Do everything to an image; raises `Broken`, or what nobody caught, if anything goes wrong."""
    run = Run(image)
    with _bounded():
        for do in (check_it, look_at_it, scrub_it, repair_it):
            do(run)
        change_it(run, steps)
    return run.notes


def check_it(run: Run) -> None:
    """Check the image, and find whether it is a clean one whose numbers do not end before the steps do."""
    code = run.check(run.image)
    if run.oracle is not None:
        numbers = run.oracle.superblock.next_node_id, run.oracle.superblock.transaction
        run.is_clean = code == 0 and max(numbers) < 1 << 62


def look_at_it(run: Run) -> None:
    """Open for reading; list, draw and read."""
    container = run.attempt(_open, GuardedBackend(run.image), False)
    if container is None:
        return
    run.attempt(_describe_container, container)
    nodes = run.attempt(_nodes, container)
    if nodes is not None:
        _draw(run, nodes, container)
    else:
        ids = range(1, min(container._list.next_id, 64))
        nodes = [node for node in (run.attempt(container.by_id, i) for i in ids) if node is not None]
    for node in nodes:
        run.attempt(_describe_node, node)
        read_node(run, node)


def change_it(run: Run, steps: Sequence[Step]) -> None:
    """Open for writing, take the steps, commit; then look at what has come of it."""
    backend = GuardedBackend(run.image)
    container: Container | None = run.attempt(_open, backend, True)
    if container is None:
        return
    before = run.oracle
    touched: set[int] = set()
    for step in steps:
        if step[0] == "reopen":
            run.attempt(container.commit)
            run.attempt(container.close)
            container = run.attempt(_open, backend, True)
            if container is None:
                break
            continue
        _take(run, container, step, touched)
        if not _is_whole(container) and run.attempt(_aborted, container) is None:
            break
    if container is not None:
        run.attempt(container.commit)
        run.attempt(container.close)
    if not run.is_clean:
        run.check(backend.data)
        return
    if run.check(backend.data) != 0:
        raise Broken("check found the container clean before the steps, but not after them")
    _compare(before, Oracle(backend.data), touched)


def scrub_it(run: Run) -> None:
    """Scrub; what a check finds clean has nothing that a scrub minds."""
    found = run.attempt(scrub_backend, GuardedBackend(run.image))
    if found is None:
        return
    for damage in found.damages:
        require_printable(damage.owner + damage.what + damage.cause + "".join(hit.node for hit in damage.affected))
        run.notes.add(f"scrub {shape(damage.cause)}")
    if run.is_clean and found.exit_code:
        raise Broken("check finds the container clean, scrub does not")


def repair_it(run: Run) -> None:
    """Repair, and undo that: sound in between, nothing but superblocks changed below the end."""
    planned = run.attempt(lambda: repair_backend(SmallDisk(run.image), agree=None))
    if planned is None:
        return
    backend = SmallDisk(run.image)
    outcome = run.attempt(lambda: repair_backend(backend, agree=lambda _: True))
    if outcome is None:
        return
    for action in outcome.actions:
        require_printable(action.where + action.message)
    if outcome.actions != planned.actions:
        raise Broken("a dry run tells other actions than the repair")
    if not outcome.applied:
        return
    if run.check(backend.data) != 0:
        raise Broken("not sound after a repair")
    before, _ = choose_superblocks(SmallDisk(run.image))
    unit = before.geometry.unit
    kept = min(before.pages_total, len(run.image) // unit) * unit
    if backend.data[SUPERBLOCK_AREA:kept] != run.image[SUPERBLOCK_AREA:kept]:
        raise Broken("a repair has written below the end")
    if choose_superblocks(backend)[0].repaired_from:
        run.attempt(undo_repair, backend)
        run.check(backend.data)


def read_node(run: Run, node: Node) -> None:
    """Read a node wherever it says that it has data, and at the edges of what it says to be zeros."""
    assert run.oracle is not None
    size = node.container.block_size
    blocks = -(-node.size_bytes // size)
    # A few pages may stand for terabytes, and whoever reads all of those waits: that is as it is with honest ones.
    windows = [(0, min(blocks, _BLOCKS_AT_FRONT)), (max(_BLOCKS_AT_FRONT, blocks - _BLOCKS_AT_END), blocks)]
    extents = [
        extent
        for first, stop in windows
        if first < stop
        for extent in _extents(run, node, first * size, min(stop * size, node.size_bytes))
    ]
    failures = _FAILED_READS
    pending = [(start, min(end, start + 2048 * size)) for start, end in reversed(extents)]
    while pending and failures:
        start, end = pending.pop()
        data = run.attempt(node.read, start, end - start)
        if data is not None:
            wrong = run.oracle.differs(node.id, start, data)
            if wrong:
                raise Broken(f"{node.name}: {wrong}")
            continue
        failures -= 1
        if end - start > size:
            middle = start + max(size, (end - start) // 2 // size * size)
            pending += [(middle, end), (start, middle)]


def _extents(run: Run, node: Node, start: int, end: int) -> list[tuple[int, int]]:
    """Where to read in a range: all data, the edges of zeros, and all that is left after an error."""
    size = node.container.block_size
    found: list[tuple[int, int]] = []
    try:
        for extent in node.extents(start, end - start):
            stop = extent.offset_bytes + extent.length_bytes
            if extent.is_zero and extent.length_bytes > 64 * size:
                found += [(start, start + size), (stop - size, stop)]
            else:
                found.append((start, stop))
            start = stop
    except SnapctlError as error:
        run.note_error(error)
        found.append((start, min(end, start + 4096 * size)))
    return found


def require_printable(text: str) -> None:
    """Hold that a text is one line which no terminal takes for commands."""
    if not text.isprintable():
        raise Broken(f"does not print: {text!r}")


def _open(backend: GuardedBackend, writable: bool) -> Container:
    return Container.adopt(backend, writable=writable)


def _nodes(container: Container) -> list[Node]:
    return container.nodes


def _describe_node(node: Node) -> None:
    for _, value in report.node_lines(node, datetime.now(UTC)):
        require_printable(value)
    require_printable(str(report.node_details(node)))


def _describe_container(container: Container) -> None:
    for _, value in report.container_lines(container):
        require_printable(value)
    require_printable(str(report.container_fields(container)))


def _draw(run: Run, nodes: list[Node], container: Container) -> None:
    for relation in _RELATIONS:
        forest = run.attempt(ancestry.Ancestry, nodes, relation)
        if forest is not None:
            run.attempt(_draw_forest, forest, container)


def _draw_forest(forest: ancestry.Ancestry, container: Container) -> None:
    for guides in (ancestry.ASCII, ancestry.UNICODE):
        for before, node in forest.draw(forest.roots, guides):
            require_printable(f"{before}{node.name}{node.size_bytes}{node.own_bytes}{report.timestamp(node.created)}")
    for line in ancestry.graphviz(forest.below(forest.roots), forest.relation):
        require_printable(line)
    for piece in report.nested_json(container, forest.roots, forest.children):
        require_printable(piece.replace("\n", ""))


def _take(run: Run, container: Container, step: Step, touched: set[int]) -> None:
    name, *arguments = step
    if name in _ON_NODES:
        ids = list(container._list)
        if not ids:
            return
        node = run.attempt(container.by_id, ids[arguments[0] % len(ids)])
        if node is None:
            return
        # Whatever a deletion takes along is gone and not compared; all others are to read as before.
        if name in {"write", "trim", "resize"}:
            touched.add(node.id)
        run.attempt(_ON_NODES[name], node, *arguments[1:])
    else:
        run.attempt(_ON_CONTAINERS[name], container, *arguments)


def _write(node: Node, offset: int, length: int, seed: int) -> None:
    data = b"".join(b"%02d%05d\n" % (seed % 100, i) for i in range(length // 8 + 1))[:length]
    node.write(offset, data)
    if node.read(offset, length) != data:
        raise Broken(f"{node.name} does not read as what was just written at {offset}")


def _trim(node: Node, offset: int, length: int) -> None:
    node.trim(offset, length)
    if any(node.read(offset, length)):
        raise Broken(f"{node.name} does not read as zeros where it was just trimmed at {offset}")


def _delete(node: Node, cascade: int) -> None:
    _of(node).delete(node.name, cascade=bool(cascade))


def _of(node: Node) -> Container:
    assert isinstance(node.container, Container)
    return node.container


def _create(container: Container, name: str, size_bytes: int, is_copy: int) -> None:
    container.create_volume(name, size_bytes, cow=Cow.COPY if is_copy else Cow.REDIRECT)


def _bound_tables(container: Container, most: int) -> None:
    container.most_resident_tables = most


_ON_NODES: dict[str, Callable[..., object]] = {
    "write": _write,
    "trim": _trim,
    "resize": lambda node, size_bytes: node.resize(size_bytes, shrink=True),
    "snapshot": lambda node, name: _of(node).snapshot(f"{node.name}@{name}"),
    "clone": lambda node, name: _of(node).clone(node.name, name),
    "rename": lambda node, name: _of(node).rename(node.name, name),
    "delete": _delete,
}
_ON_CONTAINERS: dict[str, Callable[..., object]] = {
    "create": _create,
    "commit": lambda container: container.commit(),
    "abort": lambda container: container.abort(),
    "preview": lambda container: container.preview_used_bytes(),
    "bound": _bound_tables,
}


def _is_whole(container: Container) -> bool:
    try:
        container.check_whole()
    except SnapctlError:
        return False
    return True


def _aborted(container: Container) -> bool:
    container.abort()
    return True


def _compare(before: Oracle | None, after: Oracle, touched: set[int]) -> None:
    """Hold that nodes which nothing was done to read as before, as far as they are still there."""
    assert before is not None
    for node_id in before.ids & after.ids - touched:
        then, now = before.digest(node_id), after.digest(node_id)
        if then != now:
            raise Broken(f"node {node_id}, to which nothing was done, reads differently: {_first(then, now)}")


def _first(then: list[Piece], now: list[Piece]) -> str:
    pairs = zip(then, now, strict=False)
    return next((f"{a} was {b}"[:200] for b, a in pairs if a != b), "its length has changed")


@contextmanager
def _bounded() -> Iterator[None]:
    """Bound the memory and the processor time of what runs in the block."""

    def out_of_time(_signal: int, _frame: FrameType | None) -> None:
        raise Endless(f"more than {MOST_SECONDS} seconds of processor time")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = Path("/proc/self/statm")
    if taken.exists():
        held = int(taken.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + _MOST_BYTES, hard))
    handler = signal.signal(signal.SIGVTALRM, out_of_time)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)


def shape(message: str) -> str:
    """A message without what differs from image to image: numbers, names and whatever is quoted."""
    message = re.sub(r"'[^']*'|bad name .*: use|, [a-z ,]+ in its record", "Q", message)
    message = re.sub(r"\b(?:db|log|dev|lab|n\d|mon|tue|[abx]|a{9,}|x{9,})\b(?!')(?:@[\w.-]+)?", "N", message)
    return re.sub(r"#?\b(?:0x[0-9a-f]+|\d+)\b|\d+", "N", message).replace("N@N", "N")[:120]
