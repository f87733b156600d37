"""A repair is made or not made, never half; it can be undone, and costs no more than the container is worth."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.errors import Corruption, DataLost, IoFailure, NoSpace, SnapctlError, Truncated, UnsupportedFormat
from snapctl.format.geometry import POINTER_BYTES, SUPERBLOCK_AREA
from snapctl.format.pointer import ZERO, Pointer
from snapctl.format.superblock import copy_offset
from snapctl.services.check import check_backend
from snapctl.services.repair import repair_backend, repair_container
from snapctl.storage.store import undo_repair
from snapctl.storage.superblocks import choose_superblocks
from tests.support import damage
from tests.support.backends import FailingBackend, MemoryBackend, RecordingBackend, Stopped, StoppingBackend
from tests.support.containers import small_container
from tests.support.repairs import assert_usable, faults_in, repair, settled, views_in

BLOCK = 512


def small() -> MemoryBackend:
    """A volume with two snapshots and a clone, under one first table each."""
    backend = MemoryBackend()
    container = small_container(backend)
    db = container.create_volume("db", 40 * BLOCK, cow=Cow.COPY)
    db.write(0, bytes(range(1, 255)) * 60)
    container.commit()
    container.snapshot("db@1")
    db.write(0, b"second" * 200)
    container.snapshot("db@2")
    container.clone("db@1", "dev").write(BLOCK, b"clone" * 300)
    container.commit()
    return MemoryBackend(settled(bytes(backend.data)))


def damaged_table(backend: MemoryBackend) -> None:
    table = damage.find(backend, "db", "third table")
    damage.flip(backend, damage.find(backend, damage.SPACE_MAP, "bitmap").offset)
    damage.flip(backend, table.offset)


def lost_record(backend: MemoryBackend) -> None:
    record = damage.find(backend, "db@2", "first table").above
    assert record is not None
    damage.flip(backend, record.offset)


def two_owners(backend: MemoryBackend) -> None:
    stolen = damage.pointers(backend, damage.find(backend, "db", "third table"))[0]
    damage.forge_entry(backend, damage.find(backend, "dev", "third table"), 20, stolen)


def cut_short(backend: MemoryBackend) -> None:
    backend.truncate(damage.find(backend, "dev", "data").offset + 100)


Harm = Callable[[MemoryBackend], None]
HARMS = [damaged_table, lost_record, two_owners, cut_short]


def damaged(harm: Harm) -> bytes:
    backend = small()
    harm(backend)
    return bytes(backend.data)


def is_as_before(image: bytes | bytearray, before: bytes) -> bool:
    """Whether a file is as it was before a repair, for a reader as for a check."""
    if image[:SUPERBLOCK_AREA] == before[:SUPERBLOCK_AREA]:
        assert views_in(image) == views_in(before)
    return choose_superblocks(MemoryBackend(image))[0] == choose_superblocks(MemoryBackend(before))[0]


def assert_before_or_after(image: bytes | bytearray, before: bytes) -> None:
    """Hold that a file is as before a repair or repaired, and that it can be repaired."""
    if is_as_before(image, before):
        assert views_in(image) == views_in(before)
        if len(image) == len(before):
            assert faults_in(image) == faults_in(before)
    else:
        assert check_backend(MemoryBackend(image)).exit_code == 0
    backend = MemoryBackend(image)
    repair(backend)
    whole = MemoryBackend(before)
    repair(whole)
    assert views_in(backend.data, DataLost) == views_in(whole.data, DataLost)


class TestCrashes:
    @pytest.mark.parametrize(
        ("harm", "keep"),
        [*((harm, lambda _: 0) for harm in HARMS), (damaged_table, lambda length: length // 2)],
    )
    def test_a_repair_that_stops_anywhere_is_made_or_not(self, harm: Harm, keep: Callable[[int], int]):
        before = damaged(harm)
        whole = StoppingBackend(before)
        assert repair_backend(whole, agree=lambda _: True).applied
        assert whole.done > 5
        for stop_at in range(whole.done):
            backend = StoppingBackend(before, stop_at=stop_at, keep=keep)
            with pytest.raises(Stopped):
                repair_backend(backend, agree=lambda _: True)
            assert_before_or_after(backend.data, before)
            assert_before_or_after(backend.durable, before)

    @pytest.mark.parametrize(
        ("harm", "error"),
        [(damaged_table, IoFailure), (lost_record, NoSpace), (two_owners, IoFailure), (cut_short, NoSpace)],
    )
    def test_a_repair_that_is_refused_anything_is_made_or_not(self, harm: Harm, error: type[IoFailure | NoSpace]):
        before = damaged(harm)
        whole = FailingBackend(before)
        repair_backend(whole, agree=lambda _: True)
        for fail_at in range(whole.begun):
            # Twice, as a lack of space is tried again with the reserve.
            backend = FailingBackend(before, fail_at=range(fail_at, fail_at + 2), error=error)
            with pytest.raises((IoFailure, NoSpace)):
                repair_backend(backend, agree=lambda _: True)
            assert_before_or_after(backend.data, before)

    @pytest.mark.parametrize("harm", HARMS)
    def test_no_page_of_the_state_before_is_written(self, harm: Harm):
        backend = RecordingBackend(damaged(harm))
        before = bytes(backend.data)
        slot = choose_superblocks(backend)[0].slot
        repair(backend)
        end = len(before) // BLOCK * BLOCK
        assert backend.data[SUPERBLOCK_AREA:end] == before[SUPERBLOCK_AREA:end]
        for copy in range(2):
            page = slice(copy_offset(slot, copy), copy_offset(slot, copy) + 4096)
            assert backend.data[page] == before[page]

    def test_a_repair_that_has_no_room_leaves_the_file_as_long_as_it_was(self):
        before = damaged(cut_short)
        backend = FailingBackend(before, fail_at=range(4, 6), error=NoSpace)
        with pytest.raises(NoSpace):
            repair_backend(backend, agree=lambda _: True)
        assert 0 <= len(before) - len(backend.data) < BLOCK


class TestUndo:
    @pytest.mark.parametrize("harm", HARMS)
    def test_everything_is_again_as_it_was(self, harm: Harm):
        before = damaged(harm)
        backend = MemoryBackend(before)
        transaction = choose_superblocks(backend)[0].transaction
        repair(backend)
        assert undo_repair(backend) == transaction
        assert views_in(backend.data) == views_in(before)
        if harm is cut_short:
            with pytest.raises(Truncated):
                Container.adopt(backend)
        else:
            assert faults_in(backend.data) == faults_in(before)
        repaired = MemoryBackend(before)
        repair(repaired)
        repair(backend)
        assert views_in(backend.data, DataLost) == views_in(repaired.data, DataLost)
        assert_usable(backend)

    def test_a_file_cut_far_below_what_it_held_can_be_had_back(self):
        before = small().data[: SUPERBLOCK_AREA + 5 * BLOCK]
        backend = MemoryBackend(before)
        repair(backend)
        undo_repair(backend)
        assert check_backend(backend).exit_code == 4
        with pytest.raises(Truncated):
            Container.adopt(backend)
        repair(backend)

    def test_it_is_made_or_not_wherever_it_stops(self):
        backend = MemoryBackend(damaged(damaged_table))
        before = views_in(backend.data)
        repair(backend)
        after = views_in(backend.data)
        whole = StoppingBackend(backend.data)
        undo_repair(whole)
        for stop_at in range(whole.done):
            for keep in (0, 700, 4096):
                stopping = StoppingBackend(backend.data, stop_at=stop_at, keep=lambda length, k=keep: min(length, k))  # type: ignore[misc]
                with pytest.raises(Stopped):
                    undo_repair(stopping)
                for image in (stopping.data, stopping.durable):
                    assert views_in(image) in (before, after)

    def test_what_is_no_repair_or_not_the_last_commit_cannot_be_undone(self):
        backend = small()
        with pytest.raises(SnapctlError, match="not a repair"):
            undo_repair(backend)
        damaged_table(backend)
        repair(backend)
        container = Container.adopt(backend)
        container["dev"].write(0, b"new")
        container.commit()
        image = bytes(backend.data)
        with pytest.raises(SnapctlError, match="not a repair"):
            undo_repair(backend)
        assert backend.data == image

    def test_a_damaged_superblock_from_before_is_told(self):
        backend = MemoryBackend(damaged(damaged_table))
        repair(backend)
        slot = 1 - choose_superblocks(backend)[0].slot
        for copy in range(2):
            damage.flip(backend, copy_offset(slot, copy) + 99)
        image = bytes(backend.data)
        with pytest.raises(Corruption, match="cannot be undone"):
            undo_repair(backend)
        assert backend.data == image


class TestDryRuns:
    @pytest.mark.parametrize("harm", HARMS)
    def test_nothing_is_written_and_the_same_is_told(self, harm: Harm, tmp_path: Path):
        path = tmp_path / "lab.snap"
        path.write_bytes(damaged(harm))
        path.chmod(0o444)
        before = hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns
        told = repair_container(str(path), 0, agree=None)
        assert (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) == before
        assert (told.applied, told.exit_code) == (False, 4)
        assert told.actions == repair(MemoryBackend(path.read_bytes())).actions

    def test_a_container_with_a_feature_that_is_unknown_here_is_not_written(self):
        backend = MemoryBackend(damaged(damaged_table))
        damage.forge_superblock(backend, lambda found: replace(found, read_only_compatible=4))
        image = bytes(backend.data)
        with pytest.raises(UnsupportedFormat, match="0x4"):
            repair_backend(backend, agree=lambda _: True)
        assert backend.data == image


class TestBounds:
    def test_pointers_that_all_lead_to_the_same_pages_are_not_all_followed(self):
        backend = RecordingBackend(small().data)
        for kind in ("third table", "second table", "first table"):
            table = damage.find(backend, "db", kind)
            damage.forge(backend, table, 0, damage.read(backend, table)[:POINTER_BYTES] * 32)
        before = len(backend.data)
        backend.forget()
        repair_backend(backend, agree=lambda _: True)
        assert len(backend.data) < 4 * before
        assert backend.read_bytes < 20 * before
        assert check_backend(backend).exit_code == 0

    def test_tables_without_data_that_are_named_over_and_over_are_not_all_copied(self):
        """A second table of ZEROs beneath each entry of a first table that many nodes name."""
        backend = RecordingBackend()
        container = small_container(backend, table_size=4096)
        container.create_volume("v", BLOCK)
        container.snapshot("v@s")
        for number in range(6):
            container.clone("v@s", f"c{number}").write(0, b"x")
        container.commit()
        second = damage.find(backend, "c0", "second table")
        damage.forge(backend, second, 0, b"".join(w.to_bytes(8, "little") for w in Pointer(ZERO << 48, 0)) * 256)
        first = damage.find(backend, "c0", "first table")
        damage.forge(backend, first, 0, damage.read(backend, first)[:POINTER_BYTES] * 256)
        pointer = damage.read_at(backend, damage.find(backend, "c0", "first table").entry_offset, POINTER_BYTES)
        for number in range(1, 6):
            damage.forge_record(backend, f"c{number}", "first_table", pointer)
        before = len(backend.data)
        repair_backend(backend, agree=lambda _: True)
        assert len(backend.data) < 4 * before
        assert check_backend(backend).exit_code == 0


def test_a_damaged_block_can_be_overwritten_under_either_policy():
    for cow in Cow:
        backend = MemoryBackend()
        container = small_container(backend)
        container.create_volume("db", 4 * BLOCK, cow=cow).write(0, b"old!" * 512)
        container.snapshot("db@1")
        container.commit()
        damage.flip(backend, damage.find(backend, "db", "data", 1).offset)
        container = Container.adopt(backend)
        db, snapshot = container["db"], container["db@1"]
        db.write(0, b"new!" * 512)
        container.commit()
        assert db.read(0, 4 * BLOCK) == b"new!" * 512
        assert snapshot.read(0, BLOCK) == b"old!" * 128
        with pytest.raises(Corruption, match=r"^db@1 bytes 512 to 1024: data at page \d+ fails its checksum"):
            snapshot.read(0, 4 * BLOCK)
        report = check_backend(backend)
        assert [finding.where for finding in report.findings] == ["db@1"]


def test_an_undo_is_refused_as_soon_as_anything_was_written_even_if_that_was_given_up():
    """The old space map may be damaged, so nothing tells what the state before stands for."""
    backend = MemoryBackend(damaged(damaged_table))
    repair(backend)
    repaired = views_in(backend.data, DataLost)
    container = Container.adopt(backend)
    container.create_volume("big", 100 * BLOCK).write(0, b"overwrite" * 5000)
    container.close()
    with pytest.raises(SnapctlError, match="not a repair"):
        undo_repair(backend)
    assert check_backend(backend).exit_code == 0
    assert views_in(backend.data, DataLost) == repaired


def _share(part: int) -> Callable[[int], int]:
    return lambda length: length // part if part else 0


def test_a_power_cut_anywhere_in_an_undo_leaves_it_done_or_to_be_done():
    before = damaged(damaged_table)
    repaired = MemoryBackend(before)
    transaction = choose_superblocks(repaired)[0].transaction
    repair(repaired)
    whole = StoppingBackend(repaired.data)
    undo_repair(whole)
    for stop_at, part in itertools.product(range(whole.done), (0, 8, 1)):
        backend = StoppingBackend(repaired.data, stop_at=stop_at, keep=_share(part))
        with pytest.raises(Stopped):
            undo_repair(backend)
        for image in (backend.data, backend.durable):
            again = MemoryBackend(image)
            if choose_superblocks(again)[0].repaired_from:
                assert undo_repair(again) == transaction
            assert check_backend(again).exit_code == 4, "not as before the repair"
            assert views_in(again.data) == views_in(before)
