"""The write-back cache of a live container: generations, how they are read, and how they become durable.

One generation is open and takes writes. A round seals it, applies it to the tables in address order, does the
operation that follows it, and commits; meanwhile writes enter the next one, and reads see all. The loop waits for
nothing but the disk, and that on a thread of its own: a commit in flight stops no read, and a flush that comes too
late for it joins the next.

What cannot be made durable for lack of room stays, and is tried again with the next flush.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

from snapctl.errors import Corruption, NoSpace, SnapctlError
from snapctl.services.live.generation import Generation, Operation
from snapctl.services.live.overlay import Overlay
from snapctl.services.live.room import Room
from snapctl.storage.backend import Buffer

if TYPE_CHECKING:
    from snapctl.engine.container import Container
    from snapctl.engine.node import Node

T = TypeVar("T")

_SLICE_SECONDS = 0.002
"""How long requests may have to wait while a generation is being applied."""

_ZEROED_LEAVES = 64
"""Leaves beneath which blocks are zeroed between two slices."""


class Cache:
    """What was acknowledged and is not durable yet.

    Attributes:
        most_bytes: acknowledged data to hold.
        commits: how many were made.
        commit_seconds: how long they took, from the seal to the end.
        last_commit_seconds: how long the last one took.
    """

    def __init__(self, container: Container, most_bytes: int, most_seconds: float) -> None:
        """Begin with nothing.

        Args:
            container: open, between two transactions.
            most_bytes: acknowledged data to hold; a round begins at half of it.
            most_seconds: how old it may become before a round begins by itself.
        """
        self._container = container
        self.most_bytes = most_bytes
        self._most_seconds = most_seconds
        self._room = Room(container)
        self._open = Generation()
        self._sealed: deque[Generation] = deque()
        self._held_bytes = 0
        self._disk = ThreadPoolExecutor(1, "commit")
        self._rounds: asyncio.Task[None] | None = None
        self._wants_round = False
        self._room_waiters: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._failure: Exception | None = None  # after which nothing more can be done
        self._stuck: Exception | None = None  # because of which the last round did not succeed
        self._spoiled: dict[Node, Corruption] = {}  # volumes whose tables cannot take what was acknowledged
        self._aside: dict[Node, Overlay] = {}  # which is kept here, to be read
        self._applying: Node | None = None
        self._slice_ends = 0.0
        self.commits = 0
        self.commit_seconds = 0.0
        self.last_commit_seconds = 0.0

    @property
    def dirty_bytes(self) -> int:
        """Memory that holds what is not durable."""
        return self._held_bytes

    def overlays(self, node: Node) -> list[Overlay]:
        """What has not reached a node's tables for certain, newest first."""
        found = [self._open.overlays[node]] if node in self._open.overlays else []
        if self._sealed:
            found += [sealed.overlays[node] for sealed in reversed(self._sealed) if node in sealed.overlays]
        if node in self._aside:
            found.append(self._aside[node])
        return found

    def admit(self, node: Node, start: int, stop: int, data_blocks: int) -> Overlay | None:
        """Find room, in memory and in the container, for a change of blocks.

        Args:
            node: the volume.
            start: first block.
            stop: block after the last.
            data_blocks: how many of them are to be written; if not all, the others are to be zeroed.

        Returns:
            Where to put it; None if it has to wait for a round, which has begun.

        Raises:
            NoSpace: the container has no room, and no round will change that.
            SnapctlError: as `Room.promise`.
        """
        if self._failure is not None:
            raise self._failure
        if node in self._spoiled:
            raise self._spoiled[node]
        held = max(1, data_blocks) * self._container.block_size
        if self._held_bytes and self._held_bytes + held > self.most_bytes:
            self._wait()
            return None
        try:
            has_heir = bool(self._sealed) or node.newest_snapshot is not None
            self._room.promise(self._open, node, start, stop, data_blocks=data_blocks, has_heir=has_heir)
        except NoSpace:
            if not self._is_dirty:
                raise
            self._wait()
            return None
        overlay = self._open.overlays.get(node)
        if overlay is None:
            overlay = self._open.overlays[node] = Overlay()
            self._start_timer()
        self._open.held_bytes += held
        self._held_bytes += held
        if self._held_bytes * 2 > self.most_bytes:
            self._want_round()
        return overlay

    def _wait(self) -> None:
        """Begin a round, for somebody who needs room; raises what kept the last one from making any."""
        if self._stuck is not None:
            raise self._stuck
        self._want_round()

    async def until_room(self) -> None:
        """Return after the next round, or at once if the cache is empty."""
        if self._is_dirty and self._failure is None:
            self._want_round()
            waiter = asyncio.get_running_loop().create_future()
            self._room_waiters.append(waiter)
            await waiter

    async def flush(self) -> None:
        """Return when all that was acknowledged is durable; see `LiveContainer.flush`."""
        if self._failure is not None:
            raise self._failure
        if self._open.is_dirty:
            generation = self._open
        elif self._sealed:
            generation = self._sealed[-1]
        else:
            return
        self._want_round()
        await generation.until_durable()

    async def do(self, operation: Operation[T]) -> T:
        """Seal what was acknowledged, do an operation after it, and return its result when it is durable."""
        if self._failure is not None:
            raise self._failure
        self._open.operation = operation
        self._seal()
        self._want_round()
        return await operation.done

    def look_for_room(self) -> None:
        """Take note that room may have come free otherwise than by a round."""
        if not self._sealed:  # else a round is under way or to come, which looks when it is done
            self._room.look_again()

    async def close(self) -> None:
        """End the rounds after the one in flight; what is not durable is lost, so flush before. Who waits is told."""
        closed = SnapctlError(f"{self._container.path} has been closed")
        self._failure = self._failure or closed
        self._stop_timer()
        try:
            if self._rounds is not None:
                await asyncio.wait([self._rounds])  # it is not to be stopped halfway
        finally:
            # Whoever does not wait for the round, waits for the disk: nobody else may have the file before.
            self._disk.shutdown()
            self._tell_all(closed)

    @property
    def _is_dirty(self) -> bool:
        return self._open.is_dirty or bool(self._sealed)

    def _seal(self) -> None:
        self._sealed.append(self._open)
        self._open = Generation()
        self._stop_timer()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._most_seconds, self._want_round)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _want_round(self) -> None:
        """Have a round soon, or another one after that in flight."""
        self._stop_timer()
        self._wants_round = True
        if self._rounds is None:
            self._rounds = asyncio.get_running_loop().create_task(self._run(), name="commits")

    async def _run(self) -> None:
        try:
            while self._wants_round:
                self._wants_round = False
                if self._open.overlays:
                    self._seal()
                goes_on = True
                while goes_on:
                    goes_on = bool(self._sealed) and self._failure is None and await self._round()
                    self._tell_of_room()
        finally:
            self._rounds = None

    def _tell_of_room(self) -> None:
        """Have those who wait for room look again."""
        waiters, self._room_waiters = self._room_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _tell_all(self, error: Exception) -> None:
        """Tell everybody who waits for anything that nothing more will be done."""
        for generation in (*self._sealed, self._open):
            generation.fail(error)
        self._tell_of_room()

    async def _round(self) -> bool:
        """Make generations durable up to the first operation, which is done; returns whether to go on."""
        batch: list[Generation] = []
        operation: Operation[Any] | None = None
        for generation in self._sealed:
            batch.append(generation)
            if generation.operation is not None and generation.operation.is_waited_for:
                operation = generation.operation
                break
        try:
            await self._commit_or_make_room(batch, operation)
        except Exception as error:  # noqa: BLE001 whoever waits is told, whatever it is
            if not (isinstance(error, NoSpace | Corruption) and operation is not None and operation.gives_room):
                return self._failed(batch, error)
            self._applying = None
            try:
                self._abort()
                await self._commit([], operation)
            except Exception as second_error:  # noqa: BLE001 likewise
                return self._failed(batch, second_error)
            self._room.look_again()
            operation.succeed()  # and the writes get another try
            return True
        for generation in batch:
            self._sealed.popleft()
            self._room.release(generation)
            self._held_bytes -= generation.held_bytes
            generation.settle()
        self._stuck = None
        self._room.look_again()
        if operation is not None:
            for generation in (*self._sealed, self._open):
                generation.cut()
            operation.succeed()
        return True

    async def _commit_or_make_room(self, batch: list[Generation], operation: Operation[Any] | None) -> None:
        """Commit; if the capacity has no room, once more, without what only the commit before the last stands for."""
        try:
            await self._commit(batch, operation)
        except NoSpace:
            self._abort()
            if self._container.capacity_bytes is None or not self._container.space.holds_back:
                raise
            self._container.note_commit()
            await self._seal_and_wait()
            await self._commit(batch, operation)

    async def _commit(self, batch: list[Generation], operation: Operation[Any] | None) -> None:
        container = self._container
        for generation in batch:
            await self._apply(generation)
        is_change = operation is not None and not operation.is_look and operation.is_waited_for
        if operation is not None and is_change and not (operation.perform(container) and self._fits(batch, operation)):
            self._abort()  # it may have come halfway
            await self._commit(batch, None)
            return
        await self._seal_and_wait()
        if operation is not None and operation.is_look and operation.is_waited_for:
            operation.perform(container)
            container.abort()

    def _fits(self, batch: list[Generation], operation: Operation[Any]) -> bool:
        """Whether an operation leaves what was promised to the writes behind it; else whoever waits for it is told."""
        if operation.gives_room:
            return True
        try:
            self._container.preview_used_bytes()
            if self._container.space.room < self._room.promised_beyond(batch):
                raise self._container.space.full()
        except NoSpace as error:
            operation.fail(error)
            return False
        return True

    async def _seal_and_wait(self) -> None:
        began = time.monotonic()
        if again := self._container.seal():
            while again:
                await asyncio.get_running_loop().run_in_executor(self._disk, self._container.make_durable)
                again = self._container.conclude()
            self.commits += 1
            self.last_commit_seconds = time.monotonic() - began
            self.commit_seconds += self.last_commit_seconds

    def _failed(self, batch: list[Generation], error: Exception) -> bool:
        """Tell whoever waits; returns whether other operations can still be done."""
        try:
            self._abort()
        except SnapctlError as fatal:
            self._failure = fatal
            self._tell_all(error)
            return False
        node, self._applying = self._applying, None
        if isinstance(error, Corruption) and node is not None:
            self._set_aside(node, error)
            for generation in batch:
                generation.fail_flushes(error)
            return True  # the others' writes can do without
        for generation in batch:
            generation.fail(error)
        self._stuck = error
        self._start_timer()
        return any(sealed.is_waited_for for sealed in self._sealed)

    def _set_aside(self, node: Node, error: Corruption) -> None:
        """Give up making durable what was written to a volume whose tables are damaged; it takes no more writes."""
        self._spoiled[node] = error
        for generation in (*self._sealed, self._open):
            overlay = generation.overlays.pop(node, None)
            if overlay is not None:
                self._aside.setdefault(node, Overlay()).cover(overlay)

    def _abort(self) -> None:
        self._container.abort()
        self._room.look_again()

    async def _apply(self, generation: Generation) -> None:
        """Bring writes to the tables, with the zeros, which are older than the blocks over them, first."""
        size = self._container.block_size
        step = _ZEROED_LEAVES * self._container.geometry.fanout
        for node, overlay in generation.overlays.items():
            if node.is_gone:
                continue
            self._applying = node
            end_bytes = node.size_bytes  # it may have become smaller since
            for start, stop in overlay.zeros:
                for first in range(start, stop, step):
                    begin, end = first * size, min(min(stop, first + step) * size, end_bytes)
                    if begin < end:
                        node.trim(begin, end - begin)
                        await self._breathe()
            for blocks in _by_leaf(overlay.blocks, self._container.geometry.fanout, -(-end_bytes // size)):
                last = end_bytes // size
                if end_bytes % size and last in blocks:
                    blocks[last] = bytes(blocks[last])[: end_bytes % size].ljust(size, b"\0")
                node.write_blocks(blocks)
                await self._breathe()
        self._applying = None

    async def _breathe(self) -> None:
        """Let requests have their turn, if it is due."""
        if time.monotonic() > self._slice_ends:
            await asyncio.sleep(0)
            self._slice_ends = time.monotonic() + _SLICE_SECONDS


def _by_leaf(blocks: dict[int, Buffer], fanout: int, end: int) -> Iterator[dict[int, Buffer]]:
    """The blocks before `end`, those under one leaf together."""
    numbers = sorted(number for number in blocks if number < end)
    for _, under_one in groupby(numbers, lambda number: number // fanout):
        yield {number: blocks[number] for number in under_one}
