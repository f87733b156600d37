"""Hostile logs: forged with right keys and checksums, they bring about clean errors and nothing worse.

And faulty systems: any call that fails while a log is made, written or replayed costs nothing that a flush had returned
for.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from snapctl.engine.container import Container
from snapctl.engine.recovery import Change, apply
from snapctl.errors import IoFailure, NoSpace, SnapctlError
from snapctl.format import logrecord
from snapctl.format.geometry import Geometry
from snapctl.format.logrecord import DATA, ZEROS, Entry
from snapctl.format.superblock import COPIES, Superblock, build, copy_offset
from snapctl.services.check import check_backend
from snapctl.services.repair import repair_backend
from tests.reliability import fault_search
from tests.reliability.drive import GuardedBackend
from tests.reliability.forgery import base
from tests.support.backends import MemoryBackend
from tests.support.containers import change_of_blocks
from tests.support.faults import EFFECTS_OF, System
from tests.support.states import State, state_in, state_of

_FORGERIES = 120
_NUMBERS = (0, 1, 2, 31, 32, 33, 1023, 1024, 32767, 32768, (1 << 32) - 1, 1 << 48, (1 << 63) - 1, (1 << 64) - 1)


def forged(chance: Random) -> bytes:
    """A container with a log that nobody honest has written."""
    origin = base(chance.choice(("small", "filled", "large blocks", "large tables")))
    backend = MemoryBackend(origin.image)
    container = Container.adopt(backend)
    container.make_log()
    container.commit()
    current = container.superblock
    ends = {node.id: current.geometry.blocks(node.size_bytes) for node in container.nodes}
    volumes = {node.id: ends[node.id] for node in container.volumes}
    log = bytearray()
    for index in range(chance.choice((1, 1, 2, 5))):
        is_sane = chance.random() < 0.6
        entries, blocks = [], []
        for _ in range(chance.choice((1, 1, 2, 8))):
            entry = _entry(chance, volumes if is_sane or chance.random() < 0.5 else ends, is_sane=is_sane)
            entries.append(entry)
            if entry.kind == DATA:
                count = min(entry.stop - entry.start if is_sane else chance.randrange(4), 20)
                blocks += [chance.randbytes(current.geometry.block_size) for _ in range(count)]
        with suppress(struct.error):  # of numbers that do not fit their fields
            log += b"".join(logrecord.build(current.log_key, index, entries, blocks, current.geometry))
    at = current.log_page * current.geometry.unit
    log = log[: current.log_pages * current.geometry.unit]
    backend.data[at : at + len(log)] = log
    if chance.random() < 0.3:
        _bend(chance, backend, current)
    return bytes(backend.data)


def _entry(chance: Random, ends: dict[int, int], *, is_sane: bool) -> Entry:
    node, end = chance.choice(list(ends.items()))
    start = chance.randrange(end)
    entry = Entry(node, start, min(end, start + chance.choice((1, 2, 20))), chance.choice((DATA, ZEROS)))
    if not is_sane:
        field = chance.choice(("node", "start", "stop", "kind"))
        entry = entry._replace(**{field: chance.choice(_NUMBERS)})
    return entry


def _bend(chance: Random, backend: MemoryBackend, current: Superblock) -> None:
    """Have the superblock name another log, with right checksums."""
    page_no, units = current.log_page, current.log_pages
    page_no += chance.choice((0, 0, -1, 1, -page_no, 128 - page_no, current.pages_total - page_no - units))
    units += chance.choice((0, 0, -units, 1 - units, -1, 1, 1 << 15))
    bent = build(current.with_log(max(0, page_no), max(0, units), current.log_key))
    for copy in range(COPIES):
        at = copy_offset(current.slot, copy)
        backend.data[at : at + len(bent)] = bent


@pytest.mark.parametrize("part", range(4))
def test_nothing_but_clean_errors_comes_of_a_forged_log(part: int):
    replayed = refused = 0
    for number in range(_FORGERIES // 4):
        image = forged(Random(f"log {part} {number}"))
        backend = GuardedBackend(image)
        report = None
        with suppress(SnapctlError):
            report = check_backend(backend)
        read: State | None = None
        try:
            read = state_of(Container.adopt(backend, writable=False))
        except SnapctlError:
            refused += 1
            assert report is None or report.findings or report.logged_flushes, number
        assert backend.data == image
        if read is not None:
            with suppress(SnapctlError):
                found = Container.adopt(backend)
                replayed += found.replayed_records > 0
                assert state_of(found) == read
                found.close()
            if report is not None and not report.findings:
                assert check_backend(backend).findings == []
                assert state_in(backend.data) == read
        repaired = MemoryBackend(image)
        with suppress(SnapctlError):
            repair_backend(repaired, agree=lambda _: True)
            assert check_backend(repaired).exit_code == 0
    assert replayed
    assert refused


# Faulty systems


TINY = Geometry(512, 512)


class Session:
    """A server's work: a log is made, flushed to twice, taken in by a commit, and flushed to again."""

    def __init__(self, path: Path) -> None:
        self.states: list[State] = []
        """What it had come to at each point that was durable, and last what it was about to make so."""
        self._path = path

    def run(self) -> None:
        container = Container.open(str(self._path), writable=True)
        try:
            self.states.append(state_of(container))
            container.make_log()
            container.commit()
            changes = [self._flush(container, 1), self._flush(container, 40)]
            for change in changes:
                for _ in apply(change):
                    pass
            container["db"].write(0, b"committed")
            self.states.append(state_of(container))
            container.commit()
            self._flush(container, 2)
        finally:
            container.close()

    def _flush(self, container: Container, number: int) -> Change:
        change = change_of_blocks(container["db"], {number: bytes([number]) * 512}, [(10, 12)])
        was = self.states[-1]["db"]
        content = bytearray(was.content)
        content[10 * 512 : 12 * 512] = bytes(2 * 512)
        content[number * 512 : (number + 1) * 512] = bytes([number]) * 512
        self.states.append({**self.states[-1], "db": was._replace(content=bytes(content))})
        if container.log([change]):
            container.sync_log()
        else:  # for want of a log
            for _ in apply(change):
                pass
            container.commit()
        return change


def _image() -> bytes:
    backend = MemoryBackend()
    container = Container.format(backend, TINY)
    container.create_volume("db", 100 * 512).write(0, Random(3).randbytes(100 * 512))
    container.snapshot("db@mon")
    container.commit()
    return bytes(backend.data)


def test_a_call_that_fails_while_a_log_is_in_use_costs_nothing_that_was_flushed(tmp_path: Path):
    path = tmp_path / "lab.snap"
    image = _image()
    path.write_bytes(image)
    with System(str(path)) as system:
        Session(path).run()
    calls = {call: count for call, count in system.calls.items() if call in EFFECTS_OF and call != "preadv"}
    tried = 0
    for fault in fault_search.faults(type(system.calls)(calls), stride=9):
        path.write_bytes(image)
        session = Session(path)
        with System(str(path), fault) as system, suppress(IoFailure, NoSpace):
            session.run()
        assert system.was_struck
        tried += 1
        found = state_in(path.read_bytes())
        assert found in session.states[-2:], fault
        with Container.open(str(path), writable=True) as container:
            assert state_of(container) == found
        assert check_backend(MemoryBackend(path.read_bytes())).findings == []
    assert tried > 40


def test_a_call_that_fails_in_a_replay_leaves_the_log_for_the_next_opening(tmp_path: Path):
    path = tmp_path / "lab.snap"
    path.write_bytes(_image())
    Session(path).run()
    image = path.read_bytes()
    wanted = state_in(image)
    with System(str(path)) as system:
        Container.open(str(path), writable=True).close()
    tried = 0
    for fault in fault_search.faults(system.calls, stride=9):
        path.write_bytes(image)
        with System(str(path), fault), suppress(SnapctlError):
            Container.open(str(path), writable=True).close()
        tried += 1
        assert state_in(path.read_bytes()) == wanted, fault
        assert check_backend(MemoryBackend(path.read_bytes())).findings == []
        with Container.open(str(path), writable=True) as container:
            assert state_of(container) == wanted
    assert tried > 40
