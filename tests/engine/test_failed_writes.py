"""A write or trim that fails for lack of space or by a damaged table leaves the open transaction sound and usable."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.engine.node import Node
from snapctl.engine.runs import Run
from snapctl.errors import Corruption, IoFailure, NoSpace, Poisoned
from snapctl.format.geometry import Geometry
from snapctl.services.check import check_backend
from tests.support.backends import FailingBackend, MemoryBackend
from tests.support.containers import BLOCK, FANOUT, LEAF_BYTES, filled_image
from tests.support.damage import find, flip
from tests.support.states import State, state_in, state_of

VOLUMES = ["db", "log", "dev", "lab"]


def one_leaf_change(noise: random.Random, volume: Node, taken: set[int]) -> Callable[[], None]:
    """A write beneath one leaf, to blocks that are not among those taken."""
    leaves = volume.size_bytes // LEAF_BYTES
    start = noise.choice([0, 0, 0, 1, noise.randrange(leaves)]) * FANOUT
    free = [block for block in range(start, start + FANOUT) if block not in taken]
    match noise.randrange(3):
        case 0:
            chosen = noise.sample(free, min(len(free), 12))
            blocks = {block: noise.choice([bytes(BLOCK), noise.randbytes(BLOCK)]) for block in chosen}
            taken.update(blocks)
            return lambda: volume.write_runs(sorted(blocks.items()))
        case kind:
            first = noise.choice([*free, start])
            stop = next((block for block in range(first, start + FANOUT) if block in taken), start + FANOUT)
            taken.update(range(first, stop))
            offset, length = first * BLOCK, (stop - first) * BLOCK
            if kind == 1 and length > 3 * BLOCK:
                offset, length = offset + 100, length - 600
            data = noise.choice([bytes(length), noise.randbytes(length), noise.randbytes(length // 2).zfill(length)])
            return lambda: volume.write(offset, data)


def many_leaves_change(noise: random.Random, volume: Node, taken: set[int]) -> Callable[[], None]:
    """Runs beneath many leaves, of data and of zeros, to blocks that are not among those taken."""
    last = volume.size_bytes // BLOCK
    starts = sorted(noise.sample(range(last), min(last, noise.randrange(2, 12))))
    runs: list[Run] = []
    for start, stop in pairwise([*starts, last]):
        stop = min(stop, start + noise.randrange(1, 6), start // FANOUT * FANOUT + FANOUT)
        stop = next((block for block in range(start, stop) if block in taken), stop)
        if start < stop:
            taken.update(range(start, stop))
            blocks = (noise.choice([bytes(BLOCK), *[noise.randbytes(BLOCK)] * 3]) for _ in range(start, stop))
            runs.append((start, b"".join(blocks)))
    return lambda: volume.write_runs(runs)


@pytest.mark.parametrize("change_of", [one_leaf_change, many_leaves_change])
@pytest.mark.parametrize("most_tables", [1, 10_000])
@pytest.mark.parametrize("name", VOLUMES)
def test_a_write_beneath_one_leaf_or_of_runs_for_which_there_is_no_space_changes_nothing(
    name: str, most_tables: int, change_of: Callable[[random.Random, Node, set[int]], Callable[[], None]]
):
    backend = FailingBackend(filled_image(), error=NoSpace, methods=("write",))
    container = Container.adopt(backend)
    container.settle()
    container.most_resident_tables = most_tables
    noise = random.Random(f"{name} {most_tables}")
    taken: set[int] = set()
    refused = 0
    for _ in range(12):
        change = change_of(noise, container[name], taken)
        before = state_of(container)
        for first in range(100):
            backend.begun, backend.fail_at = 0, range(first, first + 1)
            try:
                change()
            except NoSpace:
                refused += 1
                assert state_of(container) == before
            else:
                break
        backend.fail_at = range(0)
        if noise.random() < 0.3:
            if noise.random() < 0.5:
                container.snapshot(f"{name}@s{refused}")
            wanted = state_of(container)
            container.commit()
            taken.clear()
            assert state_in(backend.data) == wanted
            assert check_backend(backend).findings == []
    assert refused > 5


@pytest.mark.parametrize("cow", list(Cow))
def test_blocks_for_which_the_capacity_has_no_room_change_nothing(cow: Cow):
    backend = MemoryBackend()
    container = Container.format(backend, Geometry(BLOCK, BLOCK), capacity_bytes=180 << 10)
    volume = container.create_volume("db", 100 * LEAF_BYTES, cow=cow)
    volume.write(0, b"x" * 2 * LEAF_BYTES)
    container.snapshot("db@mon")
    container.commit()
    wanted = state_of(container)
    for start in range(0, 100 * FANOUT, FANOUT):
        try:
            volume.write_runs([(block, b"y" * BLOCK) for block in range(start, start + 30)])
        except NoSpace:
            break
        wanted = state_of(container)
        container.commit()
    else:
        pytest.fail("there was room for all")
    assert state_of(container) == wanted
    container.commit()
    assert state_in(backend.data) == wanted
    assert check_backend(backend).findings == []


def test_lack_of_space_in_a_page_of_the_open_transaction_poisons_since_it_may_be_half_overwritten():
    backend = FailingBackend(error=NoSpace, methods=("write",))
    container = Container.format(backend, Geometry(BLOCK, BLOCK))
    volume = container.create_volume("db", LEAF_BYTES)
    container.commit()
    volume.write(0, b"x" * 4 * BLOCK)
    backend.begun, backend.fail_at = 0, range(1)
    with pytest.raises(IoFailure):
        volume.write(0, b"y" * 4 * BLOCK)
    with pytest.raises(Poisoned):
        container.commit()
    assert Container.adopt(MemoryBackend(backend.data))["db"].read(0, LEAF_BYTES) == bytes(LEAF_BYTES)


def test_the_space_that_a_failed_write_had_found_is_found_again():
    backend = FailingBackend(error=NoSpace, methods=("write",))
    container = Container.format(backend, Geometry(BLOCK, BLOCK))
    volume = container.create_volume("db", LEAF_BYTES)
    used = container.used_bytes
    for _ in range(3):
        backend.begun, backend.fail_at = 0, range(1)
        with pytest.raises(NoSpace):
            volume.write(0, b"y" * 4 * BLOCK)
        assert container.used_bytes == used


def damaged(owner: str, kind: str) -> tuple[MemoryBackend, int, int]:
    """A filled container with a table damaged; the table's offset in the file, and the first block beneath it."""
    backend = MemoryBackend(filled_image())
    table = find(backend, owner, kind)
    flip(backend, table.offset)
    return backend, table.offset, table.index


def healed(backend: MemoryBackend, offset: int) -> State:
    """What the container holds once the damaged table is as it was, in which nothing else is wrong."""
    flip(backend, offset)
    assert check_backend(backend).findings == []
    return state_in(backend.data)


TABLES = [
    (owner, kind)
    for owner in ("db", "db@tue", "log", "dev", "dev@a", "lab@x")
    for kind in ("second table", "third table")
]
"""Of volumes, and of their newest snapshots."""


@pytest.mark.parametrize(("owner", "kind"), TABLES)
def test_a_write_that_a_damaged_table_stops_changes_nothing_and_others_go_on(owner: str, kind: str):
    backend, offset, block = damaged(owner, kind)
    container = Container.adopt(backend)
    volume, other = container[owner.partition("@")[0]], container.create_volume("other", 5000)
    for attempt in range(3):
        with pytest.raises(Corruption):
            volume.write_runs([(block, b"1" * BLOCK), (block + 3, bytes(BLOCK))])
        with pytest.raises(Corruption):
            volume.write(block * BLOCK + 7, b"2" * BLOCK)
        with pytest.raises(Corruption):
            volume.write(block * BLOCK, bytes(5 * BLOCK))
        other.write(attempt * 700, b"3" * 700)
    container.commit()
    found = healed(backend, offset)
    assert found.pop("other").content == (b"3" * 2100).ljust(5000, b"\0")
    assert found == state_in(filled_image())


@pytest.mark.parametrize("content", [b"1" * BLOCK, bytes(BLOCK)])
@pytest.mark.parametrize(("owner", "kind"), TABLES)
def test_runs_beneath_many_leaves_are_written_not_at_all_if_one_of_the_tables_is_damaged(
    owner: str, kind: str, content: bytes
):
    backend, offset, block = damaged(owner, kind)
    container = Container.adopt(backend)
    volume = container[owner.partition("@")[0]]
    numbers = {*range(0, volume.size_bytes // BLOCK, FANOUT), block}
    runs: list[Run] = [(number, content if number == block else b"2" * BLOCK) for number in sorted(numbers)]
    with pytest.raises(Corruption):
        volume.write_runs(runs)
    container.commit()
    assert healed(backend, offset) == state_in(filled_image())


@pytest.mark.parametrize("has_snapshot", [False, True])
@pytest.mark.parametrize("cow", list(Cow))
def test_runs_beneath_many_leaves_read_as_written_and_snapshots_as_before(cow: Cow, has_snapshot: bool):
    """Again and again: to fresh pages, in place, where something was preserved before, and where nothing was."""
    noise = random.Random(f"{cow} {has_snapshot}")
    backend = MemoryBackend()
    container = Container.format(backend, Geometry(BLOCK, BLOCK))
    volume = container.create_volume("db", 12 * LEAF_BYTES, cow=cow)
    wanted = bytearray(noise.randbytes(5 * LEAF_BYTES).ljust(12 * LEAF_BYTES, b"\0"))
    volume.write(0, wanted)
    container.commit()
    kept = {}
    for turn in range(60):
        if has_snapshot and turn % 10 == 0:
            container.snapshot(f"db@s{turn}")
            kept[f"db@s{turn}"] = bytes(wanted)
        runs: list[Run] = []
        block = noise.randrange(FANOUT)
        while block < 12 * FANOUT:
            count = min(noise.randrange(1, 9), FANOUT - block % FANOUT)
            data = b"".join(noise.choice([bytes(BLOCK), *[noise.randbytes(BLOCK)] * 4]) for _ in range(count))
            runs.append((block, data))
            wanted[block * BLOCK : block * BLOCK + len(data)] = data
            block += count + noise.choice([0, 0, 3, FANOUT, 3 * FANOUT])
        volume.write_runs(runs)
        assert volume.read(0, len(wanted)) == wanted
        if noise.random() < 0.3:
            container.commit()
            assert check_backend(backend).findings == []
    container.commit()
    assert check_backend(backend).findings == []
    container = Container.adopt(MemoryBackend(backend.data))
    for name, content in {**kept, "db": bytes(wanted)}.items():
        assert container[name].read(0, len(content)) == content


@pytest.mark.parametrize(("owner", "kind"), TABLES)
def test_a_trim_that_a_damaged_table_stops_leaves_each_block_as_it_was_or_zeros(owner: str, kind: str):
    backend, offset, _ = damaged(owner, kind)
    container = Container.adopt(backend)
    volume = container[owner.partition("@")[0]]
    with pytest.raises(Corruption):
        volume.trim(0, volume.size_bytes)
    container.commit()
    found, before = healed(backend, offset), state_in(filled_image())
    trimmed, untrimmed = found.pop(volume.name).content, before.pop(volume.name).content
    assert found == before
    for at in range(0, volume.size_bytes, BLOCK):
        assert not any(trimmed[at : at + BLOCK]) or trimmed[at : at + BLOCK] == untrimmed[at : at + BLOCK]


def test_a_trim_takes_what_lies_before_a_damaged_table():
    backend = MemoryBackend(filled_image())
    table = find(backend, "db", "third table", 2 * FANOUT)
    flip(backend, table.offset)
    container = Container.adopt(backend)
    with pytest.raises(Corruption):
        container["db"].trim(0, container["db"].size_bytes)
    assert container["db"].read(0, table.index * BLOCK) == bytes(table.index * BLOCK)
