"""The space map: what may be allocated when, what is fresh, and what stands on disk afterwards."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapctl.errors import Corruption, NoSpace
from snapctl.format.checksum import crc32c
from snapctl.format.geometry import Geometry
from snapctl.format.pointer import NOWHERE, PAGE_MASK, decode_table
from snapctl.format.superblock import Superblock
from snapctl.storage.pages import PageFile
from snapctl.storage.spacemap import SpaceMap
from tests.support.backends import FailingBackend, MemoryBackend, RecordingBackend
from tests.support.spacemaps import bitmaps

TINY = Geometry(512, 512)
PER_BITMAP = TINY.units_per_bitmap
FIRST = TINY.first_page


class Disk:
    """A space map and commits of it alone."""

    def __init__(self, geometry: Geometry = TINY, limit: int = 0, backend: MemoryBackend | None = None) -> None:
        self.backend = backend or RecordingBackend()
        self.geometry = geometry
        self.pages = PageFile(self.backend, geometry, geometry.first_page, None)
        self.superblock = Superblock(geometry, UUID(int=0), 0, 0, geometry.first_page, limit, 1, 0)
        self.previous: Superblock | None = None
        self.space = SpaceMap(self.pages, self.superblock, None)
        self.commit()

    def draft(self) -> Superblock:
        return replace(
            self.superblock,
            transaction=self.superblock.transaction + 1,
            space_map=self.space.write(),
            pages_used=self.space.used,
            pages_total=self.pages.end_page,
        )

    def commit(self) -> list[tuple[int, int]]:
        self.space.place()
        self.previous, self.superblock = self.superblock, self.draft()
        self.pages.sync()
        return self.space.rotate(self.superblock)

    def reopen(self, previous: bool = True) -> SpaceMap:
        self.pages = PageFile(self.backend, self.geometry, self.superblock.pages_total, None)
        self.space = SpaceMap(self.pages, self.superblock, self.previous if previous else None)
        return self.space

    def in_use(self) -> set[int]:
        """As it stands on disk."""
        per_bitmap = self.geometry.units_per_bitmap
        return {
            index * per_bitmap + bit
            for index, _, page in bitmaps(self.backend.data, self.superblock)
            for bit in range(per_bitmap)
            if page[bit >> 3] >> (bit & 7) & 1
        }

    def own_pages(self) -> set[int]:
        """Pages of the map itself, as it stands on disk: one unit each in these tests."""
        tables = {self.superblock.space_map.page_no}
        found = list(bitmaps(self.backend.data, self.superblock))
        at = self.superblock.space_map.page_no * 512
        for i in range(0, 512, 16):
            entry = self.backend.data[at + i : at + i + 16]
            if entry[6]:
                tables.add(int.from_bytes(entry[:6], "little"))
        return tables | {pointer.page_no for _, pointer, _ in found}


def test_a_new_map_has_the_superblocks_and_itself_in_use():
    disk = Disk()
    assert disk.in_use() == set(range(FIRST)) | disk.own_pages()
    assert disk.space.used == len(disk.in_use()) == FIRST + 3


def test_pages_are_allocated_in_address_order_in_runs():
    disk = Disk()
    assert disk.space.allocate(1, 4) == [FIRST + 3, FIRST + 4, FIRST + 5, FIRST + 6]
    wide = disk.space.allocate(8, 3)
    assert wide == [wide[0], wide[0] + 8, wide[0] + 16]
    assert wide[0] > FIRST + 6


def test_what_is_allocated_and_freed_is_what_stands_on_disk_after_the_commit():
    disk = Disk()
    one, two, three = disk.space.allocate(2, 3)
    disk.space.free(two, 2)
    disk.commit()
    assert disk.in_use() == set(range(FIRST)) | disk.own_pages() | {one, one + 1, three, three + 1}
    assert disk.space.used == len(disk.in_use())
    disk.reopen()
    disk.space.free(one, 2)
    disk.commit()
    assert disk.in_use() == set(range(FIRST)) | disk.own_pages() | {three, three + 1}


def test_a_page_freed_by_a_commit_is_not_handed_out_before_the_next_is_durable():
    disk = Disk()
    (page,) = disk.space.allocate(1, 1)
    disk.commit()
    disk.space.free(page, 1)
    assert page not in disk.space.allocate(1, 200), "freed in the open transaction"
    disk.commit()
    assert page not in disk.space.allocate(1, 200), "the other slot still stands for a commit that has it"
    disk.commit()
    assert page in disk.space.allocate(1, 200)


def test_opening_anew_protects_what_the_other_slot_stands_for():
    disk = Disk()
    pages = disk.space.allocate(1, 5)
    disk.commit()
    disk.space.free_pages(pages, 1)
    disk.commit()
    assert not set(pages) & set(disk.reopen().allocate(1, 200))
    assert set(pages) <= set(disk.reopen(previous=False).allocate(1, 200))


def test_a_damaged_map_of_the_previous_commit_protects_nothing_and_harms_nothing():
    disk = Disk()
    pages = disk.space.allocate(1, 5)
    disk.commit()
    disk.space.free_pages(pages, 1)
    disk.commit()
    assert disk.previous is not None
    for index, pointer, _ in bitmaps(disk.backend.data, disk.previous):
        assert index == 0
        disk.backend.data[pointer.page_no * 512 + 100] ^= 1
    assert len(disk.reopen().allocate(1, 200)) == 200
    disk.backend.data[disk.previous.space_map.page_no * 512 + 100] ^= 1
    assert len(disk.reopen().allocate(1, 200)) == 200


def test_a_page_is_fresh_from_its_allocation_to_the_commit():
    disk = Disk()
    (page,) = disk.space.allocate(1, 1)
    assert disk.space.are_fresh([page], 1)
    disk.commit()
    assert not disk.space.are_fresh([page], 1)
    disk.reopen()
    assert not disk.space.are_fresh([page], 1)


def test_a_fresh_page_that_is_freed_is_used_again_before_the_space_ends():
    disk = Disk(limit=FIRST + 60)
    pages = disk.space.allocate(1, 40)
    disk.space.free_pages(pages, 1)
    assert len(disk.space.allocate(1, 40)) == 40


@pytest.mark.parametrize("is_run", [False, True])
def test_fresh_pages_that_are_freed_with_older_ones_are_to_be_had_as_well(is_run: bool):
    disk = Disk(limit=FIRST + 900)
    pages = disk.space.allocate_data(1, 800)
    disk.commit()
    hole = range(pages[400], pages[400] + 300)
    assert set(hole) <= set(pages)
    disk.space.free_pages(hole, 1)
    for _ in range(3):
        disk.commit()
    disk.space.allocate_data(1, disk.space.room)
    freed = range(hole.start - 2, hole.stop)
    for part in [freed] if is_run else [[page] for page in freed]:
        disk.space.free_pages(part, 1)
    assert disk.space.room == 300
    assert set(disk.space.allocate_data(1, 300)) == set(hole)


def test_a_damaged_table_of_the_map_is_told_each_time_that_it_is_met():
    disk = Disk()
    fanout = TINY.fanout
    disk.space.allocate(1, (fanout + 1) * PER_BITMAP)
    disk.commit()
    disk.commit()
    root = disk.superblock.space_map.page_no * TINY.unit
    words = decode_table(disk.backend.data[root : root + TINY.table_size])
    disk.backend.data[(words[2] & PAGE_MASK) * TINY.unit] ^= 1  # above the bitmaps from `fanout` on
    disk.reopen(previous=False)
    for _ in range(2):
        with pytest.raises(Corruption):
            disk.space.allocate(1, 3 * PER_BITMAP)


def test_freeing_what_is_free_is_corruption():
    disk = Disk()
    (page,) = disk.space.allocate(4, 1)
    disk.space.free(page, 4)
    for first, units in ((page, 4), (page, 1), (page + 3, 1)):
        with pytest.raises(Corruption, match="free"):
            disk.space.free(first, units)


@pytest.mark.parametrize("page_no", [1 << 20, TINY.max_units - 1, TINY.max_units, (1 << 48) - 1])
def test_freeing_a_page_outside_the_container_is_corruption(page_no: int):
    """A table that is sound by its checksum may still say anything; page numbers are bounded before they are used."""
    disk = Disk()
    with pytest.raises(Corruption):
        disk.space.free(page_no, 1)
    with pytest.raises(Corruption):
        disk.space.free_pages([page_no], 1)


def test_many_pages_are_freed_at_a_stroke():
    disk = Disk()
    pages = disk.space.allocate(2, 30)
    used = disk.space.used
    disk.space.free_pages([pages[i] for i in (5, 3, 4, 29, 0)], 2)
    assert disk.space.used == used - 10
    disk.space.free_pages([], 2)
    disk.space.free_pages({pages[i] for i in range(30)} - {pages[i] for i in (5, 3, 4, 29, 0)}, 2)
    assert disk.space.used == used - 60
    with pytest.raises(Corruption):
        disk.space.free_pages([pages[7]], 2)


def test_runs_may_lie_in_several_bitmaps_but_none_across_two():
    disk = Disk()
    pages = disk.space.allocate(7, 1500)
    assert len({page // PER_BITMAP for page in pages}) == 3
    assert all(page // PER_BITMAP == (page + 6) // PER_BITMAP for page in pages)
    units = [unit for page in pages for unit in range(page, page + 7)]
    assert len(units) == len(set(units))
    disk.commit()
    assert set(units) <= disk.in_use()
    disk.space.free_pages(pages, 7)
    disk.commit()
    assert disk.in_use() == set(range(FIRST)) | disk.own_pages()


def test_pointers_of_the_map_carry_the_free_units_beneath():
    disk = Disk()
    disk.space.allocate(1, PER_BITMAP + 100)
    disk.commit()
    found = list(bitmaps(disk.backend.data, disk.superblock))
    assert [index for index, _, _ in found] == [0, 1]
    for _, pointer, page in found:
        in_use = int.from_bytes(page, "little").bit_count()
        assert pointer.birth == PER_BITMAP - in_use
        assert pointer.checksum == crc32c(page)


def with_a_full_bitmap_that_must_not_be_read() -> Disk:
    """A map whose second bitmap is full, and damaged, so that whoever reads it will notice."""
    disk = Disk()
    disk.space.allocate(1, 3 * PER_BITMAP)
    disk.commit()
    (full,) = [pointer for index, pointer, _ in bitmaps(disk.backend.data, disk.superblock) if index == 1]
    assert full.birth == 0
    disk.backend.data[full.page_no * 512] ^= 1
    disk.reopen(previous=False)
    return disk


def test_full_bitmaps_are_passed_over_without_being_read():
    disk = with_a_full_bitmap_that_must_not_be_read()
    assert {page // PER_BITMAP for page in disk.space.allocate(1, 100)} == {0, 3}


def test_placing_reaches_a_fixed_point_in_which_the_map_holds_itself():
    disk = Disk()
    for number in range(1, 20):
        disk.space.allocate(number, 40)
        disk.commit()
        assert disk.own_pages() <= disk.in_use()
        assert disk.space.used == len(disk.in_use())


def test_a_map_that_was_not_changed_is_not_written():
    disk = Disk()
    disk.space.allocate(1, 5)
    disk.commit()
    assert isinstance(disk.backend, RecordingBackend)
    disk.backend.forget()
    before = disk.superblock.space_map
    disk.commit()
    assert disk.superblock.space_map == before
    assert disk.backend.calls["write"] == 0


def test_the_capacity_is_the_end_of_the_file():
    disk = Disk(limit=FIRST + 200)
    disk.pages.reserve.may_be_used = True
    free = FIRST + 200 - disk.space.used
    pages = disk.space.allocate(1, free)
    assert max(pages) < FIRST + 200
    with pytest.raises(NoSpace, match="capacity of 164K"):
        disk.space.allocate(1, 1)


def test_an_allocation_that_fails_takes_nothing():
    disk = Disk(limit=FIRST + 200)
    disk.pages.reserve.may_be_used = True
    disk.space.allocate(1, 1)
    used = disk.space.used
    with pytest.raises(NoSpace):
        disk.space.allocate(1, 198)
    assert disk.space.used == used
    assert len(disk.space.allocate(1, 190)) == 190


def test_only_tables_of_a_transaction_that_gives_room_back_may_use_the_reserve():
    disk = Disk(limit=FIRST + 1000)
    assert disk.space.reserve > 10
    disk.space.allocate_data(1, 1)
    free = FIRST + 1000 - disk.space.used - disk.space.reserve
    disk.space.allocate_data(1, free)
    with pytest.raises(NoSpace):
        disk.space.allocate_data(1, 1)
    with pytest.raises(NoSpace):
        disk.space.allocate(1, 1)
    disk.pages.reserve.may_be_used = True
    assert len(disk.space.allocate(1, 10)) == 10


def test_a_container_without_a_limit_has_no_reserve():
    assert Disk().reopen().reserve == 0


def test_a_map_made_anew_gives_room_beyond_the_end_only():
    """Whatever is known to be in use: what is not known to be may be all that is left of something."""
    disk = Disk()
    disk.space.allocate(1, PER_BITMAP)
    disk.commit()
    end = disk.superblock.pages_total
    pages = PageFile(disk.backend, TINY, end, None)
    space = SpaceMap.rebuild(pages, replace(disk.superblock, space_map=NOWHERE), [(0, (1 << FIRST) - 1)])
    assert space.used == FIRST
    assert min(space.allocate(1, 200) + space.allocate(8, 20)) >= end


def test_long_runs_retire_when_no_slot_stands_for_them():
    geometry = Geometry(4096, 512)
    disk = Disk(geometry)
    pages = disk.space.allocate(8, 400)
    disk.commit()
    disk.space.free_pages(pages, 8)
    assert disk.commit() == []
    assert disk.space.wants_empty_commit()
    retired = disk.commit()
    freed = {unit for page in pages for unit in range(page, page + 8)}
    punched = {unit for start, units in retired for unit in range(start, start + units)}
    assert freed <= punched
    assert not punched & disk.in_use()
    assert not disk.space.wants_empty_commit()
    assert disk.commit() == []


@pytest.mark.parametrize(("left_gib", "is_wanted"), [(1, True), (5, False)])
def test_single_pages_are_waited_for_only_where_little_is_left(left_gib: int, is_wanted: bool):
    """Whatever part of the whole that is."""
    geometry = Geometry(4096, 16384)
    disk = Disk(geometry, limit=(100 << 30) // geometry.unit)
    taken = disk.space.allocate(1, 3)
    disk.space.used += (100 - left_gib << 30) // geometry.unit  # which no test has the time to allocate
    disk.commit()
    disk.space.free_pages([taken[1]], 1)
    disk.commit()
    assert disk.space.wants_empty_commit() == is_wanted


def test_what_was_allocated_again_does_not_retire():
    geometry = Geometry(4096, 512)
    disk = Disk(geometry, limit=geometry.first_page + 4000)
    pages = disk.space.allocate(8, 400)
    disk.commit()
    disk.space.free_pages(pages, 8)
    disk.commit()
    disk.commit()
    again = disk.space.allocate(8, 400)
    assert min(again) < max(pages)
    assert disk.commit() == []


def test_of_what_retires_some_is_kept_while_it_is_not_allocated_again():
    disk = Disk(Geometry(4096, 512))
    disk.space.idle_units = 2500
    pages = disk.space.allocate(8, 400)
    disk.commit()
    disk.space.free_pages(pages, 8)
    disk.commit()
    punched = disk.commit()
    assert 700 <= sum(units for _, units in punched) < 1000
    again = disk.space.allocate(8, 20)
    disk.commit()
    disk.space.idle_units = 0
    punched += disk.commit()
    units = {unit for start, count in punched for unit in range(start, start + count)}
    assert len(units) == sum(count for _, count in punched) > 3000
    assert not units & disk.in_use()
    assert disk.in_use() >= {unit for page in again for unit in range(page, page + 8)}


def test_a_refused_write_of_the_map_can_be_tried_again():
    backend = FailingBackend(error=NoSpace, methods=("write",))
    disk = Disk(backend=backend)
    pages = disk.space.allocate(1, PER_BITMAP + 10)
    for first in range(3):
        backend.begun, backend.fail_at = 0, range(first, first + 1)
        try:
            disk.commit()
        except NoSpace:
            disk.superblock = disk.previous or disk.superblock
            disk.space.place()
            disk.previous, disk.superblock = disk.superblock, disk.draft()
            disk.space.rotate(disk.superblock)
        assert disk.in_use() == set(range(FIRST)) | disk.own_pages() | set(pages)
        disk.space.free(pages.pop(), 1)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), st.sampled_from([1, 8]), st.integers(1, 40)),
        st.tuples(st.just("free"), st.integers(0, 50), st.integers(1, 20)),
        st.tuples(st.sampled_from(["commit", "reopen"]), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@given(actions)
@settings(max_examples=60)
def test_nothing_is_ever_handed_out_that_any_of_three_states_has_in_use(todo: list[tuple[str, int, int]]):
    """Against plain sets: the open transaction, the last commit and the one before."""
    disk = Disk()
    held: dict[int, int] = {}
    current: set[int] = set()
    last = previous = disk.in_use()
    for what, first, second in todo:
        if what == "allocate":
            for page in disk.space.allocate(first, second):
                run = set(range(page, page + first))
                assert not run & (current | last | previous)
                held[page] = first
                current |= run
        elif what == "free":
            for page in list(held)[first : first + second]:
                units = held.pop(page)
                disk.space.free(page, units)
                current -= set(range(page, page + units))
        else:
            disk.commit()
            previous, last = last, disk.in_use()
            assert last == current | set(range(FIRST)) | disk.own_pages()
            assert disk.space.used == len(last)
            if what == "reopen":
                disk.reopen()
                assert disk.space.used == len(last)
