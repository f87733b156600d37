"""Histories of a live container, searched like those of `tests.support.histories` for what a crash leaves.

Clients write and zero, flush, change the tree of nodes and pin states, many at once, while commits are in flight; the
disk takes as long as the history wants it to. Beside the live container the same things are done to a plain one in
memory, each at the moment of the call. What a power cut may leave has to be a state that the plain one went through, no
older than the last flush or change that returned: a prefix of what was acknowledged, for all volumes at once. After
each session, whatever ended it, nobody waits any more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.engine.node import Node
from snapctl.errors import IoFailure, SnapctlError
from snapctl.format.geometry import Geometry
from snapctl.services.live import cache as live_cache
from snapctl.services.live.container import LiveContainer
from snapctl.services.live.device import Device
from snapctl.storage.store import Pinned, Store
from tests.support.backends import MemoryBackend, Stopped
from tests.support.crashes import Fate
from tests.support.histories import Finding, History, Known

_STEPS = 60
_PATIENCE_TURNS = 2000
"""Turns of the loop after which whoever still waits is taken to wait for ever; a few dozen suffice."""
_DIRTY_BLOCKS = (3, 20, 2000)
_LOGGED_BYTES = (0, 3 * 512, 20 * 512)
"""In sessions that are not calm so little goes to the log that all the ways past the cache are taken."""
_MOODS = {
    "mixed": (9, 3, 3, 5, 6, 1, 2, 2, 1),
    "calm": (12, 2, 10, 0.5, 20, 1, 0.5, 0.5, 1),
    "busy": (30, 1, 2, 2, 20, 3, 0.5, 0.5, 0.5),
}
"""How often clients do what. In calm sessions many flushes find no change before them, and a log takes them; in busy
ones most writes come together and find the disk idle."""
Change = Callable[[Container], object]


class SlowDisk(Executor):
    """Does what it was given when it is told to, on the thread of whoever tells it."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._waiting.append((future, lambda: function(*arguments, **named)))
        return future

    def work(self) -> None:
        """Do what has waited."""
        waiting, self._waiting = self._waiting, []
        for future, function in waiting:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 as an executor does
                future.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.work()


class LiveHistory(History):
    """One history of a live container, searched as it goes."""

    command = "--live "
    fates = (None, None, Fate.DEATH, Fate.DEATH, *[Fate.FAILED_SYNC] * 2, Fate.FAILED_WRITE)

    _found: Finding | None = None

    def run(self) -> Counter[str]:
        """See `History.run`."""
        try:
            with _many_turns():
                return super().run()
        except Finding as finding:
            raise self._found or finding from finding

    def _look(self, method: str) -> None:
        try:
            super()._look(method)
        except Finding as finding:
            self._found = self._found or finding  # the container takes it for a failure of the disk
            raise

    def _make(self) -> None:
        container = Container.format(self._machine, Geometry(512, 512))
        self._is_made = True
        self._expect([self._judge.know(container)], None)
        container.close()

    def _session(self) -> None:
        self._begin_session()
        asyncio.run(self._live())
        self._end_session()

    # One process

    async def _live(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._pins: list[tuple[Pinned, Known]] = []
        self._names = 0
        self._disk = SlowDisk()
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)  # processes die here
        try:
            container = Container.adopt(self._machine)
            found = self._known(self._judge.know(container), "as opened again")
            self._shadow = Container.adopt(MemoryBackend(self._machine.data))
            container.settle()
            self._expect([found], None)
            self._mood = self._chance.choice(tuple(_MOODS))
            self._is_calm = self._mood == "calm"
            most = (2000 if self._is_calm else self._chance.choice(_DIRTY_BLOCKS)) * 512
            self._served = LiveContainer(container, most_dirty_bytes=most, most_dirty_seconds=1e6)
            self._served.cache._disk.shutdown()
            self._served.cache._disk = self._disk  # type: ignore[assignment]
            self._served.cache._wants_log = self._is_calm
            live_cache._MOST_LOGGED_BYTES = 256 << 10 if self._is_calm else self._chance.choice(_LOGGED_BYTES)
            for _ in range(_STEPS):
                await self._step()
                self._check_alive()
            self.figures["flushes that the log took"] += self._served.cache.records
            await self._close()
        except Stopped:
            pass
        except IoFailure as error:
            self.figures["sessions that failed"] += 1
            if not self._has_failed:
                raise Finding(self._where(f"an error out of nowhere: {error}")) from error
            await self._until_nobody_waits()
        finally:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    @property
    def _has_failed(self) -> bool:
        return self._fate is not None and self._machine.has_met

    def _check_alive(self) -> None:
        if self._is_dead:
            raise Stopped

    @property
    def _is_dead(self) -> bool:
        return self._has_failed and self._fate is Fate.DEATH

    async def _close(self) -> None:
        """In peace, or in the middle of everything."""
        closing = asyncio.create_task(self._served.close())
        self._tasks.append(closing)
        await self._until_nobody_waits()
        await closing
        self.figures["closed in peace"] += 1
        self._drop(self._last)

    async def _until_nobody_waits(self) -> None:
        for _ in range(_PATIENCE_TURNS):
            if all(task.done() for task in self._tasks):
                return
            self._check_alive()
            self._disk.work()
            await asyncio.sleep(0)
        raise Finding(self._where("somebody waits for ever"))

    async def _step(self) -> None:
        kinds = ("write", "zero", "flush", "change", "disk", "read", "pin", "unpin", "give up")
        match self._chance.choices(kinds, _MOODS[self._mood])[0]:
            case "write" | "zero" as kind:
                self._put(is_zero=kind == "zero")
            case "flush":
                self._start("flushes", self._served.flush, self._last)
            case "change":
                # Here and there it is to be the same point between two requests.
                await asyncio.sleep(0)
                self._change()
                await asyncio.sleep(0)
            case "disk":
                self._disk.work()
            case "read":
                self._compare()
            case "pin":
                self._start("views", self._pin, self._last)
            case "unpin":
                self._unpin()
            case _:
                for task in self._tasks:
                    if task.get_name() != "changes" and self._chance.random() < 0.3:
                        task.cancel()
        for _ in range(self._chance.choice((0, 0, 1, 2, 12))):
            self._check_alive()  # lest what is left of a dead process goes on
            await asyncio.sleep(0)

    def _put(self, *, is_zero: bool) -> None:
        volumes = self._shadow.volumes
        if not volumes:
            return
        volume = self._chance.choice(volumes)
        try:
            device = self._served.device(volume.name)
        except SnapctlError:
            return  # its creation is in flight
        size = min(volume.size_bytes, device.size_bytes)  # a resize may be in flight
        if not is_zero and self._chance.random() < (0.7 if self._mood == "busy" else 0.2):
            self._put_together(volume, device, size // 512)
            return
        start = self._chance.randrange(size)
        length = min(self._chance.randrange(1, self._chance.choice((600, 6000))), size - start)
        if not self._is_calm and self._chance.random() < 0.3:  # whole blocks, many enough to go past the cache
            start -= start % 512
            length = min(self._chance.randrange(1, 40) * 512, (size - start) // 512 * 512)
            if not length:
                return
        data = bytes(length) if is_zero else self._chance.randbytes(length)
        try:
            is_taken = device.zero(start, length) if is_zero else device.write(start, data)
        except IoFailure:
            if not self._has_failed:
                raise
            return
        if not is_taken:
            self._start("waits for room", self._served.until_room, None)
            return
        self.figures["writes"] += 1
        volume.write(start, data)
        self._note()

    def _put_together(self, volume: Node, device: Device, blocks: int) -> None:
        """Runs of whole blocks, some of them zeros: at a stroke if they may be, or else one after the other."""
        starts = sorted(self._chance.sample(range(blocks), min(blocks, self._chance.randrange(4, 12))))
        writes: list[tuple[int, memoryview]] = []
        for start, stop in pairwise([*starts, blocks]):
            length = self._chance.randrange(1, min(4, stop - start) + 1) * 512
            block = bytes(length) if self._chance.random() < 0.1 else self._chance.randbytes(length)
            writes.append((start * 512, memoryview(block)))
        self._chance.shuffle(writes)
        try:
            if device.write_together(writes):
                self.figures["writes together"] += 1
                for offset, data in writes:
                    volume.write(offset, data)
                self._note()
                return
            for offset, data in writes:
                if not device.write(offset, bytes(data)):
                    self._start("waits for room", self._served.until_room, None)
                    return
                self.figures["writes"] += 1
                volume.write(offset, data)
                self._note()
        except IoFailure:
            if not self._has_failed:
                raise

    def _change(self) -> None:
        """A change, at once here and in flight there."""
        change, is_bad = self._drawn()
        try:
            change(self._shadow)
        except SnapctlError:
            self._shadow.abort()
            is_bad = True
        if is_bad:
            self._shadow.abort()
            self._start("changes refused", partial(self._served.change, change), self._last)
            return
        self._note()
        gives_room = self._chance.random() < 0.3
        self._start("changes", partial(self._served.change, change, gives_room=gives_room), self._last)

    def _drawn(self) -> tuple[Change, bool]:
        """A change, and whether it fails halfway."""
        chance = self._chance
        volumes = [volume.name for volume in self._shadow.volumes]
        names = [node.name for node in self._shadow.nodes]
        snapshots = [name for name in names if "@" in name]
        self._names += 1
        new = f"n{self._machine.number}x{self._names}"
        size = chance.randrange(1, 40 * 512)
        if len(volumes) < 2 or chance.random() < 0.1:
            cow = chance.choice(list(Cow))
            return lambda container: container.create_volume(new, size, cow=cow), False
        name = chance.choice(volumes)
        match chance.choice(
            ("snapshot", "snapshot", "all", "clone", "delete", "delete", "resize", "rename", "bad", "bad")
        ):
            case "all":
                return lambda container: container.snapshot(*(f"{each}@{new}" for each in volumes)), False
            case "clone" if snapshots:
                source = chance.choice(snapshots)
                return lambda container: container.clone(source, new), False
            case "delete":
                doomed, cascade = chance.choice(names), chance.random() < 0.4
                return lambda container: container.delete(doomed, cascade=cascade), False
            case "resize":
                return lambda container: container.node(name).resize(size, shrink=True), False
            case "rename":
                return lambda container: container.rename(name, new), False
            case "bad":
                return lambda container: (container.snapshot(f"{name}@{new}"), container.create_volume(name, 1)), True
        return lambda container: container.snapshot(f"{name}@{new}"), False

    # Who waits

    def _start(self, what: str, work: Callable[[], Coroutine[Any, Any, Any]], point: int | None) -> None:
        """Begin what waits for the disk; when it returns, all up to a point of time is durable."""
        self.figures[what] += 1

        async def wait() -> None:
            try:
                await work()
            except IoFailure:
                if not self._has_failed:
                    raise
            except SnapctlError:
                if what != "changes refused" and not self._has_failed:
                    raise
            else:
                if point is not None and not self._is_dead:
                    self._drop(point)

        self._tasks = [task for task in self._tasks if not _ended(task)]
        self._tasks.append(asyncio.create_task(wait(), name=what))

    async def _pin(self) -> None:
        state = self._old[-1]
        await self._served.at_rest(lambda container: self._pins.append((container.pin(), state)))

    def _unpin(self) -> None:
        """What was pinned reads as it did then."""
        if not self._pins:
            return
        pinned, state = self._pins.pop(self._chance.randrange(len(self._pins)))
        image = pinned.area + bytes(self._machine.data[len(pinned.area) :])
        try:
            # Like a view, it stands for a commit, though its log may have gone on.
            found = self._judge.know(Container(Store.adopt(MemoryBackend(image), writable=False)))
        except SnapctlError as error:
            raise Finding(self._where(f"a view cannot be read: {error}")) from error
        if found != state:
            raise Finding(self._where("a view has changed"))
        self._served.container.unpin(pinned)
        self._served.cache.look_for_room()

    # The states that the disk may hold

    def _expect(self, old: list[Known], new: Known | None) -> None:
        super()._expect(old, new)
        self._dropped = 0
        self._current = old[-1]

    @property
    def _last(self) -> int:
        """The number of the state that is the newest now."""
        return self._dropped + len(self._old) - 1

    def _note(self) -> None:
        self._shadow.commit()
        self._old.append(self._judge.know(self._shadow))

    def _drop(self, point: int) -> None:
        """Nothing older than a state may be found any more."""
        if point > self._dropped:
            del self._old[: point - self._dropped]
            self._dropped = point
            self._seen.clear()

    def _compare(self) -> None:
        """Whoever reads sees all that was acknowledged, unless a change is in flight and may be done or not."""
        if any(task.get_name() == "changes" and not task.done() for task in self._tasks):
            return
        for node in self._shadow.nodes:
            try:
                device = self._served.device(node.name)
                buffer = bytearray(min(node.size_bytes, device.size_bytes))
                device.read_into(0, buffer)
            except SnapctlError:
                continue  # a change is in flight, or the container has failed
            if any(not task.done() for task in self._tasks) and "@" in node.name:
                continue
            if buffer != node.read(0, len(buffer)):
                raise Finding(self._where(f"{node.name} does not read as written"))


def _ended(task: asyncio.Task[None]) -> bool:
    """Whether a task has ended; raises what it ended with."""
    if task.done() and not task.cancelled():
        task.result()
    return task.done()


@contextmanager
def _many_turns() -> Iterator[None]:
    """Let everybody have a turn at every chance, whatever time it is."""
    usual = live_cache._SLICE_SECONDS, live_cache._MOST_LOGGED_BYTES
    live_cache._SLICE_SECONDS = -1e9
    try:
        yield
    finally:
        live_cache._SLICE_SECONDS, live_cache._MOST_LOGGED_BYTES = usual
