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
from typing import TYPE_CHECKING, Any

from snapctl.errors import IoFailure, Locked, NameTaken
from snapctl.services import unixsocket
from snapctl.services.control.address import socket_path
from snapctl.services.control.connection import Connection, Overlong
from snapctl.services.control.methods import Methods
from snapctl.services.control.protocol import INVALID_REQUEST, peer

if TYPE_CHECKING:
    from snapctl.services.live.container import LiveContainer

_MOST_CONNECTIONS = 64
_PAUSE_SECONDS = 0.1
"""How long nobody is accepted after the system had no room for one."""

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
        self._inode = 0
        self._pause: asyncio.TimerHandle | None = None
        self._connections: dict[Connection, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            Locked: another server listens there.
            NameTaken: something that is no socket has the socket's name.
            IoFailure: the system refuses.
        """
        listener = socket.socket(socket.AF_UNIX)
        try:
            self._inode = unixsocket.bind(listener, self.path)
            listener.listen(_MOST_CONNECTIONS)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            if isinstance(error, FileExistsError):
                raise NameTaken(f"{self.path} is in the way of the control socket; move it") from error
            if error.errno == errno.EADDRINUSE:
                raise Locked(f"{self.path} is the control socket of another server; one at a time") from error
            raise IoFailure(f"cannot make {self.path}: {error.strerror or error}") from error
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    async def stop(self) -> None:
        """Stop listening, end all transfers, and return when what was begun has ended."""
        if self._listener is None:
            return
        if self._pause is not None:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        unixsocket.remove(self.path, self._inode)
        self._listener.close()
        self._listener = None
        for connection in self._connections:
            connection.hang_up()
        await asyncio.gather(*self._connections.values())

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it is gone again
            return
        except OSError:  # we have no descriptor for it just now
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            self._pause = loop.call_later(_PAUSE_SECONDS, loop.add_reader, listener, self._accept, listener)
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
