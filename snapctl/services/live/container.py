"""A live container: one writer, many clients.

Writes are acknowledged from a cache and become durable together, at a flush, when the cache is full or when they are
old. Changes of the tree of nodes are a point between two requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, Self, TypeVar

from snapctl.engine.container import Container
from snapctl.engine.node import Node
from snapctl.services.live.device import Device

T = TypeVar("T")


class User(Protocol):
    """Somebody who has a device open."""

    description: str

    def disconnect(self, reason: str) -> None:
        """Stop using it: the device is about to go away."""


class LiveContainer:
    """An open container on an event loop.

    Attributes:
        container: the engine's; to be changed through `change` alone.
        users: who has a device open, by node id.
    """

    def __init__(self, container: Container) -> None:
        """Take up an open container."""
        self.container = container
        self.users: dict[int, set[User]] = {}

    @classmethod
    async def open(cls, path: str, *, writable: bool = True, wait_seconds: float = 5.0) -> Self:
        """Open a container file, which stays locked until `close`; raises as `Container.open`."""
        return cls(await asyncio.to_thread(Container.open, path, writable=writable, wait_seconds=wait_seconds))

    async def close(self) -> None:
        """Make everything durable, then let go of the container.

        Raises:
            SnapctlError: as `flush`; the container is closed all the same.
        """
        try:
            await self.flush()
        finally:
            self.container.close()

    def nodes(self) -> list[Node]:
        """All that can be used as a device, oldest first."""
        return self.container.nodes

    def device(self, name: str) -> Device:
        """The device called ``db`` or ``db@mon``.

        Raises:
            NodeNotFound: there is none.
        """
        return Device(self, self.container.node(name))

    def use(self, device: Device, user: User) -> None:
        """Enter a user of a device; until `release` the data stays under it unless somebody insists."""
        self.users.setdefault(device.node.id, set()).add(user)

    def release(self, device: Device, user: User) -> None:
        """Strike a user of a device."""
        users = self.users.get(device.node.id, set())
        users.discard(user)
        if not users:
            self.users.pop(device.node.id, None)

    async def until_room(self) -> None:
        """Return when the cache may have room again."""

    async def flush(self) -> None:
        """Return when everything acknowledged before the call, to whomever, is durable.

        Raises:
            NoSpace: no room on the disk; what is in the cache stays, and the flush can be tried again.
            IoFailure: the disk refuses; the container has to be reopened.
        """
        if self.container.writable:
            self.container.commit()

    async def change(self, operation: Callable[[Container], T]) -> T:
        """Change the tree of nodes at this point between two requests, and return when that is durable.

        Args:
            operation: makes the change through the engine; it sees all that was acknowledged before the call. It may be
                run again after a failure of others, so all it does must be done through its argument.

        Raises:
            SnapctlError: what `operation` raises, or as `flush`; then nothing of it was done.
        """
        result = operation(self.container)
        self.container.commit()
        return result
