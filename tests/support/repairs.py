"""A family of nodes to damage and repair, and the yardstick of repairs: what could be read and what can be now."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.engine.node import Node
from snapctl.errors import Corruption, DataLost
from snapctl.format.geometry import Geometry
from snapctl.services.check import Finding, check_backend
from snapctl.services.repair import Repair, repair_backend
from snapctl.storage.store import Store
from tests.support.backends import MemoryBackend
from tests.support.states import pattern


class View(NamedTuple):
    """What can be seen of a node.

    Attributes:
        content: its bytes, zeros in the place of blocks that cannot be read.
        lost: the blocks that cannot be read.
        block_size: in bytes.
    """

    content: bytes
    lost: frozenset[int]
    block_size: int

    def block(self, block_no: int) -> bytes | None:
        """The bytes of a block; None if it cannot be read."""
        if block_no in self.lost:
            return None
        return self.content[block_no * self.block_size : (block_no + 1) * self.block_size]

    @property
    def blocks(self) -> range:
        """The numbers of all its blocks."""
        return range(-(-len(self.content) // self.block_size))


Views = dict[str, View]


def view_of(node: Node, refusal: type[Corruption] = Corruption) -> View:
    """Look at every block of a node; any other refusal than the one given is raised."""
    size = node.container.block_size
    content = bytearray(node.size_bytes)
    lost: set[int] = set()
    pending = [(0, node.container.geometry.blocks(node.size_bytes))]
    while pending:
        start, stop = pending.pop()
        view = memoryview(content)[start * size : stop * size]
        try:
            node.read_into(start * size, view)
        except refusal as error:
            view[:] = bytes(len(view))
            first, end = error.bytes_affected or (0, 0)
            middle = (start + stop) // 2
            # To save time, a range is believed to be lost that is said to be, when it is so at its ends and amidst.
            samples = {start, middle, stop - 1} if first <= start * size and stop * size <= end + size - 1 else ()
            if stop - start == 1 or (samples and not any(_is_readable(node, block_no) for block_no in samples)):
                lost.update(range(start, stop))
            else:
                pending += [(start, middle), (middle, stop)]
    return View(bytes(content), frozenset(lost), size)


def _is_readable(node: Node, block_no: int) -> bool:
    size = node.container.block_size
    try:
        node.read(block_no * size, min(size, node.size_bytes - block_no * size))
    except Corruption:
        return False
    return True


def views_in(image: bytes | bytearray, refusal: type[Corruption] = Corruption) -> Views:
    """Look at every node of a file that can be looked at; with a narrower refusal, at every node."""
    views: Views = {}
    try:
        container = Container.adopt(MemoryBackend(image), writable=False)
        nodes = container.nodes
    except Corruption:
        if refusal is not Corruption:
            raise
        return views
    for node in nodes:
        try:
            name = node.name
        except Corruption:  # its origin is lost
            continue
        views[name] = view_of(node, refusal)
    return views


@cache
def family(block_size: int = 512, table_size: int = 512, cow: Cow = Cow.REDIRECT) -> bytes:
    """A file with volumes, snapshots in the middle of chains, and clones of them three deep; all pages differ.

    db - 3 - 2 - 1, dev (of db@2) - 2 - 1, lab (of dev@1) - 1; and log - 1.
    """
    geometry = Geometry(block_size, table_size)
    backend = MemoryBackend()
    container = Container.format(backend, geometry)
    size, far = block_size, far_block(geometry)
    seeds = iter(range(1, 100))

    def write(name: str, first: int, count: int) -> None:
        container[name].write(first * size, pattern(next(seeds), count * size))
        container.commit()

    container.create_volume("db", (far + 8) * size + 100, cow=cow)
    container.create_volume("log", 5 * size, cow=Cow.COPY)
    write("db", 0, 6)
    write("db", far - 1, 3)
    container["db"].write(container["db"].size_bytes - 50, pattern(next(seeds), 50))
    write("log", 0, 5)
    container.snapshot("db@1", "log@1")
    write("db", 1, 2)
    write("db", far + 3, 1)  # PASS in db@1
    write("log", 1, 2)
    container.snapshot("db@2")
    write("db", 0, 1)
    container.snapshot("db@3")
    write("db", 2, 1)
    container.clone("db@2", "dev")
    write("dev", 3, 1)
    container["dev"].trim(4 * size, size)
    container.snapshot("dev@1")
    write("dev", 0, 1)  # PASS in dev@1
    write("dev", 3, 1)
    write("dev", far, 1)
    container.snapshot("dev@2")
    write("dev", 1, 1)
    container.clone("dev@1", "lab")
    write("lab", 5, 1)
    container.snapshot("lab@1")
    write("lab", 5, 1)
    write("lab", 0, 1)
    return settled(bytes(backend.data))


def settled(image: bytes) -> bytes:
    """A file whose last state is committed once more, so that there is no other for a repair to go back to."""
    backend = MemoryBackend(image)
    store = Store.adopt(backend, writable=True)
    store._seal(store.superblock)
    store.make_durable()
    return bytes(backend.data)


def far_block(geometry: Geometry) -> int:
    """A block of db under another second table than the first; where that would be far, another third or none."""
    edges = (geometry.fanout**2, geometry.fanout, 8)
    return next(blocks for blocks in edges if blocks * geometry.block_size <= 1 << 20)


@cache
def truth(block_size: int = 512, table_size: int = 512, cow: Cow = Cow.REDIRECT) -> Views:
    """What every node of `family` reads as."""
    return views_in(family(block_size, table_size, cow), DataLost)


def repair(backend: MemoryBackend) -> Repair:
    """Repair a file; it has to be sound afterwards, and a second repair has to find nothing to do."""
    outcome = repair_backend(backend, agree=lambda _: True)
    report = check_backend(backend)
    assert [finding for finding in report.findings if finding.severity.is_fault] == []
    if outcome.found.exit_code:
        assert outcome.applied
        assert outcome.exit_code == 0
    image = bytes(backend.data)
    again = repair_backend(backend, agree=lambda _: True)
    assert (again.actions, again.applied, bytes(backend.data)) == ([], False, image)
    return outcome


def former_names(outcome: Repair) -> dict[str, str]:
    """By the new name, the former name of each node that a repair says it has renamed; '' if it was made by it."""
    names: dict[str, str] = {}
    for action in outcome.actions:
        if action.message.startswith("was "):
            names[action.where] = action.message.removeprefix("was ").partition(";")[0]
        elif action.message.startswith("made in the place of"):
            names[action.where] = ""
    return names


def assert_kept(outcome: Repair, after: Views, before: Views, undamaged: Views) -> None:
    """Hold that nothing that could be read before was lost, and that whatever can be read now is right."""
    names = former_names(outcome)
    former = {names.get(name, name): view for name, view in after.items()}
    assert before.keys() <= former.keys(), outcome.actions
    for name, view in after.items():
        was = names.get(name, name)
        if not was:
            assert view.lost == set(view.blocks), name
            continue
        volume, at, snapshot = was.partition("@")
        # Of a snapshot whose volume is lost with its name, nothing but its own name is known.
        rights = (
            [undamaged[was]] if was in undamaged else [undamaged[name] for name in undamaged if at + snapshot in name]
        )
        seen = before.get(was)
        assert volume.startswith("#") or len(rights) == 1
        for block_no in view.blocks:
            found = view.block(block_no)
            assert found is None or found in [right.block(block_no) for right in rights], (name, block_no)
            if seen is not None and seen.block(block_no) is not None:
                assert found is not None, (name, block_no)


def assert_usable(backend: MemoryBackend) -> None:
    """Hold that a repaired container can be written, snapshotted, cloned and deleted from, and stays sound."""
    container = Container.adopt(backend)
    size = container.block_size
    volumes = container.volumes
    for volume in volumes:
        container.snapshot(f"{volume.name}@new")
    for volume in volumes:
        length = min(3 * size, volume.size_bytes)
        old, new = view_of(volume), pattern(77, length)
        volume.write(0, new)
        assert volume.read(0, length) == new
        snapshot = container[f"{volume.name}@new"]
        assert view_of(snapshot, DataLost) == old
    for volume in volumes:
        container.clone(f"{volume.name}@new", f"{volume.name[:50]}-clone").write(0, b"x" * min(size, volume.size_bytes))
    container.commit()
    assert check_backend(backend).exit_code == 0
    for volume in volumes[::2]:
        if not volume.is_gone:
            container.delete(volume.name, cascade=True)
    container.commit()
    assert check_backend(backend).exit_code == 0


def faults_in(image: bytes | bytearray) -> list[Finding]:
    """What a check finds, superblock copies apart: to write them anew is the first that a repair does."""
    found = check_backend(MemoryBackend(image)).findings
    return [finding for finding in found if not finding.where.startswith("superblock slot")]
