"""The check finds nothing where nothing is wrong, finds every damage that checksums tell, and goes on past it."""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest

from snapctl.engine.container import Container
from snapctl.errors import IoFailure, Locked, NotAContainer, UnsupportedFormat
from snapctl.format.checksum import crc32c
from snapctl.format.layout import SUPERBLOCK_BYTES
from snapctl.format.pointer import ABSENT, PAGE, PASS, ZERO, Pointer
from snapctl.format.superblock import copy_offset
from snapctl.services.check import Severity, check_backend, check_container
from snapctl.storage.superblocks import choose_superblocks
from tests.support import damage
from tests.support.backends import MemoryBackend
from tests.support.containers import BLOCK, LEAF_BYTES, fill, filled_image, small_container


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend(filled_image())


class TestSoundContainers:
    def test_a_container_with_everything_in_it_is_clean(self, backend: MemoryBackend):
        report = check_backend(backend)
        assert report.findings == []
        assert report.exit_code == 0
        assert report.nodes == len(Container.adopt(backend, writable=False))

    def test_all_pages_in_use_are_checked_and_counted(self, backend: MemoryBackend):
        report = check_backend(backend)
        pages = [found for found in damage.structures(backend) if found.owner != "superblock"]
        assert report.pages_checked == len(pages)
        assert report.data_bytes == sum(found.length for found in pages if found.kind == "data")

    def test_the_container_that_the_tests_damage_has_every_kind_of_pointer_on_every_level(self, backend: MemoryBackend):
        found = {
            (structure.kind, pointer.kind)
            for structure in damage.structures(backend)
            if structure.kind in damage.LEVELS and structure.owner not in {damage.SPACE_MAP, damage.SNAPSHOT_LIST}
            for pointer in damage.pointers(backend, structure)
        }
        assert found == set(itertools.product(damage.LEVELS, (ABSENT, PAGE, ZERO, PASS)))

    def test_a_container_whose_first_commit_is_its_only_one_is_clean(self):
        backend = MemoryBackend()
        small_container(backend)
        current, previous = choose_superblocks(backend)
        assert (current.transaction, previous) == (1, None)
        assert check_backend(backend).findings == []

    @pytest.mark.parametrize(("block_size", "table_size"), [(512, 4096), (4096, 512), (4096, 16384), (65536, 16384)])
    def test_other_block_and_table_sizes_are_clean(self, block_size: int, table_size: int):
        backend = MemoryBackend()
        container = small_container(backend, block_size=block_size, table_size=table_size)
        volume = container.create_volume("db", 1 << 20)
        volume.write(100, random.Random(1).randbytes(300_000))
        container.snapshot("db@a")
        volume.write(150_000, b"new" * 1000)
        container.commit()
        assert check_backend(backend).findings == []

    def test_every_commit_of_a_working_life_is_clean(self):
        backend = MemoryBackend()
        container = small_container(backend)
        fill(container)
        for change in (
            lambda: container.delete("db@mon", cascade=True),
            lambda: container.clone("db", "copy"),
            lambda: container["db"].resize(LEAF_BYTES + 77, shrink=True),
            lambda: container["db"].resize(5 * LEAF_BYTES),
            lambda: container.delete("log@tue"),
            lambda: container.delete("db", cascade=True),
            lambda: container.delete("log", cascade=True),
        ):
            change()
            container.commit()
            report = check_backend(backend)
            assert report.findings == []
            assert report.nodes == len(container)

    def test_a_transaction_under_way_does_not_disturb(self, backend: MemoryBackend):
        container = Container.adopt(backend)
        container["db"].write(0, random.Random(2).randbytes(5 * LEAF_BYTES))
        container.delete("log", cascade=True)
        report = check_backend(backend)
        assert report.findings == []
        assert report.nodes == 10

    def test_the_file_is_left_as_it_is(self, tmp_path: Path):
        path = tmp_path / "lab.snap"
        path.write_bytes(filled_image())
        path.chmod(0o444)
        before = (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns)
        assert check_container(str(path), 0).exit_code == 0
        assert (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) == before

    def test_a_writer_is_waited_for_in_vain(self, tmp_path: Path):
        path = str(tmp_path / "lab.snap")
        with Container.create(path), pytest.raises(Locked):
            check_container(path, 0)


class TestWhatIsNoContainer:
    def test_another_file_is_refused(self, tmp_path: Path):
        path = tmp_path / "notes.txt"
        for content in (b"", b"hello", bytes(200_000)):
            path.write_bytes(content)
            with pytest.raises(NotAContainer):
                check_container(str(path), 0)

    def test_a_directory_and_a_missing_file_are_refused(self, tmp_path: Path):
        with pytest.raises(NotAContainer):
            check_container(str(tmp_path), 0)
        with pytest.raises(IoFailure):
            check_container(str(tmp_path / "none"), 0)

    def test_a_newer_format_is_refused(self, backend: MemoryBackend):
        for slot, copy in itertools.product(range(2), range(2)):
            at = copy_offset(slot, copy)
            page = backend.data[at : at + SUPERBLOCK_BYTES]
            page[8] = 99
            page[-4:] = crc32c(page[:-4]).to_bytes(4, "little")
            backend.data[at : at + SUPERBLOCK_BYTES] = page
        with pytest.raises(UnsupportedFormat):
            check_backend(backend)


class TestFlippedBits:
    def test_a_flipped_bit_in_any_structure_is_found_and_named(self, backend: MemoryBackend):
        rng = random.Random(4)
        for structure in damage.structures(backend):
            offset, bit = structure.offset + rng.randrange(structure.length), rng.randrange(8)
            damage.flip(backend, offset, bit)
            report = check_backend(backend)
            damage.flip(backend, offset, bit)
            if structure.owner == "superblock":
                copy = int(structure.offset >= copy_offset(0, 1))
                damage.assert_found(report, f"superblock slot {structure.index} copy {copy}")
            else:
                page = f"at page {structure.offset // BLOCK} fails its checksum"
                damage.assert_found(report, structure.owner, structure.kind, page)
        assert check_backend(backend).findings == []

    def test_data_is_named_by_block_and_bytes(self, backend: MemoryBackend):
        block = damage.find(backend, "db@mon", "data", 2)
        damage.flip(backend, block.offset)
        report = check_backend(backend)
        assert [finding.where for finding in report.findings] == ["db@mon"]
        assert report.findings[0].message.startswith(f"data of block 2 (bytes {2 * BLOCK} to {3 * BLOCK}) at page ")

    def test_the_check_goes_on_past_damage_in_many_places(self, backend: MemoryBackend):
        blocks = [found for found in damage.structures(backend) if found.kind == "data"]
        for block in blocks[::5]:
            damage.flip(backend, block.offset)
        report = check_backend(backend)
        assert len(report.findings) == len(blocks[::5])
        assert report.data_bytes == (len(blocks) - len(blocks[::5])) * BLOCK

    def test_pages_below_a_damaged_table_are_told_as_leaks_with_the_reason(self, backend: MemoryBackend):
        damage.flip(backend, damage.find(backend, "db", "third table").offset)
        report = check_backend(backend)
        leaks = [finding for finding in report.findings if finding.severity is Severity.LEAK]
        assert report.exit_code == 4
        assert leaks
        assert all("as far as the damage lets one see" in leak.message for leak in leaks)


class TestTruncation:
    @pytest.mark.parametrize("kept", [0.99, 0.6, 0.35])
    def test_a_truncated_file_is_corruption(self, backend: MemoryBackend, kept: float):
        del backend.data[int(len(backend.data) * kept) :]
        damage.assert_found(check_backend(backend), "container", "truncated")

    def test_one_cut_inside_the_superblocks_does_not_end_the_check(self, backend: MemoryBackend):
        for length in (8, 5000, 33_000, 65_536):
            report = check_backend(MemoryBackend(backend.data[:length]))
            assert report.exit_code == 4


class TestSpaceMap:
    def test_a_page_in_use_that_nothing_owns_is_a_leak(self, backend: MemoryBackend):
        current, _ = choose_superblocks(backend)
        used = {found.offset // BLOCK for found in damage.structures(backend)}
        free = next(page for page in range(current.geometry.first_page, 4096) if page not in used)
        damage.forge_use(backend, free, in_use=True)
        report = check_backend(backend)
        damage.assert_found(report, "space map", f"page {free} is in use", "nothing owns", exit_code=3)
        assert len(report.findings) == 1

    def test_an_owned_page_that_the_map_has_free_is_corruption(self, backend: MemoryBackend):
        block = damage.find(backend, "dev", "data")
        damage.forge_use(backend, block.offset // BLOCK, in_use=False)
        report = check_backend(backend)
        damage.assert_found(report, "space map", f"page {block.offset // BLOCK} is in use, but free")
        assert len(report.findings) == 1

    def test_runs_of_pages_make_one_finding(self, backend: MemoryBackend):
        last = choose_superblocks(backend)[0].pages_total
        for page in range(last, last + 5):
            damage.forge_use(backend, page, in_use=True)
        report = check_backend(backend)
        damage.assert_found(report, "space map", f"pages {last} to {last + 4} are in use", exit_code=3)
        assert len(report.findings) == 1

    def test_a_missing_bitmap_is_corruption(self, backend: MemoryBackend):
        damage.forge_entry(backend, damage.find(backend, "space map", "second table"), 0, Pointer(0, 0))
        report = check_backend(backend)
        damage.assert_found(report, "space map", "pages 0 to ", "free by the map")
        damage.assert_found(report, "superblock", "pages are in use")

    @pytest.mark.parametrize(("kind", "pointed"), [("first table", "second table"), ("second table", "bitmap")])
    def test_a_wrong_free_count_is_corruption(self, backend: MemoryBackend, kind: str, pointed: str):
        table = damage.find(backend, "space map", kind)
        pointer = damage.pointers(backend, table)[0]
        damage.forge_entry(backend, table, 0, Pointer(pointer.word0, pointer.word1 + (1 << 32)))
        damage.assert_found(check_backend(backend), "space map", pointed, "are free, not")

    def test_a_wrong_count_of_pages_in_use_is_corruption(self, backend: MemoryBackend):
        damage.forge_superblock(backend, lambda found: replace(found, pages_used=found.pages_used - 1))
        damage.assert_found(check_backend(backend), "superblock", "pages are in use")


class RefusingBackend(MemoryBackend):
    """Fails every read that touches one page, as a disk with a bad sector does."""

    bad_offset = -1

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        if offset <= self.bad_offset < offset + len(buffer):
            raise IoFailure(f"cannot read {self.path}: Input/output error")
        return super().read_into(offset, buffer)

    def write(self, offset: int, buffers: object) -> None:
        raise AssertionError("a check writes nothing")


class TestUnreadableSectors:
    def test_a_page_that_the_system_cannot_read_is_a_finding_like_another(self):
        backend = RefusingBackend(filled_image())
        for kind in ("data", "third table", "records", "bitmap"):
            structure = next(found for found in damage.structures(MemoryBackend(filled_image())) if found.kind == kind)
            backend.bad_offset = structure.offset
            damage.assert_found(check_backend(backend), structure.owner, kind, "cannot be read")
