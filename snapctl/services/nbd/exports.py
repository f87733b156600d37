"""What a server has on offer: the nodes of a live container under their full names, limited as its owner wishes.

A node that is made while the server runs is an export at once. The empty name, the protocol's default export, stands
for the only volume if there is just one.
"""

from __future__ import annotations

from collections.abc import Collection

from snapctl.engine.model import Kind
from snapctl.errors import BadName, NodeNotFound
from snapctl.services.live.container import LiveContainer
from snapctl.services.live.device import Device
from snapctl.services.nbd import wire
from snapctl.units import format_size

MAX_PAYLOAD_BYTES = 32 << 20
"""The largest write, and the largest read: what the document asks every server to take ("Block size constraints")."""

_LEAST_PREFERRED_BYTES = 4096


class Exports:
    """The exports of one server.

    Attributes:
        live: the container.
        is_read_only: all exports refuse writes, volumes too.
    """

    def __init__(self, live: LiveContainer, *, only: Collection[str] = (), read_only: bool = False) -> None:
        """Offer the nodes of `live`.

        Args:
            live: the container.
            only: the full names of those to offer; all if empty.
            read_only: refuse writes to any.
        """
        self.live = live
        self.is_read_only = read_only
        self._only = frozenset(only)

    def names(self) -> list[str]:
        """Return the full names of all exports, oldest first."""
        names = [node.name for node in self.live.nodes()]
        return [name for name in names if not self._only or name in self._only]

    def device(self, name: str) -> Device:
        """Find an export.

        Args:
            name: as a client sends it: anything.

        Raises:
            NodeNotFound: there is none, or it is not on offer.
        """
        if not name:
            volumes = [name for name in self.names() if "@" not in name]
            if len(volumes) != 1:
                raise NodeNotFound("there is no default export; name one")
            name = volumes[0]
        if self._only and name not in self._only:
            raise NodeNotFound(f"no export {name}")
        try:
            return self.live.device(name)
        except BadName as error:
            raise NodeNotFound(f"no export {name}") from error

    def refuses_writes(self, device: Device) -> bool:
        """Tell whether clients of a device may only read."""
        return self.is_read_only or device.is_read_only

    def flags(self, device: Device, *, structured: bool) -> int:
        """Return the transmission flags of an export.

        Args:
            device: the export.
            structured: structured or extended replies have been negotiated.
        """
        # One cache serves all connections, so a flush by any of them covers what all were told is written.
        flags = wire.FLAG_HAS_FLAGS | wire.FLAG_SEND_FLUSH | wire.FLAG_SEND_FUA | wire.FLAG_CAN_MULTI_CONN
        flags |= wire.FLAG_SEND_CACHE
        if self.refuses_writes(device):
            flags |= wire.FLAG_READ_ONLY
        else:
            flags |= wire.FLAG_SEND_TRIM | wire.FLAG_SEND_WRITE_ZEROES | wire.FLAG_SEND_FAST_ZERO
        return flags | (wire.FLAG_SEND_DF if structured else 0)

    def preferred_bytes(self) -> int:
        """Return the block size that requests are served best in."""
        return max(_LEAST_PREFERRED_BYTES, self.live.container.block_size)


def describe(device: Device) -> str:
    """Say what an export is, for people."""
    size = format_size(device.size_bytes)
    if device.node.kind is Kind.RO:
        return f"read-only snapshot of {size}"
    return f"volume of {size}" if device.node.kind is Kind.BASE else f"writable snapshot of {size}"
