"""One connection: bytes in, through the handshake or the transmission, and bytes out.

All connections of a server receive into one buffer. asyncio asks for a buffer, fills it and reports that without
anything in between, under TLS as well, so nobody else is using it; what a connection cannot use yet is copied out, and
a connection that is idle owns no buffer at all. A large payload alone is received where it will stay.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter_ns

from snapctl.services.live.container import LiveContainer
from snapctl.services.nbd.budget import Budget
from snapctl.services.nbd.exports import Exports
from snapctl.services.nbd.fetcher import Fetcher
from snapctl.services.nbd.handshake import Agreement, Refused, StartTls, negotiate
from snapctl.services.nbd.outlet import Outlet
from snapctl.services.nbd.statistics import Statistics
from snapctl.services.nbd.transmission import TURN_NANOSECONDS, Transmission
from snapctl.storage.backend import Buffer, FileBackend

MAX_CONNECTIONS = 1024
HANDSHAKE_SECONDS = 20.0
"""From the connection to transmission, TLS included."""

_CLOSE_SECONDS = 10.0
"""How long a client may take to receive its last replies."""

_RECEIVE_BYTES = 256 << 10
_HEADERS_BYTES = 512


class Hub:
    """What the connections of a server share.

    Attributes:
        exports: what is on offer.
        received: where requests are received, and `room`, a view of it.
        fetcher: fetches what reads lack.
        tls: serves TLS and nothing else; None for none.
        connections: all that are open.
        totals: what the clients that have left have asked for, by the export's node id.
        is_closing: no more options are answered.
        gone: set whenever a connection has been struck.
        log: takes a line for people.
    """

    def __init__(
        self,
        exports: Exports,
        *,
        tls: ssl.SSLContext | None = None,
        max_connections: int = MAX_CONNECTIONS,
        log: Callable[[str], None],
    ) -> None:
        """Begin without connections."""
        self.exports = exports
        self.tls = tls
        self.log = log
        self.budget = Budget()
        self.connections: set[Connection] = set()
        self.totals: dict[int, Statistics] = {}
        self.is_closing = False
        self.gone = asyncio.Event()
        self.received = bytearray(_RECEIVE_BYTES)
        self.room = memoryview(self.received)
        self.fetcher = Fetcher(_file_of(exports.live))
        self._max_connections = max_connections
        self._is_full = False

    def admit(self, connection: Connection) -> bool:
        """Enter a connection; False if there are too many, or the server is closing."""
        if len(self.connections) >= self._max_connections:
            if not self._is_full:
                self.log(f"{self._max_connections} connections are open; closing new ones")
            self._is_full = True
            return False
        self.connections.add(connection)
        return not self.is_closing

    def strike(self, connection: Connection) -> None:
        """Forget a connection, but for what it has asked for."""
        if connection not in self.connections:
            return
        self.connections.remove(connection)
        self._is_full = False
        self.gone.set()
        transmission = connection.transmission
        if transmission is not None:
            node_id = transmission.agreement.device.node.id
            transmission.statistics.in_flight = 0  # nobody waits for those answers
            self.totals.setdefault(node_id, Statistics()).merge(transmission.statistics)


class Connection(asyncio.BufferedProtocol):
    """A client's connection.

    Attributes:
        peer: who it is, for people.
        transmission: its use of an export; None while the handshake lasts.
    """

    def __init__(self, hub: Hub) -> None:
        """Wait to be connected."""
        self.peer = "unknown"
        self.transmission: Transmission | None = None
        self._hub = hub
        self._transport: asyncio.Transport | None = None
        self._outlet: Outlet | None = None
        self._fd = -1  # of a plain socket
        self._steps = negotiate(hub.exports, tls=hub.tls is not None, is_closing=lambda: hub.is_closing)
        self._wanted = 0
        self._left = b""
        self._rests = False
        self._is_deaf = False
        self._is_bulk = False
        self._timer: asyncio.TimerHandle | None = None
        self._upgrade: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._is_lost = False

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the greeting."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a connection needs a stream")
        self._transport = transport
        self._outlet = Outlet(transport)
        if not self._hub.admit(self):
            transport.abort()
            return
        self.peer = _describe_peer(transport)
        self._set_timer(HANDSHAKE_SECONDS, "its handshake takes too long")
        self._negotiate(None)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 asyncio's signature
        """Say where to receive."""
        if self.transmission is not None and self.transmission.payload is not None:
            return self.transmission.payload
        room = self._hub.room
        if self._left:
            left = len(self._left)
            room[:left] = self._left
            return room[left:]
        # One large payload behind the other: the less of it comes here, the less is copied.
        return room[:_HEADERS_BYTES] if self._is_bulk else room

    def buffer_updated(self, nbytes: int) -> None:
        """Use what was received."""
        ends_ns = perf_counter_ns() + TURN_NANOSECONDS
        self._received(nbytes)
        # Look at once whether there is more, as long as that is to be expected.
        while self._expects_more and self._fd >= 0 and not (self._is_deaf or self._is_ending):
            if perf_counter_ns() > ends_ns:
                break
            try:
                count = os.readv(self._fd, (self.get_buffer(-1),))
            except OSError:  # there is nothing just now; or there is an error, which the transport is going to meet
                break
            if not count:  # likewise the end
                break
            self._received(count)

    @property
    def _expects_more(self) -> bool:
        """Whether large payloads arrive, or something else is likely to have come by now."""
        transmission = self.transmission
        return self._is_bulk or (
            transmission is not None and (transmission.payload is not None or transmission.expects_more)
        )

    def _received(self, nbytes: int) -> None:
        if self.transmission is not None and self.transmission.payload is not None:
            self.transmission.payload_received(nbytes)
            if self.transmission.payload is None:  # else nothing has changed for anybody
                self._is_bulk = True
                self._pace()
        else:
            self._is_bulk = False
            self._use(self._hub.received, len(self._left) + nbytes)

    def pause_writing(self) -> None:
        """Take note that the client is slow."""
        if self._outlet is not None:
            self._outlet.pause()

    def resume_writing(self) -> None:
        """Go on after that; soon, as a transport does not expect to be written to, and to meet an error, just now."""
        asyncio.get_running_loop().call_soon(self._resume_writing)

    def _resume_writing(self) -> None:
        if self._outlet is None or self._is_lost:
            return
        self._outlet.resume()
        if not self.is_congested:
            self._wake()
            if self.transmission is not None:
                self.transmission.taken()
            self.go_on()

    def eof_received(self) -> bool:
        """Answer what was asked for: the client sends nothing more, but may still receive."""
        self.finish()
        return self._hub.tls is None  # which has the transport stay open

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 asyncio's signature
        """Let go of everything."""
        if self._is_lost:
            return
        self._is_lost = True
        self._fd = -1
        self._left = b""
        if self._outlet is not None:
            self._outlet.lost()
        self._steps.close()
        if self._timer is not None:
            self._timer.cancel()
        if self.transmission is not None:
            self.transmission.lost()
        self._wake()
        self._hub.strike(self)

    # What the transmission calls.

    @property
    def is_congested(self) -> bool:
        """See `Link`."""
        return self._outlet is not None and self._outlet.is_congested

    def write(self, buffers: list[Buffer]) -> None:
        """See `Link`."""
        if self._outlet is not None and not self._is_lost:
            self._outlet.write(buffers)

    async def sent(self) -> None:
        """Return when the client has taken most of what it was sent, or is gone."""
        while self.is_congested and not self._is_lost:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def go_on(self) -> None:
        """Use what was left, then receive more."""
        if not self._is_lost and not self._is_blocked:
            left, self._left = self._left, b""
            if left:
                self._use(left, len(left))
            else:
                self._pace()

    def close(self) -> None:
        """Send what was written, then disconnect."""
        if self._outlet is not None and not self._outlet.is_closing:
            self._set_timer(_CLOSE_SECONDS, "it does not take its last replies")
            self._outlet.close()

    def abort(self, reason: str) -> None:
        """Disconnect at once."""
        if self._transport is not None and not self._is_lost:
            self._hub.log(f"{self.peer}: disconnected: {reason}")
            self._transport.abort()

    # The rest.

    def finish(self) -> None:
        """Answer what is in flight, then disconnect."""
        if self.transmission is not None:
            self.transmission.finish()
        else:
            self.close()

    def _use(self, data: bytes | bytearray, end: int) -> None:
        """Use the first `end` bytes of `data`."""
        if self._upgrade is not None:
            self._left = bytes(memoryview(data)[:end])
            if end == len(self._hub.room):
                self.abort("it sends too much before TLS has begun")
            return
        position = self._use_options(data, end) if self.transmission is None else 0
        if self._upgrade is not None:
            return
        if self._is_ending:
            self._left = b""
            return
        if self.transmission is not None:
            if position:
                data, position, end = data[position:end], 0, end - position
            position = self.transmission.consume(data, end)
        self._left = bytes(memoryview(data)[position:end]) if position < end else b""
        self._pace()

    def _use_options(self, data: bytes | bytearray, end: int) -> int:
        """Use what belongs to the handshake; returns how much that is."""
        began_ns = perf_counter_ns()
        position = 0
        while (
            self.transmission is None
            and end - position >= self._wanted
            and not (self._is_ending or self._is_blocked or self._upgrade)
        ):
            if perf_counter_ns() - began_ns > TURN_NANOSECONDS:
                self._rests = True
                asyncio.get_running_loop().call_soon(self._stop_resting)
                break
            begin, position = position, position + self._wanted
            self._negotiate(bytes(memoryview(data)[begin:position]), has_more=position < end)
        return position

    @property
    def _is_ending(self) -> bool:
        return self._is_lost or self._outlet is None or self._outlet.is_closing

    @property
    def _is_blocked(self) -> bool:
        """Whether what the client sends has to wait."""
        if self.transmission is not None:
            return self.transmission.is_blocked
        return self.is_congested or self._rests

    def _stop_resting(self) -> None:
        self._rests = False
        self.go_on()

    def _pace(self) -> None:
        """Receive while requests can be executed and options answered, and only then."""
        if self._is_ending or self._transport is None or self._is_blocked == self._is_deaf:
            return
        self._is_deaf = not self._is_deaf
        if self._is_deaf:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _negotiate(self, data: bytes | None, *, has_more: bool = False) -> None:
        """Drive the handshake on, until it wants more bytes or is over."""
        try:
            step = next(self._steps) if data is None else self._steps.send(data)
            while not isinstance(step, int):
                if isinstance(step, StartTls):
                    self._begin_tls(has_more=has_more)
                    return
                self.write([step])
                step = next(self._steps)
            self._wanted = step
        except StopIteration as result:
            self._agreed(result.value)
        except Refused as refused:
            self.abort(str(refused))
        except Exception as error:  # noqa: BLE001 it must not cost more than this one client
            self.abort(f"the handshake failed ({type(error).__name__}: {error})")

    def _agreed(self, agreement: Agreement | None) -> None:
        if agreement is None:
            self.close()
            return
        if self._timer is not None:
            self._timer.cancel()
        hub = self._hub
        if hub.tls is None and self._outlet is not None:
            self._fd = self._outlet.send_directly()
        description = f"NBD client {self.peer}"
        self.transmission = Transmission(agreement, hub.exports.live, self, hub.budget, hub.fetcher, description)

    def _begin_tls(self, *, has_more: bool) -> None:
        """Have the transport replaced by one that speaks TLS, unless somebody has slipped plain text in behind."""
        if has_more:
            self.abort("plain text behind NBD_OPT_STARTTLS")
        elif self._transport is not None and self._hub.tls is not None:
            self._left = b""
            self._upgrade = asyncio.get_running_loop().create_task(self._start_tls(self._transport, self._hub.tls))

    async def _start_tls(self, plain: asyncio.Transport, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport = await loop.start_tls(
                plain, self, context, server_side=True, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except OSError as error:  # those of TLS are among them
            self._hub.log(f"{self.peer}: no TLS: {error}")
            transport = None
        self._upgrade = None
        if transport is None:
            plain.abort()
            self.connection_lost(None)
            return
        self._transport = transport
        self._outlet = Outlet(transport)
        self._is_deaf = False
        left, self._left = self._left, b""
        self._negotiate(None)
        self._use(left, len(left))

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def _set_timer(self, seconds: float, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort, reason)


def _file_of(live: LiveContainer) -> FileBackend:
    backend = live.container.pages.backend
    if not isinstance(backend, FileBackend):
        raise TypeError("a server needs a container in a file")
    return backend


def _describe_peer(transport: asyncio.Transport) -> str:
    """Say who is at the other end, and have TCP send at once and notice dead peers."""
    link = transport.get_extra_info("socket")
    if link.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        address = transport.get_extra_info("peername")
        if not address:
            return "unknown"
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"{host}:{address[1]}"
    with suppress(OSError, AttributeError, struct.error):
        credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return "pid {} of user {}".format(*struct.unpack("3i", credentials))
    return "local"
