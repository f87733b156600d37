"""The answers of one connection: built in the form that was agreed on, counted, gathered and sent together."""

from __future__ import annotations

from time import perf_counter_ns
from typing import Protocol

from snapctl.errors import Corruption, NodeNotFound, SnapctlError
from snapctl.services.live.device import Device
from snapctl.services.nbd import replies, wire
from snapctl.services.nbd.errnos import errno_of
from snapctl.services.nbd.handshake import Agreement
from snapctl.services.nbd.requests import REASONS, Request
from snapctl.services.nbd.statistics import Statistics
from snapctl.storage.backend import Buffer

PIECE_BYTES = 1 << 20
"""The largest read that is answered at once; larger ones go out in pieces of this size."""

BATCH_BYTES = 256 << 10
"""Answers are handed to the system when there are so many."""

ZEROS = bytes(PIECE_BYTES)


class Link(Protocol):
    """The connection below."""

    @property
    def is_congested(self) -> bool:
        """Whether the client does not take what it was sent; nothing should be added."""

    def write(self, buffers: list[Buffer]) -> None:
        """Send bytes, which must not change afterwards; the list is the link's from then on."""

    async def sent(self) -> None:
        """Return when the link is not congested, or lost."""

    def go_on(self) -> None:
        """Offer again what was not consumed."""

    def close(self) -> None:
        """Send what was written, then disconnect."""

    def abort(self, reason: str) -> None:
        """Disconnect at once."""


class Answers:
    """Answers to requests, on their way to the link.

    Attributes:
        form: how they are written.
        statistics: what was asked for and has been answered.
        gathered: what is to be sent.
        gathered_bytes: how much that is, about.
        is_held: another reply is being sent in pieces, and what is gathered has to wait.
        is_lost: there is nobody to send anything to.
    """

    def __init__(self, agreement: Agreement, link: Link) -> None:
        """Begin with nothing to send."""
        self.form: replies.Form = (
            replies.Extended()
            if agreement.is_extended
            else replies.Structured()
            if agreement.is_structured
            else replies.Simple()
        )
        self.statistics = Statistics()
        self.gathered: list[Buffer] = []
        self.gathered_bytes = 0
        self.is_held = False
        self.is_lost = False
        self._device: Device = agreement.device
        self._link = link

    def done(self, request: Request) -> None:
        """Answer that all went well."""
        self.add(self.form.done(request.cookie, request.offset))
        self.count(request)

    def data(self, request: Request, data: Buffer) -> None:
        """Answer a read by its data, not empty."""
        flags, _, cookie, offset, length, _ = request
        if self.form.is_chunked and not (data[0] or flags & wire.CMD_FLAG_DF) and data == ZEROS[:length]:
            self.add(self.form.hole(cookie, offset, offset, length, is_last=True))
        else:
            self.gathered += (self.form.whole(cookie, offset, length), data)
            self.gathered_bytes += length
        self.count(request)

    def refuse(self, request: Request, errno: int, message: str = "", offset: int | None = None) -> None:
        """Answer that a request is not valid, or failed."""
        message = message or REASONS.get(errno, "not a valid request")
        self.add(self.form.error(request.cookie, request.offset, errno, message, offset))
        if request.command in wire.COMMAND_NAMES:
            self.statistics.of(request.command).errors += 1
            self.count(request._replace(length=0))

    def failed(self, request: Request, error: Exception) -> None:
        """Answer what a request met."""
        message = str(error) if isinstance(error, SnapctlError) else f"internal error ({type(error).__name__}: {error})"
        errno = errno_of(error, request.command)
        if isinstance(error, NodeNotFound) and not self._device.node.is_gone:
            errno = wire.EIO  # the snapshot that a context refers to is gone, the export is not
        where = None
        if request.command == wire.CMD_READ:
            where = request.offset
            if isinstance(error, Corruption) and error.bytes_affected is not None:
                where = max(where, min(error.bytes_affected[0], request.offset + max(request.length, 1) - 1))
        self.refuse(request, errno, message, where)

    def add(self, reply: bytes) -> None:
        """Gather a reply, or a chunk of one."""
        self.gathered.append(reply)
        self.gathered_bytes += len(reply)

    def count(self, request: Request) -> None:
        """Take note that a request has been answered."""
        self.statistics.of(request.command).add(request.length, perf_counter_ns() - request.began_ns)

    def count_many(self, began_ns: int, command: int, requests: int, length_bytes: int) -> None:
        """Take note that requests of one command which arrived at the same time have been answered."""
        if requests:
            self.statistics.of(command).add(length_bytes, perf_counter_ns() - began_ns, requests)

    def send_batch(self) -> None:
        """Send what is gathered if it is much."""
        if self.gathered_bytes >= BATCH_BYTES:
            self.send()

    def send(self) -> None:
        """Send what is gathered, unless it has to wait."""
        if self.gathered and not self.is_held and not self.is_lost:
            gathered, self.gathered, self.gathered_bytes = self.gathered, [], 0
            self._link.write(gathered)
