"""Where the control socket of a container is.

Imported by every command, so it imports next to nothing.
"""

from __future__ import annotations

import os
import stat

_SUFFIX = ".control"
_LONGEST_NAME = 80
"""Bytes of a socket's name that, behind ``/proc/self/fd/N/``, fit into a socket address."""


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
