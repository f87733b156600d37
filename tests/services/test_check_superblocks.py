"""Superblock copies: damage is told from what a power cut leaves in the midst of a commit."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from snapctl.engine.container import Container
from snapctl.format.layout import SUPERBLOCK_BYTES
from snapctl.format.superblock import copy_offset
from snapctl.services.check import check_backend
from snapctl.services.check.findings import Findings
from snapctl.services.check.superblocks import check_superblocks
from snapctl.storage.superblocks import choose_superblocks
from tests.support import damage
from tests.support.backends import MemoryBackend, UnreadableSector
from tests.support.containers import fill, filled_image, small_container

SECTOR = 512


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend(filled_image())


class TestSuperblocks:
    def test_no_sound_superblock_is_corruption(self, backend: MemoryBackend):
        for slot, copy in itertools.product(range(2), range(2)):
            damage.flip(backend, copy_offset(slot, copy) + 100)
        damage.assert_found(check_backend(backend), "superblock", "no sound superblock")

    def test_a_flipped_bit_in_any_copy_is_found(self, backend: MemoryBackend):
        current, _ = choose_superblocks(backend)
        rng = random.Random(3)
        offsets = {*range(200), *range(SUPERBLOCK_BYTES - 8, SUPERBLOCK_BYTES), *rng.sample(range(200, 4088), 50)}
        for (slot, copy), at in itertools.product(itertools.product(range(2), range(2)), offsets):
            offset, bit = copy_offset(slot, copy) + at, rng.randrange(8)
            damage.flip(backend, offset, bit)
            findings = Findings()
            check_superblocks(backend, current, findings)
            where = [finding.where for finding in findings.all()]
            assert where == [f"superblock slot {slot} copy {copy}"], (at, bit)
            damage.flip(backend, offset, bit)

    def test_a_copy_that_the_disk_refuses_to_read_is_found(self):
        backend = UnreadableSector(filled_image())
        backend.bad_offsets = (copy_offset(1, 1),)
        damage.assert_found(check_backend(backend), "superblock slot 1 copy 1", "cannot be read", "Input/output error")

    def test_the_copies_of_one_transaction_must_be_alike(self, backend: MemoryBackend):
        current, _ = choose_superblocks(backend)
        damage.forge_superblock(backend, lambda found: replace(found, pages_limit=100_000))
        offset = copy_offset(current.slot, 1)
        backend.data[offset : offset + SUPERBLOCK_BYTES] = filled_image()[offset : offset + SUPERBLOCK_BYTES]
        damage.assert_found(check_backend(backend), f"superblock slot {current.slot} copy 1", "differs")

    def test_a_copy_of_another_container_is_found(self, backend: MemoryBackend):
        current, _ = choose_superblocks(backend)
        other = MemoryBackend()
        fill(small_container(other))
        offset = copy_offset(1 - current.slot, 0)
        backend.data[offset : offset + SUPERBLOCK_BYTES] = other.data[offset : offset + SUPERBLOCK_BYTES]
        damage.assert_found(check_backend(backend), f"superblock slot {1 - current.slot} copy 0", "another container")

    def test_a_copy_that_missed_a_completed_commit_is_found(self):
        backend = MemoryBackend()
        container = small_container(backend)
        images = []
        for i in range(3):
            container.create_volume(f"v{i}", 10_000)
            container.commit()
            images.append(bytes(backend.data))
        current, _ = choose_superblocks(backend)
        offset = copy_offset(1 - current.slot, 0)
        stale = images[0][offset : offset + SUPERBLOCK_BYTES]
        backend.data[offset : offset + SUPERBLOCK_BYTES] = stale
        report = check_backend(backend)
        # The slot's content of two commits ago: the commit between was complete, so this copy lost a write.
        damage.assert_found(report, f"superblock slot {1 - current.slot} copy 0", "transaction")


def torn_superblocks(before: bytes, after: bytes) -> list[bytes]:
    """The files that a power cut may leave of the commit from `before` to `after` with any of its sectors written."""
    slot = choose_superblocks(MemoryBackend(after))[0].slot
    sectors = [
        copy_offset(slot, copy) + at
        for copy in range(2)
        for at in range(0, SUPERBLOCK_BYTES, SECTOR)
        if before[copy_offset(slot, copy) + at :][:SECTOR] != after[copy_offset(slot, copy) + at :][:SECTOR]
    ]
    assert len(sectors) == 4
    images = []
    for choice in itertools.product((False, True), repeat=len(sectors)):
        image = bytearray(after)
        for offset, is_written in zip(sectors, choice, strict=True):
            if not is_written:
                image[offset : offset + SECTOR] = before[offset : offset + SECTOR]
        images.append(bytes(image))
    return images


class TestWhatACrashLeaves:
    def test_any_mixture_of_old_and_new_superblock_sectors_is_clean(self):
        backend = MemoryBackend()
        container = small_container(backend)
        before = bytes(backend.data)
        for i in range(4):
            container.create_volume(f"v{i}", 100_000).write(i, b"data" * 500)
            container.commit()
            after = bytes(backend.data)
            # Commits do not overwrite each other's pages, so only the superblocks tell them apart.
            padded = before.ljust(len(after), b"\0")
            for image in torn_superblocks(padded, after):
                report = check_backend(MemoryBackend(image))
                assert report.findings == []
                assert report.nodes in {i, i + 1}
            before = after

    def test_so_it_is_when_the_commit_is_tried_again_after_recovery_and_torn_once_more(self):
        backend = MemoryBackend()
        container = small_container(backend)
        container.create_volume("db", 100_000).write(0, b"first" * 500)
        container.commit()
        before = bytes(backend.data)
        container["db"].write(0, b"second" * 500)
        container.commit()
        after = bytes(backend.data)
        for image in torn_superblocks(before.ljust(len(after), b"\0"), after):
            again = MemoryBackend(image)
            container = Container.adopt(again)
            container["db"].write(700, b"third" * 300)
            container.commit()
            for torn in torn_superblocks(image.ljust(len(again.data), b"\0"), bytes(again.data)):
                assert check_backend(MemoryBackend(torn)).findings == []
