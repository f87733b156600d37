"""Open containers for the length of one command, and the conversation about changes that destroy data.

No command begins on a container that is its own standard output: what it prints would overwrite it.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from snapctl.cli import files, interrupt, output
from snapctl.errors import IoFailure, NameTaken, NodeNotFound, NotAContainer, SnapctlError, UsageError
from snapctl.units import format_size

if TYPE_CHECKING:
    from snapctl.cli.path import Location
    from snapctl.engine.container import Container
    from snapctl.engine.model import Usage
    from snapctl.engine.node import Node

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
    """Open a container for reading, under its shared lock."""
    from snapctl.engine.container import Container

    check_path(container_path)
    with Container.open(container_path, wait_seconds=wait_seconds) as container:
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


def snapshots_of_every_volume(container: Container, location: Location) -> list[Node]:
    """Find what ``lab.snap@nightly`` stands for.

    Raises:
        BadName: no snapshot can be called that.
        NodeNotFound: no volume has one.
    """
    from snapctl.format.record import check_name

    name = f"{location.node}".removeprefix("@")
    check_name(name)
    found = [node for node in container.nodes if node.kind.value == "ro" and node.short_name == name]
    if not found:
        raise NodeNotFound(f"{location}: no volume has such a snapshot")
    return found


class Outcome(NamedTuple):
    """What became of a change that destroys data.

    Attributes:
        applied: False after a dry run.
        freed_bytes: what it frees of the container, tables included; exact, as the transaction itself is measured;
            negative if it takes room.
    """

    applied: bool
    freed_bytes: int

    def report(self, done: str, planned: str, what: Sequence[str]) -> None:
        """Print what was done, or what would be, and the bytes it frees.

        Args:
            done: the verb of a change that was made.
            planned: the verb of one that would be.
            what: its objects, each of which gets a line.
        """
        verb = done if self.applied else planned
        output.emit_lines(f"{verb} {item}" for item in what)
        output.emit_lines([self._amount()])

    def _amount(self) -> str:
        size_bytes = abs(self.freed_bytes)
        amount = f"{size_bytes} bytes" if self.freed_bytes >= 0 else f"{size_bytes} bytes more"
        frees, takes = ("freed", "took") if self.applied else ("would free", "would take")
        return f"{frees if self.freed_bytes >= 0 else takes} {amount} ({format_size(size_bytes)})"


def settle(container: Container, question: str, *, dry_run: bool, yes: bool) -> Outcome:
    """Measure the open transaction, then drop it (dry run), or keep it if nobody at the terminal objects.

    Args:
        container: with the change made and not committed.
        question: what is about to be done, without a question mark.
        dry_run: only measure.
        yes: do not ask.

    Raises:
        SnapctlError: the answer was no.
    """
    freed_bytes = container.used_bytes - container.preview_used_bytes()
    if dry_run:
        container.abort()
        return Outcome(applied=False, freed_bytes=freed_bytes)
    effect = f"frees {format_size(freed_bytes)}" if freed_bytes >= 0 else f"takes {format_size(-freed_bytes)} more"
    if not yes and not output.confirmed(f"{question} ({effect})?"):
        raise SnapctlError("not confirmed; nothing was changed")
    return Outcome(applied=True, freed_bytes=freed_bytes)
