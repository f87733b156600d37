"""The server's end of a control socket: commands on a live container (docs/control.md).

One connection does one thing at a time. What arrives is hostile until it has been judged: lines, descriptors and
connections are bounded in number and size, and what is not wanted is closed. A change that was asked for is made even
if the client does not wait for it; a transfer of data ends with its connection.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from snapctl.errors import IoFailure, Locked, NameTaken
from snapctl.services.control.address import reachable, socket_path
from snapctl.services.control.connection import Connection, Overlong
from snapctl.services.control.methods import Methods
from snapctl.services.control.protocol import INVALID_REQUEST, peer

if TYPE_CHECKING:
    from snapctl.services.live.container import LiveContainer

_MOST_CONNECTIONS = 64
_IDLE_SECONDS = 30.0
"""How long a client may take to send a request, unless it holds something that it was given."""


class ControlServer:
    """Listens beside a container for commands on it.

    Attributes:
        path: of the socket.
    """

    def __init__(self, live: LiveContainer, container_path: str, tell: Callable[[], dict[str, Any]] = dict) -> None:
        """Take up the container that commands are for.

        Args:
            live: the container; opened, and so locked, by the caller.
            container_path: its file.
            tell: what the server adds of itself to the `server` part of `status`, such as its `addresses`.
        """
        self.path = socket_path(container_path)
        self._methods = Methods(live, tell)
        self._listener: socket.socket | None = None
        self._inode: tuple[int, int] = (0, 0)
        self._connections: dict[Connection, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            Locked: another server listens there.
            NameTaken: something that is no socket has the socket's name.
            IoFailure: the system refuses.
        """
        self._listener = listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with reachable(self.path) as address:
                self._bind(listener, address)
                status = os.lstat(address)
            self._inode = status.st_dev, status.st_ino
            listener.listen(_MOST_CONNECTIONS)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise IoFailure(f"cannot make {self.path}: {error.strerror or error}") from error
        except BaseException:
            listener.close()
            raise
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    async def stop(self) -> None:
        """Stop listening, end all transfers, and return when what was begun has ended."""
        if self._listener is None:
            return
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        with suppress(OSError), reachable(self.path) as address:
            status = os.lstat(address)
            if (status.st_dev, status.st_ino) == self._inode:
                os.unlink(address)
        self._listener.close()
        self._listener = None
        for connection in self._connections:
            connection.hang_up()
        await asyncio.gather(*self._connections.values())

    def _bind(self, listener: socket.socket, address: str) -> None:
        """Give the listener its name, in the place of a server that died."""
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            self._clear(address)
            listener.bind(address)
        # Before it listens nobody can connect, so nobody meets the mode that the umask gave it.
        os.chmod(address, 0o600)

    def _clear(self, address: str) -> None:
        """Remove a socket that nobody listens at; our caller holds the container's lock, so nobody else does."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(address)
            except ConnectionRefusedError:
                pass
            except BlockingIOError:  # so many clients wait for it that it has to be alive
                raise Locked(f"{self.path} is another server's") from None
            else:
                found = peer(probe)
                who = f"pid {found[0]}" if found else "another process"
                raise Locked(f"{self.path} is the control socket of {who}; one server at a time")
        if not os.path.exists(address) or os.path.isfile(address):
            raise NameTaken(f"{self.path} is in the way of the control socket; move it")
        os.unlink(address)

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except OSError:  # it is gone again, or we have no descriptor for it just now
            return
        found = peer(accepted)
        if found is not None and found[1] not in {os.geteuid(), 0}:
            accepted.close()
            return
        connection = Connection(accepted)
        if len(self._connections) >= _MOST_CONNECTIONS:
            connection.send_error(None, INVALID_REQUEST, "too many connections; try again later")
            connection.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._connections[connection] = task
        task.add_done_callback(lambda _task: self._connections.pop(connection))

    async def _serve(self, connection: Connection) -> None:
        try:
            while True:
                idle_seconds = None if connection.holdings else _IDLE_SECONDS
                line = await asyncio.wait_for(connection.read_line(), idle_seconds)
                if line is None:
                    return
                await self._methods.answer(connection, line)
        except Overlong:
            connection.send_error(None, INVALID_REQUEST, "the line is too long")
        except TimeoutError:
            pass
        finally:
            await connection.release()
