"""What may have changed since a snapshot, and how deep data lies, against a model and against the chain by hand."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snapctl.engine.changes import changes, depths
from snapctl.engine.container import Container
from snapctl.engine.model import Cow, Kind
from snapctl.engine.node import Node
from snapctl.errors import Corruption, HasDependents, NodeNotFound, OutOfRange, Unrelated
from snapctl.format.geometry import Geometry
from snapctl.format.pointer import ABSENT, PASS
from tests.support.backends import MemoryBackend, RecordingBackend
from tests.support.containers import BLOCK, LEAF_BYTES, SECOND_BYTES, small_container
from tests.support.tables import table_pages

LARGEST = 2 * SECOND_BYTES + 5 * LEAF_BYTES + 100
KIB, GIB, TIB = 1 << 10, 1 << 30, 1 << 40


def blocks(offset: int, length: int) -> range:
    """The blocks that a range in bytes touches."""
    return range(offset // BLOCK, -(-(offset + length) // BLOCK))


def told(node: Node, since: Node, offset: int = 0, length: int | None = None) -> set[int]:
    """The blocks of a range that are told as changed, once the form of the answer has been looked at."""
    length = node.size_bytes - offset if length is None else length
    runs = list(changes(node, since, offset, length))
    hold_form(runs, length)
    found: set[int] = set()
    position = offset
    for run, is_changed in runs:
        if is_changed:
            found |= set(blocks(position, run))
        position += run
        assert position % BLOCK == 0 or position == offset + length
    return found


def different(new: bytearray, old: bytearray) -> set[int]:
    """The blocks of `new` that are others than those of `old`."""
    found: set[int] = set()
    for leaf in range(0, len(new), LEAF_BYTES):
        if new[leaf : leaf + LEAF_BYTES] != old[leaf : leaf + LEAF_BYTES]:
            starts = range(leaf, min(leaf + LEAF_BYTES, len(new)), BLOCK)
            found |= {start // BLOCK for start in starts if new[start : start + BLOCK] != old[start : start + BLOCK]}
    return found


def hold_form(runs: Iterable[tuple[int, int]], length: int) -> None:
    """In order and without gaps, nothing empty, neighbours joined."""
    runs = list(runs)
    assert sum(run for run, _ in runs) == length
    assert all(run > 0 for run, _ in runs)
    assert all(a[1] != b[1] for a, b in pairwise(runs))


def ends(runs: Iterable[tuple[int, int]], offset: int) -> list[tuple[int, int, int]]:
    """(begin, end, value) of runs that begin at `offset`."""
    found = []
    for run, value in runs:
        found.append((offset, offset + run, value))
        offset += run
    return found


def depth_by_hand(node: Node, block_no: int) -> int:
    """How far along the chain a block's data lies, one entry at a time."""
    current: Node | None = node
    depth = 1
    while current is not None and block_no * BLOCK < current.size_bytes:
        kind = current.tree.get(block_no).kind
        if kind not in (ABSENT, PASS):
            return depth
        if kind == PASS:
            assert current.origin is not None
            current = current.origin
        current = current.parent
        depth += 1
    return 0


def pairs(container: Container) -> list[tuple[Node, Node]]:
    """Every node with every older snapshot of its volume."""
    found = []
    for volume in container.volumes:
        line = [volume, *volume.snapshots]
        found += [(newer, older) for i, newer in enumerate(line) for older in line[i + 1 :]]
    return found


class History(RuleBasedStateMachine):
    """Random changes; each node is modelled by its bytes and, for every older snapshot, the blocks written since."""

    most_nodes = 14
    most_resident_tables: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.content: dict[int, bytearray] = {}
        self.written: dict[int, dict[int, set[int]]] = {}
        self.made = 0

    @initialize(cow=st.sampled_from(list(Cow)))
    def begin(self, cow: Cow) -> None:
        self.adopt(small_container())
        volume = self.container.create_volume("v", LARGEST, cow=cow)
        self.enter(volume, bytearray(LARGEST), {})

    def adopt(self, container: Container) -> None:
        self.container = container
        if self.most_resident_tables is not None:
            container.most_resident_tables = self.most_resident_tables

    def enter(self, node: Node, content: bytearray, written: dict[int, set[int]]) -> None:
        self.content[node.id] = bytearray(content)
        self.written[node.id] = {since: set(found) for since, found in written.items()}

    def note_snapshot(self, snapshot: Node) -> None:
        assert snapshot.origin is not None
        volume = snapshot.origin.id
        self.enter(snapshot, self.content[volume], self.written[volume])
        self.written[volume][snapshot.id] = set()

    def note_write(self, volume: Node, touched: Iterable[int]) -> None:
        for found in self.written[volume.id].values():
            found.update(touched)

    def fresh_name(self) -> str:
        self.made += 1
        return f"n{self.made}"

    def draw(self, data: st.DataObject, *kinds: Kind) -> Node:
        return data.draw(st.sampled_from([node for node in self.container.nodes if node.kind in kinds]), label="node")

    def has_room(self) -> bool:
        return len(self.content) < self.most_nodes

    @rule(
        data=st.data(),
        unit=st.sampled_from([1, BLOCK, LEAF_BYTES, SECOND_BYTES]),
        count=st.integers(1, 4),
        is_trim=st.booleans(),
    )
    def write_or_trim(self, data: st.DataObject, unit: int, count: int, is_trim: bool) -> None:
        volume = self.draw(data, Kind.BASE, Kind.RW)
        offset = data.draw(st.integers(0, (volume.size_bytes - 1) // unit), label="offset") * unit
        length = min(count * unit, volume.size_bytes - offset, SECOND_BYTES if is_trim else 2 * LEAF_BYTES)
        content = bytes(length) if is_trim else random.Random(self.made).randbytes(length)
        self.made += 1
        if is_trim:
            volume.trim(offset, length)
        else:
            volume.write(offset, content)
        self.content[volume.id][offset : offset + length] = content
        self.note_write(volume, blocks(offset, length))

    @rule(data=st.data(), size=st.one_of(st.integers(1, LARGEST), st.integers(1, 90).map(lambda n: n * LEAF_BYTES)))
    def resize(self, data: st.DataObject, size: int) -> None:
        volume = self.draw(data, Kind.BASE, Kind.RW)
        content = self.content[volume.id]
        smaller, larger = sorted((size, len(content)))
        if size < len(content) or (volume.kind is Kind.RW and size > len(content)):
            self.note_write(volume, blocks(smaller, larger - smaller))
        volume.resize(size, shrink=True)
        content.extend(bytes(max(0, size - len(content))))
        del content[size:]

    @precondition(has_room)
    @rule(data=st.data())
    def snapshot(self, data: st.DataObject) -> None:
        volume = self.draw(data, Kind.BASE, Kind.RW)
        self.note_snapshot(self.container.snapshot(f"{volume.name}@{self.fresh_name()}")[0])

    @precondition(has_room)
    @rule(data=st.data())
    def clone(self, data: st.DataObject) -> None:
        source = self.draw(data, *Kind)
        clone = self.container.clone(source.name, self.fresh_name())
        assert clone.parent is not None
        if clone.parent.id not in self.content:
            self.note_snapshot(clone.parent)
        self.enter(clone, self.content[source.id], {})

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        if not (snapshots := [node for node in self.container.nodes if node.kind is Kind.RO]):
            return
        doomed = data.draw(st.sampled_from(snapshots), label="doomed")
        try:
            self.container.delete(doomed.name)
        except HasDependents:
            return
        for known in (self.content, self.written, *self.written.values()):
            known.pop(doomed.id, None)  # type: ignore[attr-defined]

    @rule()
    def commit_and_reopen(self) -> None:
        self.container.commit()
        self.adopt(Container.adopt(self.container.pages.backend))

    @invariant()
    def changes_are_what_was_written_and_cover_what_differs(self) -> None:
        for newer, older in pairs(self.container):
            found = told(newer, older)
            new, old = self.content[newer.id], self.content[older.id]
            beyond = set(blocks(len(old), len(new) - len(old))) if len(new) > len(old) else set()
            assert different(new, old) <= found
            assert found == self.written[newer.id][older.id] & set(blocks(0, len(new))) | beyond

    @invariant()
    def depths_are_as_found_by_hand(self) -> None:
        for node in self.container.nodes:
            runs = list(depths(node, 0, node.size_bytes))
            hold_form(runs, node.size_bytes)
            position = 0
            for run, depth in runs:
                covered = blocks(position, run)
                for block_no in {covered[0], covered[len(covered) // 2], covered[-1]}:
                    assert depth_by_hand(node, block_no) == depth, (node.name, block_no)
                position += run

    @precondition(lambda self: len(self.content) > 1)
    @rule(data=st.data())
    def part_of_a_range_is_told_as_in_the_whole(self, data: st.DataObject) -> None:
        if not (found := pairs(self.container)):
            return
        newer, older = data.draw(st.sampled_from(found), label="pair")
        offset = data.draw(st.integers(0, newer.size_bytes - 1), label="offset")
        length = data.draw(st.integers(1, newer.size_bytes - offset), label="length")
        assert told(newer, older, offset, length) == told(newer, older) & set(blocks(offset, length))
        part = list(depths(newer, offset, length))
        hold_form(part, length)
        whole = ends(depths(newer, 0, newer.size_bytes), 0)
        end = offset + length
        cut = [(max(a, offset), min(b, end), depth) for a, b, depth in whole if a < end and b > offset]
        assert ends(part, offset) == cut


class ForgetfulHistory(History):
    """The same with hardly any tables kept in memory."""

    most_resident_tables = 4


TestHistory = History.TestCase
TestHistory.settings = settings(stateful_step_count=30, max_examples=25)
TestForgetfulHistory = ForgetfulHistory.TestCase
TestForgetfulHistory.settings = settings(stateful_step_count=30, max_examples=20)


COVERED = ((0, SECOND_BYTES), (SECOND_BYTES, LEAF_BYTES), (SECOND_BYTES + 3 * LEAF_BYTES, BLOCK))
"""Ranges that one entry of the first, the second and the third level covers."""


@pytest.mark.parametrize("kind", [Kind.BASE, Kind.RW])
@pytest.mark.parametrize("was_filled", [False, True])
def test_an_entry_that_covers_a_whole_table_counts_on_every_level(kind: Kind, was_filled: bool):
    container = small_container()
    volume = container.create_volume("v", LARGEST)
    if kind is Kind.RW:
        volume = container.clone("v", "w")
    if was_filled:
        for offset, length in COVERED:
            volume.write(offset, b"x" * length)
    first = container.snapshot(f"{volume.name}@first")[0]
    for offset, length in COVERED:
        volume.trim(offset, length)
    second = container.snapshot(f"{volume.name}@second")[0]
    trimmed = {block_no for offset, length in COVERED for block_no in blocks(offset, length)}
    assert told(volume, first) == told(second, first) == trimmed
    assert told(volume, second) == set()
    volume.write(7 * BLOCK, b"below the entry of the first table")
    assert told(volume, second) == {7}
    assert told(volume, first) == trimmed
    # PASS was found nowhere in a base; in a clone the zeros of its own are the first thing that is found.
    assert depth_by_hand(second, 0) == (2 if kind is Kind.RW else 0)
    assert next(depths(second, 0, BLOCK)) == (BLOCK, depth_by_hand(second, 0))


def test_what_stands_beyond_the_end_of_the_older_one_may_have_changed_from_the_block_of_that_end_on():
    container = small_container()
    volume = container.create_volume("v", 10 * BLOCK + 1)
    container.snapshot("v@small")
    volume.resize(20 * BLOCK)
    assert list(changes(volume, container["v@small"], 0, 20 * BLOCK)) == [(10 * BLOCK, False), (10 * BLOCK, True)]
    assert list(changes(volume, container["v@small"], 10 * BLOCK + 9, 5)) == [(5, True)]
    container.snapshot("v@large")
    volume.resize(7, shrink=True)
    assert list(changes(volume, container["v@large"], 0, 7)) == [(7, True)]  # its last block was zeroed beyond the end


def test_an_entry_of_a_snapshot_deleted_in_between_still_counts():
    container = small_container()
    volume = container.create_volume("v", LARGEST)
    container.snapshot("v@a")
    volume.write(0, b"1")
    container.snapshot("v@b")
    volume.write(SECOND_BYTES, b"2")
    container.snapshot("v@c")
    container.delete("v@b")
    assert told(container["v@c"], container["v@a"]) == {0, SECOND_BYTES // BLOCK}


def test_only_an_older_snapshot_of_the_same_volume_will_do():
    container = small_container()
    container.create_volume("v", LARGEST)
    container.create_volume("w", LARGEST)
    older, newer, other = container.snapshot("v@a")[0], container.snapshot("v@b")[0], container.snapshot("w@a")[0]
    clone = container.clone("v@a", "c")
    for node, since in (
        (older, newer),
        (older, older),
        (container["v"], container["v"]),
        (container["v"], clone),
        (container["v"], other),
        (other, older),
        (clone, older),
    ):
        with pytest.raises(Unrelated, match=f"{since.name} is no older snapshot of the volume of {node.name}"):
            changes(node, since, 0, 1)
    elsewhere = small_container()
    elsewhere.create_volume("v", LARGEST)
    with pytest.raises(Unrelated):
        changes(container["v"], elsewhere.snapshot("v@a")[0], 0, 1)


def test_ranges_beyond_the_end_and_deleted_nodes_are_refused():
    container = small_container()
    volume = container.create_volume("v", LARGEST)
    snapshot = container.snapshot("v@a")[0]
    for offset, length in ((0, LARGEST + 1), (LARGEST, 1), (-1, 2), (5, -1)):
        with pytest.raises(OutOfRange):
            changes(volume, snapshot, offset, length)
        with pytest.raises(OutOfRange):
            depths(volume, offset, length)
    assert list(changes(volume, snapshot, LARGEST, 0)) == list(depths(volume, LARGEST, 0)) == []
    container.delete("v@a")
    with pytest.raises(NodeNotFound):
        changes(volume, snapshot, 0, 1)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_damaged_table_of_any_level_is_named_with_the_bytes_that_it_covers(level: int):
    backend = MemoryBackend()
    container = small_container(backend)
    volume = container.create_volume("v", LARGEST)
    container.snapshot("v@a")
    for at in (SECOND_BYTES + LEAF_BYTES, SECOND_BYTES + 2 * LEAF_BYTES, 2 * SECOND_BYTES):
        volume.write(at, b"x")
    container.commit()
    tree = container["v@a"].tree
    table = tree.root
    for entry in (1, 1)[:level]:
        child = tree.child(table, entry)
        assert child is not None
        table = child
    backend.data[table.page_no * BLOCK + 3] ^= 1
    reopened = Container.adopt(backend, writable=False)
    covered = {
        0: (0, LARGEST),
        1: (SECOND_BYTES, 2 * SECOND_BYTES),
        2: (SECOND_BYTES + LEAF_BYTES, SECOND_BYTES + 2 * LEAF_BYTES),
    }[level]
    for answer in (changes(reopened["v"], reopened["v@a"], 0, LARGEST), depths(reopened["v@a"], 0, LARGEST)):
        with pytest.raises(Corruption, match=f"bytes {covered[0]} to {covered[1]}.*v@a") as caught:
            list(answer)
        assert caught.value.bytes_affected == covered
        assert caught.value.page_no == table.page_no


def test_a_pointer_of_unknown_kind_is_an_error_and_no_change():
    container = small_container()
    container.create_volume("v", LARGEST)
    container.snapshot("v@a")
    container["v"].write(0, b"x")
    leaf = container["v@a"].tree.leaf_for_writing(0)
    leaf.words[2 * 9] = 9 << 48
    with pytest.raises(Corruption, match="unknown kind"):
        list(changes(container["v"], container["v@a"], 0, LARGEST))


def test_a_terabyte_with_a_thousand_snapshots_costs_their_tables_and_no_data():
    backend = RecordingBackend()
    container = Container.format(backend, Geometry(4 * KIB, 16 * KIB))
    volume = container.create_volume("v", TIB)
    written = []
    for number in range(1000):
        container.snapshot(f"v@{number}")
        if number % 20 == 0:
            volume.write(number * GIB, b"x")
            written.append(number * GIB)
    container.commit()
    reopened = Container.adopt(backend, writable=False)
    tables = sum(len(table_pages(container[f"v@{number}"])) for number in range(1000))
    backend.forget()
    runs = list(changes(reopened["v"], reopened["v@0"], 0, TIB))
    assert backend.calls == {"read_into": tables}
    assert tables == 1000 + 2 * len(written)
    assert [begin for begin, _, is_changed in ends(runs, 0) if is_changed] == written
    assert {run for run, is_changed in runs if is_changed} == {4 * KIB}


def test_the_tables_that_a_walk_keeps_in_memory_are_bounded():
    backend = MemoryBackend()
    container = small_container(backend)
    volume = container.create_volume("v", LARGEST)
    written = {at // BLOCK + i for at in range(0, LARGEST - LEAF_BYTES, LEAF_BYTES) for i in (0, 2)}
    for number in range(8):
        container.snapshot(f"v@{number}")
        for block_no in written:
            volume.write(block_no * BLOCK, b"x")
    container.commit()
    reopened = Container.adopt(backend, writable=False)
    reopened.most_resident_tables = 40
    most = 0
    for _ in changes(reopened["v"], reopened["v@0"], 0, LARGEST):
        most = max(most, reopened.pages.resident_tables)
    # The bound, the first tables, and one more table of each level of each snapshot.
    assert most <= 40 + 8 + 2 * 8
    assert told(reopened["v"], reopened["v@0"]) == written
