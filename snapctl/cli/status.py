"""`status`: who uses a container that is served, and how busy its server is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snapctl.cli import interrupt, online, output, session
from snapctl.cli.options import ContainerPath, Json, Wait
from snapctl.cli.path import locate
from snapctl.errors import IoFailure, SnapctlError, UsageError
from snapctl.units import format_size

if TYPE_CHECKING:
    from snapctl.services.control.client import Client

commands = typer.Typer()

_REFRESH_SECONDS = 1.0
_HEADINGS = ("CLIENT", "EXPORT", "REQUESTS", "READ", "WRITTEN", "ERRORS", "LATENCY")
_HEADINGS_OF_RATES = ("CLIENT", "EXPORT", "REQ/S", "READ/S", "WRITTEN/S", "ERRORS", "LATENCY")
_NUMERIC = frozenset(range(2, len(_HEADINGS)))

Document = dict[str, Any]


@commands.command("status")
def status(
    path: ContainerPath = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it anew every second, with the rates of that second.")
    ] = False,
    as_json: Json = False,
    wait: Wait = 5.0,
) -> None:
    """Show whether a container is served, by whom, and who uses it.

    Of each client: what it has open, what it has read and written, and how long its requests took on average.

    \b
    Examples:
      snapctl status lab.snap
      snapctl status --watch lab.snap
    """
    location = locate(path)
    if location.node is not None:
        raise UsageError(f"{location}: name the container; status is always of the whole of it")
    if watch and as_json:
        raise UsageError("--watch and --json exclude each other")
    session.check_path(location.container)
    with online.connected(location.container, wait) as server:
        if watch:
            if server is None:
                raise SnapctlError(f"{location.container} is not served, so there is nothing to watch")
            _watch(location.container, server)
            return
        document = _not_served(location.container, wait) if server is None else server.call("status", {})
    if as_json:
        output.emit_json(document)
    else:
        _emit(document, None)


def _not_served(container_path: str, wait_seconds: float) -> Document:
    from snapctl.services.control.status import describe_container

    with session.reading(container_path, wait_seconds) as container:
        return {"container": describe_container(container), "server": None, "clients": []}


def _watch(container_path: str, server: Client) -> None:
    """Show the state every second until Ctrl-C, which is how this is meant to end."""
    before = None
    try:
        with _screen() as show:
            while True:
                document = _asked(container_path, server)
                show(document, before)
                before = document
                time.sleep(_REFRESH_SECONDS)
    except interrupt.Interrupted as interrupted:
        if interrupted.signal_no != interrupt.BY_KEY:
            raise


def _asked(container_path: str, server: Client) -> Document:
    try:
        return server.call("status", {})
    except IoFailure as error:
        raise SnapctlError(f"the server of {container_path} has ended") from error


@contextmanager
def _screen() -> Iterator[Callable[[Document, Document | None], None]]:
    """Yield what shows a state: in the place of the one before on a terminal, else below it."""
    if not output.is_terminal(sys.stdout):

        def emit(document: Document, before: Document | None) -> None:
            _emit(document, before)
            output.emit_lines([""])
            output.flush()

        yield emit
        return
    from snapctl.cli import render

    with render.in_place() as draw:
        yield lambda document, before: draw(
            output.aligned_fields(_fields(document)), _clients(document, before).cleaned()
        )


def _emit(document: Document, before: Document | None) -> None:
    output.emit_fields(_fields(document))
    table = _clients(document, before)
    if table.rows:
        output.emit_lines([""])
        output.emit_table(table)


def _fields(document: Document) -> list[tuple[str, str]]:
    """Describe the container and its server for people, as far as the server tells."""
    container, server = document["container"], document["server"]
    fields = [
        ("container", container["path"]),
        ("used", format_size(container["used_bytes"])),
        ("free", format_size(container["free_bytes"])),
        ("transaction", str(container["transaction"])),
    ]
    if server is None:
        return [*fields, ("server", "none")]
    fields += [("server", f"pid {server['pid']}"), ("up", _duration(server["uptime_seconds"]))]
    fields += [("address", address) for address in server.get("addresses", ())]
    if "dirty_bytes" in server:
        fields.append(("dirty", f"{format_size(server['dirty_bytes'])} of {format_size(server['most_dirty_bytes'])}"))
    for name, label, write in (
        ("commits", "commits", str),
        ("last_commit_nanoseconds", "last commit", _latency),
    ):
        if name in server:
            fields.append((label, write(server[name])))
    return [*fields, ("clients", str(len(document["clients"])))]


def _clients(document: Document, before: Document | None) -> output.Table:
    """List the clients: with what they did since the start, or in a second between two states."""
    known = {} if before is None else {client["id"]: client["operations"] for client in before["clients"]}
    seconds = 1.0
    if before is not None:
        seconds = max(0.001, document["server"]["uptime_seconds"] - before["server"]["uptime_seconds"])
    rows = [_row(client, known.get(client["id"], {}), seconds) for client in document["clients"]]
    return output.Table(_HEADINGS if before is None else _HEADINGS_OF_RATES, rows, _NUMERIC)


def _row(client: Document, before: Document, seconds: float) -> list[str]:
    operations = client["operations"]

    def grown(field: str, *names: str) -> int:
        """What was counted since, of some kinds of request or of all."""
        return sum(
            int(counts[field]) - int(before.get(name, {}).get(field, 0))
            for name, counts in operations.items()
            if not names or name in names
        )

    requests = grown("requests")
    return [
        client["description"],
        client["export"],
        str(round(requests / seconds)),
        format_size(round(grown("length_bytes", "read") / seconds)),
        format_size(round(grown("length_bytes", "write") / seconds)),
        str(sum(counts["errors"] for counts in operations.values())),
        _latency(grown("nanoseconds") // requests) if requests else "-",
    ]


def _latency(nanoseconds: int) -> str:
    if nanoseconds < 1_000_000:
        return f"{nanoseconds // 1000} us"
    return f"{nanoseconds / 1e6:.1f} ms"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
