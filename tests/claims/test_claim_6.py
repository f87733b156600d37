"""Claim 6: a write after the second snapshot preserves into the second only, and makes the second's own tables."""

from __future__ import annotations

import pytest

from snapctl.engine.model import Cow
from tests.support.claims import BLOCK, MIDDLE, NEW, ORIGINAL, Chain
from tests.support.tables import data_pages, route, stored_block, table_counts, table_pages


@pytest.fixture(params=list(Cow), ids=lambda cow: cow.value)
def chain(request: pytest.FixtureRequest) -> Chain:
    return Chain.make(request.param)


def test_a_write_after_the_second_snapshot_makes_second_and_third_tables_of_the_second(chain: Chain):
    chain.snapshot("s1")
    chain.write(MIDDLE)
    second = chain.snapshot("s2")
    assert table_counts(second) == (1, 0, 0)
    chain.write(NEW)
    assert table_counts(second) == (1, 1, 1)
    assert route(second, BLOCK).is_complete


def test_a_write_after_the_second_snapshot_preserves_the_value_into_the_second(chain: Chain):
    chain.snapshot("s1")
    chain.write(MIDDLE)
    second = chain.snapshot("s2")
    chain.write(NEW)
    assert stored_block(second, BLOCK) == MIDDLE
    assert stored_block(chain.base, BLOCK) == NEW


def test_a_write_after_the_second_snapshot_leaves_the_first_as_it_is(chain: Chain):
    first = chain.snapshot("s1")
    chain.write(MIDDLE)
    chain.snapshot("s2")
    before = first.record, table_pages(first), data_pages(first)
    chain.write(NEW)
    assert (first.record, table_pages(first), data_pages(first)) == before
    assert stored_block(first, BLOCK) == ORIGINAL


def test_a_block_not_written_between_the_snapshots_is_preserved_once_and_serves_both(chain: Chain):
    first = chain.snapshot("s1")
    second = chain.snapshot("s2")
    before = chain.container.space.used
    chain.write(NEW)
    assert table_counts(first) == (1, 0, 0)
    assert data_pages(first) == set()
    assert data_pages(second) != set()
    assert [chain.read(node) for node in (first, second, chain.base)] == [ORIGINAL, ORIGINAL, NEW]
    assert chain.container.space.used - before == 3  # a second table, a third table, a data block
