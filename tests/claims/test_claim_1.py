"""Claim 1: base -> S2 (newer) -> S1 (older); S2's three tables lead to what the base held before it was modified."""

from __future__ import annotations

import pytest

from snapctl.engine.model import Cow, Kind
from snapctl.format.pointer import PAGE
from tests.support.claims import BLOCK, MIDDLE, NEW, ORIGINAL, SIZE, Pair
from tests.support.tables import data_pages, entry, portions, route, stored_block, table_pages


@pytest.fixture(params=list(Cow), ids=lambda cow: cow.value)
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair.make(request.param)


def test_a_base_volume_holds_the_current_data(pair: Pair):
    assert pair.base.kind is Kind.BASE
    assert pair.base.parent is None
    assert stored_block(pair.base, BLOCK) == NEW
    assert pair.read(pair.base) == NEW


def test_the_newer_snapshot_descends_from_the_base_and_the_older_from_the_newer(pair: Pair):
    assert pair.newer.kind is Kind.RO
    assert pair.older.kind is Kind.RO
    assert pair.newer.parent is pair.base
    assert pair.older.parent is pair.newer
    assert pair.newer.created >= pair.older.created
    assert [node.name for node in pair.base.children] == ["base@s2"]
    assert [node.name for node in pair.newer.children] == ["base@s1"]


def test_the_newer_snapshot_has_a_first_table_indexed_by_the_first_portion_of_the_address(pair: Pair):
    tree = pair.newer.tree
    assert pair.newer.record.first_table.kind == PAGE
    used = [index for index in range(len(tree.root.words) // 2) if tree.root.words[2 * index]]
    assert used == [portions(pair.newer, BLOCK).first] == [5]


def test_an_entry_of_the_first_table_points_to_a_second_table_indexed_by_the_second_portion(pair: Pair):
    tree = pair.newer.tree
    assert entry(tree.root, 5).kind == PAGE
    second_table = tree.child(tree.root, 5)
    assert second_table is not None
    assert second_table.page_no == entry(tree.root, 5).page_no
    used = [index for index in range(len(second_table.words) // 2) if second_table.words[2 * index]]
    assert used == [portions(pair.newer, BLOCK).second] == [6]


def test_an_entry_of_the_second_table_points_to_a_third_table_indexed_by_the_third_portion(pair: Pair):
    tree = pair.newer.tree
    second_table = tree.child(tree.root, 5)
    assert second_table is not None
    third_table = tree.child(second_table, 6)
    assert third_table is not None
    assert third_table.page_no == entry(second_table, 6).page_no
    used = [index for index in range(len(third_table.words) // 2) if third_table.words[2 * index]]
    assert used == [portions(pair.newer, BLOCK).third] == [7]


def test_an_entry_of_the_third_table_points_to_the_data_the_base_held_before_it_was_modified(pair: Pair):
    assert route(pair.newer, BLOCK).is_complete
    assert stored_block(pair.newer, BLOCK) == MIDDLE
    assert pair.read(pair.newer) == MIDDLE


def test_what_the_base_has_not_modified_is_read_from_the_base_through_the_snapshot(pair: Pair):
    other = BLOCK + 1
    pair.base.write(other * SIZE, ORIGINAL)
    pair.container.commit()
    (snapshot,) = pair.container.snapshot("base@s3")
    assert route(snapshot, other).second.kind != PAGE
    assert pair.read(snapshot, other) == ORIGINAL


def test_base_and_snapshots_share_no_table_and_no_data_block(pair: Pair):
    nodes = (pair.base, pair.newer, pair.older)
    pages = [page_no for node in nodes for page_no in (*table_pages(node), *data_pages(node))]
    assert len(pages) == len(set(pages)) == 3 * 4
