"""Something that holds a container and answers on its control socket, as a server or a mount does."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Event

from snapctl.services.control.server import ControlServer
from snapctl.services.live.container import LiveContainer
from tests.cli.harness import ROOT, environment

_TIMEOUT_SECONDS = 30


class User:
    """A client of a device."""

    description = "a client of the test"

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def disconnect(self, reason: str) -> None:
        self.reasons.append(reason)


@asynccontextmanager
async def serving(path: str, users: dict[str, User]) -> AsyncIterator[LiveContainer]:
    """Serve a container, with clients on some of its nodes."""
    live = await LiveContainer.open(path)
    control = ControlServer(live, path)
    try:
        for name, user in users.items():
            live.use(live.device(name), user)
        await control.start()
        try:
            yield live
        finally:
            await control.stop()
    finally:
        await live.close()


@contextmanager
def served(path: Path, **users: User) -> Iterator[None]:
    """Have a container served by a thread of this process, with clients on the nodes that are named."""
    is_ready = Event()
    stop: list[Callable[[], object]] = []

    async def run() -> None:
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with serving(str(path), users):
            stop.append(lambda: loop.call_soon_threadsafe(done.set))
            is_ready.set()
            await done.wait()

    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(asyncio.run, run())
        server.add_done_callback(lambda _server: is_ready.set())
        try:
            assert is_ready.wait(_TIMEOUT_SECONDS)
            if stop:
                yield
        finally:
            for call in stop:
                call()
            server.result(_TIMEOUT_SECONDS)


@contextmanager
def served_by_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Have a container served by a process of its own, which may be killed."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.support.servers", str(path)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
            process.terminate()
            assert process.wait(_TIMEOUT_SECONDS) in {0, -signal.SIGKILL}
        finally:
            process.kill()


async def _main(path: str) -> None:
    """Serve a container until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with serving(path, {}):
        print("ready", flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
