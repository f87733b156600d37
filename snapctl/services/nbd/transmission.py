"""The transmission phase of one connection: requests are parsed, validated, executed and answered ("Transmission").

Most requests are executed as they are parsed, and all that have arrived together are answered together. What has to
wait does so in one of two ways. Flushes, and writes with FUA, wait for the commit, and requests behind them go on. A
write that the cache has no room for, and a large read, which is sent in pieces as the client takes them, hold up the
requests behind them on this connection, and nobody else; until they are done nothing more is received, so that a
client can make the server hold one batch of replies and one payload, whatever it sends.

Three decisions that the document leaves to a server:

- NBD_CMD_FLAG_NO_HOLE is taken, and makes a hole all the same. Zeros as data would not keep what the flag is for, room
  for a later write: no page is overwritten in place here, so a block that has data takes a fresh page to write as a
  block that has none.
- Zeros cost tables, never data, so NBD_CMD_FLAG_FAST_ZERO never fails.
- NBD_CMD_CACHE is answered without doing anything: the page cache of the system is the only one there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import perf_counter_ns
from typing import NamedTuple, Protocol

from snapctl.errors import Corruption, NodeNotFound, SnapctlError
from snapctl.services.live.container import LiveContainer
from snapctl.services.nbd import replies, wire
from snapctl.services.nbd.budget import Budget
from snapctl.services.nbd.contexts import MAX_EXTENTS, look_up
from snapctl.services.nbd.errnos import beyond_end, errno_of
from snapctl.services.nbd.exports import MAX_PAYLOAD_BYTES
from snapctl.services.nbd.handshake import Agreement
from snapctl.services.nbd.statistics import Statistics

PIECE_BYTES = 256 << 10
"""The largest read that is answered at once; larger ones go out in pieces of this size."""

SMALL_PAYLOAD_BYTES = 64 << 10
"""A payload up to this size takes nothing from the budget."""

_BATCH_BYTES = 256 << 10
"""Replies are handed to the system when there are so many."""

TURN_NANOSECONDS = 2_000_000
"""After about this time other connections get their turn; the request that goes beyond it is executed to its end."""

_MAX_FLUSHES = 1024
"""Requests of one connection that wait for a commit."""

_LEAST_HOLE_BYTES = 32 << 10
"""Within data, a hole up to this size is sent as zeros."""

_ZEROS = bytes(PIECE_BYTES)

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


class Link(Protocol):
    """The connection below.

    Attributes:
        is_congested: the client does not take what it was sent; nothing should be added.
    """

    is_congested: bool

    def write(self, buffers: list[bytes | bytearray | memoryview]) -> None:
        """Send bytes."""

    async def sent(self) -> None:
        """Return when the link is not congested, or lost."""

    def go_on(self) -> None:
        """Offer again what was not consumed."""

    def close(self) -> None:
        """Send what was written, then disconnect."""

    def abort(self, reason: str) -> None:
        """Disconnect at once."""


class Transmission:
    """One client's use of an export.

    Attributes:
        agreement: what the handshake led to.
        description: who it is, for people.
        statistics: what it has asked for.
        payload: room for what is still missing of a write's payload; None if no payload is awaited.
    """

    def __init__(self, agreement: Agreement, live: LiveContainer, link: Link, budget: Budget, description: str) -> None:
        """Enter the client as a user of the export, until `lost`."""
        self.agreement = agreement
        self.description = description
        self.statistics = Statistics()
        self.payload: memoryview | None = None
        self._live = live
        self._device = agreement.device
        self._link = link
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self._form: replies.Form = (
            replies.Extended()
            if agreement.is_extended
            else replies.Structured()
            if agreement.is_structured
            else replies.Simple()
        )
        self._header = wire.EXTENDED_REQUEST if agreement.is_extended else wire.REQUEST
        self._magic = wire.EXTENDED_REQUEST_MAGIC if agreement.is_extended else wire.REQUEST_MAGIC
        self._out: list[bytes | bytearray | memoryview] = []
        self._out_bytes = 0
        self._receiving: tuple[Request, bytearray] | None = None
        self._held_bytes = 0
        self._skip_bytes = 0
        self._skipped_for: tuple[Request, int] | None = None
        self._lane: asyncio.Task[None] | None = None
        self._owns_link = False
        self._flushes: list[Request] = []
        self._flush_tasks: set[asyncio.Task[None]] = set()
        self._flushing = 0
        self._waits = False
        self._is_finishing = False
        self._is_lost = False
        live.use(self._device, self)

    @property
    def is_blocked(self) -> bool:
        """Whether requests have to wait, for what was asked before or for the client to take its replies."""
        return bool(
            self._lane or self._link.is_congested or self._waits or self._is_finishing or self._flushing > _MAX_FLUSHES
        )

    def consume(self, view: memoryview) -> int:
        """Execute the requests in `view`, as many as are whole and need not wait.

        Returns:
            How many bytes are done with. The rest is to be offered again, with more behind it or after `Link.go_on`.
        """
        position, end = 0, len(view)
        header, size = self._header, self._header.size
        began_ns = perf_counter_ns()
        while not self.is_blocked:
            if self._skipped_for is not None:
                step = min(self._skip_bytes, end - position)
                position += step
                self._skip_bytes -= step
                if self._skip_bytes:
                    break
                (request, errno), self._skipped_for = self._skipped_for, None
                self._object(request, errno)
            if end - position < size:
                break
            if perf_counter_ns() - began_ns > TURN_NANOSECONDS:
                self._wait()
                self._loop.call_soon(self._stop_waiting)
                break
            magic, flags, command, cookie, offset, length = header.unpack_from(view, position)
            if magic != self._magic:
                self._link.abort("not a request")
                return end
            request = Request(flags, command, cookie, offset, length, began_ns)
            taken = self._take(request, view[position + size :])
            if taken is None:
                break
            position += size + taken
            if self._out_bytes >= _BATCH_BYTES:
                self._send()
        self._settle()
        return position

    def payload_received(self, count: int) -> None:
        """Take note that the first `count` bytes of `payload` have been filled, and write when all are there."""
        if self.payload is not None and self._receiving is not None:
            self.payload = self.payload[count:]
            if self.payload:
                return
            (request, data), self._receiving, self.payload = self._receiving, None, None
            self._budget.received(self)
            self._write(request, data)
            self._settle()

    def finish(self) -> None:
        """Take no more requests, answer those in flight, then disconnect."""
        self._is_finishing = True
        self._close_if_finished()

    def disconnect(self, reason: str) -> None:  # noqa: ARG002 the protocol has no room for reasons
        """Let go of the device, which is about to go away."""
        self.finish()

    def give_up(self, reason: str) -> None:
        """Disconnect at once."""
        self._link.abort(reason)

    def lost(self) -> None:
        """Take note that the connection is gone."""
        self._is_lost = self._is_finishing = True
        self._receiving = self.payload = None
        if self._lane is None:
            self._give_back()
        self._live.release(self._device, self)

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """What is still under way for this client."""
        return [*self._flush_tasks, *([self._lane] if self._lane else [])]

    # Taking requests: validation, and where the payload goes.

    def _take(self, request: Request, rest: memoryview) -> int | None:
        """Execute a request, or begin to receive its payload.

        Returns:
            How much of the `rest` behind its header is done with; None if the request has to be offered again.
        """
        flags, command, _, offset, length, _ = request
        if not (command or flags) and length <= PIECE_BYTES and offset + length <= self.agreement.size_bytes:
            self._read(request)  # the most common request, by the shortest way
            return 0
        payload = length if self._has_payload(flags, command) else 0
        if payload > MAX_PAYLOAD_BYTES:
            self._link.abort(f"a payload of {payload} bytes")
            return 0
        if command == wire.CMD_DISC:
            self.finish()
            return 0
        if errno := self._objection(request):
            if payload:
                self._skip_bytes, self._skipped_for = payload, (request, errno)
            else:
                self._object(request, errno)
            return 0
        if command != wire.CMD_WRITE:
            self._execute(request)
            return 0
        if length <= len(rest):
            self._write(request, bytes(rest[:length]))
            return length
        if length > SMALL_PAYLOAD_BYTES:
            if not self._budget.take(self, length):
                self._wait()
                self._budget.wait(self._stop_waiting)
                return None
            self._held_bytes = length
        data = bytearray(length)
        data[: len(rest)] = rest
        self._receiving = request, data
        self.payload = memoryview(data)[len(rest) :]
        return len(rest)

    def _has_payload(self, flags: int, command: int) -> bool:
        if self.agreement.is_extended:
            return bool(flags & wire.CMD_FLAG_PAYLOAD_LEN)
        return command == wire.CMD_WRITE

    def _objection(self, request: Request) -> int:
        """Return the error value of a request that is not valid; 0 if it is."""
        flags, command, _, offset, length, _ = request
        if command not in _ALLOWED_FLAGS:
            return wire.EINVAL
        if self.agreement.is_extended and command == wire.CMD_WRITE:
            if not flags & wire.CMD_FLAG_PAYLOAD_LEN:
                return wire.EINVAL
            flags &= ~wire.CMD_FLAG_PAYLOAD_LEN
        if flags & ~_ALLOWED_FLAGS[command] or (flags & wire.CMD_FLAG_DF and not self._form.is_chunked):
            return wire.EINVAL
        if command in _CHANGING and self.agreement.is_read_only:
            return wire.EPERM
        if command == wire.CMD_FLUSH:
            return wire.EINVAL if offset or length else 0
        if command == wire.CMD_BLOCK_STATUS and not (self.agreement.contexts and length):
            return wire.EINVAL
        if offset + length > self.agreement.size_bytes:
            return beyond_end(command)
        return wire.EINVAL if command == wire.CMD_READ and length > MAX_PAYLOAD_BYTES else 0

    # Execution.

    def _execute(self, request: Request) -> None:
        command = request.command
        if command == wire.CMD_READ:
            if request.length <= PIECE_BYTES:
                self._read(request)
            else:
                self._start(self._read_in_pieces(request))
        elif command == wire.CMD_FLUSH:
            self._flushes.append(request)
        elif command == wire.CMD_BLOCK_STATUS:
            self._block_status(request)
        elif command == wire.CMD_CACHE:
            self._done(request)
        else:
            self._change(request, lambda: self._device.zero(request.offset, request.length))

    def _write(self, request: Request, data: bytes | bytearray) -> None:
        self._change(request, lambda: self._device.write(request.offset, data))

    def _change(self, request: Request, apply: Callable[[], bool]) -> None:
        """Change the device, or start to wait until the cache has room for that."""
        try:
            taken = not request.length or apply()
        except Exception as error:  # noqa: BLE001 it must not cost the other clients more than this one request
            self._failed(request, error)
        else:
            if not taken:
                self._start(self._change_later(request, apply))
                return
            self._changed(request)
        self._give_back()

    async def _change_later(self, request: Request, apply: Callable[[], bool]) -> None:
        try:
            while True:
                await self._live.until_room()
                if self._is_lost or apply():
                    break
        except Exception as error:  # noqa: BLE001 as above
            self._failed(request, error)
        else:
            self._changed(request)
        self._give_back()

    def _changed(self, request: Request) -> None:
        if request.flags & wire.CMD_FLAG_FUA:
            self._flushes.append(request)
        else:
            self._done(request)

    def _read(self, request: Request) -> None:
        flags, _, cookie, offset, length, _ = request
        data = bytearray(length)
        try:
            self._device.read_into(offset, data)
        except Exception as error:  # noqa: BLE001 as above
            self._failed(request, error)
            return
        form = self._form
        if not form.is_chunked:
            self._reply(form.data(cookie, offset, offset, length, is_last=True), data)
        elif not length:
            self._reply(form.done(cookie, offset))
        elif not (data[0] or flags & wire.CMD_FLAG_DF) and data == _ZEROS[:length]:
            self._reply(form.hole(cookie, offset, offset, length, is_last=True))
        else:
            self._reply(form.data(cookie, offset, offset, length, is_last=True), data)
        self._count(request)

    async def _read_in_pieces(self, request: Request) -> None:
        """Answer a large read, a piece at a time, at the pace at which the client takes them."""
        self._send()
        self._owns_link = True
        flags, _, cookie, at, length, _ = request
        form = self._form
        whole = not form.is_chunked or bool(flags & wire.CMD_FLAG_DF)
        position = at
        try:
            self._device.node.check_range(at, length)  # it may have been shrunk; now is the time to say so
            if whole:
                pieces = [(at, length, False)]
            else:
                pieces = _pieces([(e.length_bytes, e.is_zero) for e in self._device.extents(at, length)], at)
            for offset, size, is_hole in pieces:
                if is_hole:
                    self._link.write([form.hole(cookie, at, offset, size, is_last=False)])
                    continue
                step_bytes = PIECE_BYTES
                for position in range(offset, offset + size, step_bytes):
                    data = bytearray(min(step_bytes, offset + size - position))
                    self._device.read_into(position, data)
                    begins = position == offset
                    if whole and begins:
                        self._link.write([form.data(cookie, at, at, length, is_last=False), data])
                    elif whole:
                        self._link.write([data])
                    else:
                        self._link.write([form.data(cookie, at, position, len(data), is_last=False), data])
                    await self._link.sent()
                    await asyncio.sleep(0)
                    if self._is_lost:
                        return
            if form.is_chunked:
                self._reply(form.done(cookie, at))
            self._count(request)
        except Exception as error:  # noqa: BLE001 as above
            if whole and position > at:
                if not form.is_chunked:
                    self._link.abort("a read failed after its reply had begun")  # as the document demands
                    return
                await self._pad(at + length - position)
            self._failed(request, error)
        finally:
            self._owns_link = False

    async def _pad(self, size_bytes: int) -> None:
        """Complete a chunk that has been announced."""
        while size_bytes and not self._is_lost:
            step = min(size_bytes, PIECE_BYTES)
            self._link.write([_ZEROS[:step]])
            size_bytes -= step
            await self._link.sent()

    def _block_status(self, request: Request) -> None:
        flags, _, cookie, offset, length, _ = request
        most = 1 if flags & wire.CMD_FLAG_REQ_ONE else MAX_EXTENTS
        contexts = self.agreement.contexts
        try:
            found = look_up(contexts, self._device, offset, length, most)
        except Exception as error:  # noqa: BLE001 as above
            self._failed(request, error)
            return
        for context, extents in zip(contexts, found, strict=True):
            is_last = context is contexts[-1]
            self._reply(self._form.status(cookie, offset, context.id, extents, is_last=is_last))
        self._count(request)

    async def _flush(self, requests: list[Request]) -> None:
        """Answer requests when all that was acknowledged before is durable."""
        try:
            await self._live.flush()
        except Exception as error:  # noqa: BLE001 as above
            for request in requests:
                self._failed(request, error)
        else:
            for request in requests:
                self._done(request)
        finally:
            self._flushing -= len(requests)
            self.statistics.in_flight -= len(requests)

    # Answering.

    def _object(self, request: Request, errno: int) -> None:
        self._refuse(request, errno, _REASONS.get(errno, "not a valid request"))

    def _done(self, request: Request) -> None:
        self._reply(self._form.done(request.cookie, request.offset))
        self._count(request)

    def _failed(self, request: Request, error: Exception) -> None:
        message = str(error) if isinstance(error, SnapctlError) else f"internal error ({type(error).__name__}: {error})"
        errno = errno_of(error, request.command)
        if isinstance(error, NodeNotFound) and not self._device.node.is_gone:
            errno = wire.EIO  # the snapshot that a context refers to is gone, the export is not
        where = None
        if request.command == wire.CMD_READ:
            where = request.offset
            if isinstance(error, Corruption) and error.bytes_affected is not None:
                where = max(where, min(error.bytes_affected[0], request.offset + max(request.length, 1) - 1))
        self._refuse(request, errno, message, where)

    def _refuse(self, request: Request, errno: int, message: str, offset: int | None = None) -> None:
        self._reply(self._form.error(request.cookie, request.offset, errno, message, offset))
        if request.command in wire.COMMAND_NAMES:
            self.statistics.of(request.command).errors += 1
            self._count(request._replace(length=0))

    def _count(self, request: Request) -> None:
        self.statistics.of(request.command).add(request.length, perf_counter_ns() - request.began_ns)

    def _reply(self, header: bytes, data: bytearray | None = None) -> None:
        self._out.append(header)
        self._out_bytes += len(header)
        if data:
            self._out.append(data)
            self._out_bytes += len(data)

    def _send(self) -> None:
        if self._out and not self._owns_link and not self._is_lost:
            out, self._out, self._out_bytes = self._out, [], 0
            self._link.write(out)

    # Waiting.

    def _wait(self) -> None:
        self._waits = True

    def _stop_waiting(self) -> None:
        self._waits = False
        if not self._is_lost:
            self._link.go_on()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        """Hold up what comes behind on this connection until `work` is done."""
        self.statistics.in_flight += 1
        self._lane = self._loop.create_task(work)
        self._lane.add_done_callback(self._lane_done)

    def _lane_done(self, _task: asyncio.Task[None]) -> None:
        self.statistics.in_flight -= 1
        self._lane = None
        self._settle()
        if not self._is_lost:
            self._link.go_on()

    def _settle(self) -> None:
        """Send the replies that there are, and begin to wait for the commit that the others need."""
        if self._flushes:
            requests, self._flushes = self._flushes, []
            self._flushing += len(requests)
            self.statistics.in_flight += len(requests)
            task = self._loop.create_task(self._flush(requests))
            self._flush_tasks.add(task)
            task.add_done_callback(self._flush_done)
        self._send()
        self._close_if_finished()

    def _flush_done(self, task: asyncio.Task[None]) -> None:
        self._flush_tasks.discard(task)
        self._settle()
        if not self._is_lost:
            self._link.go_on()

    def _close_if_finished(self) -> None:
        if self._is_finishing and not self._is_lost and not self.tasks and not self._flushes:
            self._send()
            self._link.close()

    def _give_back(self) -> None:
        if self._held_bytes:
            held, self._held_bytes = self._held_bytes, 0
            self._budget.give(self, held)


_REASONS = {
    wire.EPERM: "the export is read-only",
    wire.ENOSPC: "the request reaches beyond the end of the export",
}


def _pieces(extents: list[tuple[int, bool]], offset: int) -> list[tuple[int, int, bool]]:
    """Lay extents out as pieces of data and holes (offset, length, is hole); small holes count as data."""
    found: list[tuple[int, int, bool]] = []
    for length, is_zero in extents:
        is_hole = is_zero and length > _LEAST_HOLE_BYTES
        if found and not is_hole and not found[-1][2]:
            found[-1] = found[-1][0], found[-1][1] + length, False
        else:
            found.append((offset, length, is_hole))
        offset += length
    return found
