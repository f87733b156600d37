"""An NBD client of raw sockets, written from the protocol document with its numbers spelled out once more.

It knows nothing of snapctl, so that a number that is wrong there is not wrong here too.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Self

ACK, SERVER, INFO, META = 1, 2, 3, 4
UNSUP, INVALID, TLS_REQD, UNKNOWN, TOO_BIG, EXT_REQD = ((1 << 31) + n for n in (1, 3, 5, 6, 9, 10))
EXPORT_NAME, ABORT, LIST, STARTTLS, OPT_INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED = (
    1,
    2,
    3,
    5,
    6,
    7,
    8,
    9,
    10,
    11,
)
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = (1 << n for n in range(6))
EPERM, EIO, EINVAL, ENOSPC = 1, 5, 22, 28

FORMS = ("simple", "structured", "extended")
TIMEOUT_SECONDS = 20.0


class Gone(Exception):
    """The server has closed the connection."""


class Chunk(NamedTuple):
    """One chunk of a reply; a simple reply is one of its own."""

    cookie: int
    is_last: bool
    kind: int
    body: bytes


class Reply(NamedTuple):
    """A whole reply: an error value or 0, what was read, and the extents of each context."""

    error: int
    data: bytes = b""
    extents: Mapping[int, list[tuple[int, int]]] = MappingProxyType({})
    holes: int = 0
    message: str = ""
    where: int | None = None


class Client:
    """A connection in any phase."""

    def __init__(self, address: str | tuple[str, int], *, flags: int | None = 3) -> None:
        """Connect, and answer the greeting unless `flags` is None."""
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.link: socket.socket = socket.socket(family)
        self.link.settimeout(TIMEOUT_SECONDS)
        try:
            self.link.connect(address)
        except OSError:
            self.link.close()
            raise
        self.form = "simple"
        self.cookie = 0x1234_5678_9ABC_0000
        self.greeting = b""
        if flags is not None:
            try:
                self.greeting = self.receive(18)
                self.send(struct.pack(">L", flags))
            except BaseException:
                self.link.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()

    def send(self, data: bytes) -> None:
        self.link.sendall(data)

    def receive(self, count: int) -> bytes:
        """Receive exactly so much, or find that the server is gone."""
        found = bytearray()
        while len(found) < count:
            try:
                piece = self.link.recv(min(1 << 20, count - len(found)))
            except (ConnectionError, ssl.SSLError):
                raise Gone from None
            if not piece:
                raise Gone
            found += piece
        return bytes(found)

    def is_closed(self) -> bool:
        """Wait for the server to close the connection; False if it sends something instead."""
        try:
            return self.link.recv(1) == b""
        except (ConnectionError, ssl.SSLError):
            return True

    # Handshake.

    def send_option(self, option: int, data: bytes = b"") -> None:
        self.send(struct.pack(">8sLL", b"IHAVEOPT", option, len(data)) + data)

    def option_reply(self) -> tuple[int, int, bytes]:
        magic, option, kind, length = struct.unpack(">QLLL", self.receive(20))
        assert magic == 0x3E889045565A9
        return option, kind, self.receive(length)

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option and return the replies, the last of which ends them."""
        self.send_option(option, data)
        found = []
        while True:
            answered, kind, body = self.option_reply()
            assert answered == option
            found.append((kind, body))
            if kind == ACK or kind >> 31:
                return found

    def final(self, option: int, data: bytes = b"") -> int:
        """Send an option and return the type of the last reply."""
        return self.option(option, data)[-1][0]

    def go(self, name: str, *, form: str = "simple", contexts: tuple[str, ...] = ()) -> dict[int, bytes]:
        """Enter transmission, and return what was told about the export, by type of information."""
        if form != "simple":
            assert self.final({"structured": STRUCTURED, "extended": EXTENDED}[form]) == ACK
        self.form = form
        if contexts:
            assert self.final(SET_META, query(name, *contexts)) == ACK
        replies = self.option(GO, info_request(name))
        assert replies[-1][0] == ACK
        return {struct.unpack(">H", body[:2])[0]: body[2:] for _, body in replies[:-1]}

    def start_tls(self, context: ssl.SSLContext) -> None:
        assert self.final(STARTTLS) == ACK
        self.link = context.wrap_socket(self.link)

    # Transmission.

    def send_request(self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> int:
        """Send a request and return its cookie."""
        self.cookie += 1
        if self.form == "extended":
            if command == WRITE:
                flags |= PAYLOAD_LEN
            header = struct.pack(">LHHQQQ", 0x21E41C71, flags, command, self.cookie, offset, length)
        else:
            header = struct.pack(">LHHQQL", 0x25609513, flags, command, self.cookie, offset, length)
        self.send(header + data)
        return self.cookie

    def chunk(self, read_bytes: int = 0, at: int | None = None) -> Chunk:
        """Receive one message of the server's; simple replies need to be told how much was to be read."""
        if self.form == "simple":
            magic, error, cookie = struct.unpack(">LLQ", self.receive(16))
            assert magic == 0x67446698
            return Chunk(cookie, True, error, self.receive(read_bytes) if not error else b"")
        if self.form == "structured":
            magic, flags, kind, cookie, length = struct.unpack(">LHHQL", self.receive(20))
            assert magic == 0x668E33EF
        else:
            magic, flags, kind, cookie, offset, length = struct.unpack(">LHHQQQ", self.receive(32))
            assert magic == 0x6E8A278C
            assert at is None or offset == at
        assert flags in {0, 1}
        return Chunk(cookie, bool(flags), kind, self.receive(length))

    def reply(self, command: int, offset: int = 0, length: int = 0) -> Reply:
        """Receive the reply to the only request under way, and hold it to the document."""
        if self.form == "simple":
            chunk = self.chunk(length if command == READ else 0)
            assert chunk.cookie == self.cookie
            return Reply(chunk.kind, chunk.body)
        data, covered, holes, extents = bytearray(length if command == READ else 0), 0, 0, {}
        while True:
            chunk = self.chunk(at=offset)
            body = chunk.body
            assert chunk.cookie == self.cookie
            if chunk.kind >> 15:
                error, size = struct.unpack(">LH", body[:6])
                where = struct.unpack(">Q", body[6 + size :])[0] if chunk.kind & 0xFF == 2 else None
                assert len(body) == 6 + size + (8 if where is not None else 0)
                assert chunk.is_last
                return Reply(error, message=body[6 : 6 + size].decode(), where=where)
            if chunk.kind == 0:
                assert chunk.is_last
                assert not body
            elif chunk.kind == 1:
                begin = struct.unpack(">Q", body[:8])[0] - offset
                assert len(body) > 8
                assert begin >= 0
                assert begin + len(body) - 8 <= length
                data[begin : begin + len(body) - 8] = body[8:]
                covered += len(body) - 8
            elif chunk.kind == 2:
                begin, size = struct.unpack(">QL", body)
                assert size > 0
                assert offset <= begin <= begin + size <= offset + length
                covered += size
                holes += size
            elif chunk.kind == 5:
                extents[struct.unpack(">L", body[:4])[0]] = list(struct.iter_unpack(">LL", body[4:]))
            elif chunk.kind == 6:
                number, count = struct.unpack(">LL", body[:8])
                assert count * 16 + 8 == len(body)
                extents[number] = list(struct.iter_unpack(">QQ", body[8:]))
            else:
                raise AssertionError(f"unknown chunk {chunk}")
            if chunk.is_last:
                assert command != READ or covered == length
                return Reply(0, bytes(data), extents, holes)

    def statuses(self, offset: int, length: int) -> dict[int, list[tuple[int, int]]]:
        """What each context tells of a range, asked as often as it takes: a slow server tells of the beginning only."""
        found: dict[int, list[tuple[int, int]]] = {}
        position, end = offset, offset + length
        while position < end:
            reply = self.ask(BLOCK_STATUS, position, end - position)
            assert reply.error == 0
            told = min(sum(size for size, _ in extents) for extents in reply.extents.values())
            for context, extents in reply.extents.items():
                known, left = found.setdefault(context, []), told
                for size, status in extents:
                    part = min(size, left)
                    left -= part
                    if known and known[-1][1] == status:
                        known[-1] = known[-1][0] + part, status
                    elif part:
                        known.append((part, status))
            position += told
        return found

    def ask(self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> Reply:
        """Send a request and receive its reply."""
        self.send_request(command, offset, length, data, flags)
        return self.reply(command, offset, length)

    def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        reply = self.ask(READ, offset, length, flags=flags)
        assert reply.error == 0
        assert len(reply.data) == length
        return reply.data

    def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        assert self.ask(WRITE, offset, len(data), data, flags).error == 0


def text(value: str | bytes) -> bytes:
    """A string behind its length of 32 bits."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack(">L", len(raw)) + raw


def info_request(name: str, *infos: int) -> bytes:
    """The data of NBD_OPT_INFO and NBD_OPT_GO."""
    return text(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def query(name: str, *queries: str) -> bytes:
    """The data of the options about metadata contexts."""
    return text(name) + struct.pack(">L", len(queries)) + b"".join(map(text, queries))
