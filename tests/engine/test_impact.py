"""Whom a damage affects, foretold forwards and held against reading every block of every node."""

from __future__ import annotations

import random

import pytest

from snapctl.engine import impact
from snapctl.engine.container import Container
from snapctl.engine.impact import affected
from snapctl.engine.model import Cow, Kind
from snapctl.format.pointer import LOST_WORD, Pointer
from tests.support import damage
from tests.support.backends import MemoryBackend, RecordingBackend
from tests.support.containers import BLOCK, FANOUT, LEAF_BYTES, small_container
from tests.support.states import state_in
from tests.support.truth import Ranges, merged, unreadable


def grown(noise: random.Random, steps: int) -> MemoryBackend:
    """A container after a random life: writes, trims, snapshots, clones of clones, resizes, deletes, take-overs."""
    backend = MemoryBackend()
    container = small_container(backend)
    container.create_volume("v0", noise.randrange(1, 3 * LEAF_BYTES), cow=noise.choice(list(Cow)))
    for step in range(1, steps):
        volume = noise.choice(container.volumes)
        offset = noise.randrange(volume.size_bytes)
        length = noise.randrange(1, volume.size_bytes - offset + 1)
        snapshots = [node for node in container.nodes if node.kind is Kind.RO]
        match noise.randrange(8):
            case 0 | 1:
                volume.write(offset, noise.randbytes(min(length, 20 * BLOCK)))
            case 2:
                volume.trim(offset, length)
            case 3 | 4:
                container.snapshot(f"{volume.name}@s{step}")
            case 5:
                container.clone(noise.choice(snapshots or [volume]).name, f"v{step}")
            case 6:
                volume.resize(noise.randrange(1, 3 * LEAF_BYTES), shrink=True)
            case _ if snapshots:
                doomed = noise.choice(snapshots)
                if all(child.kind is Kind.RO for child in doomed.children):
                    container.delete(doomed.name)
    container.commit()
    return backend


def foretold(container: Container, name: str, start: int, stop: int) -> dict[str, Ranges]:
    found: dict[str, Ranges] = {}
    for node, offset, end in affected(container[name], start, stop):
        assert offset < end <= node.size_bytes
        found.setdefault(node.name, []).append((offset, end))
    for hit, ranges in found.items():
        assert merged(ranges) == ranges, f"{hit}: not in order, or not as long as they can be"
    return found


def some_damage(backend: MemoryBackend, noise: random.Random) -> tuple[str, int, int]:
    """Damage a table or a block of some node; gives whose it is, and the blocks that cannot be had from it."""
    spans = {"first table": FANOUT**3, "second table": FANOUT**2, "third table": FANOUT, "data": 1}
    others = {damage.SPACE_MAP, damage.SNAPSHOT_LIST}
    found = noise.choice(
        [item for item in damage.structures(backend) if item.kind in spans and item.owner not in others]
    )
    damage.flip(backend, found.offset + noise.randrange(found.length))
    return found.owner, found.index, found.index + spans[found.kind]


@pytest.mark.parametrize("seed", range(40))
def test_it_is_what_cannot_be_read(seed: int):
    noise = random.Random(seed)
    whole = grown(noise, 40)
    contents = {name: state.content for name, state in state_in(whole.data).items()}
    for _ in range(4):
        backend = MemoryBackend(whole.data)
        owner, start, stop = some_damage(backend, noise)
        assert foretold(Container.adopt(backend, writable=False), owner, start, stop) == unreadable(backend, contents)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_same_when_found_in_small_parts(seed: int, monkeypatch: pytest.MonkeyPatch):
    noise = random.Random(seed)
    container = Container.adopt(grown(noise, 60), writable=False)
    ranges = [(node.name, 0, FANOUT**3) for node in container.nodes]
    at_once = [foretold(container, *asked) for asked in ranges]
    monkeypatch.setattr(impact, "_WINDOW_BLOCKS", 5)
    monkeypatch.setattr(impact, "_FEW_RANGES", 2)
    container.most_resident_tables = 3
    assert [foretold(container, *asked) for asked in ranges] == at_once


def test_damage_beyond_the_end_of_a_node_affects_nobody():
    container = small_container()
    container.create_volume("db", 3 * BLOCK)
    assert list(affected(container["db"], 3, 100)) == []
    assert list(affected(container["db"], 2, 2)) == []


def test_what_a_node_lost_itself_is_not_put_down_to_its_parent():
    backend = MemoryBackend()
    container = small_container(backend)
    container.create_volume("db", 4 * BLOCK).write(0, b"x" * 4 * BLOCK)
    container.snapshot("db@b")
    container.snapshot("db@a")
    container["db"].write(0, b"y" * BLOCK)
    container.commit()
    damage.forge_entry(backend, damage.find(backend, "db@a", "third table"), 1, Pointer(LOST_WORD, 0))
    container = Container.adopt(backend, writable=False)
    assert foretold(container, "db", 0, 4) == {"db": [(0, 4 * BLOCK)], "db@a": [(2 * BLOCK, 4 * BLOCK)]} | {
        "db@b": [(2 * BLOCK, 4 * BLOCK)]
    }


def test_a_long_chain_costs_one_look_at_each_node():
    backend = RecordingBackend()
    container = small_container(backend)
    db = container.create_volume("db", LEAF_BYTES)
    db.write(0, b"x" * BLOCK)
    length = 900
    for i in range(length):
        container.snapshot(f"db@{i}")
    container.commit()
    container = Container.adopt(backend, writable=False)
    backend.forget()
    assert len(list(affected(container["db"], 0, 1))) == length + 1
    assert backend.calls["read_into"] <= length + 5
