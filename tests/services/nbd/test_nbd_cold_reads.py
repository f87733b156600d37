"""Reads of what is not in memory wait for the disk, and nobody waits for them."""

from __future__ import annotations

import errno
import os
import random
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from snapctl.services.nbd.reads import MAX_COLD
from tests.services.nbd import client as nbd
from tests.services.nbd.conftest import SIZE
from tests.services.nbd.serving import Served, serving, until
from tests.support.page_cache import ColdCache

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what it has cached")

COLD, WARM = 8192, 4096
"""Offsets of stored blocks, of which the second has been read."""

every_form = pytest.mark.parametrize("form", nbd.FORMS)


class Disk(ColdCache):
    """A disk that can be stopped.

    Attributes:
        turns: whoever waits for the disk goes on only while this is set.
        is_broken: whoever waits for it, fails.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.turns = threading.Event()
        self.turns.set()
        self.is_broken = False

    def _preadv(self, fd: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> Any:
        if not flags & os.RWF_NOWAIT:
            if self.is_broken:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self.turns.wait(20)
        return super()._preadv(fd, buffers, offset, flags)


@pytest.fixture
def disk(container: Path) -> Iterator[Disk]:
    with Disk(str(container)) as found:
        yield found
        found.turns.set()


@pytest.fixture
def cold(container: Path, disk: Disk) -> Iterator[Served]:
    """A server whose disk has stopped, with one block in memory."""
    with serving(container) as running:
        with running.client("db") as client:
            client.write(1 << 20, b"first")  # which reads tables, and writes do wait
            assert client.read(WARM, 3) == b"new"
        disk.turns.clear()
        try:
            yield running
        finally:
            disk.turns.set()


@every_form
def test_a_read_that_waits_is_overtaken_by_others_and_answered_when_the_disk_is_done(
    form: str, cold: Served, disk: Disk
):
    with cold.client("db", form=form) as client, cold.client("db") as other:
        waiting = client.send_request(nbd.READ, COLD, 4096)
        assert other.read(WARM, 3) == b"new"
        quick = client.send_request(nbd.READ, WARM, 4096)
        assert client.chunk(4096).cookie == quick
        written = client.send_request(nbd.WRITE, 1 << 20, 4096, b"x" * 4096)
        assert client.chunk().cookie == written
        in_flight = cold.call(lambda: sorted(c.statistics.in_flight for c in cold.server.clients()))
        assert in_flight == [0, 1]
        disk.turns.set()
        chunk = client.chunk(4096)
        assert chunk.cookie == waiting
        assert chunk.body[-4096:] == (b"new" * 3000)[4096:8192]
        assert client.read(1 << 20, 4096) == b"x" * 4096
        totals = cold.call(lambda: [c.statistics for c in cold.server.clients() if c.statistics.operations.get(1)])
        assert (totals[0].in_flight, totals[0].operations[nbd.READ].requests) == (0, 3)


@every_form
def test_a_read_that_waits_is_answered_before_the_client_is_let_go(form: str, cold: Served, disk: Disk):
    with cold.client("db", form=form) as client:
        waiting = client.send_request(nbd.READ, COLD, 4096)
        client.send_request(nbd.DISC)
        client.cookie = waiting
        threading.Timer(0.1, disk.turns.set).start()
        assert client.reply(nbd.READ, COLD, 4096).data == (b"new" * 3000)[4096:8192]
        assert client.is_closed()


def test_a_client_that_goes_while_its_reads_wait_leaves_nothing_behind(cold: Served, disk: Disk):
    with cold.client("db") as client:
        for _ in range(50):
            client.send_request(nbd.READ, COLD, 4096)
        client.send_request(nbd.READ, WARM, 4096)
        client.chunk(4096)
        for connection in cold.call(lambda: list(cold.server._hub.connections)):
            cold.call(partial(connection.abort, "for the test"))
        assert client.is_closed()
    assert not cold.wait(lambda: until(cold.server.clients))
    (total,) = cold.call(lambda: cold.server.statistics().values())
    assert total.in_flight == 0
    disk.turns.set()
    with cold.client("db") as client:
        assert client.read(COLD, 4096) == (b"new" * 3000)[4096:8192]


def test_a_read_that_waits_is_answered_though_its_volume_is_deleted(cold: Served, disk: Disk):
    with cold.client("db", form="structured") as client:
        client.send_request(nbd.READ, COLD, 4096)
        waiting = client.cookie
        client.send_request(nbd.READ, WARM, 4096)
        assert client.chunk().cookie == client.cookie
        disk.turns.set()
        cold.change(lambda container: container.delete("db", cascade=True))
        client.cookie = waiting
        assert client.reply(nbd.READ, COLD, 4096).error in {0, 108}
        assert client.ask(nbd.READ, COLD, 4096).error == 108


def test_a_disk_that_fails_is_an_input_output_error(cold: Served, disk: Disk):
    with cold.client("db", form="structured") as client:
        disk.is_broken = True
        reply = client.ask(nbd.READ, COLD, 4096)
        assert reply.error == nbd.EIO
        disk.is_broken = False
        disk.turns.set()
        assert client.read(COLD, 4096) == (b"new" * 3000)[4096:8192]


def test_so_many_reads_of_a_connection_wait_and_no_more(cold: Served, disk: Disk):
    with cold.client("db", form="structured") as client, cold.client("db") as other:
        cookies = list(range(1000))
        client.send(b"".join(struct.pack(">LHHQQL", 0x25609513, 0, nbd.READ, n, COLD, 4096) for n in cookies))
        assert other.read(WARM, 3) == b"new"
        most = cold.call(lambda: max(c.statistics.in_flight for c in cold.server.clients()))
        assert 1 <= most < 2 * MAX_COLD
        disk.turns.set()
        assert sorted(client.chunk().cookie for _ in cookies) == cookies


@every_form
@pytest.mark.parametrize("length", [300_000, 1 << 20, SIZE])
def test_large_reads_from_a_cold_disk_are_whole(form: str, length: int, container: Path, disk: Disk):
    content = random.Random(3).randbytes(SIZE)
    with serving(container) as served, served.client("db", form=form) as client:
        client.write(0, content)
        assert client.ask(nbd.FLUSH).error == 0
        disk.held.clear()
        for offset in range(0, SIZE, length):
            size = min(length, SIZE - offset)
            assert client.read(offset, size) == content[offset : offset + size]
        assert disk.refusals
