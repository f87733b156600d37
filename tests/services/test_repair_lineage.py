"""Nodes that lost their relatives stay, with all that they held, and show nothing that they did not show before."""

from __future__ import annotations

import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapctl.engine.container import Container
from snapctl.engine.model import Kind
from snapctl.engine.node import Node
from snapctl.errors import DataLost
from snapctl.format.pointer import ABSENT, KIND_SHIFT, PASS
from snapctl.format.record import NodeRecord
from snapctl.services.check import check_backend
from snapctl.services.repair.lineage import Placed, reattach
from tests.support import damage
from tests.support.backends import MemoryBackend
from tests.support.repairs import Views, assert_usable, family, former_names, repair, truth, views_in

NODES = {node.id: node.name for node in Container.adopt(MemoryBackend(family()), writable=False).nodes}
IDS = {name: node_id for node_id, name in NODES.items()}
BLOCK = 512


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend(family())


def lose(backend: MemoryBackend, *names: str) -> None:
    """Damage the pages with the records of some nodes, each of which has one of its own here."""
    for name in names:
        record = damage.find(MemoryBackend(family()), name, "first table").above
        assert record is not None
        damage.flip(backend, record.offset + 300)


@cache
def asked() -> dict[str, list[frozenset[str]]]:
    """By name, for each block all that are asked on the way to what it holds."""
    container = Container.adopt(MemoryBackend(family()), writable=False)
    return {
        node.name: [asked_for(node, block_no) for block_no in range(container.geometry.blocks(node.size_bytes))]
        for node in container.nodes
    }


def asked_for(node: Node, block_no: int) -> frozenset[str]:
    """The nodes that are asked for a block: those that lookups come through, and origins that PASS leads past."""
    found = {node.name}
    while (kind := node.tree.get(block_no).word0 >> KIND_SHIFT) in (ABSENT, PASS):
        if kind == PASS:
            assert node.origin is not None
            node = node.origin
            found.add(node.name)
        if node.parent is None:
            break
        node = node.parent
        found.add(node.name)
    return frozenset(found)


def by_former_name(views: Views, names: dict[str, str]) -> Views:
    """What is left, under the names that it had in the undamaged container, without what the repair has made."""
    found: Views = {}
    for name, view in views.items():
        was = names.get(name, name)
        if was.startswith("#"):
            volume, _, snapshot = was[1:].partition("@")
            was = f"{NODES[int(volume)]}@{snapshot}"
        if was:
            assert was not in found
            found[was] = view
    return found


class TestLostRecords:
    @settings(max_examples=settings().max_examples // 5)
    @given(gone=st.frozensets(st.sampled_from(sorted(IDS)), min_size=1, max_size=5))
    def test_exactly_what_the_lost_nodes_held_is_lost(self, gone: frozenset[str]):
        backend = MemoryBackend(family())
        lose(backend, *gone)
        names = former_names(repair(backend))
        views = views_in(backend.data, DataLost)
        found = by_former_name(views, names)
        assert found.keys() == IDS.keys() - gone
        for name, view in found.items():
            assert view.lost == {b for b, nodes in enumerate(asked()[name]) if nodes & gone}, name
            right = truth()[name]
            assert all(view.block(b) == right.block(b) for b in view.blocks if b not in view.lost), name
        assert all(views[name].lost == set(views[name].blocks) for name, was in names.items() if not was)

    @pytest.mark.parametrize(
        ("gone", "shape"),
        [
            ("db", {"recovered-1": None, "recovered-1@3": "recovered-1", "dev": "recovered-1@2", "lab": "dev@1"}),
            (
                "db@3",
                {
                    "db": None,
                    f"recovered-{IDS['db@3']}": None,
                    f"recovered-{IDS['db@3']}@2": f"recovered-{IDS['db@3']}",
                    "dev": f"recovered-{IDS['db@3']}@2",
                },
            ),
            (
                "db@2",
                {
                    "db@3": "db",
                    f"recovered-{IDS['db@2']}@1": f"recovered-{IDS['db@2']}",
                    "dev": None,
                    "dev@2": "dev",
                    "lab": "dev@1",
                },
            ),
            ("db@1", {"db@3": "db", "db@2": "db@3", "dev": "db@2"}),
            (
                "dev",
                {
                    f"recovered-{IDS['dev']}": None,
                    f"recovered-{IDS['dev']}@1": f"recovered-{IDS['dev']}@2",
                    "lab": f"recovered-{IDS['dev']}@1",
                },
            ),
            (
                "dev@2",
                {
                    "dev": "db@2",
                    f"recovered-{IDS['dev@2']}": "db@2",
                    f"recovered-{IDS['dev@2']}@1": f"recovered-{IDS['dev@2']}",
                    "lab": f"recovered-{IDS['dev@2']}@1",
                },
            ),
            ("dev@1", {"dev@2": "dev", "lab": None, "lab@1": "lab"}),
            ("lab", {f"recovered-{IDS['lab']}": None, f"recovered-{IDS['lab']}@1": f"recovered-{IDS['lab']}"}),
            ("log@1", {"log": None}),
        ],
    )
    def test_each_orphan_gets_its_place(self, backend: MemoryBackend, gone: str, shape: dict[str, str | None]):
        lose(backend, gone)
        outcome = repair(backend)
        assert any("are lost: 1" in action.message for action in outcome.actions)
        nodes = Container.adopt(MemoryBackend(backend.data), writable=False).nodes
        found = {node.name: node.parent.name if node.parent else None for node in nodes}
        assert shape.items() <= found.items(), found
        assert_usable(backend)

    @pytest.mark.parametrize(("gone", "orphan"), [("dev@1", "lab"), ("log@1", "log")])
    def test_the_actions_tell_exactly_which_bytes_an_orphan_loses(self, backend: MemoryBackend, gone: str, orphan: str):
        lose(backend, gone)
        told: set[int] = set()
        for action in repair(backend).actions:
            found = re.fullmatch(r"bytes (\d+) to (\d+) are marked as lost", action.message)
            if action.where == orphan and found:
                told.update(range(int(found[1]), int(found[2])))
        node = Container.adopt(backend)[orphan]
        lost: set[int] = set()
        for offset in range(0, node.size_bytes, BLOCK):
            stop = min(offset + BLOCK, node.size_bytes)
            try:
                node.read(offset, stop - offset)
            except DataLost:
                lost.update(range(offset, stop))
        assert told == lost

    def test_an_empty_container_is_what_remains_of_a_lost_list(self, backend: MemoryBackend):
        damage.flip(backend, damage.find(backend, damage.SNAPSHOT_LIST, "first table").offset)
        outcome = repair(backend)
        assert any(f"are lost: {len(NODES)}" in action.message for action in outcome.actions)
        assert Container.adopt(backend).nodes == []
        container = Container.adopt(backend)
        assert container.create_volume("new", 100).id > max(NODES)

    def test_a_name_that_is_taken_gets_a_number(self, backend: MemoryBackend):
        container = Container.adopt(backend)
        container.create_volume("recovered-1", 512)
        container.commit()
        record = damage.find(backend, "db", "first table").above
        assert record is not None
        damage.flip(backend, record.offset)
        repair(backend)
        names = {node.name for node in Container.adopt(backend).nodes}
        assert {"recovered-1", "recovered-1-2", "recovered-1-2@3"} <= names


class TestRecordsThatMakeNoSense:
    @pytest.mark.parametrize("node", ["dev"])
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("name", b"a/b"),
            ("name", b"\x1b[2J"),
            ("kind", 0),
            ("kind", 1),
            ("kind", 2),
            ("kind", 3),
            ("kind", 7),
            ("cow", 9),
            ("size_bytes", 0),
            ("size_bytes", 1 << 63),
            ("own_blocks", (1 << 64) - 1),
            ("first_table", bytes(16)),
            ("state", 1),
            ("parent", 0),
            ("parent", 77),
            ("parent", IDS["log"]),
            ("parent", IDS["lab@1"]),
            ("origin", 77),
            ("origin", IDS["dev"]),
            ("origin", (1 << 64) - 1),
            ("id", IDS["log@1"]),
            ("id", 999),
            ("id", (1 << 64) - 1),
        ],
    )
    def test_whatever_a_record_says_its_blocks_are_kept(
        self, backend: MemoryBackend, node: str, field: str, value: int | bytes
    ):
        damage.forge_record(backend, node, field, value)
        before = check_backend(backend)
        if before.exit_code == 0:  # it says what it said before
            return
        repair(backend)
        container = Container.adopt(MemoryBackend(backend.data), writable=False)
        data = {found.offset for found in damage.structures(backend) if found.kind == "data"}
        former = {found.offset for found in damage.structures(MemoryBackend(family())) if found.kind == "data"}
        kept = 0 if field == "first_table" else len(former)
        assert len(data & former) >= kept
        assert len({each.id for each in container.nodes}) >= len(NODES)
        # Its kind, parent, origin and size cannot be known any more; but nothing is shown that nobody ever held.
        rights = truth().values()
        is_vast = any(each.size_bytes > 1 << 20 for each in container.nodes)
        for name, view in () if is_vast else views_in(backend.data, DataLost).items():
            for block_no in set(range(1050)) & set(view.blocks) - view.lost:
                found = view.content[block_no * BLOCK :][:BLOCK].rstrip(b"\0")
                held = [right.content[block_no * BLOCK :][:BLOCK] for right in rights]
                assert any(content.startswith(found) for content in held), name

    def test_two_records_of_one_id_that_are_both_unsound_are_both_kept(self, backend: MemoryBackend):
        twins = ("log", "db@1")
        for name in twins:
            damage.forge_record(backend, name, "state", 1)
        sources = {name: damage.find(backend, name, "first table").offset for name in twins}
        damage.forge_record(backend, "log", "id", IDS["db@1"])
        repair(backend)
        firsts = {found.offset for found in damage.structures(backend) if found.kind == "first table"}
        assert set(sources.values()) <= firsts

    def test_parents_that_form_a_cycle_are_taken_apart(self, backend: MemoryBackend):
        damage.forge_record(backend, "db@3", "parent", IDS["db@1"])
        outcome = repair(backend)
        found = by_former_name(views_in(backend.data, DataLost), former_names(outcome))
        assert found.keys() == IDS.keys()
        for name, view in found.items():
            assert all(view.block(b) in (None, truth()[name].block(b)) for b in view.blocks), name
        assert_usable(backend)


class TestManyRecords:
    COUNT = 20_000

    @pytest.mark.parametrize("step", [-1, 1])
    @pytest.mark.parametrize("kind", [Kind.RO, Kind.RW])
    def test_records_that_wait_for_one_another_cost_no_more_than_others(self, kind: Kind, step: int):
        """All of one name, each hanging from the next in a way that cannot be."""
        records = [record(node_id, kind, parent=node_id + step) for node_id in range(1, self.COUNT + 1)]
        placed, next_id = reattach(records, self.COUNT + 1)
        check_places(placed)
        made = self.COUNT if kind is Kind.RO else 0
        assert (len(placed), next_id) == (self.COUNT + made, self.COUNT + 1 + made)

    def test_names_as_long_as_can_be_stay_as_long_as_can_be(self):
        placed, _ = reattach([record(node_id, Kind.BASE, name="n" * 63) for node_id in range(1, 200)], 200)
        check_places(placed)


def record(node_id: int, kind: Kind, *, parent: int = 0, name: str = "same") -> NodeRecord:
    """A node with nothing in it."""
    return NodeRecord(node_id, kind, name, parent, 0 if kind is Kind.BASE else parent, 512, 0)


def check_places(placed: list[Placed]) -> None:
    """Hold that all names differ, fit, and that parents come first."""
    seen: set[int] = {0}
    for place in placed:
        assert place.record.parent in seen
        seen.add(place.record.id)
    volumes = [place.record.name for place in placed if place.record.kind is not Kind.RO]
    assert len(set(volumes)) == len(volumes)
    assert max(map(len, volumes)) <= 63
