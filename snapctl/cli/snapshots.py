"""Making snapshots: `snapshot` (read-only) and `clone` (read-write)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from snapctl.cli import output, session
from snapctl.cli.options import NewName, NewSnapshotPaths, NodePath, Wait
from snapctl.cli.path import Location, common_container, locate, node_name_in
from snapctl.errors import UsageError

if TYPE_CHECKING:
    from snapctl.engine.container import Container

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
    with session.changing(common_container(locations), wait) as container:
        names = [node.name for node in container.snapshot(*_new_names(container, locations))]
    output.emit_lines(names)


def _new_names(container: Container, locations: Sequence[Location]) -> list[str]:
    names: list[str] = []
    for location in locations:
        node = location.node or ""
        if "@" not in node:
            raise UsageError(f"{location}: name the snapshot to take, as in {location.container}/{node or 'db'}@mon")
        names += [f"{volume.name}{node}" for volume in container.volumes] if location.of_every_volume else [node]
    if not names:
        raise UsageError(f"{container.path} has no volumes; 'snapctl create' makes one")
    return names


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
    source_name = location.one_node()
    clone_name = node_name_in(location.container, name)
    with session.changing(location.container, wait) as container:
        before = {node.id for node in container.nodes}
        made = container.clone(source_name, clone_name)
        names = [made.name]
        names += [node.name for node in container.nodes if node.id not in before and node.id != made.id]
    output.emit_lines(names)
