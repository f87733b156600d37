"""Requests, and which of them are valid ("Request types"); what they do is for the transmission."""

from __future__ import annotations

from typing import NamedTuple

from snapctl.services.nbd import wire
from snapctl.services.nbd.errnos import beyond_end
from snapctl.services.nbd.exports import MAX_PAYLOAD_BYTES
from snapctl.services.nbd.handshake import Agreement

REASONS = {
    wire.EPERM: "the export is read-only",
    wire.ENOSPC: "the request reaches beyond the end of the export",
}
"""What to tell people of an objection; of others, that the request is not valid."""

_ALLOWED_FLAGS = {
    wire.CMD_READ: wire.CMD_FLAG_FUA | wire.CMD_FLAG_DF,
    wire.CMD_WRITE: wire.CMD_FLAG_FUA,
    wire.CMD_FLUSH: wire.CMD_FLAG_FUA,
    wire.CMD_TRIM: wire.CMD_FLAG_FUA,
    wire.CMD_CACHE: wire.CMD_FLAG_FUA,
    wire.CMD_WRITE_ZEROES: wire.CMD_FLAG_FUA | wire.CMD_FLAG_NO_HOLE | wire.CMD_FLAG_FAST_ZERO,
    wire.CMD_BLOCK_STATUS: wire.CMD_FLAG_FUA | wire.CMD_FLAG_REQ_ONE,
}
"""FUA is allowed with every command, as clients are known to set it."""

_CHANGING = frozenset((wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES))


class Request(NamedTuple):
    """A request without its payload.

    Attributes:
        flags: the command's flags.
        command: what to do.
        cookie: what the client calls it.
        offset: where, in bytes.
        length: how much, in bytes.
        began_ns: when it arrived.
    """

    flags: int
    command: int
    cookie: int
    offset: int
    length: int
    began_ns: int


def payload_bytes(request: Request, agreement: Agreement) -> int:
    """How many bytes follow a request's header, whether they belong there or not."""
    if agreement.is_extended:
        return request.length if request.flags & wire.CMD_FLAG_PAYLOAD_LEN else 0
    return request.length if request.command == wire.CMD_WRITE else 0


def objection(request: Request, agreement: Agreement) -> int:
    """The error value of a request that is not valid; 0 if it is."""
    flags, command, _, offset, length, _ = request
    if command not in _ALLOWED_FLAGS:
        return wire.EINVAL
    if agreement.is_extended and command == wire.CMD_WRITE:
        if not flags & wire.CMD_FLAG_PAYLOAD_LEN:
            return wire.EINVAL
        flags &= ~wire.CMD_FLAG_PAYLOAD_LEN
    is_chunked = agreement.is_structured or agreement.is_extended
    if flags & ~_ALLOWED_FLAGS[command] or (flags & wire.CMD_FLAG_DF and not is_chunked):
        return wire.EINVAL
    if command in _CHANGING and agreement.is_read_only:
        return wire.EPERM
    if command == wire.CMD_FLUSH:
        return wire.EINVAL if offset or length else 0
    if command == wire.CMD_BLOCK_STATUS and not (agreement.contexts and length):
        return wire.EINVAL
    if offset + length > agreement.size_bytes:
        return beyond_end(command)
    return wire.EINVAL if command == wire.CMD_READ and length > MAX_PAYLOAD_BYTES else 0
