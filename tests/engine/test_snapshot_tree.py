"""The whole engine against a plain model: a volume is a `bytearray`, a snapshot a copy of it.

After every step each node must read as its model says and own as many blocks as its tables point to; whenever the
state is committed, `check` must be clean. Blocks and tables of 512 bytes make three full levels of tables of 16 MiB,
and ranges are drawn at the scale of every level, so that entries that cover whole subtrees are made, split and handed
over at each of them.
"""

from __future__ import annotations

from array import array

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snapctl.engine.container import Container
from snapctl.engine.model import Cow, Kind
from snapctl.engine.node import Node
from snapctl.engine.reading import resolve
from snapctl.engine.runs import Run
from snapctl.errors import BadSize, HasDependents
from snapctl.format.geometry import Geometry
from snapctl.format.pointer import KIND_SHIFT, PAGE, PASS
from snapctl.services.check import check_backend
from snapctl.storage.backend import Buffer
from tests.support.backends import MemoryBackend
from tests.support.states import content_of

BLOCK = 512
LEAF = BLOCK * 32
SUBTREE = LEAF * 32
LARGEST = SUBTREE * 32
DEEPEST = 4

sizes = st.one_of(
    st.integers(1, 4 * BLOCK),
    st.integers(1, 40).map(lambda count: count * LEAF),
    st.integers(1, 3 * SUBTREE + BLOCK),
    st.just(LARGEST),
)


@st.composite
def ranges(draw: st.DrawFn, size: int) -> tuple[int, int]:
    """A range in bytes inside `size`, at the scale of bytes, blocks, leaves or subtrees."""
    unit = draw(st.sampled_from([1, BLOCK, LEAF, SUBTREE]))
    offset = draw(st.integers(0, (size - 1) // unit)) * unit
    length_unit = draw(st.sampled_from([1, BLOCK, LEAF, SUBTREE]))
    length = draw(st.integers(1, 40)) * length_unit
    return offset, min(length, size - offset)


def depth(node: Node) -> int:
    """How many RW snapshots lie between a node and its base."""
    count = 0
    current: Node | None = node
    while current is not None:
        count += current.kind is Kind.RW
        current = current.parent
    return count


class SnapshotTree(RuleBasedStateMachine):
    """Steps that the engine and the model take together."""

    commits_each_step = False
    prefers_deep = False
    reads_in_full = True
    most_nodes = 14
    largest = LARGEST

    def __init__(self) -> None:
        super().__init__()
        self.models: dict[int, bytearray] = {}
        self.committed: dict[int, bytes] = {}
        self.made = 0
        self.is_committed = True

    @initialize(geometry=st.sampled_from([(512, 512), (512, 512), (1024, 512), (512, 1024)]))
    def begin(self, geometry: tuple[int, int]) -> None:
        self.backend = MemoryBackend()
        self.container = Container.format(self.backend, Geometry(*geometry))

    def fresh_name(self) -> str:
        self.made += 1
        return f"n{self.made}"

    def draw_node(self, data: st.DataObject, *kinds: Kind) -> Node:
        nodes = [node for node in self.container.nodes if node.kind in kinds]
        nodes.sort(key=depth, reverse=self.prefers_deep)
        return data.draw(st.sampled_from(nodes), label="node")

    def changed(self) -> None:
        self.is_committed = False
        if self.commits_each_step:
            self.commit()

    def has(self, *kinds: Kind) -> bool:
        return any(node.kind in kinds for node in self.container.nodes)

    def has_volume(self) -> bool:
        return self.has(Kind.BASE, Kind.RW)

    def has_room(self) -> bool:
        return len(self.models) < self.most_nodes

    @precondition(has_room)
    @rule(size=sizes, cow=st.sampled_from(list(Cow)))
    def create(self, size: int, cow: Cow) -> None:
        size = min(size, self.largest, self.container.max_volume_bytes)
        node = self.container.create_volume(self.fresh_name(), size, cow=cow)
        self.models[node.id] = bytearray(size)
        self.changed()

    @precondition(has_volume)
    @rule(data=st.data(), fill=st.binary(min_size=1, max_size=3 * BLOCK), repeat=st.integers(1, 30))
    def write(self, data: st.DataObject, fill: bytes, repeat: int) -> None:
        node = self.draw_node(data, Kind.BASE, Kind.RW)
        offset, length = data.draw(ranges(node.size_bytes), label="range")
        content = (fill * repeat)[:length]
        node.write(offset, content)
        self.models[node.id][offset : offset + len(content)] = content
        self.changed()

    @precondition(has_volume)
    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        node = self.draw_node(data, Kind.BASE, Kind.RW)
        offset, length = data.draw(ranges(node.size_bytes), label="range")
        node.trim(offset, length)
        self.models[node.id][offset : offset + length] = bytes(length)
        self.changed()

    @precondition(has_volume)
    @rule(data=st.data(), size=sizes, scale=st.sampled_from(["any", "near"]))
    def resize(self, data: st.DataObject, size: int, scale: str) -> None:
        node = self.draw_node(data, Kind.BASE, Kind.RW)
        if scale == "near":
            size = node.size_bytes + data.draw(st.integers(-3 * BLOCK, 3 * BLOCK), label="by")
        size = min(size, self.largest)
        model = self.models[node.id]
        if not 1 <= size <= self.container.max_volume_bytes:
            try:
                node.resize(size, shrink=True)
            except BadSize:
                return
            raise AssertionError(f"a size of {size} was taken")
        node.resize(size, shrink=True)
        model.extend(bytes(max(0, size - len(model))))
        del model[size:]
        self.changed()

    @precondition(lambda self: self.has_volume() and self.has_room())
    @rule(data=st.data(), both=st.booleans())
    def snapshot(self, data: st.DataObject, both: bool) -> None:
        volumes = self.container.volumes
        chosen = [self.draw_node(data, Kind.BASE, Kind.RW)]
        if both and volumes[0].id != chosen[0].id:
            chosen.append(volumes[0])
        made = self.container.snapshot(*(f"{node.name}@{self.fresh_name()}" for node in chosen))
        for node, snapshot in zip(chosen, made, strict=True):
            self.models[snapshot.id] = bytearray(self.models[node.id])
        self.changed()

    @precondition(lambda self: bool(self.models) and self.has_room())
    @rule(data=st.data(), deepest=st.booleans())
    def clone(self, data: st.DataObject, deepest: bool) -> None:
        nodes = [node for node in self.container.nodes if depth(node) < DEEPEST]
        source = max(nodes, key=depth) if deepest else data.draw(st.sampled_from(nodes), label="source")
        clone = self.container.clone(source.name, self.fresh_name())
        self.models[clone.id] = bytearray(self.models[source.id])
        assert clone.parent is not None
        self.models.setdefault(clone.parent.id, bytearray(self.models[source.id]))
        self.changed()

    @precondition(lambda self: bool(self.models))
    @rule(data=st.data(), cascade=st.booleans(), several=st.booleans())
    def delete(self, data: st.DataObject, cascade: bool, several: bool) -> None:
        doomed = {self.draw_node(data, *Kind)}
        if several:
            doomed.add(self.draw_node(data, *Kind))
        before = {node.name for node in self.container.nodes}
        try:
            deleted = self.container.delete(*(node.name for node in doomed), cascade=cascade)
        except HasDependents as error:
            in_the_way = set(error.dependents)
        else:
            in_the_way = set()
            assert before - set(deleted) == {node.name for node in self.container.nodes}
            assert cascade or len(deleted) == len(doomed)
        if in_the_way:
            assert not cascade
            assert in_the_way <= before
            self.abort()
            return
        remaining = {node.id for node in self.container.nodes}
        self.models = {node_id: model for node_id, model in self.models.items() if node_id in remaining}
        self.changed()

    @rule()
    def commit(self) -> None:
        expected = self.container.preview_used_bytes()
        self.container.commit()
        if not self.is_committed:
            assert self.container.used_bytes == expected
        self.committed = {node_id: bytes(model) for node_id, model in self.models.items()}
        self.is_committed = True

    @rule()
    def commit_and_reopen(self) -> None:
        self.commit()
        self.container = Container.adopt(self.backend)

    @rule()
    def abort(self) -> None:
        self.container.abort()
        self.models = {node_id: bytearray(model) for node_id, model in self.committed.items()}
        self.is_committed = True

    @invariant()
    def every_node_reads_as_its_model(self) -> None:
        nodes = {node.id: node for node in self.container.nodes}
        assert nodes.keys() == self.models.keys()
        for node_id, node in nodes.items():
            content = node.read(0, node.size_bytes) if self.reads_in_full else content_of(node)
            assert content == self.models[node_id], node.name

    @invariant()
    def every_node_owns_what_its_tables_point_to(self) -> None:
        fanout = self.container.geometry.fanout
        for node in self.container.nodes:
            kinds: list[int] = []
            for first, stop, leaf, word0 in node.tree.spans(0, node.tree.capacity):
                base = first - first % fanout
                words = leaf.words[2 * (first - base) : 2 * (stop - base) : 2] if leaf else [word0]
                kinds.extend(word >> KIND_SHIFT for word in words)
            assert kinds.count(PAGE) == node.own_blocks
            assert node.kind is Kind.RO or PASS not in kinds

    @invariant()
    def check_is_clean_once_committed(self) -> None:
        if self.is_committed:
            assert check_backend(self.backend).findings == []


class CommittingSnapshotTree(SnapshotTree):
    """The same, with a commit after every step."""

    commits_each_step = True


class DeepSnapshotTree(SnapshotTree):
    """The same on a tree that is four clones deep from the beginning, with entries on each level of each of them."""

    prefers_deep = True
    reads_in_full = False
    most_nodes = 24

    @initialize(geometry=st.just((512, 512)), cow=st.sampled_from(list(Cow)))
    def begin(self, geometry: tuple[int, int], cow: Cow) -> None:
        super().begin(geometry)
        volume = self.container.create_volume("v0", 3 * SUBTREE + 100, cow=cow)
        self.models[volume.id] = bytearray(volume.size_bytes)
        for number in range(1, DEEPEST + 1):
            for offset in (0, LEAF, SUBTREE, 2 * SUBTREE - 700):
                content = bytes([number]) * 3 * BLOCK
                volume.write(offset, content)
                self.models[volume.id][offset : offset + len(content)] = content
            clone = self.container.clone(volume.name, f"v{number}")
            assert clone.parent is not None
            self.models[clone.parent.id] = bytearray(self.models[volume.id])
            self.models[clone.id] = bytearray(self.models[volume.id])
            volume = clone
        self.commit()


class ViewedSnapshotTree(SnapshotTree):
    """The same on small volumes full of data, with every view that is kept held against lookups."""

    largest = 2 * LEAF + 100

    @initialize(geometry=st.just((512, 512)))
    def begin(self, geometry: tuple[int, int]) -> None:
        super().begin(geometry)
        for cow in Cow:
            volume = self.container.create_volume(cow.value, self.largest, cow=cow)
            content = bytes(range(1, 251)) * (self.largest // 250 + 1)
            volume.write(0, content[: self.largest])
            (snapshot,) = self.container.snapshot(f"{volume.name}@a")
            clone = self.container.clone(snapshot.name, f"{volume.name}-clone")
            for node in (volume, snapshot, clone):
                self.models[node.id] = bytearray(content[: self.largest])
        self.commit()

    @invariant()
    def what_is_kept_of_a_view_is_what_lookups_end_in_now(self) -> None:
        fanout = self.container.geometry.fanout
        for node in self.container.nodes:
            for leaf_no, words in node.view.items():
                base = leaf_no * fanout
                stop = min(base + fanout, self.container.geometry.blocks(node.size_bytes))
                for piece in resolve(node, base, stop):
                    at = slice(2 * (piece.start - base), 2 * (piece.stop - base))
                    found = piece.words or array("Q", (piece.kind << KIND_SHIFT, 0)) * fanout
                    if words[at] != found[at]:
                        # ABSENT, in one block that a size cuts, for instance, says that it is to be looked up.
                        for i in range(at.start, at.stop, 2):
                            assert words[i] == 0 or words[i : i + 2] == found[i : i + 2], node.name


class AtOnceBackend(MemoryBackend):
    """Reads many ranges at a stroke, as files do."""

    def read_each(self, places: list[tuple[int, int]]) -> list[Buffer] | None:
        return [bytes(self.data[offset : offset + length]) for offset, length in places]


class QuicklyReadSnapshotTree(ViewedSnapshotTree):
    """The same, read by the shortest way too, and with every leaf that is kept for that held against lookups."""

    @initialize(geometry=st.just((512, 512)))
    def begin(self, geometry: tuple[int, int]) -> None:
        super().begin(geometry)
        self.backend = AtOnceBackend(bytes(self.backend.data))
        self.container = Container.adopt(self.backend)

    @precondition(lambda self: self.has_volume())
    @rule(
        data=st.data(), places=st.sets(st.integers(0, 2 * LEAF // BLOCK), min_size=1, max_size=8), first=st.booleans()
    )
    def write_apart(self, data: st.DataObject, places: set[int], first: bool) -> None:
        node = self.draw_node(data, Kind.BASE, Kind.RW)
        inside = [at for at in sorted(places) if (at + 1) * BLOCK <= node.size_bytes]
        runs: list[Run] = [(at, bytes([(at + first) % 3]) * BLOCK) for at in inside]
        node.write_runs(runs)
        for at, block in runs:
            self.models[node.id][at * BLOCK : (at + 1) * BLOCK] = block
        self.changed()

    @rule(may_write=st.booleans())
    def relieve(self, may_write: bool) -> None:
        most, self.container.most_resident_tables = self.container.most_resident_tables, 0
        self.container.relieve(may_write=may_write)
        self.container.most_resident_tables = most

    @invariant()
    def what_is_read_the_shortest_way_is_as_in_the_model(self) -> None:
        for node in self.container.nodes:
            model = self.models[node.id]
            for length in (BLOCK, 5 * BLOCK, LEAF):
                ranges = [(offset, length) for offset in range(0, len(model) - length + 1, BLOCK)]
                for (offset, _), found in zip(ranges, node.read_each(ranges), strict=True):
                    assert found is None or found == model[offset : offset + length], node.name

    @invariant()
    def leaves_that_are_kept_are_those_that_lookups_find(self) -> None:
        fanout = self.container.geometry.fanout
        for node in self.container.nodes:
            for leaf_no, words in (node.tables.read_leaves if node.tables else {}).items():
                leaf, *_ = node.tree.find(leaf_no * fanout)
                assert leaf is not None, node.name
                assert leaf.words is words, node.name
            for leaf_no, words in (node.tables.leaves if node.tables else {}).items():
                leaf, *_ = node.tree.find(leaf_no * fanout)
                assert leaf is not None, node.name
                assert leaf.changed, node.name
                assert leaf.words is words, node.name


class SpillingSnapshotTree(SnapshotTree):
    """The same, with hardly any tables and views kept in memory, so that they are written out in mid-transaction."""

    @initialize(geometry=st.just((512, 512)))
    def begin(self, geometry: tuple[int, int]) -> None:
        super().begin(geometry)
        self.forget_soon()

    @rule()
    def commit_and_reopen(self) -> None:
        super().commit_and_reopen()
        self.forget_soon()

    def forget_soon(self) -> None:
        self.container.most_resident_tables = self.container.views.most_leaves = 4


TestSnapshotTree = SnapshotTree.TestCase
TestSnapshotTree.settings = settings(stateful_step_count=40)
TestCommittingSnapshotTree = CommittingSnapshotTree.TestCase
TestCommittingSnapshotTree.settings = settings(stateful_step_count=30)
TestViewedSnapshotTree = ViewedSnapshotTree.TestCase
TestViewedSnapshotTree.settings = settings(max_examples=50, stateful_step_count=40)
TestQuicklyReadSnapshotTree = QuicklyReadSnapshotTree.TestCase
TestQuicklyReadSnapshotTree.settings = settings(max_examples=20, stateful_step_count=40)
TestSpillingSnapshotTree = SpillingSnapshotTree.TestCase
TestSpillingSnapshotTree.settings = settings(stateful_step_count=30)
TestDeepSnapshotTree = DeepSnapshotTree.TestCase
TestDeepSnapshotTree.settings = settings(stateful_step_count=30)
