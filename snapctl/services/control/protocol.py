"""What client and server of the control socket agree on: versions, limits, and errors as JSON (docs/control.md).

Every message is one JSON object on a line of its own. Descriptors go with the first byte of the line that they belong
to.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

from snapctl import errors
from snapctl.errors import SnapctlError

VERSION = 1
"""Of the protocol; a server refuses a client of another one."""

LONGEST_REQUEST = 1 << 20
"""Bytes of a line that a server takes."""

MOST_DESCRIPTORS = 4
"""Descriptors that either side takes with one message."""

DESCRIPTOR_ROOM = socket.CMSG_SPACE(MOST_DESCRIPTORS * struct.calcsize("i"))

PARSE_ERROR, INVALID_REQUEST, UNKNOWN_METHOD, INVALID_PARAMS, INTERNAL_ERROR = -32700, -32600, -32601, -32602, -32603
SNAPCTL_ERROR = -32000
"""An error of `snapctl.errors`, described in the error's `data`."""


def encode(message: dict[str, Any]) -> bytes:
    """Write a message as its line."""
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


def error_object(error: SnapctlError, code: int = SNAPCTL_ERROR) -> dict[str, Any]:
    """Describe an error so that `raised` can raise the same elsewhere."""
    data = {"type": type(error).__name__, "exit_code": error.exit_code, "fields": vars(error)}
    return {"code": code, "message": str(error), "data": data}


def as_error(described: dict[str, Any]) -> SnapctlError:
    """Make the error that an error object describes; one of an unknown class keeps at least its exit code."""
    data = described.get("data")
    if not isinstance(data, dict):
        return SnapctlError(f"the server refused the request: {described.get('message')}")
    found = getattr(errors, str(data.get("type")), None)
    kind: type[SnapctlError] | None = found if isinstance(found, type) and issubclass(found, SnapctlError) else None
    error = SnapctlError.__new__(kind or SnapctlError)
    error.args = (str(described.get("message")),)
    for name, value in (data.get("fields") or {}).items():
        if not name.startswith("_"):
            setattr(error, name, tuple(value) if isinstance(value, list) else value)
    if kind is None and isinstance(data.get("exit_code"), int):
        error.exit_code = data["exit_code"]
    return error


def peer(connection: socket.socket) -> tuple[int, int] | None:
    """The process at the other end and its user, as (pid, uid); None where the system does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    ucred = struct.Struct("3i")
    pid, uid, _ = ucred.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, ucred.size))
    return pid, uid


def descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came with a message."""
    found: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            size = struct.calcsize("i")
            found += struct.unpack(f"{len(data) // size}i", data[: len(data) - len(data) % size])
    return found
