"""`mount`: volumes and snapshots as files in a directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snapctl.cli import complete, interrupt, output, session
from snapctl.cli.options import MountedPath, Wait
from snapctl.cli.path import locate
from snapctl.errors import SnapctlError, UsageError

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Coroutine


commands = typer.Typer()


@commands.command("mount")
def mount(
    path: MountedPath,
    directory: Annotated[
        str,
        typer.Argument(
            metavar="DIRECTORY",
            help="Where; an empty directory.",
            autocompletion=complete.directory,
            show_default=False,
        ),
    ],
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Refuse all writes; others may read meanwhile.")
    ] = False,
    allow_other: Annotated[
        bool,
        typer.Option("--allow-other", help="Let other users in, as far as the container file's permissions let them."),
    ] = False,
    wait: Wait = 5.0,
) -> None:
    """Show volumes and snapshots as files in a directory.

    Goes on until the directory is unmounted, or Ctrl-C or SIGTERM does so; then all that was written is durable. Prints
    a line when the files can be used. Needs the extra 'fuse' (pip install 'snapctl[fuse]') and libfuse 3 (Debian's
    package fuse3).

    If the process is killed, its directory stays behind without it: 'fusermount3 -u DIRECTORY' clears that away.

    \b
    Examples:
      snapctl mount lab.snap /mnt/lab
      mount -o loop /mnt/lab/db /mnt/db
    """
    # mfusepy takes libfuse 2 where both are installed.
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")
    from snapctl.services.mount.directory import check

    location = locate(path)
    if location.node is not None:
        raise UsageError(f"{location}: name the container; all its volumes and snapshots are mounted together")
    session.check_path(location.container)
    check(directory)
    import asyncio

    # libfuse goes to the root directory.
    container_path, place = os.path.abspath(location.container), os.path.abspath(directory)
    asyncio.run(_serve(container_path, place, read_only=read_only, allow_other=allow_other, wait_seconds=wait))


async def _serve(
    container_path: str, directory: str, *, read_only: bool, allow_other: bool, wait_seconds: float
) -> None:
    """Mount until somebody unmounts, then commit and close.

    A first signal unmounts. What is in use stays so until it is closed; a second signal does not wait for that.
    """
    import asyncio

    from snapctl.services.control.server import ControlServer
    from snapctl.services.live.container import LiveContainer
    from snapctl.services.mount.directory import Mount

    signals: asyncio.Queue[int] = asyncio.Queue()
    live = await LiveContainer.open(container_path, writable=not read_only, wait_seconds=wait_seconds)
    control = ControlServer(live, container_path, lambda: {"addresses": [directory]})
    try:
        interrupt.to_loop(signals.put_nowait)
        await control.start()
        async with Mount(live, directory, allow_other=allow_other, report=_report) as mounted:
            ended = asyncio.ensure_future(mounted.wait())
            output.emit_lines([f"{container_path} is mounted on {mounted.directory}"])
            output.flush()
            await _first(ended, signals.get())
            for user in await mounted.unmount():
                output.complain(f"waiting for {user}")
            await _first(ended, signals.get())
            if not ended.done():
                raise SnapctlError(f"{mounted.directory} was still in use; all that had been written to it is durable")
            ended.result()
    finally:
        await control.stop()
        await live.close()


async def _first(ended: Future[None], signal: Coroutine[None, None, int]) -> None:
    """Wait until the mount has ended, or a signal has come."""
    import asyncio

    signalled = asyncio.ensure_future(signal)
    either: list[Future[Any]] = [ended, signalled]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()


def _report(error: SnapctlError) -> None:
    output.complain(str(error))
