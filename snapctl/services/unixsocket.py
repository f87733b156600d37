"""Unix sockets of servers: reached by paths of any length, for their owner alone, replaced when nobody answers there.

Imported by every command, so it imports next to nothing.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LONGEST_ADDRESS = 100
"""Bytes of a path that fits into a socket address on any system; Linux has 107."""


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
    fd = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def bind(link: socket.socket, path: str) -> int:
    """Give a socket its name, in the place of one that nobody answers at any more.

    The mode is 0600 whatever the umask: before it listens nobody can connect, so nobody meets another mode.

    Returns:
        Its inode, for `remove`.

    Raises:
        FileExistsError: what has the name is no socket.
        OSError: somebody answers there (EADDRINUSE), or the system refuses.
    """
    with reachable(path) as address:
        try:
            link.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _clear(address)
            link.bind(address)
        os.chmod(address, 0o600)
        return os.lstat(address).st_ino


def remove(path: str, inode: int) -> None:
    """Remove the name of a socket that was bound here, unless it has become another's."""
    with suppress(OSError), reachable(path) as address:
        if os.lstat(address).st_ino == inode:
            os.unlink(address)


def _clear(address: str) -> None:
    if not stat.S_ISSOCK(os.lstat(address).st_mode):
        raise FileExistsError(errno.EEXIST, "something that is no socket is in the way")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            os.unlink(address)
            return
        except BlockingIOError:
            pass  # so many clients wait for it that it has to be alive
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
