"""A commit is all or nothing, whatever stops it (design invariants 2, 4 and 6).

The container file is swapped for one in memory that stops, fails or refuses at each of its operations in turn; what it
then holds is opened as after a crash. Every node has to hold what it held before the commit in flight, or every node
what it holds after it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.errors import (
    Corruption,
    IoFailure,
    NoSpace,
    NotAContainer,
    Poisoned,
    Truncated,
    UnsupportedFormat,
)
from snapctl.format import layout, superblock
from snapctl.format.geometry import SUPERBLOCK_AREA, Geometry
from snapctl.format.layout import SUPERBLOCK_BYTES
from snapctl.format.superblock import COPIES, SLOTS, Superblock, copy_offset
from snapctl.services.check import check_backend
from snapctl.storage.superblocks import choose_superblocks, superblock_copies
from tests.support.backends import (
    SECTOR,
    FailingBackend,
    MemoryBackend,
    RecordingBackend,
    Stopped,
    StoppingBackend,
)
from tests.support.spacemaps import units_in_use
from tests.support.states import State, Step, images_of, pattern, state_in, state_of, workload

TINY = Geometry(512, 512)
OTHERS = [Geometry(4096, 512), Geometry(512, 4096), Geometry(65536, 16384)]
ALL = [TINY, *OTHERS]
STEPS = range(len(workload(TINY)))
STEP_NAMES = [step.name for step in workload(TINY)]

_images: dict[Geometry, list[bytes]] = {}


def geometry_id(geometry: Geometry) -> str:
    return f"block{geometry.block_size}-table{geometry.table_size}"


def images(geometry: Geometry) -> list[bytes]:
    if geometry not in _images:
        _images[geometry] = images_of(geometry, workload(geometry))
    return _images[geometry]


def assert_sound(image: bytes | bytearray) -> None:
    """Nothing is damaged and nothing is leaked."""
    report = check_backend(MemoryBackend(image))
    assert report.exit_code == 0, report


def torn(length: int) -> list[int]:
    """How much of a write may have reached the disk: whole sectors, none, one, half of them, all but one."""
    sectors = length // SECTOR
    return sorted({n * SECTOR for n in (0, 1, sectors // 2, sectors - 1) if n < sectors})


class Stop:
    """One way to stop a step, and what the file held then."""

    def __init__(self, image: bytes, step: Step, stop_at: int, keep: int) -> None:
        self.image = image
        self.backend = StoppingBackend(image, stop_at=stop_at, keep=lambda _length: keep)
        self.where = f"{step.name}, operation {stop_at}, {keep} bytes of it done"
        with pytest.raises(Stopped):
            step.run(self.backend)

    @property
    def files(self) -> Iterator[bytes]:
        """What may be found after the stop: all that was written, or only what was synced, if anything was."""
        yield bytes(self.backend.data)
        if self.backend.durable not in (self.backend.data, self.image):
            yield self.backend.durable


def stops(image: bytes, step: Step, keeps: Callable[[int], list[int]]) -> Iterator[Stop]:
    """Stop a step at each of its operations, and in each as many times as there are things to keep of a write."""
    recording = RecordingBackend(image)
    step.run(recording)
    for stop_at, (method, _, length) in enumerate(recording.log):
        for keep in keeps(length) if method == "write" else [0]:
            yield Stop(image, step, stop_at, keep)


def assert_old_or_new(stop: Stop, old: State, new: State) -> None:
    for image in stop.files:
        found = state_in(image)
        assert found in (old, new), stop.where
        assert_sound(image)


@pytest.mark.parametrize("number", STEPS, ids=STEP_NAMES)
def test_a_stop_at_any_operation_leaves_every_node_old_or_every_node_new(number: int):
    image = images(TINY)[number]
    old, new = state_in(image), state_in(images(TINY)[number + 1])
    assert old != new
    for stop in stops(image, workload(TINY)[number], torn):
        assert_old_or_new(stop, old, new)


@pytest.mark.parametrize("geometry", OTHERS, ids=geometry_id)
def test_a_stop_at_any_operation_is_survived_by_containers_of_other_sizes(geometry: Geometry):
    for number, step in enumerate(workload(geometry)):
        if step.name not in {"snapshot_all", "trim", "delete_middle"}:
            continue
        image = images(geometry)[number]
        old, new = state_in(image), state_in(images(geometry)[number + 1])
        for stop in stops(image, step, lambda _length: [0]):
            assert_old_or_new(stop, old, new)


@pytest.mark.parametrize("number", STEPS, ids=STEP_NAMES)
def test_after_a_stop_the_work_can_be_done_again(number: int):
    image, step = images(TINY)[number], workload(TINY)[number]
    old, new = state_in(image), state_in(images(TINY)[number + 1])
    for stop in stops(image, step, lambda length: [length // SECTOR // 2 * SECTOR]):
        for found in stop.files:
            backend = MemoryBackend(found)
            if state_in(found) == old:
                step.run(backend)
            assert state_in(backend.data) == new, stop.where
            assert_sound(backend.data)


def test_nothing_is_written_to_what_the_last_commit_holds_until_the_next_is_durable():
    """Only the slot that the commit before the last had, and pages that neither commit uses, are written."""
    for number, step in enumerate(workload(TINY)):
        image = images(TINY)[number]
        recording = RecordingBackend(image)
        step.run(recording)
        held = [(n * TINY.unit, (n + 1) * TINY.unit) for n in units_in_use(image) if n >= TINY.first_page]
        last_slot = choose_superblocks(MemoryBackend(image))[0].slot
        for method, offset, length in recording.log:
            if method != "write" or offset + length <= SUPERBLOCK_AREA:
                continue
            assert not any(offset < end and begin < offset + length for begin, end in held), (step.name, offset)
        written_slots = [
            slot
            for method, offset, _ in recording.log
            if method == "write"
            for slot in range(SLOTS)
            if offset in {copy_offset(slot, copy) for copy in range(COPIES)}
        ]
        assert written_slots == [last_slot, last_slot, 1 - last_slot, 1 - last_slot]


def test_a_commit_syncs_the_pages_before_the_superblock_and_the_superblock_before_it_returns():
    recording = RecordingBackend(images(TINY)[1])
    workload(TINY)[1].run(recording)
    changes = [(method, offset) for method, offset, _ in recording.log if method in {"write", "sync"}]
    kinds = [
        "sync" if method == "sync" else "superblock" if offset < SUPERBLOCK_AREA else "page"
        for method, offset in changes
    ]
    joined = [kind for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]]
    assert joined == ["superblock", "sync", "page", "sync", "superblock", "sync"]


def test_opening_for_writing_makes_the_adopted_superblock_durable_before_anything_else():
    recording = RecordingBackend(images(TINY)[3])
    adopted = choose_superblocks(recording)[0]
    Container.adopt(recording)["db"].write(0, b"x" * 512)
    where = [copy_offset(adopted.slot, copy) for copy in range(COPIES)]
    assert [(method, offset) for method, offset, _ in recording.log[:3]] == [
        ("write", where[0]),
        ("write", where[1]),
        ("sync", 0),
    ]
    assert recording.log[3][0] == "write"


def test_opening_for_writing_heals_a_damaged_copy_of_the_adopted_superblock():
    image = damaged(images(TINY)[3], [(slot_of_newest(images(TINY)[3]), 1)])
    backend = MemoryBackend(image)
    with Container.adopt(backend) as container:
        container["db"].write(0, b"x")
    assert not [found for _, _, found in superblock_copies(backend) if isinstance(found, Corruption)]


def test_opening_and_closing_without_a_change_writes_nothing():
    for writable in (False, True):
        recording = RecordingBackend(images(TINY)[3])
        with Container.adopt(recording, writable=writable) as container:
            state_of(container)
        assert recording.log == []


# Damage


def slot_of_newest(image: bytes | bytearray) -> int:
    return choose_superblocks(MemoryBackend(image))[0].slot


def damaged(image: bytes | bytearray, copies: list[tuple[int, int]], at: int = 100) -> bytes:
    """Flip a bit in copies of superblocks."""
    found = bytearray(image)
    for slot, copy in copies:
        found[copy_offset(slot, copy) + at] ^= 0x10
    return bytes(found)


def wiped(image: bytes | bytearray) -> bytes:
    """The file as if the newest commit had never been: both copies of its slot are torn."""
    slot = slot_of_newest(image)
    return damaged(image, [(slot, copy) for copy in range(COPIES)])


@pytest.mark.parametrize("copy", range(COPIES))
@pytest.mark.parametrize("at", [0, 7, 8, 12, 20, 56, 100, 2000, 4091, 4092, 4095])
def test_one_damaged_copy_of_the_newest_superblock_costs_nothing(copy: int, at: int):
    image = images(TINY)[4]
    assert state_in(damaged(image, [(slot_of_newest(image), copy)], at)) == state_in(image)


def test_one_copy_of_either_slot_may_be_damaged_at_once():
    image = images(TINY)[4]
    for newest, other in ((0, 0), (0, 1), (1, 0), (1, 1)):
        slot = slot_of_newest(image)
        assert state_in(damaged(image, [(slot, newest), (1 - slot, other)])) == state_in(image)


@pytest.mark.parametrize("number", STEPS, ids=STEP_NAMES)
def test_a_newest_slot_damaged_in_both_copies_falls_back_to_the_previous_commit_whole(number: int):
    before, after = images(TINY)[number], images(TINY)[number + 1]
    image = wiped(after)
    assert state_in(image) == state_in(before)
    assert_sound(image)


def test_work_goes_on_after_falling_back_to_the_previous_commit():
    image = wiped(images(TINY)[4])
    backend = MemoryBackend(image)
    workload(TINY)[3].run(backend)
    assert state_in(backend.data) == state_in(images(TINY)[4])
    assert_sound(backend.data)


def test_the_higher_transaction_wins_whichever_copy_holds_it():
    """A copy that a crash left from an older commit, sound as it is, is not believed."""
    older, newest = images(TINY)[2], images(TINY)[4]
    slot = slot_of_newest(newest)
    assert slot_of_newest(older) == slot
    for copy in range(COPIES):
        image = bytearray(newest)
        begin = copy_offset(slot, copy)
        image[begin : begin + SUPERBLOCK_BYTES] = older[begin : begin + SUPERBLOCK_BYTES]
        assert state_in(image) == state_in(newest)


def test_with_every_copy_damaged_the_file_is_corrupt():
    image = damaged(images(TINY)[4], [(slot, copy) for slot in range(SLOTS) for copy in range(COPIES)])
    with pytest.raises(Corruption, match="no sound superblock"):
        state_in(image)


def test_a_checksum_is_verified_before_a_transaction_number_is_believed():
    image = bytearray(images(TINY)[4])
    slot = slot_of_newest(image)
    offset = copy_offset(1 - slot, 0) + superblock_offset("transaction")
    image[offset : offset + 8] = (1 << 40).to_bytes(8, "little")
    assert state_in(image) == state_in(images(TINY)[4])


def superblock_offset(field: str) -> int:
    at = 0
    for subcon in layout.Superblock.subcons:
        if subcon.name == field:
            return at
        at += subcon.sizeof()
    raise KeyError(field)


@pytest.mark.parametrize("junk", [b"", b"\0", b"PK\x03\x04" * 20_000, bytes(SUPERBLOCK_AREA * 2)], ids=len)
def test_what_was_never_a_container_is_told_from_a_damaged_one(junk: bytes):
    with pytest.raises(NotAContainer):
        state_in(junk)


def test_a_file_cut_short_is_truncated_not_empty():
    image = images(TINY)[4]
    for size in (len(image) - 1, len(image) - 4096, SUPERBLOCK_AREA):
        with pytest.raises(Truncated, match="truncated"):
            state_in(image[:size])


def test_a_file_cut_within_the_superblocks_is_corrupt_or_truncated():
    image = images(TINY)[4]
    for size in (SUPERBLOCK_BYTES - 1, SUPERBLOCK_BYTES, 2 * SUPERBLOCK_BYTES, 40_000):
        with pytest.raises(Corruption):
            state_in(image[:size])


def rebuilt(image: bytes | bytearray, change: Callable[[Superblock], Superblock]) -> bytes:
    """The file with both copies of its newest superblock written anew, checksums and all."""
    found = bytearray(image)
    current = choose_superblocks(MemoryBackend(image))[0]
    page = superblock.build(change(current))
    for copy in range(COPIES):
        begin = copy_offset(current.slot, copy)
        found[begin : begin + SUPERBLOCK_BYTES] = page
    return bytes(found)


def test_an_unknown_incompatible_feature_keeps_the_file_shut():
    image = rebuilt(images(TINY)[4], lambda found: replace(found, incompatible=1 << 5))
    for writable in (False, True):
        backend = MemoryBackend(image)
        with pytest.raises(UnsupportedFormat, match=r"memory\.snap.*0x20"):
            Container.adopt(backend, writable=writable)
        assert backend.data == image


def test_an_unknown_read_only_compatible_feature_lets_readers_in_but_no_writer():
    image = rebuilt(images(TINY)[4], lambda found: replace(found, read_only_compatible=1))
    assert state_in(image) == state_in(images(TINY)[4])
    with pytest.raises(UnsupportedFormat, match="can be read but not written"):
        Container.adopt(MemoryBackend(image))


def test_an_unknown_compatible_feature_is_carried_along():
    backend = MemoryBackend(rebuilt(images(TINY)[4], lambda found: replace(found, compatible=1 << 63)))
    with Container.adopt(backend) as container:
        container["db"].write(0, b"x")
    assert choose_superblocks(backend)[0].compatible == 1 << 63


# Both slots stand for a whole state


@pytest.mark.parametrize("geometry", ALL, ids=geometry_id)
def test_after_every_commit_the_previous_one_is_still_whole(geometry: Geometry):
    """The commits follow each other in one open container, and each begins with pages that the last one freed."""
    backend = MemoryBackend()
    container = Container.format(backend, geometry)
    before = state_of(container)
    for step in workload(geometry):
        step.change(container)
        container.commit()
        image = wiped(backend.data)
        assert state_in(image) == before, step.name
        assert_sound(image)
        before = state_of(container)


changes = st.lists(
    st.tuples(
        st.sampled_from(["write", "trim", "snapshot", "delete", "commit"]), st.integers(0, 39), st.integers(1, 9)
    ),
    min_size=5,
    max_size=30,
)


@given(changes, st.sampled_from(list(Cow)))
@settings(max_examples=40)
def test_whatever_is_done_the_previous_commit_stays_whole(todo: list[tuple[str, int, int]], cow: Cow):
    backend = MemoryBackend()
    container = Container.format(backend, TINY)
    volume = container.create_volume("db", 50 * 512, cow=cow)
    container.commit()
    before = state_of(container)
    for number, (what, block_no, count) in enumerate([*todo, ("commit", 0, 0)]):
        if what == "write":
            volume.write(block_no * 512, pattern(number, count * 512))
        elif what == "trim":
            volume.trim(block_no * 512, count * 512)
        elif what == "snapshot":
            container.snapshot(f"db@s{number}")
        elif what == "delete":
            if snapshots := volume.snapshots:
                container.delete(snapshots[block_no % len(snapshots)].name)
        else:
            transaction = container.transaction
            container.commit()
            if container.transaction == transaction:
                continue  # nothing had changed
            assert state_in(wiped(backend.data)) == before
            before = state_of(container)
            assert state_in(backend.data) == before


def test_a_page_freed_by_a_commit_is_not_written_by_the_next():
    backend = RecordingBackend()
    container = Container.format(backend, TINY)
    volume = container.create_volume("db", 64 * 512)
    volume.write(0, pattern(1, 64 * 512))
    container.commit()
    held = units_in_use(backend.data)
    for number in range(2, 6):
        volume.write(0, pattern(number, 64 * 512))
        container.commit()
        previous, held = held, units_in_use(backend.data)
        backend.forget()
        volume.write(0, pattern(number + 10, 64 * 512))
        written = {
            page_no
            for method, offset, length in backend.log
            if method == "write"
            for page_no in range(offset // 512, (offset + length) // 512)
        }
        assert not written & (held | previous), number


def test_opening_anew_writes_nothing_that_the_commit_before_the_last_holds():
    """Not even what the last commit freed: the other slot stands for it until the next is durable."""
    tried = 0
    for number, step in enumerate(workload(TINY)[1:], 1):
        before, image = images(TINY)[number - 1], images(TINY)[number]
        freed = units_in_use(before) - units_in_use(image)
        recording = RecordingBackend(image)
        step.run(recording)
        written: set[int] = set()
        for method, offset, length in recording.log:
            if method == "write" and offset >= SUPERBLOCK_AREA:
                written.update(range(offset // TINY.unit, (offset + length) // TINY.unit))
            elif method == "sync" and written:
                break
        assert not written & freed, step.name
        tried += len(freed)
    assert tried > 0


def test_room_freed_in_long_runs_goes_back_to_the_file_system_once_no_slot_needs_it():
    geometry = Geometry(4096, 512)
    backend = RecordingBackend()
    container = Container.format(backend, geometry)
    volume = container.create_volume("db", 3 << 20)
    volume.write(0, pattern(1, 3 << 20))
    container.commit()
    container.snapshot("db@a")
    volume.write(0, pattern(2, 3 << 20))
    container.commit()
    assert backend.calls["punch"] == 0
    container.delete("db@a")
    backend.forget()
    container.commit()
    punched = sum(length for method, _, length in backend.log if method == "punch")
    assert 2 << 20 <= punched <= 3 << 20
    # The memory file fills with junk what is punched, so whatever still needed it would be seen here, in either slot.
    assert state_in(backend.data) == state_in(wiped(backend.data)) == state_of(container)
    assert_sound(backend.data)
    assert_sound(wiped(backend.data))


def test_a_stop_while_room_is_given_back_loses_nothing():
    geometry = Geometry(4096, 512)
    backend = MemoryBackend()
    container = Container.format(backend, geometry)
    volume = container.create_volume("db", 2 << 20)
    volume.write(0, pattern(1, 2 << 20))
    container.create_volume("log", 8192).write(0, pattern(2, 8192))
    container.commit()
    image = bytes(backend.data)
    step = Step("delete", lambda c: c.delete("db"))
    new = state_in(step.run(MemoryBackend(image)).pages.backend.data)  # type: ignore[attr-defined]
    methods = set()
    for stop in stops(image, step, lambda _length: [0]):
        methods.add(stop.backend.stopped_in)
        assert_old_or_new(stop, state_in(image), new)
    assert "punch" in methods


# No space: nothing is lost, nothing is poisoned


def prepared(**settings: object) -> tuple[FailingBackend, Container, State]:
    """A container with a change in its open transaction, and what it will hold once that is committed."""
    backend = FailingBackend(images(TINY)[4], **settings)  # type: ignore[arg-type]
    container = Container.adopt(backend)
    container["db"].write(5, pattern(20, 3000))
    container.snapshot("db@now", "dev@now")
    container["dev"].write(700, pattern(21, 3000))
    container.delete("db@b")
    return backend, container, state_of(container)


def operations_of_a_commit(*methods: str) -> int:
    backend, container, _ = prepared(methods=methods)
    backend.begun = 0
    container.commit()
    return backend.begun


def refusing(first: int, times: int = 1) -> range:
    """The operations to refuse so that a transaction that gives room back fails: the reserve answers the first one."""
    return range(first, first + 1 + times)


@pytest.mark.parametrize("times", [1, 3])
def test_a_commit_refused_for_lack_of_space_can_be_tried_again(times: int):
    count = operations_of_a_commit("write") - COPIES  # a superblock is no new room
    assert count > 5
    for first in range(count):
        backend, container, wanted = prepared(methods=("write",), error=NoSpace)
        old = state_in(backend.data)
        backend.begun, backend.fail_at = 0, refusing(first, times)
        for _ in range(times):
            with pytest.raises(NoSpace):
                container.commit()
            assert state_in(backend.data) == old, first
            # Tries again from the beginning, so as to be refused at the same place or before.
            if times > 1:
                backend.begun = min(backend.begun, backend.fail_at[-1])
        backend.fail_at = range(0)
        assert state_of(container) == wanted, first
        container.commit()
        assert state_in(backend.data) == wanted, first
        assert_sound(backend.data)
        assert state_in(wiped(backend.data)) == old, first


def test_a_file_that_cannot_be_made_longer_is_no_failure_at_the_first_write_either():
    backend = FailingBackend(methods=("extend",), error=NoSpace)
    container = Container.format(backend, TINY)
    container.create_volume("db", 100_000)
    container.commit()
    container = Container.adopt(backend)
    backend.begun, backend.fail_at = 0, range(1)
    container["db"].write(0, pattern(25, 50_000))
    backend.fail_at = range(0)
    container.commit()
    assert state_in(backend.data)["db"].content[:50_000] == pattern(25, 50_000)


def test_work_can_go_on_between_a_refused_commit_and_the_next_try():
    for first in range(operations_of_a_commit("write") - COPIES):
        backend, container, _ = prepared(methods=("write",), error=NoSpace)
        backend.begun, backend.fail_at = 0, refusing(first)
        with pytest.raises(NoSpace):
            container.commit()
        container["db"].write(0, pattern(22, 1500))
        container["dev"].trim(512, 2048)
        container.create_volume("new", 9000).write(1, pattern(23, 8000))
        container.delete("db@now")
        wanted = state_of(container)
        container.commit()
        assert state_in(backend.data) == wanted, first
        assert_sound(backend.data)


def test_a_commit_refused_for_lack_of_space_can_be_given_up():
    for first in range(operations_of_a_commit("write") - COPIES):
        backend, container, _ = prepared(methods=("write",), error=NoSpace)
        old = state_in(backend.data)
        backend.begun, backend.fail_at = 0, refusing(first)
        with pytest.raises(NoSpace):
            container.commit()
        container.abort()
        assert state_of(container) == old, first
        container["db"].write(100, pattern(24, 2000))
        wanted = state_of(container)
        container.commit()
        assert state_in(backend.data) == wanted, first
        assert_sound(backend.data)


@pytest.mark.parametrize("cow", list(Cow))
def test_a_write_refused_for_lack_of_space_can_be_aborted(cow: Cow):
    backend = FailingBackend(methods=("write",), error=NoSpace)
    container = Container.format(backend, TINY)
    volume = container.create_volume("db", 200 * 512, cow=cow)
    volume.write(0, pattern(1, 200 * 512))
    container.snapshot("db@a")
    container.commit()
    old = state_of(container)
    refused = 0
    for first in range(100):
        backend.begun, backend.fail_at = 0, range(first, first + 1)
        try:
            volume.write(300, pattern(2, 150 * 512))
        except NoSpace:
            refused += 1
        else:
            break
        container.abort()
        assert state_of(container) == old
    assert refused > 3
    backend.fail_at = range(0)
    container.commit()
    wanted = {**old, "db": old["db"]._replace(content=bytes(volume.read(0, volume.size_bytes)))}
    assert state_in(backend.data) == wanted
    assert volume.read(300, 150 * 512) == pattern(2, 150 * 512)
    assert_sound(backend.data)


def test_a_container_at_its_capacity_fails_writes_but_no_snapshot_and_can_be_emptied():
    geometry = TINY
    backend = MemoryBackend()
    container = Container.format(backend, geometry, SUPERBLOCK_AREA + 400 * 512)
    volume = container.create_volume("db", 1000 * 512)
    volume.write(0, pattern(1, 150 * 512))
    container.snapshot("db@a")
    container.commit()
    wanted = state_of(container)
    with pytest.raises(NoSpace, match="capacity"):
        volume.write(0, pattern(2, 500 * 512))
    container.abort()
    assert state_of(container) == wanted
    volume.write(0, pattern(3, 100 * 512))
    container.commit()
    assert volume.snapshots[0].read(0, 150 * 512) == pattern(1, 150 * 512)
    container.delete("db@a")
    container.commit()
    volume.trim(0, volume.size_bytes)
    container.commit()
    container.commit()
    assert container.used_bytes < SUPERBLOCK_AREA + 30 * 512
    assert len(backend.data) <= SUPERBLOCK_AREA + 400 * 512
    assert_sound(backend.data)


# Failure poisons


USES: list[Callable[[Container], object]] = [
    lambda c: c.commit(),
    lambda c: c["db"].write(0, b"x"),
    lambda c: c["db"].trim(0, 512),
    lambda c: c["db"].read(0, 512),
    lambda c: c.snapshot("db@z"),
    lambda c: c.create_volume("z", 512),
    lambda c: c.delete("dev", cascade=True),
]


def failing_at_every_operation() -> Iterator[tuple[int, FailingBackend, Container]]:
    for first in range(operations_of_a_commit("write", "sync", "extend")):
        backend, container, _ = prepared()
        backend.begun, backend.fail_at = 0, range(first, first + 1)
        yield first, backend, container


def test_a_failed_write_or_sync_in_a_commit_poisons_until_reopened():
    _, container, new = prepared()
    container.commit()
    for first, backend, container in failing_at_every_operation():
        old = state_in(images(TINY)[4])
        with pytest.raises(IoFailure) as caught:
            container.commit()
        assert not isinstance(caught.value, Poisoned), first
        written = bytes(backend.data)
        for use in USES:
            with pytest.raises(Poisoned, match="reopen"):
                use(container)
        assert backend.data == written, "a poisoned container was written to"
        assert state_in(backend.data) in (old, new), first
        assert_sound(backend.data)
        reopened = Container.adopt(MemoryBackend(backend.data))
        reopened["db"].write(0, b"as before")
        reopened.commit()


def test_a_failed_write_of_data_poisons_before_any_commit():
    backend = FailingBackend(images(TINY)[4])
    container = Container.adopt(backend)
    container["db"].write(0, b"x" * 512)
    backend.begun, backend.fail_at = 0, range(1)
    with pytest.raises(IoFailure):
        container["db"].write(4096, b"y" * 512)
    with pytest.raises(Poisoned):
        container.commit()
    assert state_in(backend.data) == state_in(images(TINY)[4])


def test_a_failure_while_the_adopted_superblock_is_written_poisons():
    for first in range(COPIES + 1):
        backend = FailingBackend(images(TINY)[4], fail_at=range(first, first + 1))
        container = Container.adopt(backend)
        with pytest.raises(IoFailure):
            container["db"].write(0, b"x" * 512)
        with pytest.raises(Poisoned):
            container["db"].read(0, 1)
        with pytest.raises(Poisoned):
            container["db@b"].read(0, 1)
        assert state_in(backend.data) == state_in(images(TINY)[4])


def test_a_lack_of_space_in_the_middle_of_a_superblock_poisons():
    """One copy may be new and the other old by then, so what the last commit is can only be told by opening again."""
    count = operations_of_a_commit("write")
    _, container, new = prepared()
    container.commit()
    for first in (count - 2, count - 1):
        backend, container, _ = prepared(methods=("write",), error=NoSpace)
        backend.begun, backend.fail_at = 0, range(first, first + 1)
        with pytest.raises(IoFailure):
            container.commit()
        with pytest.raises(Poisoned):
            container.commit()
        assert state_in(backend.data) in (state_in(images(TINY)[4]), new)


def test_a_failure_to_give_room_back_leaves_the_commit_standing():
    """The commit is durable by then. What was freed stays allocated in the file, and that is all."""
    backend = FailingBackend(methods=("punch",))
    container = Container.format(backend, Geometry(4096, 512))
    volume = container.create_volume("db", 2 << 20)
    volume.write(0, pattern(1, 2 << 20))
    container.commit()
    volume.trim(0, 2 << 20)
    backend.fail_at = range(backend.begun, backend.begun + 1)
    try:
        container.commit()
    except IoFailure:
        with pytest.raises(Poisoned):
            container.commit()
    else:
        volume.write(0, pattern(2, 5000))
        container.commit()
    assert_sound(backend.data)
    assert state_in(backend.data)["db"].content[5000:] == bytes((2 << 20) - 5000)


@given(st.integers(0, 2**32), st.integers(0, 25), st.sampled_from([IoFailure, NoSpace]))
@settings(max_examples=60)
def test_after_any_failure_the_file_holds_a_whole_commit(seed: int, first: int, error: type[IoFailure | NoSpace]):
    """Writes, snapshots and commits at random, an error somewhere: what can be opened is a state that was committed."""
    choose = random.Random(seed)
    backend = FailingBackend(images(TINY)[2], error=error, methods=("write",))
    container = Container.adopt(backend)
    states = [state_of(container)]
    backend.fail_at = range(first, first + choose.randrange(1, 3))
    try:
        for number in range(6):
            container["db"].write(choose.randrange(40 * 512), pattern(number, choose.randrange(1, 4000)))
            if choose.random() < 0.3:
                container.snapshot(f"db@s{number}")
            states.append(state_of(container))
            if choose.random() < 0.7:
                container.commit()
                states = states[-1:]
    except (error, IoFailure):
        pass  # a lack of space while a superblock is written is a failure like any other
    assert state_in(backend.data) in states
    assert_sound(backend.data)
