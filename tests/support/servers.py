"""A process that holds a container and answers on its control socket, as a server or a mount does."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapctl.services.control.server import ControlServer
from snapctl.services.live.container import LiveContainer
from tests.cli.harness import ROOT, environment

_TIMEOUT_SECONDS = 30


class Client:
    """A user of a device."""

    description = "a client of the test"

    def __init__(self) -> None:
        self.reason: str | None = None

    def disconnect(self, reason: str) -> None:
        self.reason = reason
        print(f"disconnected: {reason}", flush=True)


async def serve(path: str, used: list[str]) -> None:
    """Serve a container until SIGTERM, with a client on each of some nodes."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    live = await LiveContainer.open(path)
    control = ControlServer(live, path)
    try:
        for name in used:
            live.use(live.device(name), Client())
        await control.start()
        print("ready", flush=True)
        await stop.wait()
        await control.stop()
    finally:
        await live.close()


@contextmanager
def served(path: Path, *used: str) -> Iterator[subprocess.Popen[str]]:
    """Have a container served by a process, with a client on each of the nodes that are named."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.support.servers", str(path), *used],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.terminate()
        assert process.wait(_TIMEOUT_SECONDS) in {0, -signal.SIGKILL}
    finally:
        process.kill()
        process.wait(_TIMEOUT_SECONDS)
        assert process.stdout is not None
        process.stdout.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2:]))
