"""What tables and views in memory lead to is what lookups would find, at the cost of one read, or is refused."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.errors import Corruption
from snapctl.format.checksum import crc32c
from snapctl.format.pointer import page_pointer
from snapctl.storage.backend import FileBackend
from tests.support import damage
from tests.support.backends import MemoryBackend, RecordingBackend
from tests.support.containers import BLOCK, FANOUT, LEAF_BYTES, small_container

CHAIN = 40


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def chained(backend: MemoryBackend, *, cow: Cow = Cow.REDIRECT) -> tuple[Container, bytes]:
    """A volume with a chain of snapshots, each of which holds a block for the older ones, and a clone of the oldest."""
    container = small_container(backend)
    volume = container.create_volume("db", 4 * LEAF_BYTES, cow=cow)
    content = noise(4 * LEAF_BYTES)
    volume.write(0, content)
    for number in range(CHAIN):
        container.snapshot(f"db@s{number}")
        volume.write((number * 7 % 100) * BLOCK, noise(BLOCK, number))
    container.clone("db@s0", "dev").write(3 * BLOCK, b"d" * BLOCK)
    container.commit()
    return container, content


@pytest.mark.parametrize("cow", list(Cow))
def test_the_oldest_of_many_snapshots_is_read_at_the_cost_of_its_volume_once_its_chain_was_walked(cow: Cow):
    backend = RecordingBackend()
    container, content = chained(backend, cow=cow)
    for name in ("db@s0", "db@s20", "dev"):
        node = container[name]
        for offset in range(0, 4 * LEAF_BYTES, LEAF_BYTES):
            node.read(offset, 1)
        found = bytearray()
        for offset in range(0, 4 * LEAF_BYTES, BLOCK):
            backend.forget()
            found += node.read(offset, BLOCK)
            assert backend.calls["read_into"] == 1, (name, offset)
        if name == "db@s0":
            assert found == content
        if name == "dev":
            assert found == content[: 3 * BLOCK] + b"d" * BLOCK + content[4 * BLOCK :]
        assert found == node.read(0, 4 * LEAF_BYTES)


def test_a_new_snapshot_and_writes_leave_views_as_they_are():
    backend = RecordingBackend()
    container, content = chained(backend)
    oldest = container["db@s0"]
    assert oldest.read(0, LEAF_BYTES) == content[:LEAF_BYTES]
    container.snapshot("db@new")
    container["db"].write(0, bytes(LEAF_BYTES))
    container["dev"].write(0, b"x" * LEAF_BYTES)
    container["db"].trim(0, LEAF_BYTES)
    container.commit()
    backend.forget()
    assert oldest.read(5 * BLOCK, BLOCK) == content[5 * BLOCK : 6 * BLOCK]
    assert backend.calls["read_into"] == 1


def test_no_more_views_are_kept_than_there_is_room_for():
    container, content = chained(MemoryBackend())
    container.views.most_leaves = 3
    for _ in range(2):
        for name in ("db@s0", "db@s1", "db@s2"):
            for offset in range(0, 4 * LEAF_BYTES, LEAF_BYTES):
                container[name].read(offset, BLOCK)
                assert sum(len(node.view) for node in container.nodes) <= 3
    assert container["db@s0"].read(0, 4 * LEAF_BYTES) == content


def test_a_view_of_what_was_copied_away_is_forgotten():
    backend = RecordingBackend()
    container = small_container(backend)
    volume = container.create_volume("db", LEAF_BYTES, cow=Cow.COPY)
    other = container.create_volume("other", LEAF_BYTES)
    volume.write(0, noise(BLOCK))
    snapshot = container.snapshot("db@mon")[0]
    container.commit()
    assert snapshot.read(0, BLOCK) == noise(BLOCK)  # from the volume's page
    volume.write(0, b"new" * 100)
    container.commit()
    other.write(0, noise(BLOCK, 2))
    container.commit()
    other.write(BLOCK, noise(LEAF_BYTES - BLOCK, 3))  # over that page
    container.commit()
    for _ in range(2):
        backend.forget()
        assert snapshot.read(0, BLOCK) == noise(BLOCK)
    assert backend.calls["read_into"] == 1


def test_a_view_kept_of_what_was_given_up_is_forgotten():
    backend = RecordingBackend()
    container = small_container(backend)
    volume = container.create_volume("db", LEAF_BYTES, cow=Cow.COPY)
    other = container.create_volume("other", LEAF_BYTES)
    volume.write(0, noise(BLOCK))
    snapshot = container.snapshot("db@mon")[0]
    container.commit()
    volume.write(0, b"new" * 100)
    assert snapshot.read(0, BLOCK) == noise(BLOCK)  # from the copy
    container.abort()
    other.write(0, noise(LEAF_BYTES, 2))  # over the copy
    for _ in range(2):
        backend.forget()
        assert snapshot.read(0, BLOCK) == noise(BLOCK)
    assert backend.calls["read_into"] == 1


@pytest.mark.parametrize("name", ["db", "db@s0", "db@s39", "dev"])
def test_a_damaged_block_is_never_read_whatever_is_in_memory(name: str):
    backend = MemoryBackend()
    container, content = chained(backend)
    node = container[name]
    good = node.read(0, 4 * LEAF_BYTES)
    block_no = 111  # which nobody wrote again
    at = backend.data.index(content[block_no * BLOCK : (block_no + 1) * BLOCK])
    backend.data[at + 100] ^= 1
    for first, count in ((block_no, 1), (block_no - 1, 2), (block_no - 3, 8), (0, 4 * FANOUT)):
        with pytest.raises(Corruption, match="fails its checksum") as caught:
            node.read(first * BLOCK, count * BLOCK)
        assert caught.value.bytes_affected == (block_no * BLOCK, (block_no + 1) * BLOCK)
        assert node.read_each([(first * BLOCK, count * BLOCK)]) == [None]
        with pytest.raises(Corruption, match="fails its checksum"):
            node.read_into(first * BLOCK, bytearray(count * BLOCK))
    for first, count in ((block_no - 1, 1), (block_no + 1, 1), (block_no + 1, 5), (0, block_no)):
        assert node.read(first * BLOCK, count * BLOCK) == good[first * BLOCK : (first + count) * BLOCK]


@pytest.mark.parametrize("page_no", [1, 1 << 40])
@pytest.mark.parametrize("name", ["db", "db@mon"])
def test_a_pointer_that_leads_nowhere_is_told_whatever_is_in_memory(page_no: int, name: str):
    """Though the checksum may be right, as that of a part of the superblock is here."""
    backend = MemoryBackend()
    container = small_container(backend)
    container.create_volume("db", LEAF_BYTES).write(0, noise(LEAF_BYTES))
    container.snapshot("db@mon")
    container.commit()
    table = damage.find(backend, "db", "third table")
    checksum = crc32c(bytes(backend.data[page_no * BLOCK : (page_no + 1) * BLOCK]))
    damage.forge_entry(backend, table, 5, page_pointer(page_no, checksum, 1))
    node = Container.adopt(backend)[name]
    assert node.read(4 * BLOCK, BLOCK) == noise(LEAF_BYTES)[4 * BLOCK : 5 * BLOCK]
    for _ in range(2):
        for length in (BLOCK, 3 * BLOCK):
            assert node.read_each([(5 * BLOCK, length)]) == [None]
            with pytest.raises(Corruption, match="outside the container"):
                node.read(5 * BLOCK, length)


@pytest.fixture
def lab(tmp_path: Path) -> FileBackend:
    """A container in a file, of a volume and a snapshot of it that has one block of its own."""
    path = str(tmp_path / "lab.snap")
    with Container.create(path) as container:
        container.create_volume("db", 1 << 20).write(0, noise(1 << 20))
        container.snapshot("db@mon")
        container["db"].write(0, noise(4096, 2))
        container.commit()
    return FileBackend.open(path, writable=True)


RANGES = [(4096 * first, 4096 * count) for first, count in ((7, 1), (0, 1), (8, 4), (200, 9), (7, 1))]


@pytest.mark.parametrize("name", ["db", "db@mon"])
def test_ranges_in_a_file_are_read_at_a_stroke(lab: FileBackend, name: str):
    node = Container.adopt(lab)[name]
    whole = node.read(0, 1 << 20)
    assert node.read_each(RANGES) == [whole[offset : offset + length] for offset, length in RANGES]
    expected: list[object] = [None, whole[4096:8192], None, whole[-4096:]]
    assert node.read_each([(0, 512), (4096, 4096), (5000, 4096), ((1 << 20) - 4096, 4096)]) == expected


@pytest.mark.parametrize("name", ["db", "db@mon"])
@pytest.mark.parametrize("block_no", [7, 10])
def test_of_ranges_in_a_file_the_damaged_one_alone_is_not_read(lab: FileBackend, name: str, block_no: int):
    node = Container.adopt(lab)[name]
    whole = node.read(0, 1 << 20)
    damage.flip(lab, Path(lab.path).read_bytes().index(whole[block_no * 4096 : (block_no + 1) * 4096]))
    expected: list[object] = [
        None if offset <= block_no * 4096 < offset + length else whole[offset : offset + length]
        for offset, length in RANGES
    ]
    assert 0 < expected.count(None) < len(RANGES)
    assert node.read_each(RANGES) == expected


@pytest.mark.parametrize("page_no", [0, 1, 1 << 40])
def test_a_pointer_that_leads_nowhere_in_a_file_is_not_followed(lab: FileBackend, page_no: int):
    area = os.pread(lab.fd, 4096, page_no * 4096) if page_no < 2 else b""
    table = damage.find(lab, "db", "third table")
    damage.forge_entry(lab, table, 5, page_pointer(page_no, crc32c(area), 1))
    node = Container.adopt(lab)["db"]
    assert node.read(4096, 4096) == noise(1 << 20)[4096:8192]
    expected: list[object] = [noise(1 << 20)[4096:8192], None]
    assert node.read_each([(4096, 4096), (5 * 4096, 4096)]) == expected


def test_a_damaged_table_hides_of_a_snapshot_only_what_is_looked_up_in_it():
    backend = MemoryBackend()
    container, content = chained(backend)
    assert container["db@s0"].own_blocks
    table = damage.find(backend, "db@s0", "third table")
    held = next(i for i, entry in enumerate(damage.pointers(backend, table)) if entry.kind)
    volumes = damage.find(backend, "db", "third table", 0)
    damage.flip(backend, volumes.offset)
    node = Container.adopt(backend)["db@s0"]
    for _ in range(2):
        assert node.read(held * BLOCK, BLOCK) == content[held * BLOCK : (held + 1) * BLOCK]
        assert node.read(LEAF_BYTES, 3 * LEAF_BYTES) == content[LEAF_BYTES:]
        with pytest.raises(Corruption, match="held by db"):
            node.read(0, LEAF_BYTES)
