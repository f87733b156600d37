"""What is on its way to a client.

asyncio joins what it is given and copies what the system does not take at once. On a plain socket, therefore, bytes go
to the system from here and by reference, and what it does not take waits here. The transport gets a morsel of that: it
watches the socket, and once the morsel is gone there is room for more. Errors are left to the transport as well; it
meets them with the morsel, and ends the connection as it does for any other.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress

from snapctl.storage.backend import Buffer

HIGH_BYTES = 256 << 10
"""What may wait to be sent before the client counts as slow, and no more of its requests are looked at."""

_SYSTEM_BYTES = 1 << 20
"""What the system is asked to take before the client does: a large reply should not need many turns of the loop."""

_MORSEL_BYTES = 512
_IOV_MAX = 1024


class Outlet:
    """The sending half of a connection.

    Attributes:
        is_congested: the client does not take what it was sent.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        """Send through a transport, until `send_directly`."""
        self.is_congested = False
        self._transport = transport
        self._fd = -1
        self._waiting: list[Buffer] = []
        self._is_paused = False
        self._is_closing = False
        transport.set_write_buffer_limits(high=HIGH_BYTES)

    @property
    def is_closing(self) -> bool:
        """Whether the end of the connection has begun; nothing more is sent but what waits."""
        return self._is_closing or self._transport.is_closing()

    def send_directly(self) -> int:
        """Send by reference from now on, for a transport that adds nothing to what it sends; returns its descriptor."""
        link = self._transport.get_extra_info("socket")
        self._fd = link.fileno()
        if link.family == socket.AF_UNIX:  # TCP finds out by itself
            with suppress(OSError):
                link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SYSTEM_BYTES)
        self._transport.set_write_buffer_limits(high=0)
        return self._fd

    def write(self, buffers: list[Buffer]) -> None:
        """Send bytes, which must not change afterwards; the list is this object's from then on."""
        if self._fd < 0:
            self._transport.writelines(buffers)
        elif self._waiting or self._is_paused:
            self._waiting += buffers
            self._look()
        else:
            self._waiting = buffers
            self._push()

    def pause(self) -> None:
        """Take note that the transport has more than it wants."""
        self._is_paused = True
        self._look()

    def resume(self) -> None:
        """Go on after that."""
        self._is_paused = False
        self._push()

    def close(self) -> None:
        """Close the transport when everything has been handed to it."""
        self._is_closing = True
        if not self._waiting:
            self._transport.close()

    def lost(self) -> None:
        """Forget what waits."""
        self._waiting = []
        self.is_congested = False

    def _push(self) -> None:
        """Hand to the system what it takes, and a morsel of the rest to the transport."""
        while self._waiting and not self._is_paused and not self._transport.is_closing():
            if len(self._waiting) > _IOV_MAX:
                self._waiting = [b"".join(self._waiting)]
            waiting = self._waiting
            try:
                sent = os.writev(self._fd, waiting)
            except OSError:  # it takes nothing just now, or never again
                sent = 0
            if sent == sum(map(len, waiting)):
                self._waiting = []
                break
            _drop(waiting, sent)
            morsel = bytes(waiting[0][:_MORSEL_BYTES])
            _drop(waiting, len(morsel))
            self._transport.write(morsel)
        self._look()
        if self._is_closing and not self._waiting:
            self._transport.close()

    def _look(self) -> None:
        """See whether the client is slow: the transport by itself says so of what it was given."""
        self.is_congested = self._is_paused and (self._fd < 0 or sum(map(len, self._waiting)) > HIGH_BYTES)


def _drop(buffers: list[Buffer], count: int) -> None:
    """Strike the first `count` bytes."""
    for number, buffer in enumerate(buffers):
        if count < len(buffer):
            del buffers[:number]
            if count:
                buffers[0] = memoryview(buffer)[count:]
            return
        count -= len(buffer)
    buffers.clear()
