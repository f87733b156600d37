"""Superblock copies written anew: every state of the four copies keeps the commit that it stands for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import pytest

from snapctl.errors import Corruption, NotAContainer
from snapctl.format.layout import SUPERBLOCK_BYTES
from snapctl.format.superblock import COPIES, SLOTS, Superblock, copy_offset
from snapctl.services.check import check_backend
from snapctl.storage.superblocks import choose_superblocks, heal_superblocks, superblock_copies
from tests.support.backends import MemoryBackend, Stopped, StoppingBackend
from tests.support.containers import small_container

COPY_OFFSETS = [copy_offset(slot, copy) for slot in range(SLOTS) for copy in range(COPIES)]


@cache
def images(commits: int) -> tuple[bytes, bytes]:
    """A container, and as it was two commits before."""
    backend = MemoryBackend()
    container = small_container(backend)
    earlier = []
    for number in range(commits):
        earlier.append(bytes(backend.data))
        container.create_volume(f"v{number}", 512)
        container.commit()
    return bytes(backend.data), earlier[-2]


def flipped(copy: bytes, _older: bytes) -> bytes:
    return copy[:100] + bytes([copy[100] ^ 1]) + copy[101:]


def torn(copy: bytes, older: bytes) -> bytes:
    return copy[:512] + older[512:-512] + older[-512:-4] + b"torn"


STATES: list[Callable[[bytes, bytes], bytes]] = [
    lambda copy, _older: copy,
    lambda _copy, older: older,
    lambda _copy, _older: bytes(SUPERBLOCK_BYTES),
    flipped,
    torn,
]


def every_state(commits: int) -> list[bytes]:
    image, older = images(commits)
    found = []
    for states in itertools.product(STATES, repeat=len(COPY_OFFSETS)):
        data = bytearray(image)
        for offset, state in zip(COPY_OFFSETS, states, strict=True):
            span = slice(offset, offset + SUPERBLOCK_BYTES)
            data[span] = state(image[span], older[span])
        found.append(bytes(data))
    return found


def adopted(data: bytes | bytearray) -> Superblock | None:
    try:
        return choose_superblocks(MemoryBackend(data))[0]
    except (Corruption, NotAContainer):
        return None


@pytest.mark.parametrize("commits", [5, 6])
def test_the_adopted_commit_stays_and_both_its_copies_are_sound_afterwards(commits: int):
    for data in every_state(commits)[commits % 2 :: 4]:
        before = adopted(data)
        backend = MemoryBackend(data)
        if before is None:
            continue
        sound = {
            (slot, copy)
            for slot, copy, found in superblock_copies(backend)
            if isinstance(found, Superblock) and found.transaction in {before.transaction, before.transaction - 1}
        }
        healed = heal_superblocks(backend)
        assert adopted(backend.data) == before
        assert not sound & set(healed)
        assert {(before.slot, copy) for copy in range(COPIES)} <= sound | set(healed)
        assert bytes(backend.data) == backend.durable
        assert heal_superblocks(backend) == []
        outside = [i for i in range(len(data)) if i >= 65536 and backend.data[i] != data[i]]
        assert not outside


@pytest.mark.parametrize("commits", [5, 6])
def test_a_power_cut_at_any_point_of_it_keeps_the_adopted_commit(commits: int):
    for data in every_state(commits)[commits % 2 :: 23]:
        before = adopted(data)
        if before is None:
            continue
        for stop_at, kept in itertools.product(range(3), (0, 512, 3000, SUPERBLOCK_BYTES)):
            backend = StoppingBackend(data, stop_at=stop_at, keep=lambda _length, kept=kept: kept)  # type: ignore[misc]
            try:
                heal_superblocks(backend)
            except Stopped:
                pass
            assert adopted(backend.data) == before


def test_one_damaged_copy_of_each_slot_is_as_it_was():
    image, _ = images(5)
    for first, second in itertools.product(range(COPIES), repeat=COPIES):
        backend = MemoryBackend(image)
        for slot, copy in ((0, first), (1, second)):
            backend.write(copy_offset(slot, copy) + 64, [b"\xff"])
        assert heal_superblocks(backend) == [(0, first), (1, second)]
        assert bytes(backend.data) == image


def test_a_sound_container_is_not_written():
    image, _ = images(5)
    backend = MemoryBackend(image)
    assert heal_superblocks(backend) == []
    assert check_backend(backend).findings == []
