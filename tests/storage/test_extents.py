"""What the space map gives to what had better lie together: runs set aside, which nobody else gets and nobody loses."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapctl.errors import NoSpace
from snapctl.storage import spacemap
from snapctl.storage.pins import Pin
from tests.storage.test_spacemap import FIRST, PER_BITMAP, TINY, Disk, with_a_full_bitmap_that_must_not_be_read

EXTENT = (1 << 20) // TINY.unit


def with_holes(disk: Disk, *holes: tuple[int, int]) -> None:
    """Fill the file up to the last hole, and some more, and free the holes, for all states."""
    end = max(stop for _, stop in holes) + 10
    disk.space.allocate(1, end - disk.pages.end_page)
    disk.commit()
    for start, stop in holes:
        disk.space.free_pages(range(start, stop), 1)
    disk.commit()
    disk.commit()


def test_what_is_to_lie_together_gets_a_long_hole_and_the_next_one_what_is_behind_it():
    disk = Disk()
    with_holes(disk, (1000, 1100), (2000, 2000 + EXTENT))
    assert disk.space.allocate_together(1, 100) == range(2000, 2100)
    assert disk.space.allocate_together(1, 10) == range(2100, 2110)
    others = disk.space.allocate(1, 200)
    assert not set(others) & set(range(2000, 2000 + EXTENT)), "set aside"


def test_with_no_long_hole_the_file_grows_by_what_is_wanted_and_no_more():
    disk = Disk()
    with_holes(disk, (4000, 4000 + EXTENT - 1))
    end = disk.pages.end_page
    assert disk.space.allocate_together(4, 30) == range(end, end + 120, 4)
    assert disk.pages.end_page == end + 120
    assert disk.space.allocate_together(1, 7) == range(end + 120, end + 127)


def with_so_many_free(disk: Disk, allocated: int, freed: int) -> None:
    """In holes that are not long, for all states."""
    pages = disk.space.allocate(1, allocated)
    disk.commit()
    disk.space.free_pages(pages[1 : freed + 1], 1)
    disk.commit()
    disk.commit()


@pytest.mark.parametrize(("freed", "grows"), [(1200, True), (1900, False)])
def test_the_file_grows_while_less_than_a_quarter_of_it_is_free_or_less_than_so_much(
    freed: int, grows: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(spacemap, "_MOST_HOLE_BYTES", 1500 * TINY.unit)
    disk = Disk()
    with_so_many_free(disk, 3800, freed)
    end = disk.pages.end_page
    assert (end - disk.space.used < 1500) == grows
    assert (disk.space.allocate_together(1, 8)[0] == end) == grows


@pytest.mark.parametrize(("freed", "grows"), [(400, True), (600, False)])
def test_a_small_file_grows_while_less_of_it_is_free_than_in_use(freed: int, grows: bool):
    disk = Disk()
    with_so_many_free(disk, 1000, freed)
    end = disk.pages.end_page
    assert (end - disk.space.used < disk.space.used) == grows
    assert (disk.space.allocate_together(1, 8)[0] == end) == grows


@pytest.mark.parametrize("is_tight", [False, True])
def test_what_was_set_aside_is_found_by_others_before_the_space_ends(is_tight: bool):
    """Also if the search for free units has left its bitmap behind."""
    disk = Disk(limit=2 * PER_BITMAP)
    with_holes(disk, (1000, 1000 + EXTENT), (PER_BITMAP, PER_BITMAP + 100))
    assert disk.space.allocate_together(1, 100) == range(1000, 1100)
    disk.space.allocate_data(1, PER_BITMAP - disk.space.used + 50)  # so that it goes on in the next bitmap
    room = disk.space.room
    assert room > EXTENT - 100
    if is_tight:
        pages = disk.space.allocate_data(1, room)
        assert set(range(1100, 1100 + EXTENT // 2)) <= set(pages)
    else:
        wanted = EXTENT - 99  # more than is left of what was set aside
        disk.space.allocate_together(1, wanted)
        assert disk.space.room == room - wanted
        assert len(disk.space.allocate_data(1, room - wanted)) == room - wanted


def test_a_file_that_reaches_beyond_its_capacity_is_searched_no_further():
    """That is how a full container is left when its log has been replayed."""
    disk = Disk(limit=PER_BITMAP)
    disk.space.set_limit(0)
    pages = disk.space.allocate(1, 2 * PER_BITMAP)
    disk.commit()
    disk.space.free_pages([page for page in pages if page >= 1000], 1)
    disk.commit()
    disk.commit()
    disk.space.set_limit(PER_BITMAP)
    assert disk.pages.end_page > 2 * PER_BITMAP
    found = disk.space.allocate_together(1, EXTENT)
    assert max(found) < PER_BITMAP
    room = disk.space.room
    assert max(disk.space.allocate_together(1, room)) < PER_BITMAP
    with pytest.raises(NoSpace):
        disk.space.allocate_together(1, 100)


def test_full_bitmaps_are_not_read_to_look_for_long_holes():
    disk = with_a_full_bitmap_that_must_not_be_read()
    end = disk.pages.end_page
    assert disk.space.allocate_together(1, 100) == range(end, end + 100)


def test_what_is_given_up_was_not_set_aside():
    disk = Disk(limit=PER_BITMAP)
    with_holes(disk, (1000, 1000 + EXTENT))
    disk.space.allocate_together(1, 100)
    disk.space = disk.space.anew(disk.superblock, disk.previous)
    room = disk.space.room
    assert set(range(1000, 1000 + EXTENT)) <= set(disk.space.allocate_data(1, room))


def test_what_is_pinned_is_nobody_s_even_if_it_is_long():
    disk = Disk()
    with_holes(disk, (PER_BITMAP - 20, PER_BITMAP - 19))
    pages = range(1000, 1000 + EXTENT)
    pin = disk.space.pin()
    disk.space.free_pages(pages, 1)
    for _ in range(3):
        disk.commit()
        assert not set(disk.space.allocate_together(1, 50)) & set(pages)
    disk.space.unpin(pin)
    assert disk.space.allocate_together(1, EXTENT) == pages


steps = st.lists(
    st.one_of(
        st.tuples(st.just("together"), st.sampled_from([1, 4]), st.integers(1, 700)),
        st.tuples(st.just("allocate"), st.sampled_from([1, 4]), st.integers(1, 700)),
        st.tuples(st.just("free"), st.integers(0, 5), st.integers(1, 20)),
        st.tuples(st.sampled_from(["commit", "abort", "reopen", "pin", "unpin"]), st.just(0), st.just(0)),
    ),
    min_size=8,
    max_size=30,
)


@given(steps, st.sampled_from([0, FIRST + 900, PER_BITMAP, 2 * PER_BITMAP + 100]))
@settings(max_examples=80)
def test_runs_are_nobody_else_s_and_the_room_that_there_is_can_be_had_to_the_last_unit(
    todo: list[tuple[str, int, int]], limit: int
):
    """Against plain sets: what each state has in use, pinned ones among them."""
    disk = Disk(limit=limit)
    held: list[tuple[list[int], int]] = []  # pages and the units of each; the next is the same as of the last commit
    kept: list[tuple[list[int], int]] = []
    current: set[int] = set()
    last = previous = disk.in_use()
    pins: list[tuple[Pin, set[int]]] = []
    for what, first, second in todo:
        if what in {"together", "allocate"}:
            try:
                allocate = disk.space.allocate_together if what == "together" else disk.space.allocate_data
                found = list(allocate(first, second))
            except NoSpace:
                assert first > 1 or disk.space.room < second  # longer ones may find it in pieces
                continue
            units = [unit for page in found for unit in range(page, page + first)]
            assert len(units) == len(set(units)) == first * second
            assert not set(units) & (current | last | previous).union(*(state for _, state in pins))
            assert max(units) < (limit or 1 << 40)
            held.append((found, first))
            current |= set(units)
        elif what == "free":
            for pages, size in held[first : first + second]:
                disk.space.free_pages(pages, size)
                current -= {unit for page in pages for unit in range(page, page + size)}
            del held[first : first + second]
        elif what == "abort":
            disk.space = disk.space.anew(disk.superblock, disk.previous)
            held = list(kept)
            current = {unit for pages, size in held for page in pages for unit in range(page, page + size)}
        elif what == "pin":
            pins.append((disk.space.pin(), last))
        elif what == "unpin":
            if pins:
                disk.space.unpin(pins.pop()[0])
        else:
            disk.pages.reserve.may_be_used = True
            disk.commit()
            disk.pages.reserve.may_be_used = False
            previous, last, kept = last, disk.in_use(), list(held)
            assert last == current | set(range(FIRST)) | disk.own_pages()
            assert disk.space.used == len(last)
            if what == "reopen":
                disk.reopen()
                pins.clear()
    if limit and (room := disk.space.room) > 0:
        assert len(disk.space.allocate_data(1, room)) == room


@pytest.mark.parametrize("batch", [1, 40])
def test_the_file_stops_to_grow_under_random_overwrites_whatever_their_number(
    batch: int, monkeypatch: pytest.MonkeyPatch
):
    """What is live, the holes that there may be, and what two transactions give up."""
    monkeypatch.setattr(spacemap, "_MOST_HOLE_BYTES", 3000 * TINY.unit)
    noise = random.Random(batch)
    disk = Disk()
    pages = list(disk.space.allocate(1, 6000))
    disk.commit()
    ends = []
    for _ in range(150):
        for _ in range(400 // batch):
            chosen = noise.sample(range(len(pages)), batch)
            fresh = disk.space.allocate_together(1, batch)
            disk.space.free_pages([pages[number] for number in chosen], 1)
            for number, page in zip(chosen, fresh, strict=True):
                pages[number] = page
        disk.commit()
        ends.append(disk.pages.end_page)
    assert max(ends) <= disk.space.used + 3000 + 2 * 400 + EXTENT
    assert ends[-1] == ends[len(ends) // 2]
    assert len(set(pages)) == len(pages)
    assert set(pages) <= disk.in_use()
