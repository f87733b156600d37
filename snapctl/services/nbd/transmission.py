"""The transmission phase of one connection: requests are parsed, validated, executed and answered ("Transmission").

What has arrived together is answered together. There are two ways to execute it: a short one for what is asked most,
which takes a row of reads and writes, first the reads, then the writes at a stroke; and a general one for everything,
one by one, which is the only one to object and to report. But for the order of the answers no client can tell them
apart. What has to wait does so in one of two ways, too. Flushes, and writes with FUA, wait for the commit, reads of
what is not in memory for the disk, and requests behind them go on. A write that the cache has no room for, and a large
read, which is sent in pieces as the client takes them, hold up the requests behind them on this connection, and nobody
else; until they are done nothing more is received, so that a client can make the server hold one batch of replies and
one payload, whatever it sends.

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
from contextlib import suppress
from functools import partial
from time import perf_counter_ns

from snapctl.services.live.container import LiveContainer
from snapctl.services.nbd import wire
from snapctl.services.nbd.answers import BATCH_BYTES, PIECE_BYTES, ZEROS, Answers, Link
from snapctl.services.nbd.budget import Budget
from snapctl.services.nbd.contexts import MAX_EXTENTS, look_up
from snapctl.services.nbd.exports import MAX_PAYLOAD_BYTES
from snapctl.services.nbd.fetcher import Fetcher
from snapctl.services.nbd.foresight import Foresight
from snapctl.services.nbd.handshake import Agreement
from snapctl.services.nbd.plain import plain, plain_requests
from snapctl.services.nbd.reads import Reads
from snapctl.services.nbd.requests import Request, objection, payload_bytes
from snapctl.services.nbd.statistics import Statistics
from snapctl.storage.backend import NotCached

SMALL_PAYLOAD_BYTES = 64 << 10
"""A payload up to this size is received where requests are, and takes nothing from the budget."""

TURN_NANOSECONDS = 2_000_000
"""After about this time other connections get their turn; the request that goes beyond it is executed to its end."""

_ROUND = 64
"""Requests between two looks at the time."""

_TOGETHER = 4
"""Of a client that has so many requests under way, writes of whatever size are taken at a stroke."""

_EAGER = 8
"""A client that has sent so many at a stroke is likely to have sent more by the time that they are answered."""

_MAX_FLUSHES = 1024
"""Requests of one connection that wait for a commit."""


class Transmission:
    """One client's use of an export.

    Attributes:
        agreement: what the handshake led to.
        description: who it is, for people.
        payload: room for what is still missing of a write's payload; None if no payload is awaited.
        expects_more: whether the client has had the time to ask for what it asks for next.
    """

    def __init__(
        self,
        agreement: Agreement,
        live: LiveContainer,
        link: Link,
        budget: Budget,
        fetcher: Fetcher,
        description: str,
    ) -> None:
        """Enter the client as a user of the export, until `lost`."""
        self.agreement = agreement
        self.description = description
        self.payload: memoryview | None = None
        self.expects_more = False
        self._arrived = 0  # requests, with what is consumed just now
        self._depth = 0  # how many arrived at a stroke of late
        self._live = live
        self._device = agreement.device
        self._link = link
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self._answers = Answers(agreement, link)
        self._reads = Reads(agreement, self._answers, link, fetcher, self._settle_and_go_on)
        self._receiving: tuple[Request, bytearray] | None = None
        self._held_bytes = 0
        self._skip_bytes = 0
        self._skipped_for: tuple[Request, int] | None = None
        self._lane: asyncio.Task[None] | None = None
        self._flushes: list[Request] = []
        self._flush_waits: set[asyncio.Future[None]] = set()
        self._flushing = 0
        self._foresight = Foresight()
        self._has_written = False
        self._waits = False
        self._is_finishing = False
        is_extended = agreement.is_extended
        self._magic = wire.EXTENDED_REQUEST_MAGIC if is_extended else wire.REQUEST_MAGIC
        self._header = wire.EXTENDED_REQUEST if is_extended else wire.REQUEST
        self._plain = plain(is_extended=is_extended, takes_writes=not agreement.is_read_only)
        live.use(self._device, self)

    @property
    def statistics(self) -> Statistics:
        """What it has asked for."""
        return self._answers.statistics

    @property
    def is_blocked(self) -> bool:
        """Whether requests have to wait, for what was asked before or for the client to take its replies."""
        return bool(
            self._lane
            or self._link.is_congested
            or self._waits
            or self._is_finishing
            or self._flushing > _MAX_FLUSHES
            or self._reads.is_full
        )

    def consume(self, data: bytes | bytearray, end: int) -> int:
        """Execute the requests in the first `end` bytes of `data`, as many as are whole and need not wait.

        Returns:
            How many bytes are done with. The rest is to be offered again, with more behind it or after `Link.go_on`.
        """
        position = self._arrived = 0
        self._depth //= 2
        size = self._header.size
        began_ns = perf_counter_ns()
        while not self.is_blocked:
            if self._skipped_for is not None:
                step = min(self._skip_bytes, end - position)
                position += step
                self._skip_bytes -= step
                if self._skip_bytes:
                    break
                (request, errno), self._skipped_for = self._skipped_for, None
                self._answers.refuse(request, errno)
            if end - position < size:
                break
            begun_at = position
            position = self._take_plain(data, position, end, began_ns)
            if end - position < size:
                break
            if perf_counter_ns() - began_ns > TURN_NANOSECONDS:
                self._wait()
                self._loop.call_soon(self._stop_waiting)
                break
            if position == begun_at:
                magic, flags, command, cookie, offset, length = self._header.unpack_from(data, position)
                if magic != self._magic:
                    self._link.abort("not a request")
                    return end
                request = Request(flags, command, cookie, offset, length, began_ns)
                taken = self._take(request, data, position + size, end)
                if taken is None:
                    break
                position += size + taken
                self._arrived += 1
            self._answers.send_batch()
        self.expects_more = self._arrived >= _EAGER
        self._settle()
        return position

    def _take_plain(self, data: bytes | bytearray, position: int, end: int, began_ns: int) -> int:
        """Execute plain reads and writes, most of what is ever asked: without flags, valid, and whole.

        All else, and what meets any difficulty, is left to the general way, which does the same and more at more cost.

        Returns:
            The position of what is left.
        """
        answers = self._answers
        room, begun_at = BATCH_BYTES - answers.gathered_bytes, position
        position, read_cookies, ranges, write_cookies, writes = plain_requests(
            data, position, end, *self._plain, self.agreement.size_bytes, room, PIECE_BYTES, _ROUND
        )
        requests = len(ranges) + len(writes)
        self._arrived += requests
        self._depth = max(self._depth, self._arrived)
        if ranges:
            self._take_reads(read_cookies, ranges, began_ns)
        if writes:
            payload_bytes = position - begun_at - requests * self._plain.header_bytes
            self._take_writes(write_cookies, writes, payload_bytes, began_ns)
        return position

    def _take_reads(self, cookies: list[int], ranges: list[tuple[int, int]], began_ns: int) -> None:
        """Execute valid reads, given by their cookies, and offset and length."""
        answers, form = self._answers, self._answers.form
        append, is_chunked = answers.gathered.append, form.is_chunked
        answered = read_bytes = 0
        for cookie, (offset, length), block in zip(cookies, ranges, self._reads.from_memory(ranges), strict=True):
            if block is None:
                self._reads.read(Request(0, wire.CMD_READ, cookie, offset, length, began_ns))
                continue
            if isinstance(block, NotCached):
                self._reads.fetch(Request(0, wire.CMD_READ, cookie, offset, length, began_ns), block)
                continue
            if is_chunked and not block[0] and block == ZEROS[:length]:
                append(form.hole(cookie, offset, offset, length, is_last=True))
            else:
                append(form.whole(cookie, offset, length))
                append(block)
            answered += 1
            read_bytes += length
        answers.gathered_bytes += read_bytes
        answers.count_many(began_ns, wire.CMD_READ, answered, read_bytes)

    def _take_writes(
        self, cookies: list[int], writes: list[tuple[int, memoryview]], payload_bytes: int, began_ns: int
    ) -> None:
        """Execute valid writes that have come together: all at a stroke, or those that have to wait one by one."""
        answers, device = self._answers, self._device
        taken = 0
        with suppress(Exception):  # whoever takes them again meets it again, and tells
            if (self._depth >= _TOGETHER or payload_bytes >= SMALL_PAYLOAD_BYTES) and device.write_together(writes):
                taken = len(writes)
            while taken < len(writes) and device.write(writes[taken][0], bytes(writes[taken][1])):
                taken += 1
        if taken:
            self._has_written = True
            answers.add(answers.form.all_done(cookies[:taken], (offset for offset, _ in writes[:taken])))
        if taken < len(writes):
            left = [
                (Request(0, wire.CMD_WRITE, cookie, offset, len(data), began_ns), bytes(data))
                for cookie, (offset, data) in zip(cookies[taken:], writes[taken:], strict=True)
            ]
            payload_bytes -= sum([len(data) for _, data in left])
            self._start(self._write_later(left))
        answers.count_many(began_ns, wire.CMD_WRITE, taken, payload_bytes)

    def payload_received(self, count: int) -> None:
        """Take note that the first `count` bytes of `payload` have been filled, and write when all are there."""
        if self.payload is not None and self._receiving is not None:
            self.payload = self.payload[count:]
            if self.payload:
                return
            (request, data), self._receiving, self.payload = self._receiving, None, None
            self._budget.received(self)
            if self._writes_through(request, data):
                self._budget.leave(data)
                self._changed(request)
                self._give_back()
            else:
                self._write(request, data)
            self._settle()

    def taken(self) -> None:
        """Take note that the link is not congested any more."""
        self._reads.read_again()

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
        self._answers.is_lost = self._is_finishing = True
        self._receiving = self.payload = None
        if self._lane is None:
            self._give_back()
        self._reads.settle()
        self._live.release(self._device, self)

    @property
    def tasks(self) -> list[asyncio.Future[None]]:
        """What is still under way for this client, but for reads that wait for the disk."""
        return [*self._flush_waits, *([self._lane] if self._lane else [])]

    # The general way: any request, valid or not.

    def _take(self, request: Request, data: bytes | bytearray, position: int, end: int) -> int | None:
        """Execute a request, or begin to receive its payload, which is in `data` from `position` to `end` or further.

        Returns:
            How much behind its header is done with; None if the request has to be offered again.
        """
        command, length = request.command, request.length
        payload = payload_bytes(request, self.agreement)
        if payload > MAX_PAYLOAD_BYTES:
            self._link.abort(f"a payload of {payload} bytes")
            return end - position
        if command == wire.CMD_DISC:
            self.finish()
            return 0
        if errno := objection(request, self.agreement):
            if payload:
                self._skip_bytes, self._skipped_for = payload, (request, errno)
            else:
                self._answers.refuse(request, errno)
            return 0
        if command != wire.CMD_WRITE:
            self._execute(request)
            return 0
        there = end - position
        if length <= there:
            self._write(request, bytes(memoryview(data)[position : position + length]))
            return length
        if length <= SMALL_PAYLOAD_BYTES:
            return None
        if not self._budget.take(self, length):
            self._wait()
            self._budget.wait(self._stop_waiting)
            return None
        self._held_bytes = length
        room = self._budget.room(length)
        room[:there] = memoryview(data)[position:end]
        self._receiving = request, room
        self.payload = memoryview(room)[there:]
        return there

    def _execute(self, request: Request) -> None:
        command = request.command
        if command == wire.CMD_READ:
            if request.length <= PIECE_BYTES:
                self._reads.read(request)
            else:
                self._start(self._reads.read_in_pieces(request))
        elif command == wire.CMD_FLUSH:
            self._flushes.append(request)
        elif command == wire.CMD_BLOCK_STATUS:
            self._block_status(request)
        elif command == wire.CMD_CACHE:
            self._answers.done(request)
        else:
            self._change(request, lambda: self._device.zero(request.offset, request.length))

    def _writes_through(self, request: Request, data: bytearray) -> bool:
        """Write to the file at once, if that can be done: nobody needs the payload any more then."""
        with suppress(Exception):  # whoever takes it again meets it again, and tells
            return self._device.write_together([(request.offset, memoryview(data))])
        return False

    def _write(self, request: Request, data: bytes | bytearray) -> None:
        self._change(request, lambda: self._device.write(request.offset, data))

    def _change(self, request: Request, apply: Callable[[], bool]) -> None:
        """Change the device, or start to wait until the cache has room for that."""
        try:
            taken = not request.length or apply()
        except Exception as error:  # noqa: BLE001 it must not cost the other clients more than this one request
            self._answers.failed(request, error)
        else:
            if not taken:
                self._start(self._change_later(request, apply))
                return
            self._changed(request)
        self._give_back()

    async def _write_later(self, writes: list[tuple[Request, bytes]]) -> None:
        for request, data in writes:
            try:
                while not (self._answers.is_lost or self._device.write(request.offset, data)):
                    await self._live.until_room()
            except Exception as error:  # noqa: BLE001 as above
                self._answers.failed(request, error)
            else:
                self._changed(request)

    async def _change_later(self, request: Request, apply: Callable[[], bool]) -> None:
        try:
            while True:
                await self._live.until_room()
                if self._answers.is_lost or apply():
                    break
        except Exception as error:  # noqa: BLE001 as above
            self._answers.failed(request, error)
        else:
            self._changed(request)
        self._give_back()

    def _changed(self, request: Request) -> None:
        if request.flags & wire.CMD_FLAG_FUA:
            self._flushes.append(request)
        else:
            self._answers.done(request)

    def _block_status(self, request: Request) -> None:
        flags, _, cookie, offset, length, _ = request
        most = 1 if flags & wire.CMD_FLAG_REQ_ONE else MAX_EXTENTS
        contexts = self.agreement.contexts
        answers = self._answers
        try:
            found = look_up(contexts, self._device, offset, length, most)
        except Exception as error:  # noqa: BLE001 as above
            answers.failed(request, error)
            return
        for context, extents in zip(contexts, found, strict=True):
            answers.add(answers.form.status(cookie, offset, context.id, extents, is_last=context is contexts[-1]))
        answers.count(request)

    def _flushed(self, requests: list[Request], durable: asyncio.Future[None]) -> None:
        """Answer flushes that had to wait, and go on."""
        self._flush_waits.discard(durable)
        if not durable.cancelled():  # the server has given the client up
            self._answer_flushes(requests, durable)
            self._settle_and_go_on()

    def _answer_flushes(self, requests: list[Request], durable: asyncio.Future[None]) -> None:
        """Answer requests, as all that was acknowledged before is durable, or cannot be made so."""
        self._flushing -= len(requests)
        self.statistics.in_flight -= len(requests)
        error = durable.exception()
        for request in requests:
            if isinstance(error, Exception):
                self._answers.failed(request, error)
            else:
                self._answers.done(request)

    # Waiting.

    def _wait(self) -> None:
        self._waits = True

    def _stop_waiting(self) -> None:
        self._waits = False
        if not self._answers.is_lost:
            self._link.go_on()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        """Hold up what comes behind on this connection until `work` is done."""
        self.statistics.in_flight += 1
        self._lane = self._loop.create_task(work)
        self._lane.add_done_callback(self._lane_done)

    def _lane_done(self, _task: asyncio.Task[None]) -> None:
        self.statistics.in_flight -= 1
        self._lane = None
        self._reads.settle()

    def _settle_and_go_on(self) -> None:
        self._settle()
        if not self._answers.is_lost:
            self._link.go_on()

    def _settle(self) -> None:
        """Send the replies that there are, and begin to wait for the commit that the others need."""
        is_flush_expected = self._has_written and self._foresight.wrote()
        self._has_written = False
        if self._flushes:
            self._foresight.flushed()
            requests, self._flushes = self._flushes, []
            self._flushing += len(requests)
            self.statistics.in_flight += len(requests)
            durable = self._live.cache.flushed()
            if durable.done():
                self._answer_flushes(requests, durable)
            else:
                self._flush_waits.add(durable)
                durable.add_done_callback(partial(self._flushed, requests))
        if self._reads.waiting:
            self._reads.read_again()
        self._answers.send()
        if is_flush_expected:
            self.expects_more |= self._live.cache.flush_ahead()
        if self._is_finishing:
            self._close_if_finished()

    def _close_if_finished(self) -> None:
        is_done = not (self.tasks or self._flushes or self._reads.waiting)
        if self._is_finishing and is_done and not self._answers.is_lost:
            self._answers.send()
            self._link.close()

    def _give_back(self) -> None:
        if self._held_bytes:
            held, self._held_bytes = self._held_bytes, 0
            self._budget.give(self, held)
