"""What requests cost a server, counted: a guard against work that creeps in where it is done for every block.

The bounds are what was counted when they were set, and some more. Whoever has to raise one should know why.
"""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from snapctl.engine import placing
from snapctl.engine.container import Container
from tests.services.nbd.client import FLUSH, READ, WRITE, Client
from tests.services.nbd.serving import Served, serving
from tests.support.work import READS, RECEIVES, SENDS, SYNCS, WRITES, Work, in_new_threads

BLOCK = 4096
BLOCKS = 4096
BATCH = 32
LARGE = 1 << 20
PORTION = 64 << 10
CALLS_PER_TURN = 20
IS_COMPILED = placing.plan is not placing.pure_plan
REQUEST, REPLY = struct.Struct(">LHHQQL"), struct.Struct(">LLQ")


class Counted(NamedTuple):
    """A server whose work is counted, and a client of its volume that sends what it is told, in one go."""

    served: Served
    client: Client
    work: Work

    def ask(self, command: int, places: list[int], length: int) -> None:
        """Send requests together, and wait until all have been answered without an error."""
        self.client.send(message(command, places, length))
        self.expect(command, len(places), length)

    def count_row(self, command: int, places: list[int], length: int) -> None:
        """Count what requests cost that the server receives by one call; the socket has to hold them all."""
        with ExitStack() as counting:
            with self.served.held_up():
                self.client.send(message(command, places, length))
                counting.enter_context(self.work.counting())
            self.expect(command, len(places), length)

    def expect(self, command: int, count: int, length: int) -> None:
        for _ in range(count):
            magic, error, _ = REPLY.unpack(self.client.receive(REPLY.size))
            assert (magic, error) == (0x67446698, 0)
            if command == READ:
                self.client.receive(length)


def message(command: int, places: list[int], length: int) -> bytes:
    """Requests of one kind."""
    found = bytearray()
    for cookie, place in enumerate(places):
        found += REQUEST.pack(0x25609513, 0, command, cookie, place, length)
        if command == WRITE:
            found += random.randbytes(length)
    return bytes(found)


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[Counted]:
    path = tmp_path / "lab.snap"
    with Container.create(str(path)) as container:
        container.create_volume("db", BLOCKS * BLOCK).write(0, random.randbytes(BLOCKS * BLOCK))
    with in_new_threads() as work, serving(path) as served, served.client("db") as client:
        yield Counted(served, client, work)


def under_way(counted: Counted) -> None:
    """Begin a transaction with more than a record takes, above all leaves that the volume has."""
    counted.ask(WRITE, [BLOCK * number for number in range(0, BLOCKS, BLOCKS // 128)], BLOCK)


def places(count: int, size: int = BLOCK) -> list[int]:
    return [size * number for number in random.Random(count).sample(range(BLOCKS * BLOCK // size), count)]


def test_small_reads_that_come_together_cost_one_read_of_the_file_each_and_little_else(counted: Counted):
    counted.ask(READ, places(BATCH), BLOCK)
    with counted.work.counting():
        counted.ask(READ, places(BATCH), BLOCK)
    assert counted.work.of(READS) == BATCH
    assert counted.work.of(RECEIVES) + counted.work.of(SENDS) <= 3
    assert counted.work.calls <= (12 if IS_COMPILED else 26) * BATCH


def test_small_writes_that_come_together_wait_in_memory_while_a_record_could_hold_them(counted: Counted):
    counted.ask(WRITE, places(BATCH // 2), BLOCK)
    counted.count_row(WRITE, places(BATCH // 2), BLOCK)
    assert counted.work.of((*READS, *WRITES, *SYNCS)) == 0
    assert counted.work.of(RECEIVES) + counted.work.of(SENDS) <= 3
    assert counted.work.calls <= (22 if IS_COMPILED else 28) * BATCH // 2


def test_small_writes_that_come_together_are_written_together_in_a_transaction_that_is_under_way(counted: Counted):
    under_way(counted)
    counted.count_row(WRITE, [BLOCK * (1 + number) for number in range(0, BLOCKS, BLOCKS // BATCH)], BLOCK)
    assert counted.work.of(WRITES) == BATCH * BLOCK // PORTION
    assert counted.work.of((*READS, *SYNCS)) == 0
    assert counted.work.of(RECEIVES) + counted.work.of(SENDS) <= 3
    assert counted.work.calls <= (16 if IS_COMPILED else 46) * BATCH


def test_single_writes_are_written_through_for_clients_that_have_much_under_way_and_for_those_alone(counted: Counted):
    under_way(counted)
    row = message(READ, places(BATCH), BLOCK) + message(WRITE, [BLOCK], BLOCK)
    with counted.served.held_up():
        counted.client.send(row)
    counted.expect(READ, BATCH, BLOCK)
    counted.expect(WRITE, 1, BLOCK)
    written = []
    for number in range(8):
        counted.count_row(WRITE, [BLOCK * (2 + number)], BLOCK)
        written.append(counted.work.of(WRITES))
    assert written[0] == 1, "it has had much under way until now"
    assert written[-1] == 0, "it asks for one thing after the other"
    assert written == sorted(written, reverse=True)


def test_the_server_looks_at_once_for_more_from_a_client_that_has_sent_much(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("snapctl.services.nbd.connection.TURN_NANOSECONDS", 60_000_000_000)  # a slow machine or not
    found = []
    for count in (BATCH, 1):
        with counted.work.counting():
            with counted.served.held_up():
                counted.client.send(message(READ, places(count), BLOCK))
            counted.expect(READ, count, BLOCK)
            counted.served.call(lambda: None)  # so that its turn is over
        found.append(counted.work.system_calls["readv"])
    assert found == [1, 0]


def test_what_was_written_in_the_transaction_is_written_again_in_place(counted: Counted):
    """A call for each, as they need not be neighbours there."""
    under_way(counted)
    chosen = [BLOCK * number for number in range(0, BLOCKS, BLOCKS // BATCH)]
    counted.ask(WRITE, chosen, BLOCK)
    end_page = counted.served.call(lambda: counted.served.live.container.pages.end_page)
    counted.count_row(WRITE, chosen, BLOCK)
    assert counted.served.call(lambda: counted.served.live.container.pages.end_page) == end_page
    assert counted.work.of((*READS, *SYNCS)) == 0
    assert counted.work.of(WRITES) <= BATCH
    assert counted.work.calls <= (18 if IS_COMPILED else 46) * BATCH


def test_writes_of_a_few_blocks_go_to_the_file_in_portions(counted: Counted):
    under_way(counted)
    size, batch = 4 * BLOCK, BATCH // 4
    chosen = [size + place for place in range(0, BLOCKS * BLOCK, BLOCKS * BLOCK // batch)]
    counted.count_row(WRITE, chosen, size)
    assert counted.work.of((*READS, *SYNCS)) == 0
    assert counted.work.of(WRITES) == batch * size // PORTION
    assert counted.work.calls <= (44 if IS_COMPILED else 84) * batch


def test_a_small_flush_is_one_write_and_one_sync(counted: Counted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("snapctl.services.live.cache._SHORT_SYNC_SECONDS", 60.0)  # else a slow disk costs a thread
    for place in places(3):
        counted.ask(WRITE, [place], BLOCK)
        counted.ask(FLUSH, [0], 0)
    with counted.work.counting():
        counted.ask(WRITE, [0], BLOCK)
        counted.ask(FLUSH, [0], 0)
    assert (counted.work.of(WRITES), counted.work.of(SYNCS)) == (1, 1)
    # How many turns of the loop it takes is a matter of time: two, if nothing else happens.
    assert counted.work.calls <= 440 + CALLS_PER_TURN * max(0, counted.work.system_calls["poll"] - 2)


def test_a_large_write_goes_to_the_file_in_portions_as_it_came(counted: Counted):
    counted.ask(WRITE, [0], LARGE)
    with counted.work.counting():
        counted.ask(WRITE, [LARGE], LARGE)
    assert (counted.work.of(WRITES), counted.work.of((*READS, *SYNCS))) == (LARGE // PORTION, 0)
    assert counted.work.calls <= (3 if IS_COMPILED else 5) * LARGE // BLOCK


def test_a_large_read_is_one_of_the_file(counted: Counted):
    counted.ask(READ, [0], LARGE)
    with counted.work.counting():
        counted.ask(READ, [0], LARGE)
    assert counted.work.of(READS) == 1
    assert counted.work.calls <= 2 * LARGE // BLOCK


def test_scattered_writes_leave_in_few_large_ones(counted: Counted):
    """Half of the blocks of four leaves, and what a commit takes; a snapshot after that takes nothing but a commit."""
    counted.ask(WRITE, places(BLOCKS // 2), BLOCK)
    counted.ask(FLUSH, [0], 0)
    counted.ask(WRITE, places(BLOCKS // 2), BLOCK)
    with counted.work.counting():
        counted.ask(FLUSH, [0], 0)
    assert counted.work.of(WRITES) <= 20
    assert counted.work.of(SYNCS) <= 4
    assert counted.work.calls <= 4 * BLOCKS // 2
    with counted.work.counting():
        counted.served.change(lambda container: container.snapshot("db@s"))
    assert counted.work.of(WRITES) <= 12
    assert counted.work.of(SYNCS) == 2


def test_without_the_compiled_core_it_is_the_same_but_for_the_calls_of_its_twins():
    code = (
        "import sys; sys.modules['snapctl._native'] = None\n"
        "import pytest; options = ['-q', '-n0', '-p', 'no:cacheprovider', '-k', 'not without']\n"
        "sys.exit(pytest.main([*options, sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, __file__], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout
    assert "1 deselected" in done.stdout
