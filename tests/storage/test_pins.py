"""Pins: what one stands for is neither handed out, written nor punched out, and all of it is to be had again after."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapctl.errors import NoSpace
from snapctl.format.geometry import SUPERBLOCK_AREA, Geometry
from snapctl.format.pointer import page_pointer
from snapctl.format.superblock import build, copy_offset
from snapctl.storage.store import Pinned, Store
from tests.support.backends import MemoryBackend, RecordingBackend
from tests.support.spacemaps import units_in_use

TINY = Geometry(512, 512)
PER_BITMAP = TINY.units_per_bitmap
MEGABYTE = 1 << 20


@dataclass
class Reader:
    """A pin, and what it is to find for as long as it lasts."""

    pinned: Pinned
    pages: dict[int, bytes]


@dataclass
class Disk:
    """A store without nodes, whose pages are owned by nobody but the test."""

    capacity_bytes: int | None = None
    backend: RecordingBackend = field(default_factory=RecordingBackend)
    readers: list[Reader] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = Store.format(self.backend, TINY, self.capacity_bytes)
        self.noise = random.Random(1)
        self.commit()

    def allocate(self, units: int, count: int) -> list[int]:
        """Take runs and write noise to them."""
        pages = self.store.space.allocate(units, count)
        size = units * TINY.unit
        self.store.pages.write_pages(pages, [self.noise.randbytes(size) for _ in pages], size)
        return pages

    def commit(self) -> None:
        self.store.seal(page_pointer(TINY.first_page, 0, 0), 1, 0)
        is_sealed = True
        while is_sealed:
            self.store.make_durable()
            is_sealed = self.store.conclude()

    def pin(self) -> Reader:
        """Pin the last commit, going by what stands on disk."""
        image = self.backend.data
        pages = {page: bytes(image[page * 512 : page * 512 + 512]) for page in units_in_use(image)}
        reader = Reader(self.store.pin(), {page: data for page, data in pages.items() if page >= TINY.first_page})
        self.readers.append(reader)
        return reader

    def unpin(self, reader: Reader) -> None:
        self.readers.remove(reader)
        self.store.unpin(reader.pinned)

    def verify(self) -> None:
        """See that every pin finds what it found at first."""
        for reader in self.readers:
            for page, data in reader.pages.items():
                assert self.backend.data[page * 512 : page * 512 + 512] == data, f"page {page}"

    def available(self) -> int:
        """How many units can be had, found by taking them all and giving the transaction up."""
        space, count = self.store.space, 0
        self.store.pages.reserve.may_be_used = True
        step = 1 << 12
        while step:
            try:
                space.allocate(1, step)
            except NoSpace:
                step //= 2
            else:
                count += step
        self.store.reset()
        self.store.pages.reserve.may_be_used = False
        return count


def test_what_is_pinned_is_not_handed_out_however_many_commits_pass():
    disk = Disk()
    pages = disk.allocate(1, 40)
    disk.commit()
    reader = disk.pin()
    disk.store.space.free_pages(pages, 1)
    for _ in range(4):
        assert not set(pages) & set(disk.allocate(1, 60))
        disk.commit()
    disk.verify()
    disk.unpin(reader)
    assert set(pages) <= set(disk.allocate(1, 60)), "at once, in the open transaction"


def test_a_pin_taken_in_the_midst_of_a_transaction_stands_for_the_last_commit():
    disk = Disk()
    pages = disk.allocate(1, 40)
    disk.commit()
    disk.store.space.free_pages(pages, 1)
    late = disk.allocate(1, 5)
    reader = disk.pin()
    assert reader.pinned.superblock == disk.store.superblock
    disk.store.space.free_pages(late, 1)
    assert set(late) <= set(disk.allocate(1, PER_BITMAP)), "no commit has these"
    for _ in range(3):
        disk.commit()
        assert not set(pages) & set(disk.allocate(1, 60))
    disk.verify()


def test_a_bitmap_that_comes_into_memory_after_the_pin_is_pinned_as_it_was():
    disk = Disk()
    pages = disk.allocate(1, 3 * PER_BITMAP)
    disk.commit()
    disk.store = Store.adopt(disk.backend, writable=True)
    disk.pin()
    disk.store.space.free_pages(pages[PER_BITMAP:], 1)
    for _ in range(3):
        disk.commit()
        assert not set(pages) & set(disk.allocate(1, PER_BITMAP))
    disk.verify()


def test_pins_survive_a_transaction_that_is_given_up():
    disk = Disk()
    pages = disk.allocate(1, PER_BITMAP + 40)
    disk.commit()
    reader = disk.pin()
    disk.store.space.free_pages(pages, 1)
    for _ in range(3):
        disk.commit()
        disk.allocate(1, 10)
        disk.store.reset()
        assert not set(pages) & set(disk.store.space.allocate(1, 2 * PER_BITMAP))
        disk.store.reset()
    disk.store.reset()
    disk.unpin(reader)
    assert set(pages) <= set(disk.store.space.allocate(1, 2 * PER_BITMAP))


def test_what_a_pin_kept_is_found_although_the_search_has_gone_past_it():
    disk = Disk()
    pages = disk.allocate(1, 40)
    disk.commit()
    reader = disk.pin()
    disk.store.space.free_pages(pages, 1)
    disk.commit()
    disk.commit()
    disk.allocate(1, 2 * PER_BITMAP)
    disk.unpin(reader)
    assert set(pages) <= set(disk.allocate(1, 40))


def test_of_several_pins_each_keeps_its_own():
    disk = Disk()
    first = disk.allocate(1, 10)
    disk.commit()
    old = disk.pin()
    disk.store.space.free_pages(first, 1)
    second = disk.allocate(1, 10)
    disk.commit()
    new = disk.pin()
    disk.store.space.free_pages(second, 1)
    for _ in range(2):
        disk.commit()
    disk.unpin(old)
    taken = set(disk.allocate(1, 15))
    assert set(first) <= taken
    assert not set(second) & taken
    disk.unpin(new)
    assert set(second) <= set(disk.allocate(1, 20))


def test_long_runs_go_back_to_the_file_system_when_the_last_pin_ends_and_not_before():
    disk = Disk()
    units = 3 * MEGABYTE // TINY.unit
    pages = disk.allocate(8, units // 8)
    disk.commit()
    readers = [disk.pin(), disk.pin()]
    disk.store.space.free_pages(pages, 8)
    for _ in range(3):
        disk.commit()
    disk.verify()
    disk.unpin(readers[0])
    disk.verify()
    assert not disk.backend.calls["punch"]
    disk.unpin(readers[1])
    punched = sum(length for method, _, length in disk.backend.log if method == "punch")
    assert punched >= 2 * MEGABYTE


def test_a_pin_that_ends_leaves_what_the_other_slot_stands_for_to_the_next_commit():
    disk = Disk()
    pages = disk.allocate(8, 2 * MEGABYTE // TINY.unit // 8)
    disk.commit()
    reader = disk.pin()
    disk.store.space.free_pages(pages, 8)
    disk.commit()
    disk.unpin(reader)
    assert not disk.backend.calls["punch"]
    disk.commit()
    assert disk.backend.calls["punch"]


def test_what_pins_keep_is_not_offered_as_room_and_the_reserve_is_not_eaten_by_it():
    disk = Disk(capacity_bytes=MEGABYTE)
    pages = disk.allocate(1, 1000)
    disk.commit()
    reader = disk.pin()
    disk.store.space.free_pages(pages, 1)
    for _ in range(3):
        disk.commit()
    room = disk.store.space.room
    assert room < 1000
    assert disk.available() == room + disk.store.space.reserve
    with pytest.raises(NoSpace, match="come free when"):
        disk.store.space.allocate_data(1, room + 1)
    disk.store.reset()
    assert len(disk.store.space.allocate_data(1, room)) == room
    disk.store.reset()
    disk.unpin(reader)
    assert disk.store.space.room >= room + 1000
    assert disk.available() == disk.store.space.room + disk.store.space.reserve


@pytest.mark.parametrize("copies", [(), (0,), (1,), (0, 1)])
def test_the_superblock_area_of_a_pin_is_without_a_commit_in_flight(copies: tuple[int, ...]):
    """Whichever copies of its superblock are in the file already: the pages of that commit are not pinned."""
    disk = Disk()
    disk.allocate(1, 10)
    disk.commit()
    image = bytes(disk.backend.data)
    disk.allocate(1, 10)
    disk.commit()
    store = Store.adopt(MemoryBackend(image), writable=True)
    later = disk.store.superblock
    for copy in copies:
        store.pages.backend.write(copy_offset(later.slot, copy), [build(later)])
    pinned = store.pin()
    assert pinned.area == image[:SUPERBLOCK_AREA]
    assert pinned.superblock.transaction == later.transaction - 1


actions = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), st.sampled_from([1, 8]), st.integers(1, 60)),
        st.tuples(st.just("free"), st.integers(0, 50), st.integers(1, 40)),
        st.tuples(st.sampled_from(["commit", "commit", "abort", "pin", "unpin"]), st.integers(0, 3), st.just(0)),
    ),
    max_size=30,
)


@given(actions, st.booleans())
@settings(max_examples=120)
def test_no_page_of_a_pinned_state_is_handed_out_or_changed_and_all_is_to_be_had_after(
    todo: list[tuple[str, int, int]], is_small: bool
):
    """Against plain sets: what stood on disk at each pin, the last commit and the one before."""
    disk = Disk(capacity_bytes=MEGABYTE // 4 if is_small else 64 * MEGABYTE)
    held: dict[int, int] = {}
    committed: dict[int, int] = {}
    last = previous = units_in_use(disk.backend.data)
    for what, first, second in todo:
        space = disk.store.space
        if what == "allocate":
            count = min(second, max(0, space.room) // first)
            try:
                runs = disk.allocate(first, count)
            except NoSpace:
                assert first > 1, "single units lie nowhere apart"
                continue
            for page in runs:
                taken = set(range(page, page + first))
                assert not taken & (last | previous).union(*(reader.pages for reader in disk.readers))
                held[page] = first
        elif what == "free":
            for page in list(held)[first : first + second]:
                space.free(page, held.pop(page))
        elif what == "commit":
            disk.store.pages.reserve.may_be_used = True
            try:
                before = disk.store.transaction
                disk.commit()
            except NoSpace:
                disk.store.reset()
                held = dict(committed)
                continue
            committed = dict(held)
            now = units_in_use(disk.backend.data)
            previous, last = (last if disk.store.transaction == before + 1 else now), now
        elif what == "abort":
            disk.store.reset()
            held = dict(committed)
        elif what == "pin":
            disk.pin()
        elif disk.readers:
            disk.unpin(disk.readers[first % len(disk.readers)])
        disk.verify()
    disk.store.reset()
    for reader in list(disk.readers):
        disk.unpin(reader)
        disk.verify()
    kept = len(previous - last)
    limit = disk.store.superblock.pages_limit
    assert disk.available() == limit - disk.store.superblock.pages_used - kept
    assert disk.store.space.room + disk.store.space.reserve == limit - disk.store.superblock.pages_used - kept
