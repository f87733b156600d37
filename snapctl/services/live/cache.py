"""The write-back cache of a live container: how what was acknowledged reaches the tables, and becomes durable.

Writes gather in the open generation. A round seals it and applies it to the tables, in address order and with pages of
its own; meanwhile writes enter the next one, and reads see all. Applied data needs no memory any more. It lies in the
open transaction, which is committed when somebody waits for that (a flush, a change of the tree of nodes), when it is
old or when it is large. The loop waits for nothing but the disk, and that on a thread of its own: a commit in flight
stops no read, and a flush that comes too late for it joins the next.

So the open transaction is never given up while acknowledged data is in it: a change, which may fail halfway and has to
be taken back then, gets a transaction of its own. What finds no room stays, and is tried again with the next flush.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import Flag, auto
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from snapctl.engine.recovery import Change, apply
from snapctl.errors import Corruption, NoSpace, SnapctlError
from snapctl.services.live.generation import Generation, Operation, Record, tell
from snapctl.services.live.overlay import Overlay
from snapctl.services.live.room import Room

if TYPE_CHECKING:
    from snapctl.engine.container import Container
    from snapctl.engine.node import Node
    from snapctl.engine.runs import Run

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

_SLICE_SECONDS = 0.002
"""How long requests may have to wait while a generation is being applied."""

_CREDIT_BLOCKS = 64
"""Blocks that a volume gets room for ahead, so that not every small write has to ask."""

_MOST_LOGGED_BYTES = 256 << 10
"""More than that is not written twice, first to the log, to save a sync."""

_MOST_UNCOMMITTED_BYTES = 1 << 30
"""Fresh pages in the open transaction before it is committed; what is written again in place counts once."""

_MOST_KEPT_BYTES = 1 << 30
"""Of freed room twice what a transaction took is kept for those to come, lest the file system take it and give it out
again each time; but no more than this."""

_SHORT_SYNC_SECONDS = 0.002
"""A disk that syncs a record in less is waited for where requests are, which then wait for no longer than that."""


class _Wish(Flag):
    """What a round is wanted for."""

    NONE = 0
    APPLY = auto()
    """Memory, or an operation."""
    FLUSH = auto()
    """Everything acknowledged is to be durable, if only in the log."""
    COMMIT = auto()


class Cache:
    """What was acknowledged and is not durable yet.

    Attributes:
        held_bytes: data in memory.
        commits: how many were made.
        records: how many flushes were answered from the log instead.
        commit_seconds: how long the commits took, from the seal to the end.
        last_commit_seconds: how long the last one took.
    """

    def __init__(self, container: Container, most_bytes: int, most_seconds: float) -> None:
        """Begin with nothing.

        Args:
            container: open, between two transactions.
            most_bytes: acknowledged data to hold; a round begins at half of it.
            most_seconds: how old it may become before it is made durable without being asked.
        """
        self._container = container
        container.space.lays_together = True
        self._most_bytes = most_bytes
        self._most_seconds = most_seconds
        self._room = Room(container)
        self._open = Generation()
        self._record: Record | None = None  # which is being made durable
        self._sealed: deque[Generation] = deque()  # the oldest is being applied, or next
        self._applied: list[Generation] = []  # in the open transaction
        self._finishing: Generation | None = None  # durable, while the operation at its end is being done
        self.held_bytes = 0
        self._disk = ThreadPoolExecutor(1, "commit")
        self._rounds: asyncio.Future[None] | None = None
        self._wishes = _Wish.NONE
        self._wants_log = False
        self._room_waiters: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._sync_seconds = inf
        self._failure: Exception | None = None  # after which nothing more can be done
        self._stuck: Exception | None = None  # because of which the last round did not succeed
        self._spoiled: dict[Node, Corruption] = {}  # volumes whose tables cannot take what was acknowledged
        self._aside: dict[Node, Overlay] = {}  # which is kept here, to be read
        self._slice_ends = 0.0
        self.commits = 0
        self.records = 0
        self.commit_seconds = 0.0
        self.last_commit_seconds = 0.0

    @property
    def dirty_bytes(self) -> int:
        """What is not durable: in memory, and in pages of the open transaction."""
        size = self._container.block_size
        in_memory = sum([generation.written_bytes(size) for generation in (self._open, *self._sealed)])
        return in_memory + self._fresh_bytes

    @property
    def most_dirty_bytes(self) -> int:
        """How much of that it takes."""
        return self._most_bytes + _MOST_UNCOMMITTED_BYTES

    @property
    def _fresh_bytes(self) -> int:
        return self._container.space.fresh_units * self._container.geometry.unit

    def overlays(self, node: Node) -> list[Overlay]:
        """What has not reached a node's tables for certain, newest first."""
        found = [self._aside[node]] if node in self._aside else []
        for generation in (self._open, *reversed(self._sealed)):
            found += [part[node] for part in (generation.overlays, generation.logged) if node in part]
        return found

    def open_overlay(self, node: Node) -> Overlay | None:
        """Where a node's writes go, if it has been written to since the last seal."""
        return self._open.overlays.get(node)

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
        self._check_takes(node)
        size = self._container.block_size
        is_data = data_blocks == stop - start
        blocks = max(1, data_blocks)
        room_blocks = (self._most_bytes - self.held_bytes) // size
        # To promise room takes tables into memory, and only what brings writes to them lets go of some.
        has_many_tables = self._container.pages.resident_tables >= self._container.most_resident_tables
        if self.held_bytes and (blocks > room_blocks or has_many_tables):
            self._wait(_Wish.APPLY)
            return None
        overlay = self._open.overlays.get(node)
        has = overlay.credit_blocks if overlay is not None else 0
        credit = max(0, min(_CREDIT_BLOCKS - has, room_blocks // 8 - blocks)) if is_data else 0
        if not self._promise(self._open, node, start, stop, data_blocks, credit):
            credit = 0
            if not self._promise(self._open, node, start, stop, data_blocks):
                self._wait(_Wish.COMMIT)
                return None
        if overlay is None:
            overlay = self._open.overlays[node] = Overlay(self._container.geometry.fanout)
            self._start_timer()
        first, last = start // self._container.geometry.fanout, (stop - 1) // self._container.geometry.fanout
        overlay.promised.update(range(first, last + 1) if is_data else (first, last))
        held = (blocks + credit) * size
        overlay.credit_blocks += credit
        self._open.held_bytes += held
        self.held_bytes += held
        if self.held_bytes * 2 > self._most_bytes:
            self._want(_Wish.APPLY)
        return overlay

    def write_through(self, node: Node, runs: list[Run], leaves: set[int], blocks: int) -> bool:
        """Write whole blocks to the open transaction at once, unless that would cost a flush to come its record.

        Args:
            node: the volume.
            runs: this and what follows as in `Runs`.
            leaves: likewise.
            blocks: likewise.

        Returns:
            False if they have to go through memory, or wait; nothing was written.

        Raises:
            SnapctlError: as `admit` and `Node.write`; nothing was written.
        """
        if self._container.is_sealed or self._record is not None:
            return False
        if self._sealed and (
            # The transaction may still be given up, for lack of room; or become durable before what is in memory.
            not self._applied or self._open.overlays or any(sealed.operation for sealed in self._sealed)
        ):
            return False
        size = self._container.block_size
        if not self._applied and self._open.written_bytes(size) + blocks * size <= _MOST_LOGGED_BYTES:
            return False
        self._check_takes(node)
        overlays, spans = self.overlays(node), list[tuple[int, int]]()
        newest = self._open.overlays.get(node)
        if overlays:
            spans = [(first, first + len(data) // size) for first, data in runs]
        for overlay in overlays:
            if overlay is not newest and any(overlay.touches(*span) for span in spans):
                return False  # which comes to the tables later
        try:
            self._room.take(node, leaves, blocks)
            node.write_runs(runs)
        except SnapctlError as error:
            self._room.look_again()
            if not self._applied:
                self._room.committed()  # as nothing else is in the open transaction, nothing is promised to it
            if isinstance(error, NoSpace):
                return False  # and is told to wait, or why not, where it turns to next
            raise
        self._room.taken()
        self._applied = self._applied or [Generation()]
        if newest:
            for span in spans:
                newest.forget(*span)
        if self._open.is_dirty:
            self._want(_Wish.APPLY)  # nothing there needs to wait for a record any more
        self._start_timer()
        self._bound_transaction()
        return True

    def _check_takes(self, node: Node) -> None:
        if self._failure is not None:
            raise _afresh(self._failure)
        if node in self._spoiled:
            raise _afresh(self._spoiled[node])

    def _promise(
        self, generation: Generation, node: Node, start: int, stop: int, data_blocks: int, credit_blocks: int = 0
    ) -> bool:
        """Promise room; False if there may be some after a commit."""
        try:
            has_heir = node.newest_snapshot is not None or any(sealed.operation for sealed in self._sealed)
            self._room.promise(
                generation, node, start, stop, data_blocks=data_blocks, credit_blocks=credit_blocks, has_heir=has_heir
            )
        except NoSpace:
            if not (credit_blocks or self._is_dirty):
                raise
            return False
        return True

    def _wait(self, wish: _Wish) -> None:
        """Begin a round, for somebody who needs room; raises what kept the last one from making any."""
        if self._stuck is not None:
            raise _afresh(self._stuck)
        self._want(wish)

    async def until_room(self) -> None:
        """Return after the next round, or at once if the cache is empty."""
        if self._is_dirty and self._failure is None:
            self._want(_Wish.APPLY if self.held_bytes else _Wish.COMMIT)
            waiter = asyncio.get_running_loop().create_future()
            self._room_waiters.append(waiter)
            await waiter

    def flushed(self) -> asyncio.Future[None]:
        """What is done when all that was acknowledged is durable; see `LiveContainer.flush`."""
        nothing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._failure is not None:
            nothing.set_exception(_afresh(self._failure))
            return nothing
        if self._open.is_dirty:
            generation = self._open
        elif self._sealed:
            generation = self._sealed[-1]
        elif self._applied:
            generation = self._applied[-1]
        elif self._finishing is not None:
            generation = self._finishing
        elif self._record is not None:
            self._record.waiters.append(nothing)
            return nothing
        else:
            nothing.set_result(None)
            return nothing
        durable = generation.durable()
        self._want(_Wish.FLUSH)
        return durable

    def flush_ahead(self) -> bool:
        """Make what was acknowledged durable before anybody asks, if that takes a record and hardly any time.

        Returns:
            Whether that was done.
        """
        is_idle = self._rounds is None and self._wishes is _Wish.NONE and self._failure is None
        if is_idle and self._open.is_dirty and self._sync_seconds < _SHORT_SYNC_SECONDS:
            return self._log_at_once()
        return False

    async def do(self, operation: Operation[T]) -> T:
        """Seal what was acknowledged, do an operation after it, and return its result when it is durable."""
        if self._failure is not None:
            raise _afresh(self._failure)
        self._open.operation = operation
        self._seal()
        self._want(_Wish.APPLY)
        return await operation.done

    async def retire(self) -> None:
        """Make everything durable, and do without the log from now on if there is room; raises as `flushed`."""
        await self.flushed()
        self._wants_log = False
        if self._container.writable:
            with suppress(NoSpace):  # what was flushed is in the log then, for the next opening
                await self.do(Operation(lambda container: container.drop_log(), gives_room=True))

    def look_for_room(self) -> None:
        """Take note that room may have come free otherwise than by a round."""
        if self._rounds is None:  # else it looks when it is done
            self._room.look_again()

    async def close(self) -> None:
        """End the rounds after the one in flight; what is not durable is lost, so flush before. Who waits is told."""
        closed = SnapctlError(f"{self._container.path} has been closed")
        self._failure = self._failure or closed
        self._revoke(self._open)
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
        return self._open.is_dirty or bool(self._open.logged or self._sealed or self._applied)

    def _seal(self) -> None:
        self._revoke(self._open)
        self._sealed.append(self._open)
        self._open = Generation()

    def _revoke(self, generation: Generation) -> None:
        """Take back the room that was given ahead; every write has to ask again."""
        for overlay in generation.overlays.values():
            self._room.give_back(generation, overlay.credit_blocks)
            held = overlay.credit_blocks * self._container.block_size
            overlay.credit_blocks = 0
            generation.held_bytes -= held
            self.held_bytes -= held

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._most_seconds, self._grow_old)

    def _grow_old(self) -> None:
        self._timer = None
        self._want(_Wish.COMMIT)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _bound_transaction(self) -> None:
        if self._fresh_bytes > _MOST_UNCOMMITTED_BYTES:
            self._want(_Wish.COMMIT)

    def _want(self, wish: _Wish) -> None:
        """Have a round soon, or another one after that in flight; a flush that takes but a record begins at once."""
        self._wishes |= wish
        if self._rounds is None and not (self._wishes is _Wish.FLUSH and self._log_at_once()):
            self._rounds = asyncio.get_running_loop().create_task(self._run(), name="commits")

    def _log_at_once(self) -> bool:
        """Flush by a record, without a task, which would cost as much as all else.

        On a disk that hardly takes any time, not even a thread waits for it.

        Returns:
            Whether it is done or under way; False if only a commit will do.
        """
        try:
            if not self._append():
                return False
            self._wishes = _Wish.NONE
            if self._sync_seconds < _SHORT_SYNC_SECONDS:
                self._sync_log()
                self._take_note_of_record()
            else:
                self._rounds = asyncio.get_running_loop().run_in_executor(self._disk, self._sync_log)
                self._rounds.add_done_callback(self._record_synced)
        except Exception as error:  # noqa: BLE001 whoever waits is told, whatever it is
            self._fail(error)
        return True

    def _record_synced(self, synced: asyncio.Future[None]) -> None:
        """Take note that a thread has waited for the disk."""
        self._rounds = None
        try:
            synced.result()
        except Exception as error:  # noqa: BLE001 as above
            self._fail(error)
            return
        self._take_note_of_record()
        if self._wishes is not _Wish.NONE and self._failure is None:
            self._want(_Wish.NONE)

    def _sync_log(self) -> None:
        """Wait for the disk, on whatever thread, and remember how long that takes of late."""
        began = time.monotonic()
        self._container.sync_log()
        took = time.monotonic() - began
        self._sync_seconds = took if self._sync_seconds == inf else 0.75 * self._sync_seconds + 0.25 * took

    async def _run(self) -> None:
        try:
            while self._wishes is not _Wish.NONE and self._failure is None:
                wishes, self._wishes = self._wishes, _Wish.NONE
                if wishes is _Wish.FLUSH and self._append():
                    await asyncio.get_running_loop().run_in_executor(self._disk, self._sync_log)
                    self._take_note_of_record()
                    continue
                if self._open.overlays or self._open.logged:
                    self._seal()
                while await self._round(commits=wishes is not _Wish.APPLY):
                    pass
                self._tell_of_room()
            if self._is_dirty and self._failure is None:
                self._start_timer()  # which a commit has stopped, though something came too late for that
        except Exception as error:  # noqa: BLE001 whoever waits is told, whatever it is
            self._fail(error)
        finally:
            self._rounds = None

    def _append(self) -> bool:
        """Write what is not logged of the open generation to the log; if that returns False only a commit will do."""
        generation, size = self._open, self._container.block_size
        if self._sealed or self._applied or generation.data_blocks * size > _MOST_LOGGED_BYTES:
            return False
        if generation.zeroed_blocks * size > _MOST_LOGGED_BYTES:
            return False  # the room that they give back is wanted
        self._wants_log = True
        changes = [
            Change(node, overlay.zeros, overlay.leaves)
            for node, overlay in generation.overlays.items()
            if not node.is_gone
        ]
        try:
            if not self._container.log(changes):
                return False
        except NoSpace:
            return False
        self._record = generation.log(size)
        return True

    def _take_note_of_record(self) -> None:
        """Take note that the last record is durable."""
        record, self._record = self._record, None
        self.records += 1
        if record is not None:
            record.settle()
        self._start_timer()

    def _tell_of_room(self) -> None:
        """Have those who wait for room look again."""
        waiters, self._room_waiters = self._room_waiters, []
        tell(waiters)

    def _tell_all(self, error: Exception) -> None:
        """Tell everybody who waits for anything that nothing more will be done."""
        if self._record is not None:
            self._record.fail(error)
        finishing = () if self._finishing is None else (self._finishing,)
        for generation in (*finishing, *self._applied, *self._sealed, self._open):
            generation.fail(error)
        self._tell_of_room()

    def _fail(self, error: Exception) -> None:
        """Give up: the disk failed, or what was acknowledged cannot be kept apart from what failed."""
        try:
            self._container.check_writable()
        except SnapctlError as fatal:
            self._failure = self._failure or fatal
        self._failure = self._failure or error
        self._revoke(self._open)
        self._tell_all(error)

    async def _round(self, *, commits: bool) -> bool:
        """Apply generations and do what they end with; returns whether to try again."""
        try:
            while self._sealed:
                generation = self._sealed[0]
                await self._apply_or_make_room(generation)
                self._take_over(self._sealed.popleft())
                if generation.wanted is not None:
                    await self._commit()  # so that what the operation leaves halfway can be taken back
                    await self._operate_after(generation)
            if commits:
                await self._commit()
        except NoSpace as error:
            return await self._found_no_room(error)
        self._stuck = None
        return False

    def _take_over(self, generation: Generation) -> None:
        """Take note that a generation is in the tables and needs no memory any more."""
        self._room.applied(generation)
        self.held_bytes -= generation.held_bytes
        generation.overlays.clear()
        generation.logged.clear()
        self._applied.append(generation)
        self._tell_of_room()
        self._bound_transaction()

    async def _found_no_room(self, error: NoSpace) -> bool:
        """Do what gives room before the writes that found none, or tell whoever waits; returns whether to go on."""
        if self._applied:
            self._room.look_again()
        else:
            self._take_back()
        behind = (*self._applied, *self._sealed)
        operation = next((each.wanted for each in behind if each.wanted is not None), None)
        if operation is not None and operation.gives_room:
            self._container.pages.reserve.may_be_used = True  # for what has been applied, so that a delete comes to be
            try:
                await self._commit()
            except NoSpace as second_error:
                operation.fail(second_error)
            else:
                await self._operate(operation)
            return True
        for generation in behind:
            is_last = generation.wanted is not None
            generation.fail(error)
            if is_last:
                break
        self._stuck = error
        self._start_timer()
        return any(sealed.is_waited_for for sealed in self._sealed)

    async def _operate_after(self, generation: Generation) -> None:
        """Do the operation that follows a generation, which is durable as far as it was written."""
        if generation.wanted is not None:
            self._finishing = generation
            await self._operate(generation.wanted)
            self._finishing = None
        generation.settle()

    async def _operate(self, operation: Operation[Any]) -> None:
        """Do an operation and make it durable; what it left halfway is taken back, and whoever waits for it is told."""
        if not (operation.perform(self._container) and (operation.is_look or self._fits(operation))):
            self._take_back()
            return
        if operation.is_look:
            self._take_back()
        else:
            try:
                await self._commit()
            except NoSpace as error:
                operation.fail(error)
                self._take_back()
                return
            self._revoke(self._open)
            for generation in (*self._sealed, self._open):
                generation.cut()
        operation.succeed()

    def _fits(self, operation: Operation[Any]) -> bool:
        """Whether an operation leaves what was promised to the writes behind it; else whoever waits for it is told."""
        if operation.gives_room:
            return True
        try:
            self._container.preview_used_bytes()
            if self._container.space.room < self._room.promised_units:
                raise self._container.space.full()
        except NoSpace as error:
            operation.fail(error)
            return False
        return True

    def _take_back(self) -> None:
        """Give up the open transaction, in which there is nothing that was acknowledged and is not in memory."""
        self._container.abort()
        self._room.look_again()

    async def _apply_or_make_room(self, generation: Generation) -> None:
        """Apply; if the capacity has no room, once more, without what only the commit before the last stands for."""
        try:
            await self._apply(generation)
        except NoSpace:
            if not self._applied:
                self._take_back()  # what came halfway; it is all in memory
            if self._container.capacity_bytes is None or not self._container.space.holds_back:
                raise
            self._container.note_commit()
            await self._commit()
            await self._apply(generation)

    async def _commit(self) -> None:
        """Make the open transaction durable."""
        began = time.monotonic()
        self._stop_timer()
        self._container.kept_bytes = min(_MOST_KEPT_BYTES, 2 * self._fresh_bytes)
        if any(sealed.logged for sealed in self._sealed):
            self._container.keep_log()  # what found no room must not be lost by what gives some
        if self._wants_log:
            self._container.make_log(self._room.promised_units * self._container.geometry.unit)
        if again := self._container.seal():
            while again:
                await asyncio.get_running_loop().run_in_executor(self._disk, self._container.make_durable)
                again = self._container.conclude()
            self.commits += 1
            self.last_commit_seconds = time.monotonic() - began
            self.commit_seconds += self.last_commit_seconds
        self._room.committed()
        applied, self._applied = self._applied, []
        for generation in applied:
            if generation.wanted is None:  # else it is told when that is done
                generation.settle()

    async def _apply(self, generation: Generation) -> None:
        """Bring writes to the tables; a volume whose tables cannot take them does without."""
        for part in (generation.logged, generation.overlays):
            for node, overlay in list(part.items()):
                if node.is_gone:
                    continue
                try:
                    for _ in apply(Change(node, overlay.zeros, overlay.leaves)):
                        await self._breathe()
                except Corruption as error:
                    self._container.check_whole()
                    if part is generation.logged:
                        raise  # the next commit would empty the log of it: a repair knows what to do with it
                    self._set_aside(node, error)
                    generation.fail_flushes(error)

    def _set_aside(self, node: Node, error: Corruption) -> None:
        """Give up making durable what was written to a volume whose tables are damaged; it takes no more writes."""
        self._spoiled[node] = error
        for generation in (*self._sealed, self._open):
            overlay = generation.overlays.pop(node, None)
            if overlay:
                generation.fail_flushes(error)
                self._aside.setdefault(node, Overlay(self._container.geometry.fanout)).cover(overlay)

    async def _breathe(self) -> None:
        """Let requests have their turn, if it is due."""
        if time.monotonic() > self._slice_ends:
            await asyncio.sleep(0)
            self._slice_ends = time.monotonic() + _SLICE_SECONDS


def _afresh(error: E) -> E:
    """An error that is raised again and again, without the ways it took before, and all that was held there."""
    return error.with_traceback(None)
