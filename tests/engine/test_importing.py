"""A volume that is being imported: hidden until it is whole, and gone if it never becomes so."""

from __future__ import annotations

import pytest

from snapctl.engine.container import Container
from snapctl.errors import NameTaken, NodeNotFound
from snapctl.format.record import State
from snapctl.services.check import check_backend
from snapctl.services.repair import repair_backend
from tests.support import damage
from tests.support.backends import MemoryBackend
from tests.support.containers import BLOCK, LEAF_BYTES, small_container


@pytest.fixture
def backend() -> MemoryBackend:
    """A container with a volume `db`, and with half of a volume `new`."""
    backend = MemoryBackend()
    lab = small_container(backend)
    lab.create_volume("db", LEAF_BYTES).write(0, b"d" * BLOCK)
    lab.create_volume("new", LEAF_BYTES, state=State.IMPORTING).write(0, b"n" * 5 * BLOCK)
    lab.commit()
    return backend


def names(container: Container) -> list[str]:
    return [node.name for node in container.nodes]


def test_it_is_in_no_list_and_cannot_be_used(backend: MemoryBackend):
    with Container.adopt(backend, writable=False) as lab:
        assert names(lab) == [node.name for node in lab.volumes] == ["db"]
        with pytest.raises(NodeNotFound):
            lab.node("new")
    assert check_backend(backend).exit_code == 0


def test_its_name_is_taken_until_it_is_finished_or_discarded():
    lab = small_container()
    half = lab.create_volume("new", LEAF_BYTES, state=State.IMPORTING)
    with pytest.raises(NameTaken, match="new is being imported"):
        lab.create_volume("new", LEAF_BYTES)
    lab.discard(half)
    lab.create_volume("new", LEAF_BYTES)


def test_it_is_a_volume_like_any_other_once_it_is_finished():
    backend = MemoryBackend()
    lab = small_container(backend)
    half = lab.create_volume("new", LEAF_BYTES, state=State.IMPORTING)
    half.write(0, b"n" * BLOCK)
    lab.commit()
    lab.finish(half)
    lab.commit()
    reopened = Container.adopt(backend)
    assert reopened["new"].read(0, BLOCK) == b"n" * BLOCK
    reopened.snapshot("new@one")
    assert names(reopened) == ["new", "new@one"]


def test_whoever_opens_the_container_for_writing_deletes_what_was_left(backend: MemoryBackend):
    used_bytes = Container.adopt(backend, writable=False).used_bytes
    assert Container.adopt(backend).used_bytes < used_bytes
    assert check_backend(backend).exit_code == 0
    with Container.adopt(backend, writable=False) as lab:
        assert (len(lab), lab.superblock.node_count) == (1, 1)


@pytest.mark.parametrize("table", ["first table", "third table"])
def test_a_damaged_leftover_keeps_nobody_from_the_container(table: str, backend: MemoryBackend):
    page = damage.find(backend, "new", table)
    backend.data[page.offset] ^= 1
    with Container.adopt(backend) as lab:
        lab["db"].write(0, b"changed")
    with Container.adopt(backend) as lab:
        assert names(lab) == ["db"]
        assert lab["db"].read(0, 7) == b"changed"
        with pytest.raises(NameTaken):
            lab.create_volume("new", BLOCK)


def test_one_that_has_snapshots_is_corruption_and_a_repair_shows_it_again(backend: MemoryBackend):
    lab = Container.adopt(backend)
    lab.snapshot("db@mon")
    lab["db"].update(state=State.IMPORTING)
    lab.commit()
    assert names(Container.adopt(backend)) == ["db@mon"]
    assert check_backend(backend).exit_code == 4
    assert repair_backend(backend, agree=lambda _proposed: True).applied
    assert check_backend(backend).exit_code == 0
    assert names(Container.adopt(backend)) == ["db", "db@mon"]
    assert Container.adopt(backend)["db"].read(0, BLOCK) == b"d" * BLOCK


@pytest.mark.parametrize("table", ["first table", "third table"])
def test_repair_makes_a_damaged_leftover_one_that_goes(table: str, backend: MemoryBackend):
    backend.data[damage.find(backend, "new", table).offset] ^= 1
    assert repair_backend(backend, agree=lambda _proposed: True).applied
    with Container.adopt(backend) as lab:
        assert (len(lab), names(lab)) == (1, ["db"])
    assert check_backend(backend).exit_code == 0
