"""A repair keeps every byte that can still be read, marks the others as lost, and never shows a wrong one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapctl.engine import session
from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.errors import Corruption, DataLost, IoFailure, Truncated
from snapctl.format.geometry import POINTER_BYTES
from snapctl.format.pointer import LOST, PAGE, PASS, ZERO, Pointer, page_pointer
from snapctl.services.check import Severity, check_backend
from snapctl.services.repair import repair_backend
from snapctl.storage.superblocks import choose_superblocks
from tests.support import damage
from tests.support.backends import MemoryBackend, Stopped, StoppingBackend, UnreadableSector
from tests.support.repairs import (
    assert_kept,
    assert_usable,
    family,
    repair,
    truth,
    view_of,
    views_in,
)

BLOCK = 512
GEOMETRIES = [(512, 512), (4096, 16384), (65536, 16384), (512, 4096)]


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend(family())


def table_pointers(backend: MemoryBackend, owner: str, kind: str) -> list[tuple[int, Pointer]]:
    """The entries of kind PAGE of the first table of an owner that is of a kind, with their numbers."""
    entries = enumerate(damage.pointers(backend, damage.find(backend, owner, kind)))
    return [(entry, pointer) for entry, pointer in entries if pointer.kind == PAGE]


class TestSoundContainers:
    def test_a_sound_container_is_left_as_it_is(self, backend: MemoryBackend):
        outcome = repair_backend(backend, agree=lambda _: True)
        assert (outcome.actions, outcome.applied, outcome.exit_code) == ([], False, 0)
        assert backend.data == family()

    def test_whoever_says_no_is_obeyed(self, backend: MemoryBackend):
        damage.flip(backend, damage.find(backend, "db", "data").offset)
        image = bytes(backend.data)
        outcome = repair_backend(backend, agree=lambda _: False)
        assert (outcome.applied, outcome.exit_code) == (False, 4)
        assert outcome.actions
        assert backend.data == image

    def test_a_file_without_a_sound_superblock_is_refused(self, backend: MemoryBackend):
        for found in damage.structures(backend)[:4]:
            damage.flip(backend, found.offset + 100)
        image = bytes(backend.data)
        with pytest.raises(Corruption, match="no sound superblock"):
            repair_backend(backend, agree=lambda _: True)
        assert backend.data == image


class TestSpace:
    def test_leaks_are_dropped(self, backend: MemoryBackend):
        current, _ = choose_superblocks(backend)
        free = next(n for n in range(current.geometry.first_page, current.pages_total) if not in_use(backend, n))
        damage.forge_use(backend, free, in_use=True)
        assert check_backend(backend).exit_code == 3
        repair(backend)
        assert views_in(backend.data, DataLost) == truth()
        assert_usable(backend)

    @pytest.mark.parametrize("kind", ["first table", "second table", "bitmap"])
    def test_the_space_map_is_made_anew(self, backend: MemoryBackend, kind: str):
        damage.flip(backend, damage.find(backend, damage.SPACE_MAP, kind).offset + 5)
        with pytest.raises(Corruption):
            write_a_volume(MemoryBackend(backend.data))
        repair(backend)
        assert views_in(backend.data, DataLost) == truth()
        assert_usable(backend)

    def test_pages_in_use_that_the_map_has_as_free_are_kept(self, backend: MemoryBackend):
        page = damage.find(backend, "db@1", "data")
        damage.forge_use(backend, page.offset // BLOCK, in_use=False)
        repair(backend)
        assert views_in(backend.data, DataLost) == truth()
        assert_usable(backend)

    def test_a_container_at_its_capacity_can_be_repaired(self, backend: MemoryBackend):
        damage.flip(backend, damage.find(backend, damage.SPACE_MAP, "first table").offset)
        full = choose_superblocks(backend)[0].pages_used
        damage.forge_superblock(backend, lambda found: replace(found, pages_limit=full))
        repair(backend)
        container = Container.adopt(backend)
        container.delete("lab", cascade=True)
        container.commit()
        assert check_backend(backend).exit_code == 0


def write_a_volume(backend: MemoryBackend) -> None:
    container = Container.adopt(backend)
    container.create_volume("x", BLOCK)
    container.commit()


def in_use(backend: MemoryBackend, page_no: int) -> bool:
    bitmap = damage.find(backend, damage.SPACE_MAP, "bitmap", page_no // (BLOCK * 8))
    bit = page_no % (BLOCK * 8)
    return bool(damage.read(backend, bitmap)[bit >> 3] >> (bit & 7) & 1)


class TestLostLists:
    def test_a_list_that_is_damaged_in_both_commits_is_kept_as_far_as_it_can_be_read(self):
        backend = MemoryBackend(family())
        record = damage.find(backend, "log@1", "first table").above
        assert record is not None
        damage.flip(backend, record.offset)
        transaction = choose_superblocks(backend)[0].transaction
        repair(backend)
        assert choose_superblocks(backend)[0].transaction == transaction + 1
        assert views_in(backend.data, DataLost)["db"] == truth()["db"]

    def test_a_power_cut_while_the_superblock_of_the_commit_before_is_replaced_leaves_one_of_the_three(self):
        backend = MemoryBackend(family())
        container = Container.adopt(backend)
        container["db"].write(0, b"given up")
        container.commit()
        damage.flip(backend, damage.find(backend, damage.SNAPSHOT_LIST, "first table").offset)
        before = bytes(backend.data)
        whole = StoppingBackend(before)
        repair_backend(whole, agree=lambda _: True)
        for stop_at in range(whole.done):
            stopped = StoppingBackend(before, stop_at=stop_at, keep=lambda length: length // 2)
            with pytest.raises(Stopped):
                repair_backend(stopped, agree=lambda _: True)
            for image in (stopped.data, stopped.durable):
                again = MemoryBackend(image)
                repair_backend(again, agree=lambda _: True)
                assert views_in(again.data, DataLost) == truth()


class TestUnreadableSectors:
    def test_nothing_is_given_up_for_what_the_disk_refuses_to_read(self):
        backend = UnreadableSector(family())
        backend.bad_offsets = (damage.find(backend, "log", "first table").offset,)
        before = bytes(backend.data)
        with pytest.raises(IoFailure, match="Input/output error"):
            repair_backend(backend, agree=lambda _: True)
        assert backend.data == before


class TestSuperblocks:
    @pytest.mark.parametrize("copies", [(0,), (1,), (2,), (3,), (0, 2), (1, 3), (0, 1), (0, 1, 2), (1, 2, 3)])
    def test_damaged_copies_are_written_anew(self, backend: MemoryBackend, copies: tuple[int, ...]):
        for copy in copies:
            damage.flip(backend, damage.structures(MemoryBackend(family()))[copy].offset + 100)
        repair(backend)
        assert views_in(backend.data, DataLost) == truth()

    def test_numbers_that_were_forged_are_put_right(self, backend: MemoryBackend):
        damage.forge_superblock(backend, lambda found: replace(found, node_count=2, next_node_id=3))
        outcome = repair(backend)
        assert outcome.found.exit_code == 4
        assert views_in(backend.data, DataLost) == truth()
        assert_usable(backend)

    def test_the_highest_next_id_that_a_superblock_can_hold_is_no_obstacle(self, backend: MemoryBackend):
        damage.forge_superblock(backend, lambda found: replace(found, next_node_id=(1 << 63) - 1))
        damage.forge_record(backend, "db@2", "parent", 99)
        repair(backend)
        assert_usable(backend)


class TestDamagedTablesAndData:
    @pytest.mark.parametrize(
        ("block_size", "table_size", "cow"),
        [*((*geometry, Cow.REDIRECT) for geometry in GEOMETRIES), (512, 512, Cow.COPY)],
    )
    def test_exactly_what_is_damaged_is_lost(self, block_size: int, table_size: int, cow: Cow):
        """One structure after the other of a base, of ROs first, in the middle and last of a chain, and of an RW."""
        sizes = block_size, table_size, cow
        whole = MemoryBackend(family(*sizes))
        chosen: dict[tuple[str, str], damage.Structure] = {}
        for found in damage.structures(whole):
            if found.owner in {"db", "db@2", "dev", "log@1"} and found.kind != "superblock copy":
                chosen[found.owner, found.kind] = found
        assert {kind for _, kind in chosen} == {*damage.LEVELS, "data"}
        for found in chosen.values():
            backend = MemoryBackend(whole.data)
            damage.flip(backend, found.offset + found.length - 1)
            before = views_in(backend.data)
            outcome = repair(backend)
            after = views_in(backend.data, DataLost)
            assert_kept(outcome, after, before, truth(*sizes))
            lost = {name for name, view in after.items() if view.lost}
            assert {name for name, view in before.items() if view.lost} == lost, found.name
            assert after == before, found.name

    def test_a_lost_block_heals_when_it_is_written_and_its_snapshots_stay_lost(self, backend: MemoryBackend):
        damage.flip(backend, damage.find(backend, "db", "data", 2).offset)
        repair(backend)
        container = Container.adopt(backend)
        container.snapshot("db@after")
        db, after = container["db"], container["db@after"]
        with pytest.raises(DataLost, match=r"^db bytes 1024 to 1536: damaged beyond repair"):
            db.read(0, 5 * BLOCK)
        with pytest.raises(DataLost):
            db.write(2 * BLOCK + 1, b"a part of it")
        container.abort()
        container = Container.adopt(backend)
        container.snapshot("db@after")
        db, after = container["db"], container["db@after"]
        db.write(2 * BLOCK, b"n" * BLOCK)
        container.commit()
        assert db.read(2 * BLOCK, BLOCK) == b"n" * BLOCK
        with pytest.raises(DataLost, match=r"^db@after bytes 1024 to 1536"):
            after.read(2 * BLOCK, BLOCK)
        assert view_of(container["db@3"], DataLost) == truth()["db@3"]
        assert check_backend(backend).exit_code == 0
        container.delete("db@after")
        container.commit()
        assert [finding.severity for finding in check_backend(backend).findings] == []

    def test_a_lost_last_block_heals_when_it_is_written_to_the_end_of_its_volume(self, backend: MemoryBackend):
        size = len(truth()["db"].content)
        damage.flip(backend, damage.find(backend, "db", "data", size // BLOCK).offset)
        repair(backend)
        container = Container.adopt(backend)
        start = size // BLOCK * BLOCK
        with pytest.raises(DataLost):
            container["db"].read(start, size - start)
        container["db"].write(start, b"z" * (size - start))
        container["db"].resize(size + 2 * BLOCK)
        container.commit()
        assert container["db"].read(start, 2 * BLOCK) == (b"z" * (size - start)).ljust(2 * BLOCK, b"\0")

    def test_what_is_marked_as_lost_is_told_by_every_check_and_is_no_fault(self, backend: MemoryBackend):
        third = damage.find(backend, "db@1", "third table")
        damage.flip(backend, third.offset)
        repair(backend)
        report = check_backend(backend)
        assert report.exit_code == 0
        assert [(finding.severity, finding.where, finding.message) for finding in report.findings] == [
            (Severity.LOST, "db@1", f"bytes 0 to {32 * BLOCK} are marked as lost")
        ]

    def test_lost_ranges_outlive_a_second_damage_and_its_repair(self, backend: MemoryBackend):
        damage.flip(backend, damage.find(backend, "db@1", "data", 1).offset)
        repair(backend)
        damage.flip(backend, damage.find(backend, "dev", "data", 0).offset)
        before = views_in(backend.data)
        outcome = repair(backend)
        after = views_in(backend.data, DataLost)
        assert after == before
        assert_kept(outcome, after, before, truth())
        assert {1} == after["db@1"].lost
        assert 0 in after["dev"].lost

    def test_a_truncated_file_keeps_what_is_left_of_it(self):
        whole = family()
        pages = {found.offset + found.length for found in damage.structures(MemoryBackend(whole))}
        for end in (sorted(pages)[-40], sorted(pages)[-15] + 100, 65536 + 3):
            backend = MemoryBackend(whole[:end])
            with pytest.raises(Truncated):
                Container.adopt(MemoryBackend(backend.data))
            outcome = repair(backend)
            assert_kept(outcome, views_in(backend.data, DataLost), {}, truth())
            assert_usable(backend)


class TestHostilePointers:
    """Every checksum is right, and still it cannot be as it is."""

    @pytest.mark.parametrize(("block_size", "table_size"), GEOMETRIES)
    @pytest.mark.parametrize("kind", ["data", "third table", "second table", "first table"])
    def test_of_two_owners_each_keeps_what_it_had(self, block_size: int, table_size: int, kind: str):
        backend = MemoryBackend(family(block_size, table_size))
        share(backend, "db", "log", kind)
        assert check_backend(backend).exit_code == 4
        before = views_in(backend.data, DataLost)
        repair(backend)
        assert views_in(backend.data, DataLost) == before
        assert_usable(backend)

    def test_a_shared_page_that_is_damaged_is_lost_to_both(self, backend: MemoryBackend):
        share(backend, "db", "log", "third table")
        damage.flip(backend, damage.find(backend, "db", "data", 3).offset)
        before = views_in(backend.data)
        repair(backend)
        after = views_in(backend.data, DataLost)
        assert after == before
        assert after["db"].lost == after["log"].lost == {3}

    @pytest.mark.parametrize("kind", ["first table", "second table", "third table", "data"])
    def test_births_in_the_future_become_past(self, backend: MemoryBackend, kind: str):
        found = damage.find(backend, "dev", kind)
        assert found.above is not None
        backend.write(found.entry_offset + 12, [(1_000_000).to_bytes(4, "little")])
        damage.seal(backend, found.above)
        damage.assert_found(check_backend(backend), "dev", "born in the future")
        repair(backend)
        assert views_in(backend.data, DataLost) == truth()
        assert_usable(backend)

    @pytest.mark.parametrize("level", range(3))
    @pytest.mark.parametrize(
        "pointer",
        [
            Pointer(9 << 48, 0),
            Pointer(ZERO << 48 | 5, 0),
            Pointer(0, 7),
            Pointer(PASS << 48, 0),
            Pointer(LOST << 48, 1),
            Pointer(PAGE << 56, 0),
            page_pointer(3, 0, 1),
            page_pointer(1 << 47, 0, 1),
        ],
    )
    def test_pointers_that_make_no_sense_become_lost(self, backend: MemoryBackend, level: int, pointer: Pointer):
        table = damage.find(backend, "dev", damage.LEVELS[level])
        damage.forge_entry(backend, table, 0, pointer)
        reached = 32 ** (2 - level)
        repair(backend)
        after = views_in(backend.data, DataLost)
        assert after["dev"].lost >= set(range(reached))
        for name, view in after.items():
            assert view.lost <= (set(range(reached)) if name.startswith(("dev", "lab")) else set())
        assert_usable(backend)

    def test_data_that_overlaps_other_data_is_told_apart(self):
        """Blocks of four units, and a pointer into the middle of one."""
        backend = MemoryBackend(family(65536, 16384))
        found = damage.find(backend, "db", "data", 3)
        middle = page_pointer(found.offset // 16384 + 1, 0x1234, 1)
        log = damage.find(backend, "log", "third table")
        damage.forge_entry(backend, log, 3, middle)
        before = views_in(backend.data)
        repair(backend)
        after = views_in(backend.data, DataLost)
        assert after == before
        assert after["log"].lost == {3}
        assert_usable(backend)


def share(backend: MemoryBackend, owner: str, thief: str, kind: str) -> None:
    """Have a pointer of one node lead to what another node's leads to."""
    found, own = damage.find(backend, owner, kind), damage.find(backend, thief, kind)
    pointer = damage.read_at(backend, found.entry_offset, POINTER_BYTES)
    backend.write(own.entry_offset, [pointer])
    assert own.above is not None
    damage.seal(backend, own.above)


HARMS = ("flip", "zero", "swap", "copy", "cut")


class TestAnyDamage:
    @settings(max_examples=settings().max_examples // 4)
    @given(seed=st.integers(0, 1 << 32), copies=st.booleans())
    def test_nothing_readable_is_lost_and_nothing_wrong_is_shown(self, seed: int, copies: bool):
        image = family(cow=Cow.COPY if copies else Cow.REDIRECT)
        backend = MemoryBackend(image)
        hurt(backend, random.Random(seed))
        try:
            choose_superblocks(backend)
        except Corruption:
            return
        before = views_in(backend.data)
        with pytest.MonkeyPatch.context() as patch:
            # Some repairs have to write tables out before the commit.
            patch.setattr(session, "_RESIDENT_BYTES", (0, 4096, 1 << 26)[seed % 3])
            outcome = repair(backend)
        after = views_in(backend.data, DataLost)
        assert_kept(outcome, after, before, truth(cow=Cow.COPY if copies else Cow.REDIRECT))
        assert_usable(MemoryBackend(backend.data))

    @settings(max_examples=settings().max_examples // 4)
    @given(seed=st.integers(0, 1 << 32))
    def test_forged_pages_are_repaired_or_refused(self, seed: int):
        noise = random.Random(seed)
        backend = MemoryBackend(family())
        pages = [found for found in damage.structures(backend) if found.kind not in {"data", "superblock copy"}]
        for page in noise.choices(pages, k=noise.randrange(1, 4)):
            at = noise.randrange(page.length // 8) * 8
            word = noise.choice([noise.randbytes(8), damage.read(backend, noise.choice(pages))[at : at + 16]])
            damage.forge(backend, page, at, word[: page.length - at])
        repair(backend)
        views_in(backend.data, DataLost)
        assert_usable(backend)


def hurt(backend: MemoryBackend, noise: random.Random) -> None:
    """Damage some structures as disks, cables and people do."""
    structures = damage.structures(backend)
    above_data = [found for found in structures if found.kind != "data"]
    for _ in range(noise.randrange(1, 5)):
        found = noise.choice(structures if noise.random() < 0.3 else above_data)
        other = noise.choice([other for other in structures if other.length == found.length])
        harm = "flip" if found.kind == "superblock copy" else noise.choices(HARMS, (4, 4, 4, 4, 1))[0]
        if harm == "flip":
            damage.flip(backend, found.offset + noise.randrange(found.length), noise.randrange(8))
        elif harm == "zero":
            backend.write(found.offset, [bytes(found.length)])
        elif harm == "cut":
            backend.truncate(max(found.offset, 65536))
            return
        else:
            one, two = damage.read(backend, found), damage.read(backend, other)
            backend.write(found.offset, [two])
            if harm == "swap":
                backend.write(other.offset, [one])


@pytest.mark.parametrize("kind", ["first table", "second table", "records"])
def test_of_two_lists_the_one_that_is_whole_is_gone_back_to(kind: str):
    backend = MemoryBackend(family())
    container = Container.adopt(backend)
    container["db"].write(0, b"given up")
    container.commit()
    damage.flip(backend, damage.find(backend, damage.SNAPSHOT_LIST, kind).offset)
    outcome = repair(backend)
    assert any("given up" in action.message for action in outcome.actions)
    assert views_in(backend.data, DataLost) == truth()
    assert_usable(backend)
