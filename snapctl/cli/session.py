"""Open containers for the length of one command, make changes, and ask before those that destroy data.

No command begins on a container that is its own standard output: what it prints would overwrite it.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from snapctl.cli import files, interrupt, output
from snapctl.errors import IoFailure, Locked, NameTaken, NotAContainer, SnapctlError, UsageError
from snapctl.units import format_size

if TYPE_CHECKING:
    from snapctl.engine.container import Container
    from snapctl.engine.model import Usage
    from snapctl.services.control.client import Client

Question = Callable[[dict[str, Any]], str | None]
"""Words a question, without a question mark, from the result of a dry run; None if there is nothing to ask."""

_STANDARD_OUTPUT = 1

_RACES = 25
"""How often `changing_or_making` tries again because another process made or removed the container meanwhile."""

_RACE_PAUSE_SECONDS = 0.02


def check_path(container_path: str) -> None:
    """Refuse what cannot be a command's container, before it is opened.

    Raises:
        NotAContainer: there is no such file.
        UsageError: it is standard output, or its name is empty.
    """
    if not container_path:
        raise UsageError("the path of the container is empty")
    if not os.path.lexists(container_path):
        raise NotAContainer(f"{container_path}: no such file; 'snapctl init' makes a container")
    if files.is_open_as(_STANDARD_OUTPUT, container_path):
        raise UsageError("standard output is the container itself")


@contextmanager
def reading(container_path: str, wait_seconds: float) -> Iterator[Container]:
    """Open a container for reading, under its shared lock or beside its server."""
    from snapctl.services import opening

    check_path(container_path)
    with opening.reading(container_path, wait_seconds) as container:
        yield container


@contextmanager
def changing(container_path: str, wait_seconds: float) -> Iterator[Container]:
    """Open a container for one transaction: committed when the block ends, dropped when it raises.

    What it changed, and left nearly full, gets a warning.
    """
    from snapctl.engine.container import Container

    check_path(container_path)
    with (
        interrupt.until_committing() as begin_commit,
        Container.open(container_path, writable=True, wait_seconds=wait_seconds) as container,
    ):
        open_transaction = container.transaction
        yield container
        begin_commit()
        container.commit()
        usage = container.usage if container.transaction != open_transaction else None
    if usage is not None:
        warn_if_nearly_full(container_path, usage)


@contextmanager
def making(
    container_path: str, *, block_size_bytes: int | None = None, capacity_bytes: int | None = None
) -> Iterator[Container]:
    """Make a container file and open it for one transaction; if the block raises, the file is removed again.

    It is removed before its lock is let go of, so that nobody who waits for that writes into a file that is gone.
    """
    from snapctl.engine.container import Container
    from snapctl.format.geometry import DEFAULT_BLOCK_SIZE

    block_size = DEFAULT_BLOCK_SIZE if block_size_bytes is None else block_size_bytes
    with interrupt.until_committing() as begin_commit:
        container = Container.create(container_path, block_size=block_size, capacity_bytes=capacity_bytes)
        try:
            yield container
            begin_commit()
            container.commit()
            usage = container.usage
        except BaseException:
            with suppress(OSError):
                container.destroy()
            raise
        finally:
            container.close()
    warn_if_nearly_full(container_path, usage)


def warn_if_nearly_full(container_path: str, usage: Usage) -> None:
    """Tell on standard error that little can be written any more."""
    if usage.is_nearly_full:
        output.complain(
            f"warning: {container_path} is {usage.full_percent} % full ({format_size(usage.free_bytes)} free); "
            "delete snapshots or trim volumes"
        )


@contextmanager
def changing_or_making(container_path: str, wait_seconds: float) -> Iterator[Container]:
    """Open a container for one transaction as `changing` does, or as `making` where there is none."""
    with ExitStack() as stack:
        yield _enter(stack, container_path, wait_seconds)


def _enter(stack: ExitStack, container_path: str, wait_seconds: float) -> Container:
    """Open what is there or make what is not, although other processes do the same or take it away again."""
    for _ in range(_RACES):
        exists = os.path.lexists(container_path)
        opened = changing(container_path, wait_seconds) if exists else making(container_path)
        try:
            return stack.enter_context(opened)
        except NameTaken:
            continue  # made by another process meanwhile
        except (IoFailure, NotAContainer):
            if not exists or not _may_be_in_the_making(container_path):
                raise
        time.sleep(_RACE_PAUSE_SECONDS)
    return stack.enter_context(changing(container_path, wait_seconds))


def _may_be_in_the_making(path: str) -> bool:
    """Tell whether what cannot be opened is gone again, or a file that its maker has not locked yet."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return not os.path.lexists(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def apply(
    container_path: str, wait_seconds: float, method: str, params: dict[str, Any], *, make: bool = False
) -> dict[str, Any]:
    """Make one change, in a transaction of its own: of the file, or if it is served by way of its server.

    A container that the change left nearly full gets a warning.

    Args:
        container_path: the container file.
        wait_seconds: how long to wait for others to let go of it.
        method: one of `snapctl.services.operations.METHODS`.
        params: what it takes; with `dry_run` it is measured and not made.
        make: make a container where there is none.

    Returns:
        What the operation returns.
    """

    def here() -> dict[str, Any]:
        from snapctl.services import operations

        opened = changing_or_making if make else changing
        with opened(container_path, wait_seconds) as container:
            result = operations.run(container, method, params)
            if params.get("dry_run"):
                container.abort()
        return result

    def there(server: Client) -> dict[str, Any]:
        return server.call(method, params)

    return here_or_there(container_path, wait_seconds, here, there)


def refuse_served(container_path: str, wait_seconds: float) -> None:
    """Refuse what needs the container to itself.

    Raises:
        Locked: it is served.
    """
    from snapctl.cli import online

    with online.connected(container_path, wait_seconds) as server:
        if server is not None:
            who = f"pid {server.pid}"
            raise Locked(f"{container_path} is served by {who}; this needs it alone, so stop the server first", [who])


def here_or_there(
    container_path: str,
    wait_seconds: float,
    here: Callable[[], dict[str, Any]],
    there: Callable[[Client], dict[str, Any]],
) -> dict[str, Any]:
    """Change a container by ourselves, or if it is served by way of its server.

    Args:
        container_path: the container file.
        wait_seconds: how long to wait for others to let go of it.
        here: opens and changes it.
        there: has the server change it.

    Returns:
        What the one that was called returned.
    """
    from snapctl.cli import online

    with online.connected(container_path, wait_seconds) as server:
        if server is not None:
            return _changed(container_path, there, server)
    try:
        return here()
    except Locked:
        with online.connected(container_path, wait_seconds) as server:  # it may have come up meanwhile
            if server is None:
                raise
            return _changed(container_path, there, server)


def _changed(container_path: str, there: Callable[[Client], dict[str, Any]], server: Client) -> dict[str, Any]:
    check_path(container_path)
    reply = there(server)
    if reply["usage"] is not None:
        from snapctl.engine.model import Usage

        warn_if_nearly_full(container_path, Usage(**reply["usage"]))
    return reply


def apply_agreed(
    container_path: str, wait_seconds: float, method: str, params: dict[str, Any], *, ask: Question | None
) -> dict[str, Any]:
    """Make one change that destroys data, after asking whoever sits at the terminal.

    Args:
        container_path: as `apply` takes it.
        wait_seconds: likewise.
        method: likewise.
        params: likewise; a dry run is not asked about.
        ask: words the question; None to ask nothing.

    Raises:
        SnapctlError: the answer was no.
    """
    if ask is not None and not params["dry_run"] and output.can_ask():
        with interrupt.until_committing():
            planned = apply(container_path, wait_seconds, method, {**params, "dry_run": True})
            freed_bytes = planned["freed_bytes"]
            effect = (
                f"frees {format_size(freed_bytes)}" if freed_bytes >= 0 else f"takes {format_size(-freed_bytes)} more"
            )
            question = ask(planned)
            if question is not None and not output.confirmed(f"{question} ({effect})?"):
                raise SnapctlError("not confirmed; nothing was changed")
    return apply(container_path, wait_seconds, method, params)


def report(result: dict[str, Any], done: str, planned: str, what: Sequence[str], *, dry_run: bool) -> None:
    """Print what a change that destroys data did, or would do, and the bytes that it frees.

    Args:
        result: of the operation.
        done: the verb of a change that was made.
        planned: the verb of one that would be.
        what: its objects, each of which gets a line.
        dry_run: it was not made.
    """
    verb = planned if dry_run else done
    freed_bytes = result["freed_bytes"]
    size_bytes = abs(freed_bytes)
    amount = f"{size_bytes} bytes" if freed_bytes >= 0 else f"{size_bytes} bytes more"
    frees, takes = ("would free", "would take") if dry_run else ("freed", "took")
    output.emit_lines(f"{verb} {item}" for item in what)
    output.emit_lines([f"{frees if freed_bytes >= 0 else takes} {amount} ({format_size(size_bytes)})"])
