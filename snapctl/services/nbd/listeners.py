"""Sockets to listen on: made here or taken over, and how people write their addresses.

A Unix socket gets mode 0600 whatever the umask: its owner is who may read the volumes. Whoever wants others to connect
changes the mode afterwards, or has systemd make the socket.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from urllib.parse import quote

from snapctl.errors import SnapctlError, UsageError
from snapctl.services import unixsocket
from snapctl.services.nbd import wire

_BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens.

    Attributes:
        socket: the socket.
        path: of a Unix socket that was made here, which goes when the server does; else None.
        inode: of that, so that nobody else's is removed.
        host: of a TCP socket as it was given, which may be what its certificate is for; if empty its address is told.
    """

    socket: socket.socket
    path: str | None = None
    inode: int = 0
    host: str = ""

    def address(self, export: str, *, tls: bool) -> str:
        """Return the connection string of an export, as the NBD URI document has it."""
        scheme = "nbds" if tls else "nbd"
        name = quote(export, safe="")
        if self.socket.family == socket.AF_UNIX:
            path = self.path or os.fsdecode(self.socket.getsockname())
            return f"{scheme}+unix:///{name}?socket={quote(os.fsencode(os.path.abspath(path)))}"
        address, port = self.socket.getsockname()[:2]
        host = self.host or address
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/{name}"

    def close(self) -> None:
        """Stop listening, and remove the socket that was made here."""
        self.socket.close()
        if self.path is not None:
            unixsocket.remove(self.path, self.inode)


def listen_on_path(path: str) -> Listener:
    """Make a Unix socket and listen; one that nobody answers at any more is replaced.

    Raises:
        SnapctlError: somebody answers there, something else is there, or the system refuses.
    """
    link = socket.socket(socket.AF_UNIX)
    try:
        inode = unixsocket.bind(link, path)
        link.listen(_BACKLOG)
    except OSError as error:
        link.close()
        raise _refused(path, error) from error
    return Listener(link, os.path.abspath(path), inode)


def listen_on_port(host: str, port: int) -> list[Listener]:
    """Listen on a TCP port of every address that a host name stands for.

    Args:
        host: a name or an address; empty for all addresses of this machine.
        port: 0 for one that is free.

    Raises:
        SnapctlError: there is no such host, or the system refuses.
    """
    where = f"{f'[{host}]' if ':' in host else host}:{port}"
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise SnapctlError(f"cannot listen on {where}: {getattr(error, 'strerror', None) or error}") from error
    listeners: list[Listener] = []
    failure: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        if listeners and not port:
            address = (address[0], listeners[0].socket.getsockname()[1], *address[2:])
        try:
            listeners.append(Listener(_listening(family, kind, protocol, address), host=host))
        except OSError as error:
            failure = error
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                break
    if failure is not None and (not listeners or failure.errno == errno.EADDRINUSE):
        for listener in listeners:
            listener.close()
        raise _refused(where, failure) from failure
    return listeners


def _listening(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
    link = socket.socket(family, kind, protocol)
    try:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        link.bind(address)
        link.listen(_BACKLOG)
    except BaseException:
        link.close()
        raise
    return link


def adopt(descriptor: int) -> Listener:
    """Take over a socket that somebody else has made and listens on.

    Raises:
        SnapctlError: it is none.
    """
    try:
        link = socket.socket(fileno=descriptor)
    except OSError as error:
        raise _refused(f"descriptor {descriptor}", error) from error
    if link.type != socket.SOCK_STREAM or not link.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        link.close()
        raise SnapctlError(f"descriptor {descriptor} is not a stream socket that listens")
    return Listener(link)


def parse_address(text: str) -> tuple[str, int]:
    """Parse ``HOST:PORT``, ``[::1]:10809``, ``HOST`` or ``:PORT``; the port is NBD's own unless given.

    Raises:
        UsageError: it is none of these.
    """
    if not text:
        raise UsageError("the address to listen on is empty; write HOST:PORT, or :PORT for all addresses")
    host, colon, port = text.rpartition(":")
    if text.startswith("[") and text.endswith("]"):
        host, colon, port = text, "", ""
    elif not colon:
        host, port = text, ""
    is_quoted = host.startswith("[") and host.endswith("]")
    if (
        (":" in host and not is_quoted)
        or (colon and not (port.isascii() and port.isdigit() and len(port) <= 5))
        or int(port or 0) > 65535
    ):
        raise UsageError(f"{text!r} is not an address; write HOST:PORT, [::1]:PORT or :PORT")
    return host[1:-1] if is_quoted else host, int(port) if port else wire.DEFAULT_PORT


def _refused(where: str, error: OSError) -> SnapctlError:
    return SnapctlError(f"cannot listen on {where}: {(error.strerror or str(error)).lower()}")
