"""Answers to NBD_CMD_READ: at once from memory, later from the disk, and large ones in pieces.

What the page cache holds is read on the event loop. What it does not hold is fetched by a thread (`fetcher`) and the
read is tried again, from the start, since anything may have changed meanwhile; requests behind it are answered before
it. A large read is sent a piece at a time as the client takes them, and holds up what comes behind on its connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from snapctl.errors import SnapctlError
from snapctl.services.nbd import wire
from snapctl.services.nbd.answers import PIECE_BYTES, ZEROS, Answers, Link
from snapctl.services.nbd.fetcher import Fetcher
from snapctl.services.nbd.handshake import Agreement
from snapctl.services.nbd.requests import Request
from snapctl.storage.backend import Buffer, NotCached

MAX_COLD = 128
"""Reads of one connection that may wait for the disk before it has to wait, too."""

MAX_COLD_BYTES = 8 << 20
"""Likewise, in bytes; they are in the page cache, not in ours, until they can be sent."""

_LEAST_HOLE_BYTES = 32 << 10
"""Within data, a hole up to this size is sent as zeros."""


class Reads:
    """The reads of one connection.

    Attributes:
        backend: the file, which reads at once only what is in memory while `cached_only` is set.
        waiting: how many wait for the disk, or for the client to take other answers.
    """

    def __init__(
        self, agreement: Agreement, answers: Answers, link: Link, fetcher: Fetcher, settled: Callable[[], None]
    ) -> None:
        """Begin with none.

        Args:
            agreement: what the handshake led to.
            answers: where they go.
            link: the connection.
            fetcher: fetches what is not in memory.
            settled: is called when some that had to wait have been answered, and others may be taken.
        """
        self.waiting = 0
        self._waiting_bytes = 0
        self._device = agreement.device
        self._answers = answers
        self._link = link
        self._fetcher = fetcher
        self.backend = fetcher.backend
        self._settled = settled
        self._begun: deque[tuple[Request, int, int]] = deque()
        self._fetched: deque[tuple[Request, int]] = deque()

    @property
    def is_full(self) -> bool:
        """Whether so many wait that no more should be taken."""
        return self.waiting >= MAX_COLD or self._waiting_bytes >= MAX_COLD_BYTES

    def read(self, request: Request, tries: int = 0, awaited: int = -1) -> None:
        """Answer a read of at most `PIECE_BYTES`, now or when what is not in memory has been fetched.

        Args:
            request: a valid one.
            tries: how often it was tried.
            awaited: where in the file the system has begun to fetch what it lacked; -1 for nowhere.
        """
        offset, length = request.offset, request.length
        if not length and self._answers.form.is_chunked:
            self._answers.done(request)
            return
        try:
            data = self._from_cache(offset, length, tries)
        except NotCached as missing:
            self.fetch(request, missing, tries)
            if missing.offset == awaited:
                self._begun.pop()
                self._fetcher.fetch(missing.offset, missing.length, self, request, tries)
        except Exception as error:  # noqa: BLE001 it must not cost the other clients more than this one request
            self._answers.failed(request, error)
        else:
            self._answers.data(request, data)

    def fetch(self, request: Request, missing: NotCached, tries: int = 0) -> None:
        """Answer a read when what it lacks is in memory.

        The system has begun to fetch it when it refused to wait. Most disks are done with that before this server is
        done with what else there is to do, so the read is tried once more then; only if it lacks the same bytes still,
        or the system does not begin by itself, a thread waits for them.
        """
        self.waiting += 1
        self._waiting_bytes += request.length
        self._answers.statistics.in_flight += 1
        self._begun.append((request, missing.offset, tries))

    def fetched(self, request: Request, tries: int) -> None:
        """Read again, as a thread has waited for what was missing."""
        self._fetched.append((request, tries))

    def settle(self) -> None:
        """Read again what threads have waited for, then take requests again."""
        self.read_again()
        self._settled()

    def read_again(self) -> None:
        """Answer reads that may be in memory now, but nothing that the client would not take yet."""
        answers, link = self._answers, self._link
        while (self._begun or self._fetched) and (answers.is_lost or not (link.is_congested or answers.is_held)):
            if self._fetched:
                (request, tries), awaited = self._fetched.popleft(), -1
            else:
                request, awaited, tries = self._begun.popleft()
            self.waiting -= 1
            self._waiting_bytes -= request.length
            answers.statistics.in_flight -= 1
            if not answers.is_lost:
                self.read(request, tries + 1, awaited)
                answers.send_batch()

    def from_memory(self, ranges: list[tuple[int, int]]) -> list[Buffer | NotCached | None]:
        """Read ranges, offset and length each; returns as `Device.read_each`."""
        self.backend.cached_only = True
        try:
            return self._device.read_each(ranges)
        except SnapctlError:
            return [None] * len(ranges)  # it is met again, and told
        finally:
            self.backend.cached_only = False

    def _from_cache(self, offset: int, length: int, tries: int) -> Buffer:
        """Read without waiting for the disk; but wait at last if what was fetched is always gone again.

        Raises:
            NotCached: something has to be fetched.
            SnapctlError: as `Device.read`.
        """
        backend = self.backend
        backend.cached_only = (
            tries < 8 + length // 2048
        )  # each table and page may be missing, one after the other, and not come at once
        try:
            return self._device.read(offset, length)
        finally:
            backend.cached_only = False

    # Large ones.

    async def read_in_pieces(self, request: Request) -> None:
        """Answer a large read, a piece at a time, at the pace at which the client takes them."""
        answers, link, form = self._answers, self._link, self._answers.form
        answers.send()
        answers.is_held = True
        flags, _, cookie, at, length, _ = request
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
                    link.write([form.hole(cookie, at, offset, size, is_last=False)])
                    continue
                for position in range(offset, offset + size, PIECE_BYTES):
                    data = await self._piece(request, position, min(PIECE_BYTES, offset + size - position))
                    if not whole:
                        link.write([form.part(cookie, at, position, len(data)), data])
                    elif position == offset:
                        link.write([form.part(cookie, at, at, length), data])
                    else:
                        link.write([data])
                    await link.sent()
                    await asyncio.sleep(0)
                    if answers.is_lost:
                        return
            if form.is_chunked:
                answers.add(form.done(cookie, at))
            answers.count(request)
        except Exception as error:  # noqa: BLE001 as above
            if whole and position > at:
                if not form.is_chunked:
                    link.abort("a read failed after its reply had begun")  # as the document demands
                    return
                await self._pad(at + length - position)
            answers.failed(request, error)
        finally:
            answers.is_held = False

    async def _piece(self, request: Request, offset: int, length: int) -> Buffer:
        tries = 0
        while True:
            try:
                return self._from_cache(offset, length, tries)
            except NotCached as missing:
                wait = _Wait()
                tries += 1
                self._fetcher.fetch(missing.offset, missing.length, wait, request, tries)
                await wait.done

    async def _pad(self, size_bytes: int) -> None:
        """Complete a chunk that has been announced."""
        while size_bytes and not self._answers.is_lost:
            step = min(size_bytes, PIECE_BYTES)
            self._link.write([ZEROS[:step]])
            size_bytes -= step
            await self._link.sent()


class _Wait:
    """Somebody who waits for one thing to be fetched.

    Attributes:
        done: set when it is.
    """

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fetched(self, request: Request, tries: int) -> None:  # noqa: ARG002 for those who have more than one
        """See `Reader`."""
        if not self.done.done():
            self.done.set_result(None)

    def settle(self) -> None:
        """See `Reader`."""


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
