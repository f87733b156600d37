"""Claim 4: an RO snapshot from which an RW snapshot descends; writes to the RW snapshot change nothing else.

To the letter, the RW snapshot is older than the RO snapshot it descends from, and holds data of the base. That comes
about by take-over: its own RO snapshot is deleted, and the RW snapshot inherits what it held.
"""

from __future__ import annotations

import pytest

from snapctl.engine.model import Cow, Kind
from snapctl.engine.node import Node
from snapctl.format.pointer import PASS
from tests.support.claims import BLOCK, MIDDLE, NEW, ORIGINAL, SIZE, Chain, Pair
from tests.support.states import pattern
from tests.support.tables import data_pages, route, stored_block, table_counts, table_pages

OWN = pattern(4, SIZE)
ELSEWHERE = BLOCK + 100


@pytest.fixture(params=list(Cow), ids=lambda cow: cow.value)
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair.make(request.param)


def clone(pair: Chain, source: Node) -> Node:
    made = pair.container.clone(source.name, "dev")
    pair.container.commit()
    return made


def test_a_read_write_snapshot_descends_from_a_read_only_snapshot(pair: Pair):
    dev = clone(pair, pair.newer)
    assert dev.kind is Kind.RW
    assert dev.parent is pair.newer
    assert dev.origin is pair.newer
    assert dev in pair.newer.children
    assert table_counts(dev) == (1, 0, 0)
    assert pair.read(dev) == MIDDLE


def test_writes_to_the_read_write_snapshot_change_neither_the_read_only_snapshot_nor_the_base(pair: Pair):
    dev = clone(pair, pair.newer)
    others = (pair.base, pair.newer, pair.older)
    contents = [node.read(0, node.size_bytes) for node in others]
    pages = [table_pages(node) | data_pages(node) for node in others]
    pair.write(OWN, to=dev)
    pair.write(OWN, ELSEWHERE, to=dev)
    dev.trim(0, 4 * SIZE)
    pair.container.commit()
    assert pair.read(dev) == pair.read(dev, ELSEWHERE) == OWN
    assert [node.read(0, node.size_bytes) for node in others] == contents
    assert [table_pages(node) | data_pages(node) for node in others] == pages


def test_the_read_write_snapshot_has_tables_and_data_blocks_of_its_own(pair: Pair):
    dev = clone(pair, pair.newer)
    pair.write(OWN, to=dev)
    assert table_counts(dev) == (1, 1, 1)
    assert stored_block(dev, BLOCK) == OWN
    for node in (pair.base, pair.newer, pair.older):
        assert (table_pages(dev) | data_pages(dev)).isdisjoint(table_pages(node) | data_pages(node))


def test_writes_to_the_base_change_nothing_in_the_read_write_snapshot(pair: Pair):
    dev = clone(pair, pair.newer)
    before = dev.read(0, dev.size_bytes)
    pair.write(OWN)
    pair.write(OWN, ELSEWHERE)
    assert dev.read(0, dev.size_bytes) == before


def taken_over(pair: Pair) -> Node:
    """A clone of S1 which has taken S1 over and hangs from S2, newer than itself."""
    dev = pair.container.clone("base@s1", "dev")
    (newest,) = pair.container.snapshot("base@s3")
    pair.container.commit()
    pair.write(OWN)
    assert newest.created >= dev.created
    pair.container.delete("base@s2")
    pair.container.delete("base@s1")
    pair.container.commit()
    return dev


def test_by_take_over_the_read_write_snapshot_is_older_than_the_read_only_one_it_descends_from(pair: Pair):
    dev = taken_over(pair)
    assert dev.parent is not None
    assert dev.parent.name == "base@s3"
    assert dev.parent.kind is Kind.RO
    assert dev.created <= dev.parent.created
    assert dev.id < dev.parent.id
    assert dev.parent.parent is pair.base
    assert dev.origin is pair.base


def test_by_take_over_the_read_write_snapshot_holds_data_of_the_base_in_tables_of_its_own(pair: Pair):
    kept = route(pair.older, BLOCK).data
    dev = taken_over(pair)
    assert route(dev, BLOCK).is_complete
    assert route(dev, BLOCK).data == kept, "nothing moves: the data block changes hands by its pointer"
    assert stored_block(dev, BLOCK) == ORIGINAL
    assert pair.read(dev) == ORIGINAL


def test_by_take_over_what_the_base_did_not_have_reads_as_zeros_and_what_it_kept_as_the_base_has_it(pair: Pair):
    pair.write(OWN, ELSEWHERE)  # after S1 and S2, where there had been nothing
    assert route(pair.newer, ELSEWHERE).data is not None
    assert getattr(route(pair.newer, ELSEWHERE).data, "kind", None) == PASS
    dev = taken_over(pair)
    assert pair.read(dev, ELSEWHERE) == bytes(SIZE)
    unmodified = dev.read(0, BLOCK * SIZE)
    assert unmodified == pair.base.read(0, BLOCK * SIZE)


def test_after_take_over_writes_still_change_neither_the_read_only_snapshot_nor_the_base(pair: Pair):
    dev = taken_over(pair)
    others = [node for node in pair.container.nodes if node is not dev]
    assert [node.name for node in others] == ["base", "base@s3"]
    contents = [node.read(0, node.size_bytes) for node in others]
    pair.write(MIDDLE, to=dev)
    pair.write(MIDDLE, ELSEWHERE + 1, to=dev)
    assert [node.read(0, node.size_bytes) for node in others] == contents
    before = dev.read(0, dev.size_bytes)
    pair.write(ORIGINAL)
    pair.write(NEW, ELSEWHERE + 2)
    assert dev.read(0, dev.size_bytes) == before
