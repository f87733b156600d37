"""A live container: one writer, many clients.

Writes are acknowledged from a cache and become durable together, at a flush, when the cache is full or when they are
old. Changes of the tree of nodes are a point between two requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from itertools import count
from typing import Protocol, Self, TypeVar

from snapctl.engine.container import Container
from snapctl.engine.node import Node
from snapctl.services.live.cache import Cache
from snapctl.services.live.device import Device
from snapctl.services.live.generation import Operation
from snapctl.services.live.view import View, view

T = TypeVar("T")

MOST_DIRTY_BYTES = 64 << 20
MOST_DIRTY_SECONDS = 5.0


class User(Protocol):
    """Somebody who has a device open."""

    description: str

    def disconnect(self, reason: str) -> None:
        """Stop using it: the device is about to go away."""


class LiveContainer:
    """An open container on an event loop.

    Attributes:
        container: the engine's; to be changed through `change` alone.
        cache: what was acknowledged and is not durable yet.
        users: who has a device open, by node id, with the number of each: no two that ever were have the same.
    """

    def __init__(
        self,
        container: Container,
        *,
        most_dirty_bytes: int = MOST_DIRTY_BYTES,
        most_dirty_seconds: float = MOST_DIRTY_SECONDS,
    ) -> None:
        """Take up an open container.

        Args:
            container: the engine's, between two transactions.
            most_dirty_bytes: acknowledged data to hold in memory.
            most_dirty_seconds: how long it is held before it is made durable without being asked.
        """
        self.container = container
        self.cache = Cache(container, most_dirty_bytes, most_dirty_seconds)
        self.users: dict[int, dict[User, int]] = {}
        self._numbers = count(1)

    @classmethod
    async def open(cls, path: str, *, writable: bool = True, wait_seconds: float = 5.0) -> Self:
        """Open a container file, which stays locked until `close`.

        What it holds is made durable first: it may have been left in the system's cache by a process that died, and
        clients who see it, and flush, rely on it.

        Raises:
            SnapctlError: as `Container.open` and `Session.settle`.
        """
        container = await asyncio.to_thread(Container.open, path, writable=writable, wait_seconds=wait_seconds)
        try:
            if writable:
                await asyncio.to_thread(container.settle)
            return cls(container)
        except BaseException:
            container.close()
            raise

    async def close(self) -> None:
        """Make everything durable, then let go of the container.

        Raises:
            SnapctlError: as `flush`; the container is closed all the same.
        """
        try:
            await self.cache.retire()
        finally:
            await self.cache.close()
            self.container.close()

    def view(self) -> AbstractAsyncContextManager[View]:
        """Keep a state of the container whole for another process to read; raises as `flush`."""
        return view(self)

    def nodes(self) -> list[Node]:
        """All that can be used as a device, oldest first."""
        return self.container.nodes

    def device(self, name: str) -> Device:
        """The device called ``db`` or ``db@mon``.

        Raises:
            NodeNotFound: there is none.
        """
        return Device(self.cache, self.container.node(name))

    def device_of(self, node: Node) -> Device:
        """The device of a node that is at hand, also of one that is hidden while it is being imported."""
        return Device(self.cache, node)

    def use(self, device: Device, user: User) -> None:
        """Enter a user of a device; until `release` the data stays under it unless somebody insists."""
        self.users.setdefault(device.node.id, {})[user] = next(self._numbers)

    def release(self, device: Device, user: User) -> None:
        """Strike a user of a device."""
        users = self.users.get(device.node.id, {})
        users.pop(user, None)
        if not users:
            self.users.pop(device.node.id, None)

    def status(self) -> dict[str, int]:
        """What the cache holds and how its commits went, as docs/control.md has it."""
        cache = self.cache
        return {
            "dirty_bytes": cache.dirty_bytes,
            "most_dirty_bytes": cache.most_dirty_bytes,
            "commits": cache.commits,
            "log_records": cache.records,
            "commit_nanoseconds": round(cache.commit_seconds * 1e9),
            "last_commit_nanoseconds": round(cache.last_commit_seconds * 1e9),
        }

    async def until_room(self) -> None:
        """Return when the cache may have room again."""
        await self.cache.until_room()

    async def flush(self) -> None:
        """Return when everything acknowledged before the call, to whomever, is durable.

        Raises:
            NoSpace: no room on the disk; what is in the cache stays, and the flush can be tried again.
            IoFailure: the disk refuses; the container has to be reopened.
        """
        await self.cache.flushed()

    async def change(self, operation: Callable[[Container], T], *, gives_room: bool = False) -> T:
        """Change the tree of nodes at this point between two requests, and return when that is durable.

        Args:
            operation: makes the change through the engine; it sees all that was acknowledged before the call. It may be
                run again after a failure of others, so all it does must be done through its argument.
            gives_room: it deletes, and can be done before writes that find no room without it.

        Raises:
            ReadOnlyNode: the container was opened for reading.
            SnapctlError: what `operation` raises, or as `flush`; then nothing of it was done.
        """
        self.container.check_writable()
        return await self.cache.do(Operation(operation, gives_room=gives_room))

    async def at_rest(self, look: Callable[[Container], T]) -> T:
        """Look at the container when everything acknowledged before the call is durable and no commit is in flight.

        Args:
            look: may try a change, which is taken back.

        Raises:
            SnapctlError: what `look` raises, or as `flush`.
        """
        if not self.container.writable:
            return look(self.container)
        return await self.cache.do(Operation(look, is_look=True))
