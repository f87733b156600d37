"""What the client does not take at once: it waits here, whole and in order, and costs nobody else anything."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.services.nbd import client as nbd
from tests.services.nbd.client import Client
from tests.services.nbd.conftest import SIZE
from tests.services.nbd.serving import Served, serving, until

CONTENT = random.Random(7).randbytes(SIZE).replace(b"\0", b"x")  # so that nothing is sent as a hole


def connected(served: Served, way: str) -> Client:
    client = Client(served.path if way == "unix" else ("127.0.0.1", served.port))
    client.go("db", form="structured")
    return client


def until_congested(served: Served) -> None:
    """Return when a client has not taken what it was sent."""
    connections = served.server._hub.connections
    assert not served.wait(lambda: until(lambda: [c for c in connections if c.transmission and not c.is_congested]))


def asked(client: Client) -> list[tuple[int, int, int]]:
    """Ask for far more than any buffer takes: cookie, offset and length of each."""
    rnd = random.Random(1)
    found = []
    for cookie in range(300):
        length = rnd.choice([1, 17, 4096, 4096, 5000, 100_000, 300_000, 1 << 20])
        found.append((cookie, rnd.randrange(SIZE - length), length))
    client.send(b"".join(read(*one) for one in found))
    return found


def read(cookie: int, offset: int, length: int) -> bytes:
    return struct.pack(">LHHQQL", 0x25609513, 0, nbd.READ, cookie, offset, length)


@pytest.mark.parametrize("way", ["unix", "tcp"])
def test_replies_of_which_the_system_took_a_part_come_whole_and_in_order(way: str, container: Path):
    with serving(container, tcp=True) as served, connected(served, way) as client:
        client.write(0, CONTENT)
        wanted = asked(client)
        until_congested(served)
        for cookie, offset, length in wanted:
            chunk = client.chunk()
            assert (chunk.cookie, chunk.is_last, chunk.kind) == (cookie, True, 1)
            assert chunk.body[8:] == CONTENT[offset : offset + length]
        assert client.read(0, 9) == CONTENT[:9]


@pytest.mark.parametrize("way", ["unix", "tcp"])
def test_client_that_goes_in_the_midst_of_its_replies_is_forgotten(
    way: str, container: Path, caplog: pytest.LogCaptureFixture
):
    with serving(container, tcp=True) as served, served.client("db") as other:
        other.write(0, CONTENT)
        for _ in range(5):
            client = connected(served, way)
            asked(client)
            client.receive(300_000)
            client.link.close()
            assert other.read(5, 5) == CONTENT[5:10]
        assert not served.wait(lambda: until(lambda: served.server.clients()[1:]))
    assert not caplog.records  # where asyncio tells of what nobody expected


def test_what_was_asked_for_before_the_client_closed_its_side_is_answered(served: Served):
    with connected(served, "unix") as client:
        client.write(0, CONTENT)
        wanted = [client.send_request(nbd.READ, offset, 300_000) for offset in range(10)]
        last = client.send_request(nbd.FLUSH)
        client.link.shutdown(1)
        answered = {client.chunk().cookie for _ in range(11)}
        assert answered == {*wanted, last}
        assert client.is_closed()


@pytest.mark.parametrize("length", [4096, 100_000, 1 << 20])
def test_client_that_never_reads_makes_the_server_hold_a_bounded_number_of_bytes(length: int, served: Served):
    with connected(served, "unix") as client:
        client.write(0, CONTENT)
        client.link.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.send(b"".join(read(number, number % 7, length) for number in range(100_000)))
        (held,) = served.call(
            lambda: [
                sum(map(len, c._outlet._waiting)) + sum(map(len, c.transmission._answers.gathered))
                for c in served.server._hub.connections
                if c._outlet is not None and c.transmission is not None
            ]
        )
        assert 0 < held < (2 << 20)
