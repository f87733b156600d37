"""Metadata contexts: what NBD_CMD_BLOCK_STATUS can tell of an export, and how clients ask for it by name.

``base:allocation`` is the protocol document's ("Metadata querying"), the others are qemu's (its docs/interop/nbd.rst):
``qemu:allocation-depth`` says how far along the chain of parents a range was found, and ``qemu:dirty-bitmap:SNAP`` what
has changed since the snapshot SNAP of the same volume, which backup programs know how to use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from snapctl.engine.model import Kind
from snapctl.services.live.device import Device
from snapctl.services.nbd import wire

if TYPE_CHECKING:
    from snapctl.engine.node import Node

Ranges = Iterator[tuple[int, int]]
"""Lengths in bytes with the status of each, in order and without gaps."""

ALLOCATION = "base:allocation"
DEPTH = "qemu:allocation-depth"
DIRTY = "qemu:dirty-bitmap:"
"""Begins the name of a context; a snapshot's short name follows."""

_WILDCARDS = ("base:", "qemu:", DIRTY)

MAX_CONTEXTS = 16
"""That a client may choose; each costs time and room in every reply."""

MAX_EXTENTS = 4096
"""Descriptors in one reply, for one context."""

_FIRST_WINDOW_BYTES = 4 << 20
_LAST_WINDOW_BYTES = 1 << 30
_LOOK_AHEAD_SECONDS = 0.02
"""A reply covers what can be found in about this time, for all its contexts together, which holds for an export of any
size and shape: the document lets a server answer with less than was asked for, and clients then ask again from there
on."""


class Context(NamedTuple):
    """A context that a client has chosen.

    Attributes:
        id: what replies call it.
        name: its full name.
        ranges: looks it up, for a device and a range in bytes; raises as `Device.extents`.
    """

    id: int
    name: str
    ranges: Callable[[Device, int, int], Ranges]

    def extents(self, device: Device, offset: int, length: int, most: int, seconds: float) -> list[tuple[int, int]]:
        """Look up a range, or its beginning if that takes long.

        Args:
            device: where.
            offset: where to begin, in bytes.
            length: how much, in bytes, 1 or more; it lies inside the device.
            most: how many descriptors to return at most.
            seconds: when to stop, but for the first descriptor.

        Returns:
            Lengths in bytes with the status of each, one at least; neighbours differ.
        """
        found: list[tuple[int, int]] = []
        position, end = offset, offset + length
        window = _FIRST_WINDOW_BYTES
        now = began = time.monotonic()
        while position < end:
            window_began = now
            stop = min(end, position + window)
            for size, status in self.ranges(device, position, stop - position):
                if found and found[-1][1] == status:
                    found[-1] = found[-1][0] + size, status
                elif len(found) == most:
                    return found
                else:
                    found.append((size, status))
                now = time.monotonic()
                if now - began > seconds:
                    return found
            # The window grows only where it is cheap, as nothing stops it halfway through a long run of one status.
            if now - window_began < seconds / 16:
                window = min(2 * window, _LAST_WINDOW_BYTES)
            elif now - window_began > seconds / 4:
                window = max(window // 2, _FIRST_WINDOW_BYTES)
            position = stop
        return found


def look_up(
    wanted: Sequence[Context], device: Device, offset: int, length: int, most: int
) -> list[list[tuple[int, int]]]:
    """Look up a range in each context, or as much of its beginning as there is time for; else as `Context.extents`."""
    seconds = _LOOK_AHEAD_SECONDS / max(1, len(wanted))
    return [context.extents(device, offset, length, most, seconds) for context in wanted]


def _allocation(device: Device, offset: int, length: int) -> Ranges:
    hole = wire.STATE_HOLE | wire.STATE_ZERO
    for extent in device.extents(offset, length):
        yield extent.length_bytes, hole if extent.is_zero else 0


def _depth(device: Device, offset: int, length: int) -> Ranges:
    return device.depths(offset, length)


def _changes_since(snapshot: Node) -> Callable[[Device, int, int], Ranges]:
    def changes(device: Device, offset: int, length: int) -> Ranges:
        return ((size, int(is_changed)) for size, is_changed in device.changes(snapshot, offset, length))

    return changes


def _sources(device: Device) -> dict[str, Callable[[Device, int, int], Ranges]]:
    """All contexts of an export, by their full names: for a snapshot, those of older ones of its volume."""
    node = device.node
    older = node.snapshots
    if node.kind is Kind.RO and node.origin is not None:
        siblings = node.origin.snapshots
        older = siblings[[sibling.id for sibling in siblings].index(node.id) + 1 :]
    dirty = {f"{DIRTY}{snapshot.short_name}": _changes_since(snapshot) for snapshot in older}
    return {ALLOCATION: _allocation, DEPTH: _depth, **dirty}


def listed(device: Device, queries: list[str]) -> list[str]:
    """Answer NBD_OPT_LIST_META_CONTEXT: all contexts that match one of the queries, or all if there is no query."""
    wanted = set(queries)
    prefixes = tuple(wanted.intersection(_WILDCARDS))
    return [name for name in _sources(device) if not queries or name in wanted or name.startswith(prefixes)]


def chosen(device: Device, queries: list[str]) -> list[Context]:
    """Answer NBD_OPT_SET_META_CONTEXT: the contexts that are named in full; a wildcard selects nothing."""
    sources = _sources(device)
    names = [name for name in dict.fromkeys(queries) if name in sources]
    return [Context(number, name, sources[name]) for number, name in enumerate(names, 1)]
