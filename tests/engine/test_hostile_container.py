"""Containers whose checksums are right and whose contents are not: a clean error, never a traceback."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from snapctl.engine.container import Container
from snapctl.errors import Corruption
from snapctl.format import layout
from snapctl.format.checksum import crc32c
from snapctl.format.superblock import COPIES, SLOTS, build, copy_offset, has_magic
from snapctl.storage.superblocks import choose_superblocks
from tests.support import damage
from tests.support.backends import MemoryBackend
from tests.support.containers import small_container


def test_a_record_that_owns_too_few_blocks_is_corruption_when_they_are_given_up():
    backend = MemoryBackend()
    container = small_container(backend)
    container.create_volume("db", 5000).write(0, b"x" * 5000)
    container.commit()
    damage.forge_record(backend, "db", "own_blocks", 0)
    container = Container.adopt(backend)
    container["db"].trim(0, 5000)
    with pytest.raises(Corruption, match="db"):
        container.commit()


def test_ids_at_or_above_the_next_one_are_corruption():
    backend = with_snapshots()
    container = Container.adopt(backend)
    container.delete("db@b")
    container.commit()
    forge_number(backend, "next_node_id", 4)
    with pytest.raises(Corruption, match="next one"):
        Container.adopt(backend)


@pytest.mark.parametrize("field", ["transaction", "next_node_id"])
def test_superblock_numbers_that_could_overflow_are_corruption(field: str):
    backend = with_snapshots()
    forge_number(backend, field, (1 << 64) - 1)
    with pytest.raises(Corruption):
        Container.adopt(backend)


def test_a_deletion_below_a_count_that_is_too_low_commits_nothing():
    backend = with_snapshots()
    forge_number(backend, "pages_used", 130)
    container = Container.adopt(backend)
    container.delete("db", cascade=True)
    with pytest.raises(Corruption):
        container.commit()
    assert [node.name for node in Container.adopt(backend).nodes] == ["db", "db@a", "db@b", "dev"]


def test_ancestors_in_a_cycle_are_corruption_to_whoever_reads_or_deletes():
    backend = with_snapshots()
    container = Container.adopt(backend)
    container.snapshot("dev@x")
    container.commit()
    damage.forge_record(backend, "dev", "parent", container["dev@x"].id)
    container = Container.adopt(backend)
    with pytest.raises(Corruption, match="cycle"):
        container["dev"].read(0, 5000)
    damage.forge_record(backend, "dev@x", "origin", container["dev"].id)
    with pytest.raises(Corruption, match="descends from itself"):
        Container.adopt(backend).delete("dev", cascade=True)


def test_nothing_is_seen_through_a_parent_beyond_its_end():
    """No container that the engine makes has anything to see there; what it must read as is a rule of the format."""
    backend = with_snapshots()
    damage.forge_record(backend, "db", "size_bytes", 700)
    container = Container.adopt(backend, writable=False)
    for name in ("db@a", "db@b", "dev"):
        assert container[name].read(0, 5000) == b"x" * 700 + bytes(4300)
        assert container[name].read(1024, 3000) == bytes(3000)


def test_a_damaged_space_map_keeps_nobody_from_reading():
    backend = with_snapshots()
    container = Container.adopt(backend)
    map_table = container._store.superblock.space_map.page_no
    backend.data[map_table * 512] ^= 1
    assert Container.adopt(backend, writable=False)["db@a"].read(0, 3) == b"xxx"


def test_a_page_that_the_map_has_as_free_is_not_written_over():
    """It is not one of the open transaction, though the last commit did not have it: the commit before may."""
    backend = MemoryBackend()
    container = small_container(backend)
    container.create_volume("db", 5000).write(0, b"x" * 5000)
    container.commit()
    page = damage.pointers(backend, damage.find(backend, "db", "third table"))[0].page_no
    damage.forge_use(backend, page, in_use=False)
    with pytest.raises(Corruption, match="free"):
        Container.adopt(backend)["db"].write(0, b"y" * 512)
    assert backend.data[page * 512 : page * 512 + 3] == b"xxx"


def test_a_page_of_the_open_transaction_that_two_entries_lead_to_is_not_written_over():
    """A forged table says so, of a page that a forged map has as free."""
    backend = MemoryBackend()
    container = small_container(backend)
    volume = container.create_volume("db", 40 * 512)
    container.commit()
    volume.write(0, b"x" * 1024)
    container.commit()
    table = damage.find(backend, "db", "third table")
    first = damage.pointers(backend, table)[0]
    damage.forge_entry(backend, table, 1, first)
    damage.forge_use(backend, first.page_no, in_use=False)
    volume = Container.adopt(backend)["db"]
    volume.write(2 * 512, b"y" * 38 * 512)
    assert backend.data[first.page_no * 512] == ord("y")
    with pytest.raises(Corruption, match="two entries"):
        volume.write(0, b"z" * 1024)
    assert volume.read(2 * 512, 38 * 512) == b"y" * 38 * 512


def test_the_commit_before_is_the_one_in_the_other_slot():
    """Not what the adopted superblock's own slot has in its other copy, which the first write makes away with."""
    backend = with_snapshots()
    Container.adopt(backend).create_volume("more", 512).container.commit()
    current, previous = choose_superblocks(backend)
    assert previous is not None
    newer = replace(current, transaction=current.transaction + SLOTS)
    backend.write(copy_offset(current.slot, 0), [build(newer)])
    assert choose_superblocks(backend) == (newer, previous)


def forge_number(backend: MemoryBackend, field: str, value: int) -> None:
    """Put a number into every superblock copy and make its checksum right."""
    at = 0
    for subcon in layout.Superblock.subcons:
        if subcon.name == field:
            break
        at += subcon.sizeof()
    for slot, copy in product(range(SLOTS), range(COPIES)):
        offset = copy_offset(slot, copy)
        page = backend.data[offset : offset + layout.SUPERBLOCK_BYTES]
        if has_magic(bytes(page)):
            page[at : at + 8] = value.to_bytes(8, "little")
            page[-4:] = crc32c(page[:-4]).to_bytes(4, "little")
            backend.data[offset : offset + layout.SUPERBLOCK_BYTES] = page


def with_snapshots() -> MemoryBackend:
    backend = MemoryBackend()
    container = small_container(backend)
    container.create_volume("db", 5000).write(0, b"x" * 5000)
    container.snapshot("db@a")
    container.snapshot("db@b")
    container.clone("db@a", "dev")
    container.commit()
    return backend
