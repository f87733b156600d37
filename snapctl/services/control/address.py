"""Where the control socket of a container is, and how it is reached although its path may be long.

Imported by every command, so it imports next to nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

_SUFFIX = ".control"
_LONGEST_NAME = 80
"""Bytes of a socket's name that, behind ``/proc/self/fd/N/``, fit into a socket address."""

_LONGEST_ADDRESS = 100
"""Bytes of a path that fits into a socket address on any system; Linux has 107."""


def socket_path(container_path: str) -> str:
    """The path of a container's control socket: beside the file itself, wherever symbolic links to it are."""
    directory, name = os.path.split(os.path.realpath(container_path))
    name += _SUFFIX
    if len(os.fsencode(name)) > _LONGEST_NAME:
        from hashlib import sha256

        name = f".snapctl-{sha256(os.fsencode(name)).hexdigest()[:32]}{_SUFFIX}"
    return os.path.join(directory, name)


def may_be_served(container_path: str) -> bool:
    """Tell whether there is a control socket; whether anybody answers there is for the client to find out."""
    try:
        return stat.S_ISSOCK(os.lstat(socket_path(container_path)).st_mode)
    except OSError:
        return False


@contextmanager
def reachable(path: str) -> Iterator[str]:
    """Yield a path of the same socket that fits into a socket address, however long `path` is.

    Raises:
        OSError: the directory cannot be opened.
    """
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS:
        yield path
        return
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)
