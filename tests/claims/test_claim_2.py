"""Claim 2: S1, the older snapshot, has tables of its own, which lead to the data as of its time."""

from __future__ import annotations

import pytest

from snapctl.engine.model import Cow
from tests.support.claims import BLOCK, MIDDLE, NEW, ORIGINAL, Chain, Pair
from tests.support.tables import data_pages, portions, route, stored_block, table_counts, table_pages


@pytest.fixture(params=list(Cow), ids=lambda cow: cow.value)
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair.make(request.param)


def test_the_older_snapshot_has_first_second_and_third_tables_of_its_own(pair: Pair):
    assert table_counts(pair.older) == (1, 1, 1)
    assert table_pages(pair.older).isdisjoint(table_pages(pair.newer))
    assert table_pages(pair.older).isdisjoint(table_pages(pair.base))


def test_its_tables_are_indexed_by_the_same_portions_of_the_address(pair: Pair):
    tree, index = pair.older.tree, portions(pair.older, BLOCK)
    second_table = tree.child(tree.root, index.first)
    assert second_table is not None
    third_table = tree.child(second_table, index.second)
    assert third_table is not None
    assert [i for i in range(32) if third_table.words[2 * i]] == [index.third]


def test_its_third_table_points_to_the_data_as_of_its_time(pair: Pair):
    assert route(pair.older, BLOCK).is_complete
    assert stored_block(pair.older, BLOCK) == ORIGINAL
    assert data_pages(pair.older).isdisjoint(data_pages(pair.newer) | data_pages(pair.base))
    assert [pair.read(node) for node in (pair.older, pair.newer, pair.base)] == [ORIGINAL, MIDDLE, NEW]


@pytest.mark.parametrize("cow", list(Cow), ids=lambda cow: cow.value)
def test_what_it_has_no_entry_for_is_found_in_the_newer_snapshot(cow: Cow):
    """A block that was modified only after S2: S1 has no entry, so the lookup goes on in S2, not in the base."""
    chain = Chain.make(cow)
    older = chain.snapshot("s1")
    newer = chain.snapshot("s2")
    chain.write(NEW)
    assert table_counts(older) == (1, 0, 0)
    assert stored_block(newer, BLOCK) == ORIGINAL
    assert chain.read(older) == ORIGINAL
