"""`snapctl serve` on a disk that another file fills up: what was acknowledged becomes durable, and all goes on."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.harness import run, start
from tests.services.nbd import client as nbd
from tests.services.nbd.client import Client
from tests.support.disks import FILE_SYSTEMS, WITHOUT_RESERVATIONS, fill_up, small_disk

MIB = 1 << 20
PIECE = 64 << 10
BLOCK = 4096
ROW = 32


@contextmanager
def served(path: Path, socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Serve both volumes of a container until the block ends."""
    server = start("serve", path, "--unix", socket)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        server.stdout.readline()
        yield server
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize("file_system", FILE_SYSTEMS)
def test_clients_of_a_full_disk_are_told_and_lose_nothing(file_system: str, tmp_path: Path):
    chance = random.Random(1)
    expected = bytearray(64 * MIB)

    def put(client: Client, at: int) -> int:
        data = chance.randbytes(PIECE)
        reply = client.ask(nbd.WRITE, at, len(data), data)
        if not reply.error:
            expected[at : at + PIECE] = data
        return reply.error

    with small_disk(file_system, tmp_path, 24 * MIB) as disk:
        path = disk / "lab.snap"
        assert run("create", path / "db", "--size", "64M").code == 0
        assert run("create", path / "log", "--size", "1M").code == 0
        with (
            served(path, tmp_path / "nbd") as server,
            Client(str(tmp_path / "nbd")) as client,
            Client(str(tmp_path / "nbd")) as other,
        ):
            client.go("db")
            other.go("log")
            other.write(0, b"still here", nbd.FUA)
            for at in range(0, 2 * MIB, PIECE):
                assert put(client, at) == 0
            fill_up(disk / "ballast")
            # What was acknowledged has its room, and what is acknowledged from here on as well.
            errors = [put(client, at) for at in range(2 * MIB, 40 * MIB, PIECE)]
            assert nbd.ENOSPC in errors
            assert set(errors) <= {0, nbd.ENOSPC}
            assert client.ask(nbd.FLUSH).error == 0
            assert client.read(0, 20 * MIB) == expected[: 20 * MIB]
            assert other.read(0, 10) == b"still here"
            (disk / "ballast").unlink()
            assert client.ask(nbd.TRIM, 4 * MIB, 12 * MIB).error == 0
            expected[4 * MIB : 16 * MIB] = bytes(12 * MIB)
            assert client.ask(nbd.FLUSH).error == 0
            for at in range(0, 2 * MIB, PIECE):
                assert put(client, at) == 0
            assert client.ask(nbd.FLUSH).error == 0
            server.kill()
            server.wait(30)
        assert run("read", path / "db", "--length", str(40 * MIB)).out == expected[: 40 * MIB]
        assert run("check", path).code == 0


@pytest.mark.parametrize("file_system", [*FILE_SYSTEMS, *WITHOUT_RESERVATIONS])
def test_clients_that_fill_a_disk_by_themselves_are_told_and_lose_nothing(file_system: str, tmp_path: Path):
    chance = random.Random(2)
    contents = {name: bytearray(20 * MIB) for name in ("db", "log")}
    errors = set[int]()

    def put_row(client: Client, expected: bytearray) -> None:
        """Write blocks at random, many at a time."""
        written = {}
        for block in chance.sample(range(len(expected) // BLOCK), ROW):
            data = chance.randbytes(BLOCK)
            written[client.send_request(nbd.WRITE, block * BLOCK, BLOCK, data)] = block * BLOCK, data
        for _ in range(ROW):
            chunk = client.chunk()
            errors.add(chunk.kind)
            if not chunk.kind:
                at, data = written[chunk.cookie]
                expected[at : at + BLOCK] = data

    with small_disk(file_system, tmp_path, 40 * MIB) as disk:
        path = disk / "lab.snap"
        for name in contents:
            assert run("create", path / name, "--size", "20M").code == 0
        with served(path, tmp_path / "nbd") as server:
            with Client(str(tmp_path / "nbd")) as first, Client(str(tmp_path / "nbd")) as second:
                clients = dict(zip(contents, (first, second), strict=True))
                for name, client in clients.items():
                    client.go(name)
                for number in range(300):
                    for name, client in clients.items():
                        put_row(client, contents[name])
                        if number % 8 == 0:
                            assert client.ask(nbd.FLUSH).error == 0
                assert errors == {0, nbd.ENOSPC}
                for name, client in clients.items():
                    assert client.ask(nbd.TRIM, 0, 4 * MIB).error == 0
                    contents[name][: 4 * MIB] = bytes(4 * MIB)
                    assert client.ask(nbd.FLUSH).error == 0
                    assert client.read(0, 20 * MIB) == contents[name]
            assert run("check", path).code == 0
            server.terminate()
            assert server.wait(30) == 0
        for name, expected in contents.items():
            assert run("read", path / name).out == expected
        assert run("check", path).code == 0
