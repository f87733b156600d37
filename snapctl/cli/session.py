"""Open containers for the length of one command, and the conversation about changes that destroy data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from snapctl.cli import interrupt, output
from snapctl.errors import SnapctlError
from snapctl.units import format_size

if TYPE_CHECKING:
    from snapctl.engine.container import Container


@contextmanager
def reading(container_path: str, wait_seconds: float) -> Iterator[Container]:
    """Open a container for reading, under its shared lock."""
    from snapctl.engine.container import Container

    with Container.open(container_path, wait_seconds=wait_seconds) as container:
        yield container


@contextmanager
def changing(container_path: str, wait_seconds: float) -> Iterator[Container]:
    """Open a container for one transaction: committed when the block ends, dropped when it raises."""
    from snapctl.engine.container import Container

    with (
        interrupt.until_committing() as begin_commit,
        Container.open(container_path, writable=True, wait_seconds=wait_seconds) as container,
    ):
        yield container
        begin_commit()


@contextmanager
def making(
    container_path: str, *, block_size_bytes: int | None = None, capacity_bytes: int | None = None
) -> Iterator[Container]:
    """Make a container file and open it for one transaction; if the block raises, the file is removed again."""
    from snapctl.engine.container import Container
    from snapctl.format.geometry import DEFAULT_BLOCK_SIZE

    block_size = DEFAULT_BLOCK_SIZE if block_size_bytes is None else block_size_bytes
    with interrupt.until_committing() as begin_commit:
        container = Container.create(container_path, block_size=block_size, capacity_bytes=capacity_bytes)
        try:
            with container:
                yield container
                begin_commit()
        except BaseException:
            with suppress(OSError):
                os.unlink(container_path)
            raise


class Outcome(NamedTuple):
    """What became of a change that destroys data.

    Attributes:
        applied: False after a dry run.
        freed_bytes: what it frees of the container, tables included; exact, as the transaction itself is measured.
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
        verb, freed = (done, "freed") if self.applied else (planned, "would free")
        output.emit_lines(f"{verb} {item}" for item in what)
        output.emit_lines([f"{freed} {self.freed_bytes} bytes ({format_size(max(0, self.freed_bytes))})"])


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
    if not yes and not output.confirmed(f"{question} (frees {format_size(max(0, freed_bytes))})?"):
        raise SnapctlError("not confirmed; nothing was changed")
    return Outcome(applied=True, freed_bytes=freed_bytes)
