"""A view, as a client of the control socket has it: for as long as its connection lasts."""

from __future__ import annotations

import os

from snapctl.errors import SnapctlError
from snapctl.services.control.client import Client, connect


class HeldView:
    """A view, and the connection that keeps it; one connection has one view.

    Attributes:
        fd: the container file, opened for reading.
        superblocks_fd: a file that holds the superblock area.
    """

    def __init__(self, client: Client, fd: int, superblocks_fd: int) -> None:
        """Take up what the server sent."""
        self._client = client
        self.fd = fd
        self.superblocks_fd = superblocks_fd

    def is_over(self, wait_seconds: float) -> bool:
        """Whether the server hung up, or does so within `wait_seconds`; it has nothing to say otherwise."""
        return self._client.is_hung_up(wait_seconds)

    def end(self) -> None:
        """Hang up, which ends the view."""
        self._client.close()


def take_view(container_path: str, wait_seconds: float) -> HeldView | None:
    """Have the server of a container keep its state for us as it is now.

    Returns:
        None if nobody serves it.

    Raises:
        SnapctlError: as `connect`, or as the server says.
    """
    client = connect(container_path, wait_seconds)
    if client is None:
        return None
    try:
        client.call("view", {})
    except BaseException:
        client.close()
        raise
    fds = client.take_descriptors()
    if len(fds) == 2:
        return HeldView(client, *fds)
    client.close()
    for fd in fds:
        os.close(fd)
    raise SnapctlError(f"the server of {container_path} sent {len(fds)} descriptors for a view, not 2")
