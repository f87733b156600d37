"""Claim 5, a method: create a snapshot, preserve an original at the first write, create a second snapshot.

"The original value to a new data block" is kept to the letter under the copy policy. Under redirect the block that
holds the original comes to stand in the snapshot, and the new value goes to a new block: the same tables, pointers and
contents.
"""

from __future__ import annotations

import pytest

from snapctl.engine.model import Cow
from snapctl.format.pointer import ABSENT, PAGE
from tests.support.claims import BLOCK, FANOUT, MIDDLE, NEW, ORIGINAL, SIZE, Chain
from tests.support.tables import data_pages, entry, route, stored_block, table_counts, table_pages


@pytest.fixture(params=list(Cow), ids=lambda cow: cow.value)
def chain(request: pytest.FixtureRequest) -> Chain:
    return Chain.make(request.param)


def test_creating_a_snapshot_makes_a_first_table_only(chain: Chain):
    before = chain.container.space.used
    snapshot = chain.snapshot("s1")
    assert snapshot.record.first_table.kind == PAGE
    assert table_counts(snapshot) == (1, 0, 0)
    assert all(entry(snapshot.tree.root, index).kind == ABSENT for index in range(FANOUT))
    assert data_pages(snapshot) == set()
    # The first table, and a page for the second record: with tables of 512 bytes each record has a page of its own.
    assert chain.container.space.used - before == 2


def test_creating_a_snapshot_leaves_the_tables_of_the_base_as_they_are(chain: Chain):
    before = route(chain.base, BLOCK), table_pages(chain.base), chain.base.record.first_table
    chain.snapshot("s1")
    assert (route(chain.base, BLOCK), table_pages(chain.base), chain.base.record.first_table) == before


def test_creating_a_snapshot_costs_the_same_however_much_the_base_holds(chain: Chain):
    chain.base.write(0, ORIGINAL * 3000)
    chain.container.commit()
    before = chain.container.space.used
    chain.snapshot("s1")
    assert chain.container.space.used - before == 2


def test_the_first_write_makes_a_second_table(chain: Chain):
    snapshot = chain.snapshot("s1")
    chain.write(NEW)
    assert table_counts(snapshot)[:2] == (1, 1)
    assert entry(snapshot.tree.root, 5).kind == PAGE
    assert [i for i in range(FANOUT) if entry(snapshot.tree.root, i).kind != ABSENT] == [5]


def test_the_first_write_makes_a_third_table(chain: Chain):
    snapshot = chain.snapshot("s1")
    chain.write(NEW)
    assert table_counts(snapshot) == (1, 1, 1)
    second_table = snapshot.tree.child(snapshot.tree.root, 5)
    assert second_table is not None
    assert [i for i in range(FANOUT) if entry(second_table, i).kind != ABSENT] == [6]


def test_the_first_write_makes_a_data_block_that_holds_the_original(chain: Chain):
    snapshot = chain.snapshot("s1")
    chain.write(NEW)
    assert len(data_pages(snapshot)) == 1
    assert stored_block(snapshot, BLOCK) == ORIGINAL
    assert chain.read(snapshot) == ORIGINAL


def test_pointers_lead_from_the_first_table_to_the_second_to_the_third_to_the_data_block(chain: Chain):
    """Followed on the file itself: each pointer names a page whose bytes are the next table."""
    snapshot = chain.snapshot("s1")
    chain.write(NEW)
    found = route(snapshot, BLOCK)
    assert found.is_complete
    page = found.first.page_no
    for index, expected in zip((5, 6, 7), (found.second, found.third, found.data), strict=True):
        assert expected is not None
        stored = bytes(chain.backend.data[page * 512 + 16 * index : page * 512 + 16 * index + 16])
        page = int.from_bytes(stored[:6], "little")
        assert (page, stored[6]) == (expected.page_no, PAGE)
    assert bytes(chain.backend.data[page * 512 : page * 512 + SIZE]) == ORIGINAL


def test_then_the_base_holds_the_new_value(chain: Chain):
    chain.snapshot("s1")
    chain.write(NEW)
    assert stored_block(chain.base, BLOCK) == NEW
    assert chain.read(chain.base) == NEW


def test_under_copy_the_original_goes_to_a_new_data_block_before_the_base_gets_the_new_value():
    chain = Chain.make(Cow.COPY)
    held = route(chain.base, BLOCK).data
    snapshot = chain.snapshot("s1")
    before = chain.container.space.used
    chain.backend.forget()
    chain.base.write(BLOCK * SIZE, NEW)
    copied, replaced = route(snapshot, BLOCK).data, route(chain.base, BLOCK).data
    assert held is not None
    assert copied is not None
    assert replaced is not None
    assert copied.page_no not in {held.page_no, replaced.page_no}
    assert copied.checksum == held.checksum
    assert [(method, offset // 512) for method, offset, _ in chain.backend.log] == [
        ("write", copied.page_no),
        ("write", replaced.page_no),
    ]
    chain.container.commit()
    # Second table, third table, data block; the base exchanged its own block for a fresh one (invariant 2).
    assert chain.container.space.used - before == 3


def test_under_redirect_the_block_that_holds_the_original_becomes_the_snapshots():
    chain = Chain.make(Cow.REDIRECT)
    held = route(chain.base, BLOCK).data
    snapshot = chain.snapshot("s1")
    before = chain.container.space.used
    chain.backend.forget()
    chain.base.write(BLOCK * SIZE, NEW)
    kept, replaced = route(snapshot, BLOCK).data, route(chain.base, BLOCK).data
    assert kept == held
    assert replaced is not None
    assert replaced != held
    assert [(method, offset // 512) for method, offset, _ in chain.backend.log] == [("write", replaced.page_no)]
    chain.container.commit()
    assert chain.container.space.used - before == 3


def test_later_writes_to_the_block_preserve_nothing(chain: Chain):
    snapshot = chain.snapshot("s1")
    chain.write(MIDDLE)
    before, used = route(snapshot, BLOCK), chain.container.space.used
    chain.write(NEW)
    assert route(snapshot, BLOCK) == before
    assert table_counts(snapshot) == (1, 1, 1)
    assert chain.container.space.used == used
    assert [chain.read(node) for node in (snapshot, chain.base)] == [ORIGINAL, NEW]


def test_a_second_write_under_the_same_tables_makes_no_further_table(chain: Chain):
    chain.write(MIDDLE, BLOCK + 1)
    snapshot = chain.snapshot("s1")
    chain.write(NEW)
    chain.write(NEW, BLOCK + 1)
    assert table_counts(snapshot) == (1, 1, 1)
    assert len(data_pages(snapshot)) == 2
    assert chain.read(snapshot, BLOCK + 1) == MIDDLE


def test_a_second_snapshot_is_inserted_between_the_base_and_the_first(chain: Chain):
    first = chain.snapshot("s1")
    chain.write(MIDDLE)
    assert first.parent is chain.base
    second = chain.snapshot("s2")
    assert second.parent is chain.base
    assert first.parent is second
    assert chain.base.newest_snapshot is second
    assert chain.base.snapshots == [second, first]
    assert first.origin is second.origin is chain.base


def test_creating_the_second_snapshot_makes_a_first_table_only_and_leaves_those_of_the_first(chain: Chain):
    first = chain.snapshot("s1")
    chain.write(MIDDLE)
    before = route(first, BLOCK), table_pages(first)
    second = chain.snapshot("s2")
    assert table_counts(second) == (1, 0, 0)
    assert data_pages(second) == set()
    assert (route(first, BLOCK), table_pages(first)) == before
    assert [chain.read(node) for node in (first, second, chain.base)] == [ORIGINAL, MIDDLE, MIDDLE]
