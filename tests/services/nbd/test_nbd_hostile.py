"""Clients that mean harm, or are dead, cost bounded memory and disturb nobody else."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapctl.engine.container import Container
from snapctl.services.nbd import budget, connection, handshake
from tests.cli.harness import start
from tests.services.nbd import client as nbd
from tests.services.nbd.client import Client, query
from tests.services.nbd.conftest import SIZE
from tests.services.nbd.serving import Served, serving, until


@contextmanager
def undisturbed(served: Served) -> Iterator[None]:
    """A client that works before, beside and after whatever the block does."""
    with served.client("db", form="structured") as client:
        client.write(SIZE - 4, b"mine")
        yield
        assert client.read(SIZE - 4, 4) == b"mine"
        client.write(SIZE - 4, b"well")
        assert client.read(SIZE - 4, 4) == b"well"


@contextmanager
def everybody_gets_a_turn(served: Served) -> Iterator[None]:
    """The server's loop comes round often, whatever the block does; a tenth of this is what is meant."""
    turns: list[float] = []

    async def count_turns() -> None:
        while True:
            turns.append(time.monotonic())
            await asyncio.sleep(0)

    counting = served.begin(count_turns)
    try:
        served.wait(lambda: asyncio.sleep(0))
        yield
        served.wait(lambda: asyncio.sleep(0))
    finally:
        counting.cancel()
    assert max(later - earlier for earlier, later in pairwise(turns)) < 0.25


@pytest.mark.parametrize("phase", ["greeting", "options", "transmission"])
def test_random_bytes_end_one_connection(phase: str, served: Served):
    with undisturbed(served):
        for seed in range(10):
            with Client(served.path, flags=None if phase == "greeting" else 3) as client:
                if phase == "transmission":
                    client.go("db")
                client.send(random.Random(seed).randbytes(3000))
                with pytest.raises(nbd.Gone):
                    client.receive(1 << 20)


@pytest.mark.parametrize("sent", [1, 27, 28, 100, 100_000])
def test_half_a_request_holds_up_nobody(sent: int, served: Served):
    with undisturbed(served), served.client("db") as client:
        client.send((struct.pack(">LHHQQL", 0x25609513, 0, nbd.WRITE, 1, 0, 1 << 20) + bytes(1 << 20))[:sent])
        with served.client("db") as other:
            other.write(0, b"x" * (1 << 20))
    assert not served.wait(lambda: until(served.server.clients))
    assert served.call(lambda: served.server._hub.budget.held_bytes) == 0


def test_client_that_takes_no_replies_is_given_few(served: Served):
    """It asks for 20 GB of data, and reads nothing."""
    with undisturbed(served), served.client("db") as client:
        client.write(0, b"x" * (SIZE - 4))
        client.link.settimeout(0.2)
        requests = struct.pack(">LHHQQL", 0x25609513, 0, nbd.READ, 1, 0, SIZE) * 5000
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(TimeoutError):
            client.send(requests * 100)
        with served.client("db@mon") as other:
            assert other.read(4096, 3) == b"old"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10
        client.link.settimeout(nbd.TIMEOUT_SECONDS)
        assert client.receive(16 + SIZE)[16:-4] == b"x" * (SIZE - 4)


def test_many_questions_that_take_long_and_have_short_answers_hold_up_nobody(served: Served):
    def fill(container: Container) -> None:
        volume = container.create_volume("big", 32 << 20)
        container.snapshot("big@0")
        volume.write(0, b"x" * (32 << 20))
        for number in range(1, 8):
            container.snapshot(f"big@{number}")
            volume.write(number << 20, b"y")

    served.change(fill)
    contexts = ("base:allocation", "qemu:allocation-depth", *(f"qemu:dirty-bitmap:{number}" for number in range(8)))
    with (
        served.client("db") as other,
        served.client("big", form="structured", contexts=contexts) as client,
        everybody_gets_a_turn(served),
    ):
        client.send(struct.pack(">LHHQQL", 0x25609513, 0, nbd.BLOCK_STATUS, 1, 0, 32 << 20) * 256)
        assert client.chunk().kind == 5
        assert other.read(4096, 3) == b"new"


def test_large_payloads_that_never_arrive_make_room_for_one_that_does(served: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(budget, "RECEIVE_SECONDS", 0.4)
    served.change(lambda container: container.create_volume("big", 64 << 20))
    with undisturbed(served), ExitStack() as stack:
        for _ in range(9):  # the last one finds no room
            client = stack.enter_context(served.client("big"))
            client.send_request(nbd.WRITE, 0, 32 << 20, b"begun")
        last = stack.enter_context(served.client("big"))
        last.write(0, bytes(range(256)) * (1 << 16))
        assert last.read(0, 256) == bytes(range(256))
        assert any("takes too long" in line for line in served.log)


def test_handshake_that_does_not_go_on_is_ended(container: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "HANDSHAKE_SECONDS", 0.2)
    with serving(container) as served, served.client() as client:
        assert client.is_closed()
        assert "handshake takes too long" in served.log[0]


def test_many_options_at_once_hold_up_nobody_and_are_answered_as_they_are_taken(served: Served):
    """Each is 26 bytes, and has an answer of 4 KB."""
    served.change(lambda container: [container.snapshot(f"db@{number}") for number in range(100)])
    option = struct.pack(">8sLL", b"IHAVEOPT", nbd.LIST_META, 10) + query("db")
    with undisturbed(served), served.client() as client:
        assert client.final(nbd.STRUCTURED) == nbd.ACK
        with everybody_gets_a_turn(served):
            client.link.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.send(option * 20_000)
            served.client("db").link.close()
        client.link.settimeout(nbd.TIMEOUT_SECONDS)
        assert client.option_reply()[1] == nbd.META


def test_whoever_lists_the_exports_again_and_again_is_disconnected(served: Served):
    with undisturbed(served), served.client() as client:
        for _ in range(handshake.MAX_LISTS):
            assert client.final(nbd.LIST) == nbd.ACK
        client.send_option(nbd.LIST)
        assert client.is_closed()
    assert "too many lists" in served.log[0]


def test_connections_beyond_the_limit_are_closed_and_one_line_says_so(container: Path):
    with serving(container, max_connections=3) as served, ExitStack() as stack:
        clients = [stack.enter_context(served.client("db")) for _ in range(3)]
        for _ in range(5):
            assert stack.enter_context(Client(served.path, flags=None)).is_closed()
        assert [client.read(4096, 3) for client in clients] == [b"new"] * 3
        assert len(served.log) == 1
        clients[0].link.close()
        assert len(served.wait(lambda: until(lambda: served.server.clients()[2:]))) == 0
        stack.enter_context(served.client("db"))


def rss_bytes(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) << 10


def test_thousand_connections_cost_little(container: Path):
    """Each does something, then idles; a process of its own serves them, and its memory is measured."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    process = start("serve", container)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"nbd+unix:///db?socket=")
        path = f"{container}.nbd"
        with ExitStack() as stack:
            one = stack.enter_context(Client(path))
            one.go("db", form="structured")
            one.write(0, b"x" * (1 << 20))
            before = rss_bytes(process.pid)
            for _ in range(999):
                client = stack.enter_context(Client(path))
                client.go("db")
                client.write(0, b"y" * 5000)
                client.send(b"\x25\x60")
            assert one.read(0, 3) == b"yyy"
            grown = rss_bytes(process.pid) - before
            assert grown < 24 << 20, f"{grown / 1000:.0f} bytes for each connection"
        process.terminate()
        assert process.wait(30) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        process.kill()
        process.communicate()


Part = bytes | tuple[int, int, int, int, int, bytes]

requests = st.tuples(
    st.sampled_from([0] * 9 + [1]),
    st.sampled_from([0, 0, 0, 1, 2, 4, 8, 16, 32, 32, 0xFFFF]),
    st.integers(0, 9),
    st.sampled_from([0, 4096, SIZE - 1, SIZE, (1 << 64) - 1]),
    st.sampled_from([0, 1, 512, 100_000, SIZE, 0xFFFF_FFFF, (1 << 64) - 1]),
    st.sampled_from([b"", b"x", bytes(512), bytes(100_000)]),
)


def built(form: str, part: Part) -> bytes:
    """Some bytes, or a request that is a little off, with something behind it."""
    if isinstance(part, bytes):
        return part
    magic, flags, command, offset, length, extra = part
    if form == "extended":
        return struct.pack(">LHHQQQ", magic + 0x21E41C71, flags, command, 1, offset, length) + extra
    return struct.pack(">LHHQQL", magic + 0x25609513, flags, command, 1, offset, length & 0xFFFF_FFFF) + extra


@pytest.mark.parametrize("form", nbd.FORMS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(sent=st.lists(st.one_of(requests, requests, st.binary(max_size=50)), min_size=1, max_size=8))
def test_whatever_is_sent_the_next_client_finds_a_server(form: str, sent: list[Part], served: Served):
    with served.client("db", form=form, contexts=() if form == "simple" else ("base:allocation",)) as client:
        try:
            client.send(b"".join(built(form, part) for part in sent))
            client.link.shutdown(socket.SHUT_WR)
            while client.link.recv(1 << 20):
                pass
        except ConnectionError:
            pass
    with served.client("db") as client:
        client.write(0, b"alive")
        assert client.read(0, 5) == b"alive"
    assert not [line for line in served.log if "internal" in line or "failed (" in line]


def test_descriptors_are_given_back(served: Served):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with served.client("db") as client:
            client.send_request(nbd.WRITE, 0, 1 << 20, b"half")
    assert not served.wait(lambda: until(served.server.clients))
    assert len(os.listdir("/proc/self/fd")) <= before
