"""Bugs planted in the live container on purpose, as `tests.support.bugs` plants others. Only tests switch them on."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from snapctl.engine.node import Node
from snapctl.engine.runs import Run
from snapctl.services.live.cache import Cache
from snapctl.services.live.generation import Generation
from snapctl.services.live.overlay import Overlay
from snapctl.storage.pins import Pins
from tests.support.bugs import replaced


def a_flush_returns_early() -> AbstractContextManager[None]:
    """A flush returns when a round has begun."""

    def at_once(_generation: Generation) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    return replaced(Generation, "durable", at_once)


def a_snapshot_takes_the_next_generation_in() -> AbstractContextManager[None]:
    """What is written after a change was asked for is applied before it."""
    apply = Cache._apply

    async def greedy(cache: Cache, generation: Generation) -> None:
        await apply(cache, generation)
        if generation.operation is not None:
            with suppress(RuntimeError):  # somebody wrote meanwhile
                await apply(cache, cache._open)

    return replaced(Cache, "_apply", greedy)


def a_change_shares_the_transaction_of_the_writes_before_it() -> AbstractContextManager[None]:
    """A change that fails halfway is taken back, and the writes before it with it."""
    commit = Cache._commit

    async def later(cache: Cache) -> None:
        if not (cache._applied and cache._applied[-1].wanted):
            await commit(cache)
        else:
            cache._applied.clear()

    return replaced(Cache, "_commit", later)


def a_commit_for_each_volume() -> AbstractContextManager[None]:
    """The volumes become durable one after the other."""
    apply = Cache._apply

    async def one_by_one(cache: Cache, generation: Generation) -> None:
        whole = generation.overlays
        for node, overlay in reversed(whole.items()):
            generation.overlays = {node: overlay}
            await apply(cache, generation)
            cache._container.commit()
        generation.overlays = whole

    return replaced(Cache, "_apply", one_by_one)


def zeros_over_what_was_written_after() -> AbstractContextManager[None]:
    """The zeros of a generation come to the tables after its blocks."""

    @contextmanager
    def both() -> Iterator[None]:
        apply = Cache._apply

        async def in_turn(cache: Cache, generation: Generation) -> None:
            whole = generation.overlays
            for wanted in ("leaves", "zeros"):
                generation.overlays = {node: _part(overlay, wanted) for node, overlay in whole.items()}
                await apply(cache, generation)
            generation.overlays = whole

        with replaced(Cache, "_apply", in_turn):
            yield

    return both()


def _part(overlay: Overlay, wanted: str) -> Overlay:
    part = Overlay(overlay._fanout)
    setattr(part, wanted, getattr(overlay, wanted))
    return part


def a_pin_that_keeps_nothing() -> AbstractContextManager[None]:
    """What a view stands for is reused as if nobody read it."""

    def nothing(_pins: Pins, _index: int) -> int:
        return 0

    return replaced(Pins, "bits", nothing)


def a_waiter_is_forgotten() -> AbstractContextManager[None]:
    """Whoever waits for room is not told."""

    def nobody(_cache: Cache) -> Any:
        return None

    return replaced(Cache, "_tell_of_room", nobody)


def a_write_goes_past_a_change() -> AbstractContextManager[None]:
    """What comes many blocks at a time is in the tables at once, though a change that was asked for before waits."""
    write_through = Cache.write_through

    def hasty(cache: Cache, node: Node, runs: list[Run], leaves: set[int], blocks: int) -> bool:
        waiting = [(sealed, sealed.operation) for sealed in cache._sealed]
        for sealed, _ in waiting:
            sealed.operation = None
        try:
            return write_through(cache, node, runs, leaves, blocks)
        finally:
            for sealed, operation in waiting:
                sealed.operation = operation

    return replaced(Cache, "write_through", hasty)


def a_write_goes_past_what_waits_in_memory() -> AbstractContextManager[None]:
    """It may become durable before what was acknowledged earlier."""
    write_through = Cache.write_through

    def hasty(cache: Cache, node: Node, runs: list[Run], leaves: set[int], blocks: int) -> bool:
        sealed = cache._sealed
        if cache._applied and not any(each.operation for each in sealed):
            cache._sealed = deque()
        try:
            return write_through(cache, node, runs, leaves, blocks)
        finally:
            cache._sealed = sealed

    return replaced(Cache, "write_through", hasty)


def only_the_first_logged_flush_is_applied() -> AbstractContextManager[None]:
    """Of what the log has, the next commit takes in no more than the first record."""

    def forgetful(overlay: Overlay, older: Overlay) -> None:
        if not older:
            move_to(overlay, older)
        overlay.leaves, overlay.zeros = {}, []

    move_to = Overlay.move_to
    return replaced(Overlay, "move_to", forgetful)


LIVE_BUGS = {
    bug.__name__: bug
    for bug in (
        a_flush_returns_early,
        a_snapshot_takes_the_next_generation_in,
        a_change_shares_the_transaction_of_the_writes_before_it,
        a_commit_for_each_volume,
        zeros_over_what_was_written_after,
        a_pin_that_keeps_nothing,
        a_waiter_is_forgotten,
        a_write_goes_past_a_change,
        a_write_goes_past_what_waits_in_memory,
        only_the_first_logged_flush_is_applied,
    )
}
