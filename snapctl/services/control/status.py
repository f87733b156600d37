"""What the method `status` tells: plain values, of whatever the server can tell about (docs/control.md)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from snapctl.engine.container import Container
    from snapctl.services.live.container import LiveContainer


class _Count(Protocol):
    """All requests of one kind; see `snapctl.services.nbd.statistics.Operation`."""

    requests: int
    errors: int
    length_bytes: int
    nanoseconds: int


class _Counts(Protocol):
    """All requests of a client, by the names of their kinds."""

    in_flight: int

    def named(self) -> Iterable[tuple[str, _Count]]: ...


@runtime_checkable
class _Counted(Protocol):
    """A user of a device whose requests are counted."""

    statistics: _Counts


def describe(live: LiveContainer, started: float, more: dict[str, Any]) -> dict[str, Any]:
    """Describe a live container and those who use it.

    Args:
        live: the container.
        started: when its server came up, on the monotonic clock.
        more: what the server adds of its own, such as its addresses.
    """
    uptime_seconds = round(time.monotonic() - started, 3)
    server = {"pid": os.getpid(), "uptime_seconds": uptime_seconds, **more, **live.status()}
    return {"container": describe_container(live.container), "server": server, "clients": list(_clients(live))}


def describe_container(container: Container) -> dict[str, Any]:
    """Describe a container as of its last commit, and how full it is."""
    usage = container.usage
    return {
        "path": container.path,
        "uuid": str(container.uuid),
        "transaction": container.superblock.transaction,
        "used_bytes": usage.used_bytes,
        "free_bytes": usage.free_bytes,
        "reserve_bytes": usage.reserve_bytes,
    }


def _clients(live: LiveContainer) -> Iterable[dict[str, Any]]:
    there = set(live.container.node_ids)
    for node_id, users in live.users.items():
        name = live.container.by_id(node_id).name if node_id in there else "(deleted)"
        for user, number in users.items():
            counts = user.statistics if isinstance(user, _Counted) else None
            yield {
                "id": number,
                "description": user.description,
                "export": name,
                "in_flight": counts.in_flight if counts else 0,
                "operations": dict(_operations(counts)) if counts else {},
            }


def _operations(counts: _Counts) -> Iterable[tuple[str, dict[str, int]]]:
    for name, count in counts.named():
        yield (
            name,
            {
                "requests": count.requests,
                "errors": count.errors,
                "length_bytes": count.length_bytes,
                "nanoseconds": count.nanoseconds,
            },
        )
