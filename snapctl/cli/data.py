"""A volume's bytes: `write`, `read` and `trim`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from snapctl.cli import files, output, progress, session
from snapctl.cli.hexdump import hexdump
from snapctl.cli.options import DryRun, NodePath, VolumePath, Wait, Yes, size_option
from snapctl.cli.path import locate

if TYPE_CHECKING:
    from snapctl.engine.node import Node
    from snapctl.services.control.client import Client

commands = typer.Typer()


@commands.command("write")
def write(
    path: VolumePath,
    offset: Annotated[int, size_option("--offset", "Where in the volume to begin; its beginning if not given.")] = 0,
    input_path: Annotated[
        str | None,
        typer.Option("--input", "-i", metavar="FILE", help="Read from FILE, not standard input.", show_default=False),
    ] = None,
    wait: Wait = 5.0,
) -> None:
    """Write standard input, or a file, into a volume.

    All of it becomes visible at once, or nothing does: also when the input runs past the volume's end. Through a server
    that is so for each MiB.

    \b
    Example:
      snapctl write lab.snap/db --offset 1M --input page.bin
    """
    location = locate(path)
    name = location.one_node()
    with files.open_source(input_path) as source:
        files.refuse_container(source, location.container)
        _write(source, location.container, name, offset, wait)


def _write(source: files.Source, container_path: str, name: str, offset: int, wait: float) -> None:
    label = f"writing {name}"

    def here() -> dict[str, Any]:
        with session.changing(container_path, wait) as container:
            node = container.node(name)
            node.check_writable()
            node.check_range(offset, source.remaining_bytes or 0)
            with progress.reporting(label) as report:
                _copy_in(source, node, offset, report)
        return {}

    def there(server: Client) -> dict[str, Any]:
        params = {"name": name, "offset_bytes": offset, "source": source.name}
        with files.handed_over(source.file.fileno()) as fd, progress.reporting(label) as report:
            return server.call("write", params, source=fd, progress=report)

    session.here_or_there(container_path, wait, here, there)


def _copy_in(source: files.Source, node: Node, offset_bytes: int, report: progress.Reporter) -> None:
    buffer = memoryview(bytearray(files.CHUNK_BYTES))
    position = offset_bytes
    while True:
        wanted = files.CHUNK_BYTES - position % files.CHUNK_BYTES
        count = source.fill(buffer[:wanted])
        if count:
            node.write(position, buffer[:count])
        position += count
        report(position - offset_bytes, source.remaining_bytes)
        if count < wanted:
            return


@commands.command("read")
def read(
    path: NodePath,
    offset: Annotated[int, size_option("--offset", "Where to begin; the beginning if not given.")] = 0,
    length: Annotated[int | None, size_option("--length", "How much to read; to the end if not given.")] = None,
    output_path: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write to FILE, not standard output.", show_default=False),
    ] = None,
    output_format: Annotated[
        Literal["raw", "hex"] | None,
        typer.Option(
            "--format",
            help="Raw bytes or a hex dump; if not given, a dump on a terminal and raw bytes otherwise.",
            show_default=False,
        ),
    ] = None,
    wait: Wait = 5.0,
) -> None:
    """Read from a volume or a snapshot.

    \b
    Example:
      snapctl read lab.snap/db@mon --offset 1M --length 4K | sha256sum
    """
    location = locate(path)
    name = location.one_node()
    if output_path == files.STANDARD:
        output_path = None
    to_terminal = output_path is None and output.is_terminal(sys.stdout)
    as_hex = output_format == "hex" or (output_format is None and to_terminal)
    with session.reading(location.container, wait) as container:
        node = container.node(name)
        end = node.size_bytes if length is None else offset + length
        node.check_range(offset, end - offset)
        with (
            _sink(output_path, location.container, 0 if as_hex else end - offset) as put,
            progress.reporting(f"reading {node.name}", shown=output_path is not None) as report,
        ):
            pieces = _chunks(node, offset, end, report)
            for piece in _dumped(pieces, offset, end) if as_hex else pieces:
                put(piece)


def _chunks(node: Node, offset_bytes: int, end_bytes: int, report: progress.Reporter) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(files.CHUNK_BYTES, end_bytes - offset_bytes)))
    for position in range(offset_bytes, end_bytes, files.CHUNK_BYTES):
        piece = buffer[: end_bytes - position]
        node.read_into(position, piece)
        yield piece
        report(position + len(piece) - offset_bytes, end_bytes - offset_bytes)


def _dumped(pieces: Iterator[memoryview], offset_bytes: int, end_bytes: int) -> Iterator[memoryview]:
    for line in hexdump(pieces, offset_bytes, end_bytes):
        yield memoryview(f"{line}\n".encode("ascii"))


@contextmanager
def _sink(path: str | None, container_path: str, size_bytes: int) -> Iterator[Callable[[memoryview], None]]:
    """Yield the function that takes the output: to a file that appears when the block ends, or to standard output."""
    if path is None:
        yield output.emit_bytes
        return
    from snapctl.services.target import open_target

    with open_target(path, container_path, size_bytes, replace=True) as target:
        position = 0

        def put(piece: memoryview) -> None:
            nonlocal position
            target.put(position, piece)
            position += len(piece)

        yield put


@commands.command("trim")
def trim(
    path: VolumePath,
    offset: Annotated[int, size_option("--offset", "Where in the volume to begin.")],
    length: Annotated[int, size_option("--length", "How much to trim.")],
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = 5.0,
) -> None:
    """Make a range of a volume zeros and free its room.

    Snapshots keep what they hold.

    \b
    Example:
      snapctl trim lab.snap/db --offset 1G --length 512M
    """
    location = locate(path)
    name = location.one_node()
    what = f"{length} bytes at {offset} of {name}"
    params = {"name": name, "offset_bytes": offset, "length_bytes": length, "dry_run": dry_run}
    ask = None if yes else lambda _result: f"trim {what}"
    result = session.apply_agreed(location.container, wait, "trim", params, ask=ask)
    session.report(result, "trimmed", "would trim", [what], dry_run=dry_run)
