"""A node as a block device: what a server exports and a mount shows as a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from snapctl.engine.model import Extent, Kind
from snapctl.storage.backend import Buffer

if TYPE_CHECKING:
    from snapctl.engine.node import Node
    from snapctl.services.live.container import LiveContainer


class Device:
    """A volume or a snapshot of a live container.

    Attributes:
        node: the node, which may be deleted or resized meanwhile.
    """

    def __init__(self, live: LiveContainer, node: Node) -> None:
        """Not for callers; ask the live container."""
        self._live = live
        self.node = node

    @property
    def name(self) -> str:
        """Its full name: ``db`` or ``db@mon``."""
        return self.node.name

    @property
    def size_bytes(self) -> int:
        """Its size now; a client keeps the size that it was told."""
        return self.node.size_bytes

    @property
    def is_read_only(self) -> bool:
        """Whether it takes no writes: an RO snapshot, or a container opened for reading."""
        return self.node.kind is Kind.RO or not self._live.container.writable

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` from `offset` in bytes, acknowledged writes included; raises as `Node.read`."""
        self.node.read_into(offset, buffer)

    def write(self, offset: int, data: Buffer) -> bool:
        """Take bytes at any offset into the cache; they are read at once, and durable after the next flush.

        `data` must not change afterwards.

        Returns:
            False if the cache has no room just now and nothing was taken: await `LiveContainer.until_room`, try again.

        Raises:
            NoSpace: the container has no room for them; nothing was taken.
            SnapctlError: else as `Node.write`.
        """
        self.node.write(offset, data)
        return True

    def zero(self, offset: int, length: int) -> bool:
        """Make a range read as zeros and give up its data; returns and raises as `write`."""
        self.node.trim(offset, length)
        return True

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Tell data from zeros, acknowledged writes included; raises as `Node.extents`."""
        return self.node.extents(offset, length)
