"""Views: a committed state of a live container that another process reads by itself, from the file.

The server's part is to keep that state whole while the view lasts; it reads nothing and sends nothing. Whoever has the
descriptors of a view opens it with `snapctl.storage.view`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from snapctl.errors import IoFailure, SnapctlError
from snapctl.storage.backend import FileBackend

if TYPE_CHECKING:
    from snapctl.services.live.container import LiveContainer
    from snapctl.storage.store import Pinned


class View(NamedTuple):
    """What another process needs, to be handed to it as it is; closed when the view ends.

    Attributes:
        fd: the container file, for reading only, and without our lock.
        superblocks_fd: a file with the superblock area that belongs to the state.
        transaction: number of the commit that left the state.
    """

    fd: int
    superblocks_fd: int
    transaction: int


@asynccontextmanager
async def view(live: LiveContainer) -> AsyncIterator[View]:
    """Make durable what was acknowledged before the call, and keep that state whole while the context lasts.

    Changes and commits go on meanwhile; what they free of the state takes room until the end.

    Raises:
        SnapctlError: as `LiveContainer.flush`; or the container is no file.
    """
    container = live.container
    backend = container.pages.backend
    if not isinstance(backend, FileBackend):
        raise SnapctlError(f"{container.path} is not in a file")
    pins: list[Pinned] = []  # also what was taken for somebody who had given up waiting when it was
    try:
        await live.at_rest(lambda at_rest: pins.append(at_rest.pin()))
        fd = backend.reopen()
        try:
            superblocks_fd = _file_of(pins[0].area)
            try:
                yield View(fd, superblocks_fd, pins[0].superblock.transaction)
            finally:
                os.close(superblocks_fd)
        finally:
            os.close(fd)
    finally:
        for pinned in pins:
            container.unpin(pinned)
        live.cache.look_for_room()


def _file_of(data: bytes) -> int:
    """A descriptor of a file without a name that holds `data`."""
    try:
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("snapctl superblocks")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        try:
            os.write(fd, data)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise IoFailure(f"cannot make a copy of the superblocks: {error.strerror}") from error
    return fd
