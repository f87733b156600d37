"""A scrub reads all that is live, goes on past damage beside writers, and repairs superblock copies."""

from __future__ import annotations

import fcntl
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from snapctl.engine.container import Container
from snapctl.errors import Corruption, IoFailure, Locked, NotAContainer
from snapctl.format.pointer import LOST_WORD, Pointer
from snapctl.format.superblock import copy_offset
from snapctl.services.check import check_backend
from snapctl.services.scrub import Report, Severity, live, scrub_backend, scrub_container
from snapctl.services.scrub.report import MOST_AFFECTED, MOST_DAMAGES, Notes
from snapctl.storage import lock
from snapctl.storage.backend import FileBackend
from snapctl.storage.superblocks import choose_superblocks
from tests.support import damage
from tests.support.backends import MemoryBackend
from tests.support.containers import BLOCK, FANOUT, LEAF_BYTES, filled_image, small_container
from tests.support.states import pattern, state_in
from tests.support.truth import reported, unreadable


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend(filled_image())


def contents(image: bytes) -> dict[str, bytes]:
    return {name: state.content for name, state in state_in(image).items()}


class TestReading:
    @pytest.mark.parametrize(("block_size", "table_size"), [(512, 512), (512, 4096), (4096, 512), (65536, 16384)])
    def test_all_that_a_check_owns_is_read(self, block_size: int, table_size: int):
        backend = MemoryBackend()
        container = small_container(backend, block_size=block_size, table_size=table_size)
        volume = container.create_volume("db", 1 << 20)
        volume.write(100, random.Random(1).randbytes(300_000))
        container.snapshot("db@a")
        container.clone("db@a", "dev").write(150_000, b"new" * 1000)
        container.commit()
        report, checked = scrub_backend(backend), check_backend(backend)
        assert report.damages == ()
        assert report.exit_code == 0
        assert (report.nodes, report.pages_verified) == (checked.nodes, checked.pages_checked)
        assert report.bytes_verified == checked.data_bytes + table_size * (
            checked.pages_checked - checked.data_bytes // block_size
        )

    def test_it_goes_on_past_every_damage(self, backend: MemoryBackend):
        hit = [
            found
            for found in damage.structures(backend)
            if (found.owner, found.kind, found.index)
            in {
                ("space map", "bitmap", 0),
                ("db", "third table", 0),
                ("db@tue", "data", 20),
                ("dev", "second table", 0),
                ("lab@x", "first table", 0),
                ("log", "data", 5),
            }
        ]
        assert len(hit) == 6
        for found in hit:
            damage.flip(backend, found.offset + 9)
        report = scrub_backend(backend)
        assert {(found.owner, found.what) for found in report.damages} == {(found.owner, found.kind) for found in hit}
        assert report.exit_code == 4
        assert reported(report) == unreadable(backend, contents(filled_image()))

    def test_neighbours_damaged_alike_are_one_damage(self, backend: MemoryBackend):
        first = damage.find(backend, "log", "data", 10)
        for index in (10, 11, 12, 14):
            damage.flip(backend, damage.find(backend, "log", "data", index).offset)
        found = scrub_backend(backend).damages
        assert [item.byte_range for item in found] == [(10 * BLOCK, 13 * BLOCK), (14 * BLOCK, 15 * BLOCK)]
        assert found[0].page_no == first.offset // BLOCK

    def test_the_owner_comes_first_among_the_affected(self, backend: MemoryBackend):
        damage.flip(backend, damage.find(backend, "db", "data", 40).offset)
        (found,) = scrub_backend(backend).damages
        assert [hit.node for hit in found.affected] == ["db", "db@tue", "db@mon", "dev", "dev@a", "lab", "lab@x"]
        assert {(hit.offset_bytes, hit.length_bytes) for hit in found.affected} == {(40 * BLOCK, BLOCK)}


class BadSectors(MemoryBackend):
    """A disk that cannot read some ranges."""

    def __init__(self, data: bytes, *bad: tuple[int, int]) -> None:
        super().__init__(data)
        self.bad = bad

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        if any(start < offset + len(buffer) and offset < end for start, end in self.bad):
            raise IoFailure(f"cannot read {self.path}: Input/output error")
        return super().read_into(offset, buffer)


class TestBadSectors:
    @pytest.mark.parametrize("kind", [*damage.LEVELS, "data"])
    def test_just_what_cannot_be_read_is_damaged(self, kind: str, backend: MemoryBackend):
        found = damage.find(backend, "log", kind)
        report = scrub_backend(BadSectors(filled_image(), (found.offset + 3, found.offset + 4)))
        (seen,) = report.damages
        assert (seen.owner, seen.what, seen.page_no) == ("log", kind, found.offset // BLOCK)
        assert "Input/output error" in seen.cause
        damage.flip(backend, found.offset)
        assert reported(report) == unreadable(backend, contents(filled_image()))

    @pytest.mark.parametrize("kind", ["first table", "second table", "bitmap"])
    def test_of_the_space_map_they_are_told_and_affect_no_node(self, kind: str, backend: MemoryBackend):
        found = damage.find(backend, damage.SPACE_MAP, kind)
        (seen,) = scrub_backend(BadSectors(filled_image(), (found.offset, found.offset + 1))).damages
        assert (seen.owner, seen.what, seen.affected) == (damage.SPACE_MAP, kind, ())

    @pytest.mark.parametrize("kind", ["first table", "second table", "records"])
    def test_in_the_snapshot_list_they_keep_the_container_shut(self, kind: str, backend: MemoryBackend):
        found = damage.find(backend, damage.SNAPSHOT_LIST, kind)
        report = scrub_backend(BadSectors(filled_image(), (found.offset, found.offset + 1)))
        assert report.exit_code == 4
        assert report.damages[0].owner == "container"
        assert any(item.owner == damage.SNAPSHOT_LIST for item in report.damages)

    def test_in_a_superblock_copy_they_are_told(self):
        report = scrub_backend(BadSectors(filled_image(), (copy_offset(1, 0), copy_offset(1, 0) + 512)))
        assert report.exit_code == 4
        assert [item.owner for item in report.damages] == ["superblock slot 1 copy 0"]


class TestLostBlocks:
    def forge_lost(self, backend: MemoryBackend, kind: str, entries: range) -> None:
        table = damage.find(backend, "db", kind, 0)
        for entry in entries:
            damage.forge_entry(backend, table, entry, Pointer(LOST_WORD, 0))

    @pytest.mark.parametrize(("kind", "span"), [("third table", BLOCK), ("second table", LEAF_BYTES)])
    def test_they_are_a_note_with_all_that_they_affect(self, kind: str, span: int, backend: MemoryBackend):
        self.forge_lost(backend, kind, range(1, 3))
        report = scrub_backend(backend)
        assert report.exit_code == 0
        (found,) = report.damages
        assert (found.severity, found.owner, found.byte_range) == (Severity.LOST, "db", (span, 3 * span))
        assert reported(report, Severity.LOST) == unreadable(backend, contents(filled_image()))

    def test_new_damage_beside_them_is_corruption(self, backend: MemoryBackend):
        self.forge_lost(backend, "third table", range(1))
        damage.flip(backend, damage.find(backend, "db", "data", 1).offset)
        report = scrub_backend(backend)
        assert report.exit_code == 4
        assert [found.severity for found in report.damages] == [Severity.LOST, Severity.CORRUPTION]


class TestBounds:
    def test_no_more_damages_are_kept_than_memory_can_hold(self):
        backend = MemoryBackend()
        container = small_container(backend)
        blocks = 2 * (MOST_DAMAGES + 50)
        container.create_volume("db", blocks * BLOCK).write(0, random.Random(2).randbytes(blocks * BLOCK))
        container.commit()
        for found in damage.structures(backend):
            if found.kind == "data" and found.index % 2:
                damage.flip(backend, found.offset)
        report = scrub_backend(backend)
        assert len(report.damages) == MOST_DAMAGES
        assert report.damages_left_out == {Severity.CORRUPTION: 50}

    def test_no_more_affected_ranges_are_kept_either(self):
        notes = Notes()
        hits = [("db", 2 * i, 2 * i + 1) for i in range(MOST_AFFECTED - 1)]
        notes.add(Severity.LOST, "db", "data", "gone", affected=hits)
        notes.add(Severity.LOST, "db", "data", "gone", affected=hits[:10])
        report = notes.report()
        assert [len(found.affected) for found in report.damages] == [MOST_AFFECTED - 1, 1]
        assert report.affected_left_out == 9

    def test_corruption_that_is_left_out_still_counts(self):
        notes = Notes()
        for _ in range(MOST_DAMAGES):
            notes.add(Severity.LOST, "db", "data", "gone")
        assert notes.report().exit_code == 0
        notes.add(Severity.CORRUPTION, "db", "data", "fails its checksum")
        assert notes.report().exit_code == 4


class TestShutContainers:
    def test_a_damaged_page_of_records_is_named_by_its_records(self, backend: MemoryBackend):
        damage.flip(backend, damage.find(backend, damage.SNAPSHOT_LIST, "records", 3).offset)
        report = scrub_backend(backend)
        assert report.exit_code == 4
        assert any("records 3 to 3" in found.cause for found in report.damages)

    def test_a_record_that_makes_no_sense_does_not_keep_the_others_from_being_read(self, backend: MemoryBackend):
        damage.forge_record(backend, "lab@x", "cow", 9)
        report = scrub_backend(backend)
        assert report.exit_code == 4
        assert [(found.owner, found.what) for found in report.damages] == [("snapshot list", "record")]
        assert report.pages_verified > 200

    def test_ancestors_in_a_cycle_end(self, backend: MemoryBackend):
        ids = {node.name: node.id for node in Container.adopt(backend, writable=False).nodes}
        damage.forge_record(backend, "db@tue", "parent", ids["db@mon"])
        damage.flip(backend, damage.find(backend, "db@mon", "data").offset)
        report = scrub_backend(backend)
        assert report.exit_code == 4
        assert report.nodes == len(ids)

    def test_what_is_no_container_is_refused(self, tmp_path: Path):
        (tmp_path / "x").write_bytes(b"x" * 70_000)
        with pytest.raises(NotAContainer):
            scrub_container(str(tmp_path / "x"), 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "lab.snap"
    found.write_bytes(filled_image())
    return found


class TestSuperblocks:
    def damaged(self, path: Path, slot: int, copy: int) -> bytes:
        image = bytearray(path.read_bytes())
        whole = bytes(image)
        image[copy_offset(slot, copy) + 70] ^= 4
        path.write_bytes(image)
        return whole

    @pytest.mark.parametrize(("slot", "copy"), [(0, 0), (0, 1), (1, 0), (1, 1)])
    def test_a_damaged_copy_is_written_anew(self, slot: int, copy: int, path: Path):
        whole = self.damaged(path, slot, copy)
        report = scrub_container(str(path), 0)
        assert path.read_bytes() == whole
        assert report.exit_code == 0
        assert [(found.severity, found.owner) for found in report.damages] == [
            (Severity.REPAIRED, f"superblock slot {slot} copy {copy}")
        ]
        assert scrub_container(str(path), 0).damages == ()

    def test_a_container_that_others_read_is_left_alone(self, path: Path):
        self.damaged(path, 0, 0)
        before = path.read_bytes()
        with Container.open(str(path)):
            assert scrub_container(str(path), 0).exit_code == 4
        assert path.read_bytes() == before

    def test_a_container_that_others_write_is_waited_for(self, path: Path):
        with Container.open(str(path), writable=True), pytest.raises(Locked):
            scrub_container(str(path), 0)

    def test_a_file_cut_short_is_left_alone(self, path: Path):
        self.damaged(path, 0, 0)
        cut = path.read_bytes()[:-BLOCK]
        path.write_bytes(cut)
        assert scrub_container(str(path), 0).exit_code == 4
        assert path.read_bytes() == cut


class BusyContainer(Container):
    """A container into which somebody writes whenever it lets go of its lock."""

    write: Callable[[Container], None]
    turns = 0

    def let_writers_in(self, wait_seconds: float) -> None:
        backend = self.pages.backend
        assert isinstance(backend, FileBackend)
        fcntl.flock(backend.fd, fcntl.LOCK_UN)
        with Container.open(self.path, writable=True, wait_seconds=0) as writer:
            self.write(writer)
        self.turns += 1
        super().let_writers_in(wait_seconds)


def scrub_busily(path: Path, write: Callable[[Container], None], monkeypatch: pytest.MonkeyPatch) -> tuple[Report, int]:
    """Scrub with a turn for a writer after every stretch."""
    monkeypatch.setattr(live, "_TURN_SECONDS", 0.0)
    monkeypatch.setattr(lock, "_POLL_SECONDS", 0.0005)
    notes = Notes()
    with BusyContainer.open(str(path)) as container:
        assert isinstance(container, BusyContainer)
        container.write = write
        live.LiveScrub(container, lambda _done, _total: None, notes).run()
        return notes.report(), container.turns


class TestBesideWriters:
    def make(self, path: Path) -> None:
        with Container.create(str(path), block_size=BLOCK, table_size=BLOCK) as container:
            volume = container.create_volume("db", 5 * LEAF_BYTES)
            volume.write(0, pattern(1, 3 * LEAF_BYTES))
            container.snapshot("db@a")
            container.clone("db@a", "dev").write(LEAF_BYTES, pattern(2, LEAF_BYTES))
            volume.write(LEAF_BYTES // 2, pattern(3, LEAF_BYTES))
            container.snapshot("db@b", "dev@b")
            volume.write(LEAF_BYTES, pattern(4, 2 * LEAF_BYTES))

    def test_nodes_that_appear_are_read_and_those_that_go_are_left_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        path = tmp_path / "lab.snap"
        self.make(path)
        steps = [
            lambda c: c.clone("db@b", "late").write(0, pattern(9, BLOCK)),
            lambda c: c.delete("dev", cascade=True),
            lambda c: c.snapshot("db@c"),
            lambda c: c.rename("late", "later"),
        ]
        report, turns = scrub_busily(path, lambda c: steps.pop(0)(c) if steps else None, monkeypatch)
        assert turns > 20
        assert report.damages == ()
        assert report.nodes >= 5

    @pytest.mark.parametrize("seed", range(6))
    def test_no_damage_escapes_by_moving_to_another_node(
        self, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        path = tmp_path / "lab.snap"
        self.make(path)
        noise = random.Random(seed)
        hurt = damage_half_of_the_data(path, noise)
        taken = 0

        def write(container: Container) -> None:
            nonlocal taken
            taken += 1
            names = [node.name for node in container.volumes]
            volume = container[noise.choice(names)]
            choice = noise.randrange(5)
            if choice == 0 and taken < 30:
                container.snapshot(f"{volume.name}@n{taken}")
            elif choice == 1 and (snapshots := [node for node in container.nodes if node.kind.value == "ro"]):
                doomed = noise.choice(snapshots)
                if not any(child.kind.value == "rw" for child in doomed.children):
                    container.delete(doomed.name)
            elif taken < 60:
                first = noise.randrange(5 * FANOUT - 4)
                volume.write(first * BLOCK, noise.randbytes(4 * BLOCK))

        report, turns = scrub_busily(path, write, monkeypatch)
        assert turns > 20
        left = {
            found.offset // BLOCK
            for found in damage.structures(MemoryBackend(path.read_bytes()))
            if found.kind == "data" and path.read_bytes()[found.offset : found.offset + BLOCK] == hurt.get(found.offset)
        }
        named: set[int] = set()
        for found in report.damages:
            assert found.page_no is not None
            assert found.byte_range is not None
            length = (found.byte_range[1] - found.byte_range[0]) // BLOCK
            named |= set(range(found.page_no, found.page_no + length))
        assert left
        assert left <= named

    @pytest.mark.parametrize("turn", range(1, 16))
    def test_a_node_deleted_and_overwritten_while_it_is_read_is_left_out(
        self, turn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        path = tmp_path / "lab.snap"
        with Container.create(str(path), block_size=BLOCK, table_size=BLOCK) as container:
            container.create_volume("db", 8 * LEAF_BYTES).write(0, pattern(1, 8 * LEAF_BYTES))
            container.create_volume("last", BLOCK)
        taken = 0

        def write(container: Container) -> None:
            nonlocal taken
            taken += 1
            if taken == turn:
                container.delete("db")
            elif turn < taken < turn + 4:
                # In the end also where the first table of the deleted node was.
                container.create_volume(f"x{taken}", 3 * LEAF_BYTES).write(0, pattern(taken, 3 * LEAF_BYTES))

        report, _ = scrub_busily(path, write, monkeypatch)
        assert report.damages == ()

    @pytest.mark.parametrize("deleted", range(8, 18))
    @pytest.mark.parametrize("taken", [5, 7])
    def test_a_page_that_goes_down_by_way_of_a_new_snapshot_does_not_escape(
        self, taken: int, deleted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        path = tmp_path / "lab.snap"
        with Container.create(str(path), block_size=BLOCK, table_size=BLOCK) as container:
            container.create_volume("db", 4 * LEAF_BYTES).write(0, pattern(1, 4 * LEAF_BYTES))
            container.snapshot("db@old")
            container["db"].write(0, pattern(2, BLOCK))
        backend = FileBackend.open(str(path), writable=True)
        damage.flip(backend, damage.find(backend, "db", "data", 4 * FANOUT - 1).offset)
        backend.close()
        turn = 0

        def write(container: Container) -> None:
            nonlocal turn
            turn += 1
            if turn == taken:  # while the volume is read, and before that block
                container.snapshot("db@new")
                container["db"].write((4 * FANOUT - 1) * BLOCK, pattern(3, BLOCK))
            elif turn == deleted:
                container.delete("db@new")

        report, _ = scrub_busily(path, write, monkeypatch)
        # Once, or in both nodes if it moved between their visits.
        assert {found.byte_range for found in report.damages} == {((4 * FANOUT - 1) * BLOCK, 4 * FANOUT * BLOCK)}

    def test_a_container_damaged_meanwhile_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        path = tmp_path / "lab.snap"
        self.make(path)

        def write(container: Container) -> None:
            container.snapshot("db@z")
            container.commit()
            backend = container.pages.backend
            damage.flip(backend, damage.find(backend, damage.SNAPSHOT_LIST, "records").offset)

        with pytest.raises(Corruption, match="snapshot list"):
            scrub_busily(path, write, monkeypatch)
        assert scrub_container(str(path), 0).exit_code == 4


def damage_half_of_the_data(path: Path, noise: random.Random) -> dict[int, bytes]:
    """Flip a bit in every other data block; gives what stands there since, by offset."""
    backend = MemoryBackend(path.read_bytes())
    hurt: dict[int, bytes] = {}
    for found in damage.structures(backend):
        if found.kind == "data" and noise.random() < 0.5:
            damage.flip(backend, found.offset)
            hurt[found.offset] = damage.read(backend, found)
    path.write_bytes(backend.data)
    assert choose_superblocks(backend)
    return hurt
