"""The NBD server: it listens, connects clients to exports, tells what they do, and ends without losing a request."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from snapctl.errors import SnapctlError
from snapctl.services.nbd.connection import MAX_CONNECTIONS, Connection, Hub
from snapctl.services.nbd.exports import Exports
from snapctl.services.nbd.listeners import Listener
from snapctl.services.nbd.statistics import Statistics

_CLOSE_SECONDS = 10.0
"""How long requests in flight, and clients that take their replies, may take when the server ends."""


@dataclass(frozen=True, slots=True)
class Client:
    """A connection, as people are told of it.

    Attributes:
        peer: who it is.
        export: the full name of what it uses; None during the handshake.
        statistics: what it has asked for.
    """

    peer: str
    export: str | None
    statistics: Statistics


class Server:
    """An NBD server on the running event loop."""

    def __init__(
        self,
        exports: Exports,
        *,
        tls: ssl.SSLContext | None = None,
        max_connections: int = MAX_CONNECTIONS,
        log: Callable[[str], None],
    ) -> None:
        """Prepare to serve.

        Args:
            exports: what is on offer.
            tls: have every client use TLS; None for none.
            max_connections: those beyond are closed at once.
            log: takes a line for people, such as why a client was disconnected.
        """
        self.exports = exports
        self._hub = Hub(exports, tls=tls, max_connections=max_connections, log=log)
        self._listeners: list[Listener] = []
        self._servers: list[asyncio.Server] = []

    async def start(self, listeners: Sequence[Listener]) -> None:
        """Accept connections on sockets, which the server closes from now on."""
        self._listeners.extend(listeners)
        loop = asyncio.get_running_loop()
        for listener in listeners:
            self._servers.append(await loop.create_server(lambda: Connection(self._hub), sock=listener.socket))

    def addresses(self) -> list[str]:
        """Return a connection string for every export on every socket."""
        tls = self._hub.tls is not None
        return [listener.address(name, tls=tls) for name in self.exports.names() for listener in self._listeners]

    def clients(self) -> list[Client]:
        """Return who is connected."""
        found = []
        for connection in self._hub.connections:
            transmission = connection.transmission
            if transmission is None:
                found.append(Client(connection.peer, None, Statistics()))
            else:
                name = transmission.agreement.device.name
                found.append(Client(connection.peer, name, transmission.statistics))
        return found

    def statistics(self) -> dict[int, Statistics]:
        """Return what has been asked of each export since the start, by its node id, in no order.

        What clients asked of nodes that have been deleted is forgotten.
        """
        found: dict[int, Statistics] = {}
        there = set(self.exports.live.container.node_ids)
        for node_id, total in list(self._hub.totals.items()):
            if node_id not in there:
                del self._hub.totals[node_id]
                continue
            found.setdefault(node_id, Statistics()).merge(total)
        for connection in self._hub.connections:
            if (transmission := connection.transmission) is not None:
                node_id = transmission.agreement.device.node.id
                found.setdefault(node_id, Statistics()).merge(transmission.statistics)
        return found

    async def close(self) -> None:
        """Stop accepting, answer the requests in flight, disconnect; what takes too long is cut off."""
        self._hub.is_closing = True
        loop = asyncio.get_running_loop()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            loop.remove_reader(listener.socket)
        await asyncio.sleep(0)  # asyncio forgets to close a connection whose server closes while it is being accepted
        for server in self._servers:
            server.close()
        for listener in listeners:
            listener.close()
        connections = list(self._hub.connections)
        tasks = [task for c in connections if c.transmission is not None for task in c.transmission.tasks]
        for connection in connections:
            connection.finish()
        deadline = loop.time() + _CLOSE_SECONDS
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_SECONDS)
        await self._until_gone(deadline)
        for connection in list(self._hub.connections):
            connection.abort("the server ends")
        for task in tasks:
            task.cancel()
        await self._until_gone(deadline + 1)
        await self._hub.fetcher.close()

    async def _until_gone(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while self._hub.connections and loop.time() < deadline:
            self._hub.gone.clear()
            try:
                await asyncio.wait_for(self._hub.gone.wait(), deadline - loop.time())
            except TimeoutError:
                return


def tls_context(certificate: str, key: str, authority: str | None = None) -> ssl.SSLContext:
    """Make the settings of TLS from PEM files: 1.2 or newer.

    Args:
        certificate: the server's, with what leads to its authority behind it.
        key: the server's private key.
        authority: certificates of who signs the clients'; a client must then present one. None to take any client.

    Raises:
        SnapctlError: a file cannot be read, or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")
        if authority is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(authority)
    except ssl.SSLError as error:
        raise SnapctlError(f"{certificate}, {key}: not usable for TLS ({error.reason or error})") from error
    except OSError as error:
        files = ", ".join(filter(None, (certificate, key, authority)))
        raise SnapctlError(f"cannot read one of {files}: {(error.strerror or str(error)).lower()}") from error
    return context
