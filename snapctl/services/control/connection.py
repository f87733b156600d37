"""One client's connection to the control socket: lines and descriptors in, lines and descriptors out, all bounded."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import Any, TypeVar

from snapctl.services.control.protocol import (
    DESCRIPTOR_ROOM,
    LONGEST_REQUEST,
    MOST_DESCRIPTORS,
    descriptors,
    encode,
)

T = TypeVar("T")

_PIECE_BYTES = 1 << 16
_MOST_UNSENT_BYTES = 1 << 16
"""Beyond it news of progress is dropped: the client does not read it."""


class Overlong(Exception):
    """A client sent more than a line may have."""


class Connection:
    """A socket on the event loop.

    Attributes:
        holdings: what the client has been given for as long as it stays connected.
        is_gone: set when the client has hung up or is to be hung up on; may be awaited by threads.
    """

    def __init__(self, accepted: socket.socket) -> None:
        """Take up an accepted socket."""
        accepted.setblocking(False)
        self._socket = accepted
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._descriptors: list[tuple[int, int]] = []
        self._attached: list[int] = []
        self._line_at = 0
        self._news = asyncio.Event()
        self._unsent = bytearray()
        self._room = asyncio.Event()
        self._room.set()
        self.is_gone = threading.Event()
        self._holding = AsyncExitStack()
        self.holdings = 0
        self._loop.add_reader(accepted.fileno(), self._on_readable)

    async def hold(self, held: AbstractAsyncContextManager[T]) -> T:
        """Enter an async context that is left when the connection ends; returns what it gives."""
        entered = await self._holding.enter_async_context(held)
        self.holdings += 1
        return entered

    async def read_line(self) -> bytes | None:
        """The next line; None if the client is gone.

        Raises:
            Overlong: it sends one that is too long.
        """
        while not self.is_gone.is_set():
            end = self._received.find(b"\n")
            if 0 <= end <= LONGEST_REQUEST:
                line = bytes(self._received[:end])
                del self._received[: end + 1]
                self._line_at += end + 1
                return line
            if len(self._received) > LONGEST_REQUEST:
                raise Overlong
            self._news.clear()
            await self._news.wait()
        return None

    def take_descriptors(self) -> list[int]:
        """The descriptors that came with the line that was read last; the caller closes them."""
        mine = [fd for at, fd in self._descriptors if at < self._line_at]
        self._descriptors = [(at, fd) for at, fd in self._descriptors if at >= self._line_at]
        return mine

    def send(self, message: dict[str, Any]) -> None:
        """Send a line as soon as the client takes it."""
        if not self.is_gone.is_set():
            self._unsent += encode(message)
            self._flush()

    def send_news(self, message: dict[str, Any]) -> None:
        """Send a line that may be dropped."""
        if len(self._unsent) < _MOST_UNSENT_BYTES:
            self.send(message)

    def attach(self, *fds: int) -> None:
        """Have descriptors go with the next answer; they stay the caller's to close."""
        self._attached.extend(fds)

    def take_attached(self) -> list[int]:
        """The descriptors that go with the next answer."""
        attached, self._attached = self._attached, []
        return attached

    async def send_with(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        """Send a line with descriptors, of which there may be none."""
        if not fds:
            self.send(message)
            return
        await self._room.wait()
        line = encode(message)
        if not self.is_gone.is_set():
            try:
                sent = socket.send_fds(self._socket, [line], fds)  # the buffer is empty, so this takes at least a byte
            except OSError:
                self._lose()
                return
            self._unsent += line[sent:]
            self._flush()

    def send_error(self, request_id: object, code: int, message: str) -> None:
        """Send an error that is none of ours."""
        self.send({"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}})

    def hang_up(self) -> None:
        """Have whatever the connection is doing end."""
        self._lose()

    async def drained(self) -> None:
        """Return when all that was sent is on its way, or nobody takes it any more."""
        await self._room.wait()

    async def release(self) -> None:
        """Let go of everything that the client had."""
        await self._holding.aclose()
        self.close()

    def close(self) -> None:
        """Close the socket and every descriptor that nobody took."""
        self._lose()
        self._socket.close()
        for _, fd in self._descriptors:
            os.close(fd)
        self._descriptors.clear()

    def _on_readable(self) -> None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_PIECE_BYTES, DESCRIPTOR_ROOM, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            self._lose()
            return
        at = self._line_at + len(self._received)
        for fd in descriptors(ancillary):
            if len(self._descriptors) < MOST_DESCRIPTORS:
                self._descriptors.append((at, fd))
            else:
                os.close(fd)
        self._received += data
        if not data or len(self._received) > LONGEST_REQUEST + _PIECE_BYTES:
            self._lose()
        self._news.set()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
            self._room.set()
        except BlockingIOError:
            self._room.clear()
            self._loop.add_writer(self._socket.fileno(), self._on_writable)
        except OSError:
            self._lose()

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._socket.fileno())
        self._flush()

    def _lose(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self.is_gone.set()
        self._unsent.clear()
        self._news.set()
        self._room.set()
