"""What was acknowledged between two seals, and the change that follows it.

A part of it may be durable already, in the log; what comes after stands beside that.

A generation is open, then sealed (invariant 7): from then on nothing in it changes and writes enter the next one. It is
applied, from when on the tables have what it held, and at last durable, which is told to whoever waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from snapctl.services.live.overlay import Overlay

if TYPE_CHECKING:
    from snapctl.engine.container import Container
    from snapctl.engine.node import Node


T = TypeVar("T")


class Operation(Generic[T]):
    """A change of the tree of nodes, or a look at it, for which somebody waits.

    Attributes:
        run: does it; may be run again after a failure.
        is_look: leaves nothing changed; it is run when all before it is durable.
        gives_room: can be done before the writes that it follows, if those find no room.
        done: what comes of it.
    """

    def __init__(self, run: Callable[[Container], T], *, is_look: bool = False, gives_room: bool = False) -> None:
        self.run = run
        self.is_look = is_look
        self.gives_room = gives_room
        self.done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._results: list[T] = []

    @property
    def is_waited_for(self) -> bool:
        """Whether anybody still wants it done."""
        return not self.done.done()

    def perform(self, container: Container) -> bool:
        """Do it; returns whether it went well, else whoever waits is told."""
        try:
            self._results.append(self.run(container))
        except Exception as error:  # noqa: BLE001 it is up to whoever waits
            self.fail(error)
            return False
        return True

    def succeed(self) -> None:
        """Hand the result to whoever waits for it and has not given up."""
        if self.is_waited_for:
            self.done.set_result(self._results[-1])

    def fail(self, error: BaseException) -> None:
        """Hand an error to whoever waits."""
        if not self.done.done():
            self.done.set_exception(error)


class Generation:
    """Writes that become durable together.

    Attributes:
        overlays: what was written, by node; if there are records of it in the log, since the last one.
        logged: what was written before that, by node: durable, or about to be, as long as no commit empties the log.
        tables: the tables that the writes will change, as (node id, blocks below, position), with promised room.
        has_heir: whether room was promised for the same tables of a snapshot.
        bitmaps: how many bitmaps of the space map have promised room.
        held_bytes: memory that it takes.
        logged_bytes: how much of that is for what is durable in the log.
        promised_units: room that was promised for it.
        operation: what is done when the writes have been applied.
    """

    def __init__(self) -> None:
        self.overlays: dict[Node, Overlay] = {}
        self.logged: dict[Node, Overlay] = {}
        self.tables: set[tuple[int, int, int]] = set()
        self.bitmaps = 0
        self.has_heir = False
        self.held_bytes = 0
        self.logged_bytes = 0
        self.promised_units = 0
        self.operation: Operation[Any] | None = None
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def is_dirty(self) -> bool:
        """Whether anything is to be done to make it durable."""
        return self.operation is not None or any(self.overlays.values())

    @property
    def data_blocks(self) -> int:
        """How many blocks were written that are not logged."""
        return sum(len(leaf) for overlay in self.overlays.values() for leaf in overlay.leaves.values())

    def written_bytes(self, block_size: int) -> int:
        """How much was written that is not logged, at most; what it holds is also for what may be written."""
        credit_blocks = sum([overlay.credit_blocks for overlay in self.overlays.values()])
        return self.held_bytes - self.logged_bytes - block_size * credit_blocks

    @property
    def zeroed_blocks(self) -> int:
        """How many blocks were made zeros that are not logged."""
        return sum(stop - start for overlay in self.overlays.values() for start, stop in overlay.zeros)

    @property
    def wanted(self) -> Operation[Any] | None:
        """The operation, if anybody waits for it."""
        return self.operation if self.operation is not None and self.operation.is_waited_for else None

    @property
    def is_waited_for(self) -> bool:
        """Whether anybody wants to know how its commit ends."""
        return bool(self._waiters) or self.wanted is not None

    def durable(self) -> asyncio.Future[None]:
        """What is done when it is; raises what its commit raises, after which one can wait for the next try."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    def cut(self) -> None:
        """Drop what lies beyond the end of volumes that have become smaller: they may grow over it again."""
        for node, overlay in (*self.logged.items(), *self.overlays.items()):
            if not node.is_gone:
                overlay.cut(node.size_bytes, node.container.block_size)

    def log(self, block_size: int) -> Record:
        """Take note that a record of it was written."""
        length = self.written_bytes(block_size)
        for node, overlay in self.overlays.items():
            if overlay:
                overlay.move_to(self.logged.setdefault(node, Overlay(node.container.geometry.fanout)))
        return Record(self, length, self._taken())

    def settle(self) -> None:
        """Tell those who wait for its writes that they are durable."""
        tell(self._taken())

    def fail(self, error: Exception) -> None:
        """Tell those who wait, for its operation as well, that the commit failed."""
        self.fail_flushes(error)
        if self.operation is not None:
            self.operation.fail(error)

    def fail_flushes(self, error: Exception) -> None:
        """Tell those who wait for its writes that not all of them are durable."""
        tell(self._taken(), error)

    def _taken(self) -> list[asyncio.Future[None]]:
        """Those who wait, if they have not given up; from here on nobody does."""
        waiters, self._waiters = self._waiters, []
        return waiters


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the log on its way to the disk.

    Attributes:
        generation: what it is of.
        length_bytes: data in it, at most.
        waiters: those who wait for it.
    """

    generation: Generation
    length_bytes: int
    waiters: list[asyncio.Future[None]]

    def settle(self) -> None:
        """Take note that it is durable, and tell those who wait."""
        self.generation.logged_bytes += self.length_bytes
        tell(self.waiters)

    def fail(self, error: Exception) -> None:
        """Tell those who wait that nobody knows."""
        tell(self.waiters, error)


def tell(waiters: list[asyncio.Future[None]], error: Exception | None = None) -> None:
    """Tell those who have not given up waiting that what they wait for has come about, or has failed."""
    for waiter in waiters:
        if not waiter.done():
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)
