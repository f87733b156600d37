"""Work is counted in calls of the backend: ranges cost few large calls, whatever the number of blocks."""

from __future__ import annotations

import random

import pytest

from snapctl.engine.container import Container
from snapctl.engine.model import Extent
from snapctl.format.geometry import Geometry
from snapctl.services.check import check_backend
from tests.support.backends import RecordingBackend

MIB = 1024 * 1024
VOLUME = 64 * MIB


@pytest.fixture
def backend() -> RecordingBackend:
    return RecordingBackend()


@pytest.fixture
def container(backend: RecordingBackend) -> Container:
    container = Container.format(backend, Geometry(4096, 16384))
    container.create_volume("db", VOLUME)
    container.commit()
    backend.forget()
    return container


def noise(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def test_a_sequential_write_is_one_call_for_each_leaf(container: Container, backend: RecordingBackend) -> None:
    container["db"].write(0, noise(8 * MIB))
    # One call for each leaf of 4 MiB; the adopted superblock is this session's own, so nothing is rewritten.
    assert backend.calls["write"] == 2
    assert backend.written_bytes == 8 * MIB


def test_a_sequential_read_is_one_call_for_each_leaf(container: Container, backend: RecordingBackend) -> None:
    data = noise(8 * MIB)
    container["db"].write(0, data)
    backend.forget()
    assert container["db"].read(0, 8 * MIB) == data
    assert backend.calls["read_into"] == 2


def test_a_read_at_odd_offsets_is_no_more_calls(container: Container, backend: RecordingBackend) -> None:
    data = noise(4 * MIB)
    container["db"].write(0, data)
    backend.forget()
    assert container["db"].read(5, 4 * MIB - 10) == data[5:-5]
    assert backend.calls["read_into"] == 1


def test_an_overwrite_after_a_snapshot_moves_no_old_data(container: Container, backend: RecordingBackend) -> None:
    container["db"].write(0, noise(4 * MIB))
    container.snapshot("db@mon")
    container.commit()
    backend.forget()
    container["db"].write(0, noise(4 * MIB - 4096) + bytes(range(256)) * 16)
    assert backend.calls["read_into"] == 0
    assert backend.written_bytes == 4 * MIB


def test_a_long_chain_is_passed_once_for_all_that_none_of_it_has(backend: RecordingBackend) -> None:
    """Though hardly any tables are kept, so that whoever passes it once more reads them once more."""
    container = Container.format(backend, Geometry(512, 4096))
    volume = container.create_volume("db", container.max_volume_bytes)
    volume.write(0, noise(512))
    for number in range(40):
        container.snapshot(f"db@s{number}")
    container.commit()
    container.most_resident_tables = 4
    container.relieve(may_write=False)
    backend.forget()
    size = volume.size_bytes
    assert list(container["db@s0"].extents()) == [Extent(0, 512, is_zero=False), Extent(512, size - 512, is_zero=True)]
    assert backend.calls["read_into"] == 40 + 3


def test_trimming_a_terabyte_costs_tables_not_blocks(backend: RecordingBackend) -> None:
    container = Container.format(backend, Geometry(4096, 16384))
    container.create_volume("db", 1 << 40)
    container["db"].write(0, noise(MIB))
    container.clone("db", "dev")
    container.commit()
    backend.forget()
    container["dev"].trim(0, 1 << 40)
    container.commit()
    assert backend.written_bytes < 64 * 16384
    assert list(container["dev"].extents()) == [Extent(0, 1 << 40, is_zero=True)]


def test_a_new_volume_of_the_largest_size_costs_a_few_pages(container: Container) -> None:
    before = container.used_bytes
    container.create_volume("huge", container.max_volume_bytes)
    container.commit()
    assert container.used_bytes - before <= 2 * 16384


def test_a_snapshot_costs_the_same_whatever_its_volume_holds(container: Container, backend: RecordingBackend) -> None:
    written = []
    for name in ("empty", "full"):
        backend.forget()
        container.snapshot(f"db@{name}")
        container.commit()
        written.append(backend.written_bytes)
        container["db"].write(0, noise(16 * MIB))
        container.commit()
    assert written[0] == written[1]


def test_room_freed_by_a_commit_goes_back_to_the_file_system_at_once(
    container: Container, backend: RecordingBackend
) -> None:
    container["db"].write(0, noise(8 * MIB))
    container.commit()
    backend.forget()
    container["db"].trim(0, 8 * MIB)
    container.commit()
    assert sum(length for method, _, length in backend.log if method == "punch") >= 8 * MIB


def punched_bytes(backend: RecordingBackend) -> int:
    return sum(length for method, _, length in backend.log if method == "punch")


def test_room_that_may_be_kept_goes_back_when_the_container_is_closed(
    container: Container, backend: RecordingBackend
) -> None:
    container.kept_bytes = 4 * MIB
    container["db"].write(0, noise(8 * MIB))
    container.commit()
    backend.forget()
    container["db"].trim(0, 8 * MIB)
    container.commit()
    assert 4 * MIB <= punched_bytes(backend) < 5 * MIB
    container.close()
    assert punched_bytes(backend) >= 8 * MIB
    assert check_backend(backend).findings == []


def test_less_than_may_be_kept_costs_no_commit_of_its_own_and_goes_back_when_the_container_is_closed(
    container: Container, backend: RecordingBackend
) -> None:
    container.kept_bytes = 100 * MIB
    container["db"].write(0, noise(8 * MIB))
    container.commit()
    backend.forget()
    container["db"].trim(0, 8 * MIB)
    container.commit()
    assert (backend.calls["sync"], backend.calls["punch"]) == (2, 0)
    container.close()
    assert punched_bytes(backend) >= 8 * MIB
    assert check_backend(backend).findings == []


def test_a_volume_that_is_overwritten_again_and_again_stays_in_the_room_that_is_kept(
    container: Container, backend: RecordingBackend
) -> None:
    container.kept_bytes = 32 * MIB
    sizes = []
    for times in range(8):
        container["db"].write(times, noise(8 * MIB))
        container.commit()
        sizes.append(backend.size())
    assert len(set(sizes[4:])) == 1
    assert backend.calls["punch"] == 0


def test_writing_zeros_takes_no_room(container: Container, backend: RecordingBackend) -> None:
    container["db"].write(0, bytes(8 * MIB))
    assert backend.written_bytes == 0
    assert container["db"].own_blocks == 0


def test_tables_of_a_long_transaction_are_written_out_before_the_commit(backend: RecordingBackend) -> None:
    container = Container.format(backend, Geometry(512, 512))
    container.most_resident_tables = 8
    data = noise(MIB)
    container.create_volume("db", MIB).write(0, data)
    assert backend.written_bytes > len(data)
    assert container.pages.resident_tables <= container.most_resident_tables + 3
    container.commit()
    assert Container.adopt(backend)["db"].read(0, MIB) == data
