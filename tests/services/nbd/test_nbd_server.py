"""Sockets, the end of a server, and what it tells of its clients."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from snapctl.engine.container import Container
from snapctl.errors import SnapctlError, UsageError
from snapctl.services.live.container import LiveContainer
from snapctl.services.live.device import Device
from snapctl.services.nbd.listeners import adopt, listen_on_path, listen_on_port, parse_address
from snapctl.storage.backend import Buffer, FileBackend
from tests.services.nbd import client as nbd
from tests.services.nbd.client import Client
from tests.services.nbd.conftest import SIZE
from tests.services.nbd.serving import Served, serving, until
from tests.support.damage import find, flip


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:1", ("localhost", 1)),
        (":0", ("", 0)),
        ("10.0.0.1", ("10.0.0.1", 10809)),
        ("[::1]:7", ("::1", 7)),
        ("[::]", ("::", 10809)),
    ],
)
def test_address_is_host_and_port(text: str, address: tuple[str, int]):
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["::1", "a:b", "a:", "a:65536", "a:-1", "[::1]:x", "a:1:2"])
def test_what_is_no_address_is_refused(text: str):
    with pytest.raises(UsageError):
        parse_address(text)


def test_unix_socket_is_its_owners_alone_and_goes_with_the_listener(tmp_path: Path):
    path = tmp_path / "s"
    listener = listen_on_path(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert listener.address("db@mon", tls=False) == f"nbd+unix:///db%40mon?socket={path}"
    listener.close()
    assert not path.exists()


def test_path_longer_than_a_socket_address_is_listened_on(tmp_path: Path):
    path = tmp_path / ("d" * 100) / ("e" * 90) / "lab.snap.nbd"
    path.parent.mkdir(parents=True)
    listener = listen_on_path(str(path))
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)
    assert f"socket={path}" in listener.address("db", tls=False)
    listener.close()


def test_socket_that_nobody_answers_at_is_replaced_and_no_other(tmp_path: Path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    first = listen_on_path(path)
    with pytest.raises(SnapctlError, match="in use"):
        listen_on_path(path)
    os.rename(path, path + ".away")
    (tmp_path / "s").write_text("precious")
    with pytest.raises(SnapctlError, match="no socket"):
        listen_on_path(path)
    first.close()
    assert (tmp_path / "s").read_text() == "precious"


def test_port_in_use_and_unknown_host_are_errors():
    (taken, *_) = listen_on_port("127.0.0.1", 0)
    port = taken.socket.getsockname()[1]
    assert taken.address("db", tls=True) == f"nbds://127.0.0.1:{port}/db"
    with pytest.raises(SnapctlError, match=f"127.0.0.1:{port}"):
        listen_on_port("127.0.0.1", port)
    taken.close()
    with pytest.raises(SnapctlError, match=r"nope\.invalid"):
        listen_on_port("nope.invalid", 1)


def test_only_a_listening_socket_is_adopted():
    with socket.socket() as link, pytest.raises(SnapctlError, match="listens"):
        adopt(os.dup(link.fileno()))
    with open(os.devnull, "rb") as other, pytest.raises(SnapctlError):
        adopt(os.dup(other.fileno()))


def test_statistics_count_requests_bytes_and_errors_beyond_the_connection(served: Served):
    with served.client("db") as client:
        for _ in range(3):
            client.write(0, b"x" * 1000)
        client.read(0, 500)
        client.ask(nbd.READ, SIZE, 1)
        client.ask(nbd.FLUSH, flags=nbd.FUA)
        (seen,) = served.call(served.server.clients)
        assert seen.export == "db"
        assert str(os.getpid()) in seen.peer
        live = dict(seen.statistics.named())
        assert live["write"].requests == sum(live["write"].histogram) == 3
        client.send_request(nbd.DISC)
        assert client.is_closed()
    (total,) = served.call(served.server.statistics).values()
    found = {name: (op.requests, op.errors, op.length_bytes) for name, op in total.named()}
    assert found == {"write": (3, 0, 3000), "read": (2, 1, 500), "flush": (1, 0, 0)}
    assert all(op.nanoseconds > 0 for _, op in total.named())
    assert total.in_flight == 0


def test_statistics_of_deleted_exports_are_forgotten(served: Served):
    with served.client("db@mon") as client:
        client.read(0, 1)
        client.send_request(nbd.DISC)
        assert client.is_closed()
    assert len(served.call(served.server.statistics)) == 1
    served.change(lambda container: container.delete("db@mon"))
    assert served.call(served.server.statistics) == {}
    assert served.call(lambda: served.server._hub.totals) == {}


@pytest.mark.parametrize("form", nbd.FORMS)
def test_damaged_data_is_an_error_that_says_where(form: str, container: Path):
    backend = FileBackend.open(str(container), writable=True)
    flip(backend, find(backend, "db", "data", 2).offset)
    backend.close()
    with serving(container) as served, served.client("db", form=form) as client:
        reply = client.ask(nbd.READ, 4096, 8192)
        assert reply.error == nbd.EIO
        assert form == "simple" or reply.where == 8192
        assert client.read(4096, 4096) == (b"new" * 3000)[:4096]


class Narrow(Device):
    """A device of `Full`."""

    has_room: asyncio.Event

    def write(self, offset: int, data: Buffer) -> bool:
        return self.has_room.is_set() and super().write(offset, data)

    def write_together(self, writes: list[tuple[int, memoryview]]) -> bool:
        return self.has_room.is_set() and super().write_together(writes)


class Full(LiveContainer):
    """A container whose cache has no room until the test says so."""

    def __init__(self, container: Container, **limits: Any) -> None:
        super().__init__(container, **limits)
        self.has_room = asyncio.Event()
        self.waiting = threading.Event()

    def device(self, name: str) -> Device:
        device = Narrow(self.cache, super().device(name).node)
        device.has_room = self.has_room
        return device

    async def until_room(self) -> None:
        self.waiting.set()
        await self.has_room.wait()


@pytest.mark.parametrize("form", nbd.FORMS)
@pytest.mark.parametrize("length", [100, 1 << 20])
def test_write_that_finds_no_room_holds_up_its_own_connection_alone(length: int, form: str, container: Path):
    with (
        serving(container, kind=Full) as served,
        served.client("db", form=form) as client,
        served.client("db") as other,
    ):
        live = served.live
        assert isinstance(live, Full)
        client.send_request(nbd.WRITE, 0, length, b"x" * length)
        assert live.waiting.wait(20)
        assert other.read(4096, 3) == b"new"
        assert served.call(lambda: sorted(c.statistics.in_flight for c in served.server.clients())) == [0, 1]
        served.call(live.has_room.set)
        assert client.reply(nbd.WRITE, 0, length).error == 0
        assert other.read(0, 3) == b"xxx"


def test_client_that_leaves_while_its_write_waits_for_room_leaves_nothing_behind(container: Path):
    with serving(container, kind=Full) as served:
        live = served.live
        assert isinstance(live, Full)
        with served.client("db") as client:
            client.send_request(nbd.WRITE, 0, 100_000, b"x" * 100_000)
            assert live.waiting.wait(20)
        served.call(live.has_room.set)
        assert not served.wait(lambda: until(served.server.clients))
        assert served.call(lambda: served.server._hub.budget.held_bytes) == 0


def test_closing_answers_what_is_in_flight_and_disconnects(container: Path):
    with serving(container, kind=Full) as served, served.client("db") as client:
        live = served.live
        assert isinstance(live, Full)
        client.send_request(nbd.WRITE, 0, 4, b"kept", nbd.FUA)
        assert live.waiting.wait(20)
        closing = served.begin(served.server.close)
        with pytest.raises((nbd.Gone, OSError)):
            Client(served.path)
        served.call(live.has_room.set)
        assert client.reply(nbd.WRITE, 0, 4).error == 0
        assert client.is_closed()
        closing.result(20)
        assert not Path(served.path).exists()
    with serving(container) as again, again.client("db") as other:
        assert other.read(0, 4) == b"kept"


def test_tcp_and_unix_serve_the_same(container: Path):
    with serving(container, tcp=True) as served:
        with Client(("127.0.0.1", served.port)) as one, served.client("db") as other:
            one.go("db", form="extended")
            one.write(0, b"over tcp")
            assert other.read(0, 8) == b"over tcp"
        addresses = served.call(served.server.addresses)
        assert f"nbd://127.0.0.1:{served.port}/db%40mon" in addresses
        assert len(addresses) == 4
