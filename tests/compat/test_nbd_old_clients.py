"""Clients from before fixed newstyle's options: they name an export, and get its size, flags and simple replies.

What nbd-client does when it is given a device cannot be tried here: it needs the kernel module `nbd`. Its handshake for
a list of exports needs none.
"""

from __future__ import annotations

import re
import socket
import struct
from pathlib import Path

import pytest

from tests.compat.conftest import DISK_BYTES, MIB, Lab
from tests.support.requires import needs
from tests.support.served import TIMEOUT_SECONDS, Door, client, python_with_libnbd, serve

without_tls = pytest.mark.parametrize("door", ["unix", "tcp"], indirect=True)  # which such clients do not know

LIBNBD_CODE = """
import nbd
h = nbd.NBD()
h.set_handshake_flags({flags})
h.connect_uri("{uri}")
assert h.get_protocol() == "newstyle", h.get_protocol()
assert not h.get_structured_replies_negotiated()
expected = open("{image}", "rb").read()
assert h.get_size() == len(expected)
assert h.pread(len(expected), 0) == expected
h.pwrite(b"by an old client", 4 << 20, flags=nbd.CMD_FLAG_FUA)
h.zero(4096, 0)
h.trim(4096, 3 << 20)
h.flush()
assert h.pread(16, 4 << 20) == b"by an old client"
h.shutdown()
"""


@without_tls
@pytest.mark.parametrize("flags", ["0", "nbd.HANDSHAKE_FLAG_NO_ZEROES"])
def test_libnbd_without_fixed_newstyle_reads_and_writes(flags: str, door: Door, disk: Lab):
    code = LIBNBD_CODE.format(flags=flags, uri=door.uri("db"), image=disk.db)
    client(*python_with_libnbd(), "-c", code)


class OldClient:
    """A client by the letter of the protocol document's "Newstyle negotiation", with NBD_OPT_EXPORT_NAME only."""

    def __init__(self, door: Door, name: str) -> None:
        self.link = socket.socket(socket.AF_UNIX if door.socket else socket.AF_INET)
        self.link.settimeout(TIMEOUT_SECONDS)
        host, port = door.server.get("server.host"), int(door.server.get("server.port", "0"))
        self.link.connect(door.socket or (host, port))
        assert self.receive(16) == b"NBDMAGICIHAVEOPT"
        self.receive(2)
        self.link.sendall(struct.pack(">L8sLL", 0, b"IHAVEOPT", 1, len(name)) + name.encode())
        self.size, self.flags = struct.unpack(">QH", self.receive(10))
        assert self.receive(124) == bytes(124)

    def receive(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            piece = self.link.recv(count - len(found))
            assert piece
            found += piece
        return found

    def ask(self, command: int, offset: int, length: int, data: bytes = b"") -> int:
        """Send a request; returns the error of its reply."""
        self.link.sendall(struct.pack(">LHHQQL", 0x25609513, 0, command, 77, offset, length) + data)
        magic, error, cookie = struct.unpack(">LLQ", self.receive(16))
        assert (magic, cookie) == (0x67446698, 77)
        return int(error)


@without_tls
def test_a_client_that_knows_the_name_option_only_is_served(door: Door, disk: Lab):
    old = OldClient(door, "db")
    with old.link:
        assert old.size == DISK_BYTES
        assert old.ask(0, 0, MIB) == 0
        assert old.receive(MIB) == disk.db.read_bytes()[:MIB]
        assert old.ask(1, 4096, 5, b"hello") == 0
        assert old.ask(3, 0, 0) == 0
        assert old.ask(0, 4096, 5) == 0
        assert old.receive(5) == b"hello"
        assert old.ask(1, DISK_BYTES, 5, b"hello") == 28
        old.link.sendall(struct.pack(">LHHQQL", 0x25609513, 0, 2, 0, 0, 0))
        assert old.link.recv(1) == b""
    snapshot = OldClient(door, "db@mon")
    with snapshot.link:
        assert snapshot.flags & 2
        assert snapshot.ask(1, 4096, 5, b"hello") == 1


@pytest.mark.parametrize("where", ["unix", "tcp"])
def test_nbd_client_lists_the_exports(where: str, disk: Lab, tmp_path: Path):
    program = needs("nbd-client", package="nbd-client")
    options = ["--unix", tmp_path / "nbd"] if where == "unix" else ["--listen", "127.0.0.1:0"]
    with serve(disk.container, *options) as serving:
        door = serving.door()
        words = ["-unix", door.socket] if door.socket else ["127.0.0.1", "-p", door.server["server.port"]]
        printed = client(program, "-l", *words)
    assert re.findall(r"^(db\S*): ", printed, re.MULTILINE) == ["db", "db@mon"]
