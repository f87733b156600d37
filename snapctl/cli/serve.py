"""`serve`: export the volumes and snapshots of a container over NBD."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import socket
import sys
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from snapctl.cli import output, session
from snapctl.cli.options import ContainerPath, Wait
from snapctl.cli.path import locate
from snapctl.errors import IoFailure, Locked, SnapctlError, UsageError

if TYPE_CHECKING:
    from ssl import SSLContext

    from snapctl.services.live.container import LiveContainer
    from snapctl.services.nbd.listeners import Listener
    from snapctl.services.nbd.server import Server

commands = typer.Typer()

VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET")
"""What systemd sets: how many sockets it passes, to which process, and where it wants to be told (sd_notify(3))."""

_FIRST_PASSED_DESCRIPTOR = 3
"""Where systemd's begin (sd_listen_fds(3))."""

_SAME_SIGNAL_SECONDS = 1.0
"""Signals that come within this time are one: timeout(1), for one, sends its own to the process and to its group."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class _Options:
    container: str
    unix: list[str] = field(default_factory=list)
    listen: list[tuple[str, int]] = field(default_factory=list)
    read_only: bool = False
    exports: list[str] = field(default_factory=list)
    tls: SSLContext | None = None
    metrics: tuple[str, int] | None = None
    wait_seconds: float = 5.0


@commands.command("serve")
def serve(
    path: ContainerPath = None,
    unix: Annotated[
        list[str] | None,
        typer.Option("--unix", metavar="PATH", help="Listen on this Unix socket; CONTAINER.nbd if nothing is given."),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option("--listen", metavar="HOST:PORT", help="Listen on this TCP port; :PORT for all addresses."),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse all writes.")] = False,
    export: Annotated[
        list[str] | None,
        typer.Option("--export", metavar="NODE", help="Export only this volume or snapshot; may be repeated."),
    ] = None,
    tls_cert: Annotated[
        str | None, typer.Option("--tls-cert", metavar="FILE", help="Serve TLS only, with this certificate (PEM).")
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option("--tls-key", metavar="FILE", help="The private key of the certificate (PEM).")
    ] = None,
    tls_ca: Annotated[
        str | None,
        typer.Option("--tls-ca", metavar="FILE", help="Take only clients with a certificate signed by these (PEM)."),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", metavar="HOST:PORT", help="Answer Prometheus on this TCP port.")
    ] = None,
    wait: Wait = 5.0,
) -> None:
    """Export volumes and snapshots over NBD until a signal ends it.

    Every volume and snapshot is an export of its own name (db, db@mon); snapshots are read-only. Prints a connection
    string for each when it is ready. SIGTERM and SIGINT end it: requests in flight are answered, and everything is
    made durable; another signal, a second later or more, ends it at once.

    \b
    Example:
      snapctl serve lab.snap --unix /run/lab.sock
      qemu-img info 'nbd+unix:///db?socket=/run/lab.sock'
    """
    from snapctl.services.nbd.listeners import parse_address
    from snapctl.services.nbd.polling import polling_loop

    location = locate(path)
    if location.node is not None:
        raise UsageError(f"{location}: name the container, and its exports with --export")
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together")
    if tls_ca is not None and tls_cert is None:
        raise UsageError("--tls-ca needs --tls-cert and --tls-key")
    if unix is not None and not all(unix):
        raise UsageError("the path of the socket is empty")
    addresses = [parse_address(text) for text in listen or ()]
    session.check_path(location.container)
    tls = None
    if tls_cert is not None and tls_key is not None:
        from snapctl.services.nbd.server import tls_context

        tls = tls_context(tls_cert, tls_key, tls_ca)
    if metrics is not None and ":" not in metrics:
        raise UsageError(f"--metrics {metrics!r} is not an address; write HOST:PORT")
    scraped = None if metrics is None else parse_address(metrics)
    options = _Options(location.container, unix or [], addresses, read_only, export or [], tls, scraped, wait)
    with asyncio.Runner(loop_factory=polling_loop) as runner:
        runner.run(_serve(options))


async def _serve(options: _Options) -> None:
    """Serve until a signal has come and all is durable."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    patience_ends = math.inf

    def stop(signal_no: int) -> None:
        nonlocal patience_ends
        if loop.time() > patience_ends:
            os._exit(128 + signal_no)  # the second: nobody wants to wait; what was not flushed is lost
        if not stopping.is_set():
            patience_ends = loop.time() + _SAME_SIGNAL_SECONDS
            stopping.set()

    _raise_descriptor_limit()
    async with AsyncExitStack() as stack:
        server = await _start(options, stack)
        for signal_no in _SIGNALS:
            if signal.getsignal(signal_no) is not signal.SIG_IGN:
                loop.add_signal_handler(signal_no, stop, signal_no)
        output.emit_lines(server.addresses())
        output.flush()
        _notify("READY=1")
        await stopping.wait()
        _notify("STOPPING=1")


async def _start(options: _Options, stack: AsyncExitStack) -> Server:
    """Open the container and everything that gives access to it; the stack closes them, the container last."""
    from snapctl.services.control.server import ControlServer
    from snapctl.services.live.container import LiveContainer
    from snapctl.services.nbd.exports import Exports
    from snapctl.services.nbd.server import Server

    started = time.monotonic()
    live = await LiveContainer.open(
        options.container, writable=not options.read_only, wait_seconds=options.wait_seconds
    )
    gc.freeze()  # what is there now stays, and need not be looked through again and again
    stack.push_async_callback(live.close)
    _check_exports(live, options.exports)
    exports = Exports(live, only=options.exports, read_only=options.read_only)
    server = Server(exports, tls=options.tls, log=output.complain)
    stack.push_async_callback(server.close)
    control = ControlServer(live, options.container, lambda: {"addresses": server.addresses()})
    stack.push_async_callback(control.stop)
    try:
        await control.start()
    except (IoFailure, Locked) as error:
        if not options.read_only:
            raise
        output.complain(f"warning: no commands are taken: {error}")  # nor needed: others may open the file as well
    if options.metrics is not None:
        from snapctl.services import metrics

        scraped = await metrics.start(*options.metrics, lambda: metrics.take(live, server, time.monotonic() - started))
        stack.push_async_callback(scraped.close)
    await server.start(_listeners(options))
    return server


def _check_exports(live: LiveContainer, names: list[str]) -> None:
    for name in names:
        live.device(name)


def _listeners(options: _Options) -> list[Listener]:
    """Open the sockets asked for: systemd's if it passes any, else those of the options, else the default."""
    from snapctl.services.nbd import listeners

    found: list[Listener] = []
    try:
        found.extend(listeners.adopt(descriptor) for descriptor in _passed_descriptors())
        found.extend(listeners.listen_on_path(path) for path in options.unix)
        for host, port in options.listen:
            found.extend(listeners.listen_on_port(host, port))
        if not found:
            found.append(listeners.listen_on_path(f"{options.container}.nbd"))
    except SnapctlError:
        for listener in found:
            listener.close()
        raise
    return found


def _passed_descriptors() -> list[int]:
    """Return the sockets that systemd passes (sd_listen_fds(3)), and see that no child takes them for its own."""
    if os.environ.pop("LISTEN_PID", None) != str(os.getpid()):
        return []
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not (count.isascii() and count.isdigit() and int(count) <= 1024):
        raise SnapctlError(f"LISTEN_FDS={count} is not a number of sockets")
    return list(range(_FIRST_PASSED_DESCRIPTOR, _FIRST_PASSED_DESCRIPTOR + int(count)))


def _notify(state: str) -> None:
    """Tell systemd, if it wants to know (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def _raise_descriptor_limit() -> None:
    """Take as many descriptors as the system gives: a connection is one, and many systems begin with 1024."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if sys.platform == "linux" and soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
