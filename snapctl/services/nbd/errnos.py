"""From snapctl's errors to the error values of the protocol ("Error values"), in one place."""

from __future__ import annotations

from snapctl.errors import (
    IoFailure,
    NodeNotFound,
    NoSpace,
    OutOfRange,
    ReadOnlyNode,
    SnapctlError,
    UsageError,
)
from snapctl.services.nbd import wire

_ERRNOS: tuple[tuple[type[SnapctlError], int], ...] = (
    (NoSpace, wire.ENOSPC),
    (ReadOnlyNode, wire.EPERM),
    (NodeNotFound, wire.ESHUTDOWN),
    (IoFailure, wire.EIO),
    (UsageError, wire.EINVAL),
)
"""The first class that fits decides; what is not listed, damage above all, is an input/output error."""

_GROWING = frozenset((wire.CMD_WRITE, wire.CMD_WRITE_ZEROES))


def beyond_end(command: int) -> int:
    """Tell which error value a request gets that reaches beyond the export's end."""
    return wire.ENOSPC if command in _GROWING else wire.EINVAL


def errno_of(error: Exception, command: int) -> int:
    """Tell which error value stands for an error that a command met."""
    if isinstance(error, OutOfRange):
        return beyond_end(command)
    return next((errno for kind, errno in _ERRNOS if isinstance(error, kind)), wire.EIO)
