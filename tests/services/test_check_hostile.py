"""Containers whose checksums are right and whose content is not, and bytes of any kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapctl.errors import SnapctlError
from snapctl.format.checksum import crc32c
from snapctl.format.geometry import POINTER_BYTES
from snapctl.format.pointer import ABSENT, LOST, PASS, ZERO, Pointer, page_pointer
from snapctl.format.superblock import Superblock
from snapctl.services.check import Report, check_backend
from snapctl.services.check.findings import MOST_FINDINGS, Findings
from snapctl.services.check.ownership import Ownership
from tests.support import damage
from tests.support.backends import MemoryBackend, RecordingBackend
from tests.support.containers import BLOCK, FANOUT, filled_image, small_container


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend(filled_image())


Damage = Callable[[MemoryBackend], None]


def data_with_two_owners(backend: MemoryBackend) -> None:
    stolen = damage.pointers(backend, damage.find(backend, "db", "third table"))[0]
    damage.forge_entry(backend, damage.find(backend, "log", "third table"), 20, stolen)


def table_with_two_owners(backend: MemoryBackend) -> None:
    stolen = damage.pointers(backend, damage.find(backend, "db", "second table"))[0]
    damage.forge_entry(backend, damage.find(backend, "log", "second table"), 5, stolen)


def forged_entry(owner: str, kind: str, entry: int, pointer: Pointer) -> Damage:
    return lambda backend: damage.forge_entry(backend, damage.find(backend, owner, kind), entry, pointer)


def forged_record(node: str, field: str, value: int | bytes) -> Damage:
    return lambda backend: damage.forge_record(backend, node, field, value)


def forged_superblock(**fields: int) -> Damage:
    def change(found: Superblock) -> Superblock:
        return replace(found, **fields)  # type: ignore[arg-type]

    return lambda backend: damage.forge_superblock(backend, change)


def born_in_the_future(backend: MemoryBackend) -> None:
    table = damage.find(backend, "db", "third table")
    pointer = damage.pointers(backend, table)[3]
    damage.forge_entry(backend, table, 3, page_pointer(pointer.page_no, pointer.checksum, 1000))


def reserved_byte_in_a_pointer(backend: MemoryBackend) -> None:
    table = damage.find(backend, "db", "third table")
    pointer = damage.pointers(backend, table)[3]
    damage.forge_entry(backend, table, 3, Pointer(pointer.word0 | 1 << 56, pointer.word1))


def bytes_in_a_free_slot(backend: MemoryBackend) -> None:
    # One record a page here, so a slot without an id is a page of its own.
    damage.forge_record(backend, "lab@x", "id", 0)


class TestHostileContainers:
    """Every checksum is right; what stands in the pages is not."""

    @pytest.mark.parametrize(
        ("harm", "where", "words"),
        [
            (data_with_two_owners, "log", ["data of block 20", "another owner"]),
            (table_with_two_owners, "log", ["third table of blocks 160 to 191", "another owner"]),
            (born_in_the_future, "db", ["data of block 3", "future"]),
            (reserved_byte_in_a_pointer, "db", ["entry 3", "unknown kind 0x101"]),
            (forged_entry("dev", "third table", 30, Pointer(9 << 48, 0)), "dev", ["entry 30", "unknown kind 0x9"]),
            (forged_entry("dev", "third table", 30, Pointer(ZERO << 48 | 5, 0)), "dev", ["entry 30", "not empty"]),
            (forged_entry("dev", "third table", 30, Pointer(ABSENT, 7)), "dev", ["kind 0", "not empty"]),
            (forged_entry("dev", "third table", 30, Pointer(PASS << 48, 0)), "dev", ["entry 30", "no place"]),
            (forged_entry("db", "first table", 9, Pointer(PASS << 48, 0)), "db", ["entry 9", "no place"]),
            (forged_entry("db", "third table", 0, page_pointer(3, 0, 1)), "db", ["page 3, outside"]),
            (forged_entry("db", "first table", 0, page_pointer(1 << 47, 0, 1)), "db", ["second table", "outside"]),
            (forged_entry("snapshot list", "second table", 20, Pointer(ZERO << 48, 0)), "snapshot list", ["no place"]),
            (forged_entry("space map", "second table", 3, Pointer(LOST << 48, 0)), "space map", ["no place"]),
            (forged_record("dev", "name", b"a/b"), "snapshot list", ["bad name"]),
            (forged_record("dev", "name", b"db"), "db", ["same name"]),
            (forged_record("db@tue", "name", b"mon"), "db@mon", ["same name"]),
            (forged_record("dev", "kind", 7), "snapshot list", ["dev", "bad kind"]),
            (forged_record("dev", "size_bytes", 1 << 63), "snapshot list", ["dev", "bad size"]),
            (forged_record("dev", "own_blocks", (1 << 64) - 1), "snapshot list", ["dev", "blocks owned"]),
            (forged_record("dev", "own_blocks", 3), "dev", ["data blocks", "3"]),
            (forged_record("dev", "state", 1), "snapshot list", ["dev", "bad state"]),
            (forged_record("dev", "first_table", bytes(16)), "snapshot list", ["dev", "first table"]),
            (forged_record("dev", "parent", 77), "dev", ["parent, node 77, does not exist"]),
            (forged_record("db@mon", "origin", 77), "#77@mon", ["origin, node 77, does not exist"]),
            (forged_record("dev", "parent", 1), "dev", ["parent, node 1, is not an RO snapshot"]),
            (forged_record("dev", "origin", 2), "dev", ["origin, node 2, is neither"]),
            (forged_record("log@mon", "parent", 1), "log@mon", ["parent, node 1, is neither"]),
            (forged_record("log@mon", "parent", 2), "log@tue", ["hangs from log, as log@mon does"]),
            (forged_record("db@tue", "parent", 3), "db@tue", ["parent, node 3, is older"]),
            (forged_record("db@tue", "parent", 3), "db@mon", ["cycle"]),
            (forged_record("dev", "id", 1), "snapshot list", ["same id"]),
            (forged_record("dev", "id", 999), "snapshot list", ["node 999", "next id"]),
            (bytes_in_a_free_slot, "snapshot list", ["free but not empty"]),
            (forged_superblock(node_count=2), "superblock", ["2 nodes; there are 10"]),
            (forged_superblock(next_node_id=(1 << 63) - 1, node_count=1 << 62), "superblock", ["there are 10"]),
            (forged_superblock(pages_total=1 << 20), "container", ["truncated"]),
        ],
    )
    def test_what_checksums_cannot_tell_is_found(
        self, backend: MemoryBackend, harm: Damage, where: str, words: list[str]
    ):
        harm(backend)
        damage.assert_found(check_backend(backend), where, *words)

    @pytest.mark.parametrize(
        ("owner", "kind"),
        [("db", "first table"), ("db", "second table"), ("snapshot list", "first table"), ("space map", "first table")],
    )
    def test_a_table_that_points_to_itself_ends_the_walk(self, backend: MemoryBackend, owner: str, kind: str):
        table = damage.find(backend, owner, kind)
        checksum = 0x1234_5678
        looped = bytearray(damage.read(backend, table))
        pointer = page_pointer(table.offset // BLOCK, checksum, 1)
        looped[-2 * POINTER_BYTES :] = b"".join(word.to_bytes(8, "little") for word in pointer) * 2
        damage.forge(backend, table, 0, damage.bend(looped, len(looped) - 5 * POINTER_BYTES, checksum))
        assert crc32c(damage.read(backend, table)) == checksum
        damage.assert_found(check_backend(backend), owner, "another owner")

    def test_a_name_cannot_reach_the_terminal(self, backend: MemoryBackend):
        damage.forge_record(backend, "dev", "name", b"\x1b[2J\x07\n\xff")
        report = check_backend(backend)
        assert report.exit_code == 4
        assert all(f"{finding.where}{finding.message}".isprintable() for finding in report.findings)

    def test_more_findings_than_can_be_kept_are_counted(self):
        findings = Findings()
        for i in range(MOST_FINDINGS + 7):
            findings.leak("space map", f"page {i}")
        for i in range(3):
            findings.corruption("db", f"block {i}")
        report = Report(findings.all())
        assert len(report.findings) == MOST_FINDINGS + 2
        assert "7 more" in report.findings[-2].message
        assert "3 more" in report.findings[-1].message
        assert report.exit_code == 4

    def test_what_many_pointers_lead_to_is_read_for_the_first_of_them_only(self):
        """All entries of all tables lead to the same pages: 2^15 ways to few pages."""
        backend = RecordingBackend()
        container = small_container(backend)
        container.create_volume("db", 100_000).write(0, b"x")
        container.commit()
        for kind in ("third table", "second table", "first table"):
            table = damage.find(backend, "db", kind)
            damage.forge(backend, table, 0, damage.read(backend, table)[:POINTER_BYTES] * FANOUT)
        backend.forget()
        report = check_backend(backend)
        assert len(report.findings) == 3 * (FANOUT - 1)
        assert backend.read_bytes < len(backend.data)


def outcome(data: bytes | bytearray) -> int:
    """What a check of a file comes to; anything but a report or a clear error fails the test."""
    try:
        return check_backend(MemoryBackend(data)).exit_code
    except SnapctlError as error:
        return error.exit_code


class TestAnyDamage:
    @given(patches=st.lists(st.tuples(st.integers(0, len(filled_image()) - 1), st.binary(min_size=1, max_size=600))))
    def test_random_bytes_anywhere_never_break_the_check(self, patches: list[tuple[int, bytes]]):
        data = bytearray(filled_image())
        for offset, patch in patches:
            data[offset : offset + len(patch)] = patch
        assert outcome(data) in {0, 1, 4}

    @given(st.data())
    def test_random_bytes_behind_right_checksums_never_break_the_check(self, data: st.DataObject):
        backend = MemoryBackend(filled_image())
        pages = [found for found in damage.structures(backend) if found.kind not in {"data", "superblock copy"}]
        for _ in range(data.draw(st.integers(1, 3))):
            page = data.draw(st.sampled_from(pages))
            at = data.draw(st.integers(0, page.length - 1))
            patch = data.draw(st.binary(min_size=1, max_size=64))[: page.length - at]
            damage.forge(backend, page, at, patch)
        assert outcome(backend.data) in {0, 3, 4}

    @given(length=st.integers(0, len(filled_image())), tail=st.binary(max_size=50))
    def test_truncation_anywhere_never_breaks_the_check(self, length: int, tail: bytes):
        assert outcome(filled_image()[:length] + tail) in {1, 4} or length == len(filled_image())

    @given(st.binary(max_size=10_000))
    def test_random_files_are_refused(self, data: bytes):
        assert outcome(data) == (4 if data.startswith(b"SNAPCTL\0") else 1)


class TestOwnership:
    def test_claims_across_the_edges_of_chunks_are_kept_apart(self):
        owned = Ownership()
        assert owned.take(4090, 20)
        assert not owned.take(4000, 95)
        assert owned.take(4000, 90)
        assert not owned.claim(4105, 10)
        assert not owned.take(4114, 1)
        assert owned.take(4115, 1)
        assert owned.regions(4096) == {0, 1}
        assert owned.bits(0, 4096) == ((1 << 96) - 1) << 4000
        assert owned.bits(0, 8192) == ((1 << 116) - 1) << 4000
