"""How much memory the payloads of large writes may take while they arrive, over all connections of a server.

A payload is received into a buffer of its own size, which may be one that another has left. What finds no room waits,
and does so for a bounded time: whoever holds room and does not send what it announced is disconnected once somebody
waits for that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

LIMIT_BYTES = 256 << 20
_MOST_LEFT_BYTES = 4 << 20
"""A buffer up to this size is kept for the next payload, beside the limit."""

RECEIVE_SECONDS = 10.0
"""How long a payload may take to arrive while others wait."""


class Holder(Protocol):
    """Somebody who receives a payload."""

    def give_up(self, reason: str) -> None:
        """Disconnect, and give the room back."""


class Budget:
    """Bytes that are held, and those who wait for some."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        """Begin with nothing held."""
        self.held_bytes = 0
        self._limit_bytes = limit_bytes
        self._left = bytearray()
        self._receiving: dict[Holder, float] = {}
        self._waiting: deque[Callable[[], None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def take(self, holder: Holder, size_bytes: int) -> bool:
        """Take room for a payload that is about to arrive; False if there is none."""
        if self.held_bytes and self.held_bytes + size_bytes > self._limit_bytes:
            return False
        self.held_bytes += size_bytes
        self._receiving[holder] = asyncio.get_running_loop().time()
        return True

    def room(self, size_bytes: int) -> bytearray:
        """Where to receive a payload, all of which is overwritten; what another has left costs no memory to clear."""
        room, self._left = self._left, bytearray()
        return room if len(room) == size_bytes else bytearray(size_bytes)

    def leave(self, room: bytearray) -> None:
        """Take note that nobody needs a payload any more."""
        if len(room) <= _MOST_LEFT_BYTES:
            self._left = room

    def received(self, holder: Holder) -> None:
        """Take note that all of it has arrived."""
        self._receiving.pop(holder, None)

    def give(self, holder: Holder, size_bytes: int) -> None:
        """Give room back, and tell all who wait."""
        self._receiving.pop(holder, None)
        self.held_bytes -= size_bytes
        waiting, self._waiting = self._waiting, deque()
        for go_on in waiting:
            asyncio.get_running_loop().call_soon(go_on)

    def wait(self, go_on: Callable[[], None]) -> None:
        """Have `go_on` called when there may be room."""
        self._waiting.append(go_on)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(RECEIVE_SECONDS / 4, self._evict)

    def _evict(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(RECEIVE_SECONDS / 4, self._evict)
        for holder, since in list(self._receiving.items()):
            if loop.time() - since > RECEIVE_SECONDS:
                holder.give_up("its payload takes too long")
