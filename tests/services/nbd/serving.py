"""A server of the tests' own: real sockets, on an event loop in a thread beside the test."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from snapctl.engine.container import Container
from snapctl.services.live.container import LiveContainer
from snapctl.services.nbd.exports import Exports
from snapctl.services.nbd.listeners import listen_on_path, listen_on_port
from snapctl.services.nbd.server import Server
from tests.services.nbd.client import Client

T = TypeVar("T")
_TIMEOUT_SECONDS = 30


class Served:
    """A container that is being served.

    Attributes:
        path: the server's Unix socket.
        live: the container; to be used through `call`.
        server: likewise.
        log: what the server said.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, live: LiveContainer, server: Server, path: str) -> None:
        self.live = live
        self.server = server
        self.path = path
        self.port = 0
        self.log: list[str] = []
        self._loop = loop

    def client(self, name: str | None = None, *, form: str = "simple", contexts: tuple[str, ...] = ()) -> Client:
        """Connect; and enter transmission, if an export is named."""
        client = Client(self.path)
        if name is not None:
            client.go(name, form=form, contexts=contexts)
        return client

    def call(self, work: Callable[[], T]) -> T:
        """Run something on the server's loop, between two requests."""

        async def job() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(job(), self._loop).result(_TIMEOUT_SECONDS)

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """Have the server's loop do nothing until the block ends, so that what is sent in it arrives together."""
        is_held, goes_on = threading.Event(), threading.Event()

        def hold() -> None:
            is_held.set()
            goes_on.wait(_TIMEOUT_SECONDS)

        self._loop.call_soon_threadsafe(hold)
        assert is_held.wait(_TIMEOUT_SECONDS)
        try:
            yield
        finally:
            goes_on.set()

    def change(self, operation: Callable[[Container], object]) -> None:
        """Change the tree of nodes."""
        self.wait(lambda: self.live.change(operation))

    def begin(self, work: Callable[[], Awaitable[T]]) -> Future[T]:
        """Start something on the server's loop."""

        async def job() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(job(), self._loop)

    def wait(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await something on the server's loop."""
        return self.begin(work).result(_TIMEOUT_SECONDS)


@contextmanager
def serving(
    container: Path,
    *,
    only: tuple[str, ...] = (),
    read_only: bool = False,
    tls: ssl.SSLContext | None = None,
    max_connections: int = 1024,
    tcp: bool = False,
    kind: type[LiveContainer] = LiveContainer,
) -> Iterator[Served]:
    """Serve a container until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def begin() -> Served:
        live = await kind.open(str(container), writable=not read_only)
        log: list[str] = []
        exports = Exports(live, only=only, read_only=read_only)
        server = Server(exports, tls=tls, max_connections=max_connections, log=log.append)
        path = f"{container}.nbd"
        listeners = [listen_on_path(path)]
        served = Served(loop, live, server, path)
        served.log = log
        if tcp:
            listeners += listen_on_port("127.0.0.1", 0)
            served.port = listeners[-1].socket.getsockname()[1]
        await server.start(listeners)
        return served

    async def end(served: Served) -> None:
        await served.server.close()
        await served.live.close()

    try:
        served = asyncio.run_coroutine_threadsafe(begin(), loop).result(_TIMEOUT_SECONDS)
        try:
            yield served
        finally:
            print(*served.log, sep="\n")  # which pytest shows if the test fails
            asyncio.run_coroutine_threadsafe(end(served), loop).result(_TIMEOUT_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_TIMEOUT_SECONDS)
        loop.close()


async def until(left: Callable[[], Sequence[T]]) -> Sequence[T]:
    """Give the loop time until `left` returns nothing; returns what it returned last."""
    for _ in range(200):
        if not left():
            break
        await asyncio.sleep(0.01)
    return left()
