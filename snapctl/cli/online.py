"""The way to the server of a container, if it has one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from snapctl.services.control.address import may_be_served

if TYPE_CHECKING:
    from snapctl.services.control.client import Client


@contextmanager
def connected(container_path: str, wait_seconds: float) -> Iterator[Client | None]:
    """Yield a connection to the server of a container, None if it has none; raises as `client.connect`."""
    if not may_be_served(container_path):
        yield None
        return
    from snapctl.services.control.client import connect

    client = connect(container_path, wait_seconds)
    if client is None:
        yield None
        return
    with client:
        yield client
