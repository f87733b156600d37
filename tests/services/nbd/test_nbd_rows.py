"""Requests that arrive together are executed as a row: each is answered for itself, and nothing depends on the rest."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from snapctl.engine.container import Container
from tests.services.nbd.client import DISC, EINVAL, ENOSPC, FLUSH, FUA, READ, TRIM, WRITE, Client
from tests.services.nbd.serving import Served, serving

BLOCK = 4096
BLOCKS = 2048
REQUEST, REPLY = struct.Struct(">LHHQQL"), struct.Struct(">LLQ")


class Asked(NamedTuple):
    """A request for whole blocks; data for a write."""

    command: int
    block: int = 0
    data: bytes = b""
    flags: int = 0
    blocks: int = 1

    @property
    def length(self) -> int:
        """Of what is read, written or trimmed, in bytes."""
        return len(self.data) or (0 if self.command in {FLUSH, DISC} else self.blocks * BLOCK)

    def message(self, cookie: int) -> bytes:
        head = REQUEST.pack(0x25609513, self.flags, self.command, cookie, self.block * BLOCK, self.length)
        return head + self.data


def send(client: Client, row: list[Asked]) -> None:
    client.send(b"".join(asked.message(cookie) for cookie, asked in enumerate(row)))


def answers(client: Client, row: list[Asked]) -> list[tuple[int, bytes]]:
    """Send a row at a stroke; returns the error and the data of each, whatever the order of the replies."""
    send(client, row)
    found: dict[int, tuple[int, bytes]] = {}
    for _ in row:
        magic, error, cookie = REPLY.unpack(client.receive(REPLY.size))
        assert magic == 0x67446698
        assert cookie not in found
        has_data = row[cookie].command == READ and not error
        found[cookie] = error, client.receive(row[cookie].length) if has_data else b""
    return [found[cookie] for cookie in range(len(row))]


@pytest.fixture(params=["in memory", "in the transaction"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    """A server whose writes wait in memory at first, or go to a transaction that is under way."""
    path = tmp_path / "lab.snap"
    with Container.create(str(path)) as container:
        container.create_volume("db", BLOCKS * BLOCK).write(0, b"o" * BLOCKS * BLOCK)
        container.create_volume("log", 4 << 20)
    with serving(path) as served:
        if request.param == "in the transaction":
            with served.client("log") as client:
                client.write(0, b"x" * (1 << 20))
        yield served


def test_a_read_and_a_write_of_a_block_in_one_row_see_one_state_or_the_other(served: Served):
    with served.client("db") as client:
        for turn in range(20):
            new = bytes([turn + 1]) * BLOCK
            old = client.read(5 * BLOCK, BLOCK)
            writes = [Asked(WRITE, block, new) for block in (5, 9, 30, 70, 110)]
            reads = [Asked(READ, 5), Asked(READ, 4, blocks=3)]
            row = random.Random(turn).sample([*writes, *reads], 7)
            found = dict(zip(row, answers(client, row), strict=True))
            assert {error for error, _ in found.values()} == {0}
            assert found[reads[0]][1] in {old, new}
            assert found[reads[1]][1][BLOCK : 2 * BLOCK] in {old, new}
            assert client.read(5 * BLOCK, BLOCK) == new


def test_of_two_writes_of_a_block_in_one_row_one_remains_and_those_beside_it_as_well(served: Served):
    with served.client("db") as client:
        row = [Asked(WRITE, block, bytes([65 + at]) * BLOCK) for at, block in enumerate([8, 7, 8, 6, 9, 8])]
        assert answers(client, row) == [(0, b"")] * 6
        assert client.read(6 * BLOCK, 4 * BLOCK)[::BLOCK] in {b"DB" + each + b"E" for each in (b"A", b"C", b"F")}


def test_a_write_that_fails_in_a_row_is_answered_for_itself_alone(served: Served):
    with served.client("db") as client:
        row = [Asked(WRITE, block, b"n" * BLOCK) for block in (1, 2, 5, 7, 8, BLOCKS, 10, 11, 14, 15, 20)]
        row[3] = row[3]._replace(flags=1 << 9)  # no flag that there is
        errors = [error for error, _ in answers(client, row)]
        assert (errors[3], errors[5]) == (EINVAL, ENOSPC)
        assert not any(errors[:3] + errors[4:5] + errors[6:])
        assert client.read(0, 21 * BLOCK)[::BLOCK] == bytes(
            ord("n") if block in {1, 2, 5, 8, 10, 11, 14, 15, 20} else ord("o") for block in range(21)
        )


def test_a_flush_and_a_write_with_fua_in_a_row_wait_for_the_writes_before_them(served: Served):
    with served.client("db") as client:
        row = [Asked(WRITE, block, b"n" * BLOCK) for block in range(0, 40, 2)]
        row[10:10] = [Asked(FLUSH), Asked(WRITE, 101, b"f" * BLOCK, FUA), Asked(TRIM, 0, blocks=1)]
        assert answers(client, [*row, Asked(FLUSH)]) == [(0, b"")] * (len(row) + 1)
        assert served.call(lambda: served.live.cache.dirty_bytes) == 0
        assert client.read(0, 42 * BLOCK)[::BLOCK] == b"\0o" + b"no" * 19 + b"oo"
        assert client.read(101 * BLOCK, BLOCK) == b"f" * BLOCK


def test_what_comes_before_a_disconnection_in_a_row_is_done_and_answered(served: Served):
    with served.client("db") as client:
        row = [Asked(WRITE, block, b"n" * BLOCK) for block in range(0, 40, 2)]
        send(client, [*row, Asked(DISC)])
        assert {REPLY.unpack(client.receive(REPLY.size))[1:] for _ in row} == {(0, cookie) for cookie in range(20)}
        assert client.is_closed()
    with served.client("db") as client:
        assert client.read(0, 40 * BLOCK)[::BLOCK] == b"no" * 20


def test_a_client_that_disappears_leaves_whole_blocks_and_harms_nobody(served: Served):
    with served.client("db") as other:
        for turn in range(10):
            with served.client("db") as client:
                send(client, [Asked(WRITE, block, bytes([turn]) * BLOCK) for block in range(0, 120, 2)])
            found = other.read(0, 120 * BLOCK)
            for at in range(0, len(found), BLOCK):
                assert len(set(found[at : at + BLOCK])) == 1
            assert answers(other, [Asked(WRITE, 121 + at, b"n" * BLOCK) for at in range(10)]) == [(0, b"")] * 10
        assert other.ask(FLUSH).error == 0
        assert other.read(121 * BLOCK, 10 * BLOCK) == b"n" * 10 * BLOCK


def test_rows_that_a_full_container_has_no_room_for_are_answered_one_by_one(tmp_path: Path):
    """What was acknowledged is durable and reads as written; and there is room again when some is given back."""
    path = tmp_path / "small.snap"
    with Container.create(str(path), capacity_bytes=6 << 20) as container:
        container.create_volume("db", BLOCKS * BLOCK)
    chance = random.Random(7)
    expected = bytearray(BLOCKS * BLOCK)
    blocks = chance.sample(range(BLOCKS), BLOCKS)
    errors = []
    with serving(path) as served, served.client("db") as client:
        for at in range(0, BLOCKS, 32):
            row = [Asked(WRITE, block, chance.randbytes(BLOCK)) for block in blocks[at : at + 32]]
            for asked, (error, _) in zip(row, answers(client, row), strict=True):
                errors.append(error)
                if not error:
                    expected[asked.block * BLOCK : (asked.block + 1) * BLOCK] = asked.data
        assert set(errors) == {0, ENOSPC}
        assert errors.count(0) > 1000
        assert client.ask(FLUSH).error == 0
        assert client.read(0, BLOCKS * BLOCK) == expected
        assert client.ask(TRIM, 0, 1024 * BLOCK).error == 0
        assert client.ask(FLUSH).error == 0
        row = [Asked(WRITE, block, b"n" * BLOCK) for block in range(32)]
        assert answers(client, row) == [(0, b"")] * 32
        assert client.ask(FLUSH).error == 0
    with Container.open(str(path)) as container:
        expected[: 1024 * BLOCK] = (b"n" * 32 * BLOCK).ljust(1024 * BLOCK, b"\0")
        assert container["db"].read(0, BLOCKS * BLOCK) == expected
