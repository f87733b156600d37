"""Making snapshots: `snapshot` (read-only) and `clone` (read-write)."""

from __future__ import annotations

import typer

from snapctl.cli import output, session
from snapctl.cli.options import NewName, NewSnapshotPaths, NodePath, Wait
from snapctl.cli.path import Location, common_container, locate, node_name_in
from snapctl.errors import UsageError

commands = typer.Typer()


@commands.command("snapshot")
def snapshot(paths: NewSnapshotPaths, wait: Wait = 5.0) -> None:
    """Take read-only snapshots, all at the same instant.

    Prints the names of the snapshots.

    \b
    Examples:
      snapctl snapshot lab.snap/db@mon lab.snap/log@mon
      snapctl snapshot lab.snap@nightly
    """
    locations = [locate(path) for path in paths]
    params = {"names": [_new_name(location) for location in locations]}
    output.emit_lines(session.apply(common_container(locations), wait, "snapshot", params)["names"])


def _new_name(location: Location) -> str:
    node = location.node or ""
    if "@" not in node:
        raise UsageError(f"{location}: name the snapshot to take, as in {location.container}/{node or 'db'}@mon")
    return node


@commands.command("clone")
def clone(source: NodePath, name: NewName, wait: Wait = 5.0) -> None:
    """Make a read-write snapshot.

    It is a volume of its own that begins as the snapshot it is made from.

    Given a volume, a read-only snapshot of it is taken first, with a dated name, unless the newest one equals the
    volume. Prints the names of what was made, the clone first.

    \b
    Example:
      snapctl clone lab.snap/db@mon dev
    """
    location = locate(source)
    params = {"source": location.one_node(), "name": node_name_in(location.container, name)}
    output.emit_lines(session.apply(location.container, wait, "clone", params)["names"])
