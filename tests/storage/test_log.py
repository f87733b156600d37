"""The log: a flush is one write and one sync, and what was flushed is there after any crash."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.engine.recovery import Change, apply
from snapctl.errors import Corruption, IoFailure, NoSpace, ReadOnlyNode, SnapctlError
from snapctl.format.geometry import Geometry
from snapctl.format.logrecord import MOST_ZEROED_BLOCKS
from snapctl.services.check import check_backend
from snapctl.storage.log import log_units, read_log
from snapctl.storage.scratch import ScratchBackend
from tests.support.backends import FailingBackend, MemoryBackend, RecordingBackend, Stopped, StoppingBackend
from tests.support.containers import change_of_blocks
from tests.support.states import State, state_in, state_of

TINY, USUAL = Geometry(512, 512), Geometry(4096, 16384)
GEOMETRIES = [TINY, Geometry(4096, 512), Geometry(512, 4096), USUAL]
NOISE = random.Random(5)


def prepared(backend: MemoryBackend, geometry: Geometry = TINY) -> Container:
    """A container with a volume, its snapshot and a clone, and an empty log."""
    container = Container.format(backend, geometry)
    size = geometry.block_size
    container.create_volume("db", 200 * size + 100, cow=Cow.REDIRECT)
    container["db"].write(0, NOISE.randbytes(20 * size))
    container.clone("db", "dev")
    container["db"].write(5 * size, NOISE.randbytes(size))
    assert container.make_log()
    container.commit()
    return container


def block(container: Container) -> bytes:
    return NOISE.randbytes(container.block_size)


def flush(container: Container, name: str, *numbers: int, zeros: tuple[tuple[int, int], ...] = ()) -> Change:
    """Log blocks of noise, and make them durable."""
    change = change_of_blocks(container[name], {number: block(container) for number in numbers}, zeros)
    assert container.log([change])
    container.sync_log()
    return change


def applied(container: Container, *changes: Change) -> State:
    """The state that a container will have with changes, which stay uncommitted."""
    for change in changes:
        for _ in apply(change):
            pass
    return state_of(container)


def reopened(backend: MemoryBackend) -> MemoryBackend:
    return MemoryBackend(backend.data)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_flush_is_one_write_and_one_sync(geometry: Geometry):
    backend = RecordingBackend()
    container = prepared(backend, geometry)
    for number in range(3):
        backend.forget()
        flush(container, "db", number)
        assert [method for method, *_ in backend.log] == ["write", "sync"]
        ((_, offset, length), _) = backend.log
        assert length <= geometry.block_size + max(512, min(geometry.unit, 4096))
        start = container.superblock.log_page * geometry.unit
        assert start <= offset < offset + length <= start + container.superblock.log_pages * geometry.unit


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("writable", [False, True])
def test_what_was_flushed_is_there_when_the_writer_has_died(geometry: Geometry, *, writable: bool):
    backend = MemoryBackend()
    container = prepared(backend, geometry)
    changes = [
        flush(container, "db", 3, 4, 150, zeros=((0, 2), (10, 12))),
        flush(container, "dev", 0, 31, 32, 33, zeros=((30, 40),)),
        flush(container, "db", 200, 4, 5),
        flush(container, "dev", zeros=((190, 201),)),
    ]
    died = reopened(backend)
    wanted = applied(container, *changes)
    before = bytes(died.data)
    assert check_backend(died).findings == []
    with Container.adopt(died, writable=writable) as found:
        assert found.replayed_records == 4
        assert state_of(found) == wanted
        assert check_backend(found.pages.backend).findings == []
        assert found.superblock.log_pages == 0
    assert (bytes(died.data) == before) is not writable
    assert state_in(died.data) == wanted
    assert check_backend(died).findings == []


def test_what_was_flushed_last_goes_before_what_was_flushed_before():
    backend = MemoryBackend()
    container = prepared(backend)
    flush(container, "db", 1)
    last = flush(container, "db", 1)
    flush(container, "db", zeros=((2, 3),))
    size = container.block_size
    found = Container.adopt(reopened(backend), writable=False)["db"].read(0, 3 * size)
    assert found[size:] == bytes(last.leaves[0][1]) + bytes(size)


def test_a_commit_empties_the_log():
    backend = MemoryBackend()
    container = prepared(backend)
    change = flush(container, "db", 1)
    wanted = applied(container, change)
    container.commit()
    assert read_log(backend, container.superblock).records == []
    assert state_in(backend.data) == wanted
    flush(container, "db", 2)
    assert len(read_log(backend, container.superblock).records) == 1


def test_a_commit_of_nothing_keeps_what_is_in_the_log():
    backend = MemoryBackend()
    container = prepared(backend)
    changes = [flush(container, "db", 1)]
    container.note_commit()
    container.commit()
    changes.append(flush(container, "db", 2))
    assert len(read_log(backend, container.superblock).records) == 2
    died = reopened(backend)
    assert state_in(died.data) == applied(container, *changes)


def test_a_commit_that_comes_before_what_was_logged_keeps_it():
    backend = MemoryBackend()
    container = prepared(backend)
    gone, kept = flush(container, "dev", 1, 2), flush(container, "db", 3, 201 - 1, zeros=((150, 201),))
    container.keep_log()
    container.delete("dev")
    container["db"].resize(190 * container.block_size + 7, shrink=True)
    container.commit()
    more = flush(container, "db", 4)
    image = bytes(backend.data)
    assert gone.node.is_gone
    wanted = applied(container, kept, more)
    for writable in (False, True):
        died = MemoryBackend(image)
        found = Container.adopt(died, writable=writable)
        assert state_of(found) == wanted
        assert found.replayed_records == 3
        assert check_backend(died).findings == []
    container.commit()
    assert read_log(backend, container.superblock).records == []


def test_a_log_is_not_kept_for_a_commit_after_the_one_it_was_asked_for():
    backend = MemoryBackend()
    container = prepared(backend)
    change = flush(container, "db", 1)
    container.keep_log()
    container.abort()
    applied(container, change)
    container["db"].write(0, bytes(container.block_size * 3))
    container.commit()
    assert read_log(backend, container.superblock).records == []


def test_a_container_at_its_capacity_takes_in_what_was_flushed():
    backend = MemoryBackend()
    container = Container.format(backend, TINY, 6 * log_units(TINY) * TINY.unit)
    container.create_volume("db", 800 * 512)
    container.create_volume("full", 4000 * 512)
    assert container.make_log()
    container.commit()
    change = flush(container, "db", *range(100, 160))
    container.keep_log()
    position = 0
    while container.space.room > 40:
        container["full"].write(position, NOISE.randbytes(512 * 10))
        position += 512 * 10
    container.commit()
    image = bytes(backend.data)
    with pytest.raises(NoSpace, match="capacity"):
        applied(container, change)
    for writable in (False, True):
        with Container.adopt(MemoryBackend(image), writable=writable) as found:
            assert found["db"].read(100 * 512, 512) == change.leaves[100 // 32][100]
            if writable:
                with pytest.raises(NoSpace):
                    found["full"].write(0, NOISE.randbytes(512 * 40))


def test_a_transaction_that_is_given_up_keeps_what_is_in_the_log():
    backend = MemoryBackend()
    container = prepared(backend)
    change = flush(container, "db", 1)
    applied(container, change)
    container.drop_log()
    container.abort()
    other = flush(container, "db", 2)
    assert len(read_log(backend, container.superblock).records) == 2
    died = reopened(backend)
    assert state_in(died.data) == applied(container, change, other)


def test_a_full_log_takes_no_more_until_a_commit():
    backend = MemoryBackend()
    container = prepared(backend)
    changes = []
    while container.log([change := change_of_blocks(container["db"], {7: block(container), 8: block(container)})]):
        container.sync_log()
        changes.append(change)
    assert len(changes) == log_units(TINY) // 3
    died = reopened(backend)
    wanted = applied(container, *changes)
    assert state_in(died.data) == wanted
    container.commit()
    flush(container, "db", 1)


def test_a_log_takes_only_so_many_zeroed_blocks():
    container = Container.format(MemoryBackend(), USUAL)
    container.create_volume("db", 1 << 40)
    assert container.make_log()
    container.commit()
    assert container.log([Change(container["db"], [(0, MOST_ZEROED_BLOCKS)], {})])
    container.sync_log()
    assert not container.log([Change(container["db"], [(0, MOST_ZEROED_BLOCKS), (MOST_ZEROED_BLOCKS, 1 << 17)], {})])


def test_a_log_that_was_dropped_leaves_a_container_as_ever():
    backend = MemoryBackend()
    container = prepared(backend)
    used = container.used_bytes
    change = flush(container, "db", 1)
    wanted = applied(container, change)
    container.drop_log()
    container.commit()
    assert not container.has_log
    assert container.superblock.incompatible == 0
    assert container.used_bytes < used - log_units(TINY) * TINY.unit + 40 * TINY.unit
    assert not container.log([change])
    assert check_backend(backend).findings == []
    assert state_in(backend.data) == wanted


def test_nothing_is_logged_beside_a_transaction_or_a_commit_in_flight_or_an_unsynced_record():
    container = prepared(MemoryBackend())
    change = change_of_blocks(container["db"], {1: block(container)})
    container["db"].write(0, b"x")
    with pytest.raises(SnapctlError, match="only a commit"):
        container.log([change])
    container.seal()
    with pytest.raises(SnapctlError, match="only a commit"):
        container.log([change])
    container.make_durable()
    while container.conclude():
        container.make_durable()
    assert container.log([change])
    with pytest.raises(SnapctlError, match="not durable yet"):
        container.log([change])
    container.sync_log()
    assert container.log([change])


@pytest.mark.parametrize("number", [201, 1 << 40])
def test_nothing_is_logged_beyond_the_end_of_a_volume(number: int):
    container = prepared(MemoryBackend())
    with pytest.raises(SnapctlError, match="do not lie inside"):
        container.log([change_of_blocks(container["db"], {number: block(container)})])


def test_nothing_is_logged_for_a_snapshot_nor_in_a_container_that_is_read():
    backend = MemoryBackend()
    container = prepared(backend)
    snapshot = container["db"].newest_snapshot
    assert snapshot is not None
    with pytest.raises(SnapctlError, match="do not lie inside"):
        container.log([change_of_blocks(snapshot, {0: block(container)})])
    reader = Container.adopt(reopened(backend), writable=False)
    with pytest.raises(ReadOnlyNode):
        reader.log([change_of_blocks(reader["db"], {0: block(reader)})])


def test_a_log_is_made_only_where_there_is_plenty_of_room():
    size = log_units(TINY) * TINY.unit
    for capacity, promised, fits in ((None, 0, True), (8 * size, 0, True), (8 * size, 4 * size, False)):
        container = Container.format(MemoryBackend(), TINY, capacity)
        assert container.make_log(promised) is fits
        container.commit()
        assert container.has_log is fits
        assert not fits or not container.make_log()
    backend = MemoryBackend()
    backend.available = 3 * size
    assert not Container.format(backend, TINY).make_log()


def test_a_log_for_which_the_file_system_turns_out_to_have_no_room_is_done_without():
    backend = FailingBackend(error=NoSpace, methods=("write",))
    container = Container.format(backend, TINY)
    container.create_volume("db", 1000)
    container.commit()
    backend.fail_at = range(backend.begun, backend.begun + 2)
    assert not container.make_log()
    backend.fail_at = range(0)
    container["db"].write(0, b"x")
    container.commit()
    assert not container.has_log
    assert check_backend(backend).findings == []


def test_a_log_is_zeros_that_are_durable_before_the_superblock_that_names_it():
    class Watching(MemoryBackend):
        def sync(self) -> None:
            super().sync()
            synced.append(bytes(self.data))

    synced: list[bytes] = []
    backend = Watching()
    container = prepared(backend)
    unit = TINY.unit
    log = slice(
        container.superblock.log_page * unit, (container.superblock.log_page + container.superblock.log_pages) * unit
    )
    for image in synced[-2:]:
        assert len(image[log]) == log_units(TINY) * unit
        assert not any(image[log])


@pytest.mark.parametrize("method", ["write", "sync"])
def test_a_failure_to_log_poisons_and_loses_nothing_that_was_flushed(method: str):
    backend = FailingBackend(methods=(method,))
    container = prepared(backend)
    change = flush(container, "db", 1)
    backend.fail_at = range(backend.begun, backend.begun + 1)
    with pytest.raises(IoFailure):
        flush(container, "db", 2)
    with pytest.raises(SnapctlError, match="reopen"):
        container.log([change])
    found = state_in(backend.data)["db"].content
    size = container.block_size
    assert found[size : 2 * size] == change.leaves[0][1]


def test_a_flush_that_finds_no_room_to_overwrite_is_done_by_a_commit():
    backend = FailingBackend(error=NoSpace, methods=("write",))
    container = prepared(backend)
    first = flush(container, "db", 1)
    backend.fail_at = range(backend.begun, backend.begun + 1)
    second = change_of_blocks(container["db"], {2: block(container), 3: block(container)})
    with pytest.raises(NoSpace):
        container.log([second])
    wanted = applied(container, first, second)
    container.commit()
    assert state_in(backend.data) == wanted
    flush(container, "db", 4)


def stops_of(act: Callable[[MemoryBackend], object], image: bytes) -> int:
    backend = StoppingBackend(image)
    act(backend)
    return backend.done


@pytest.mark.parametrize("halves", [0, 1, 2])
def test_a_stop_at_any_operation_of_a_replay_loses_nothing(halves: int):
    backend = MemoryBackend()
    container = prepared(backend)
    changes = [flush(container, "db", 3, 100, 5), flush(container, "dev", 5, zeros=((0, 3),))]
    image = bytes(backend.data)
    wanted = applied(container, *changes)
    stops = stops_of(Container.adopt, image)
    assert stops > 10
    for number in range(stops):
        stopping = StoppingBackend(image, stop_at=number, keep=lambda length: length * halves // 2 // 512 * 512)
        with pytest.raises(Stopped):
            Container.adopt(stopping)
        for left in (bytes(stopping.data), stopping.durable):
            assert state_in(left) == wanted
            assert check_backend(MemoryBackend(left)).findings == []
            assert state_of(Container.adopt(MemoryBackend(left))) == wanted


@pytest.mark.parametrize("error", [IoFailure, NoSpace])
def test_a_replay_that_fails_leaves_the_log_for_the_next_opening(error: type[IoFailure | NoSpace]):
    backend = MemoryBackend()
    container = prepared(backend)
    change = flush(container, "db", 3, 100, 5)
    image = bytes(backend.data)
    wanted = applied(container, change)
    for number in range(20):
        failing = FailingBackend(image, error=error, fail_at=range(number, number + 3))
        try:
            Container.adopt(failing)
        except (IoFailure, NoSpace):
            assert failing.begun > number
        again = MemoryBackend(failing.data)
        assert state_of(Container.adopt(again)) == wanted
        assert check_backend(again).findings == []


def test_no_room_for_a_replay_is_told_and_passes():
    backend = MemoryBackend()
    container = prepared(backend)
    change = flush(container, "db", *range(100, 120))
    image = bytes(backend.data)
    wanted = applied(container, change)
    full = FailingBackend(image, error=NoSpace, methods=("write",), fail_at=range(4, 100))
    with pytest.raises(NoSpace, match="1 flushed write"):
        Container.adopt(full)
    assert state_of(Container.adopt(MemoryBackend(full.data))) == wanted


def damaged(backend: MemoryBackend, container: Container, record: int) -> MemoryBackend:
    """The same with a bit flipped in the data of a record of one block."""
    at = container.superblock.log_page * TINY.unit + record * 2 * 512 + 600
    copy = reopened(backend)
    copy.data[at] ^= 1
    return copy


def test_a_last_record_that_is_not_whole_never_happened():
    backend = MemoryBackend()
    container = prepared(backend)
    changes = [flush(container, "db", 1), flush(container, "db", 2), flush(container, "db", 3)]
    wanted = applied(container, *changes[:2])
    torn = damaged(backend, container, 2)
    assert state_in(torn.data) == wanted
    assert check_backend(torn).findings == []
    assert state_of(Container.adopt(torn)) == wanted


@pytest.mark.parametrize("writable", [False, True])
def test_a_damaged_record_with_others_behind_it_is_no_torn_one(*, writable: bool):
    backend = MemoryBackend()
    container = prepared(backend)
    for number in range(3):
        flush(container, "db", number)
    found = damaged(backend, container, 1)
    before = bytes(found.data)
    with pytest.raises(Corruption, match="record 1 of the log is damaged"):
        Container.adopt(found, writable=writable)
    assert bytes(found.data) == before
    (finding,) = check_backend(found).findings
    assert finding.where == "log"


def test_data_that_looks_like_a_record_is_not_taken_for_one():
    """Who writes to a volume knows everything but the key of the superblocks to come."""
    backend = MemoryBackend()
    container = prepared(backend)
    change = flush(container, "db", 1)
    at = container.superblock.log_page * TINY.unit
    record = bytes(backend.data[at : at + 1024])
    applied(container, change)
    container.commit()
    forged = change_of_blocks(container["db"], {10: block(container), 11: record[:512], 12: record[512:]})
    flush(container, "db", 2)
    applied(container, forged)
    assert len(read_log(backend, container.superblock).records) == 1
    container.abort()
    assert container.log([forged])
    container.sync_log()
    assert len(read_log(backend, container.superblock).records) == 2


def test_what_a_reader_replays_takes_memory_and_nothing_else():
    backend = RecordingBackend()
    container = prepared(backend)
    flush(container, "db", 1)
    backend.forget()
    found = Container.adopt(backend, writable=False)
    scratch = found.pages.backend
    assert isinstance(scratch, ScratchBackend)
    assert not found.writable
    assert backend.log == []
    assert found.superblock.transaction == container.superblock.transaction + 1
    assert scratch.size() >= len(backend.data)
