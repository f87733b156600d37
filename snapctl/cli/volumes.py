"""Changing and removing what exists: `rename`, `resize` and `delete`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from snapctl.cli import session
from snapctl.cli.options import DryRun, NewName, NodePath, NodePaths, VolumePath, Wait, Yes, size_option
from snapctl.cli.path import Location, common_container, locate, node_name_in
from snapctl.errors import UsageError
from snapctl.units import format_size, parse_size

if TYPE_CHECKING:
    from snapctl.engine.container import Container

commands = typer.Typer()


@commands.command("rename")
def rename(path: NodePath, name: NewName, wait: Wait = 5.0) -> None:
    """Rename a volume or a snapshot.

    A snapshot stays with its volume, so its name after the '@' will do.

    \b
    Examples:
      snapctl rename lab.snap/db prod
      snapctl rename lab.snap/db@mon tue
    """
    location = locate(path)
    old_name = location.one_node()
    new_name = node_name_in(location.container, name)
    volume, at, _ = old_name.partition("@")
    if at:
        new_volume, new_at, short_name = new_name.rpartition("@")
        if new_at and new_volume not in ("", volume):
            raise UsageError(f"{new_name}: a snapshot stays with its volume; the name would be {volume}@{short_name}")
        new_name = short_name
    with session.changing(location.container, wait) as container:
        container.rename(old_name, new_name)


@commands.command("resize")
def resize(
    path: VolumePath,
    size: Annotated[int, size_option("--size", "The volume's new size.")],
    shrink: Annotated[bool, typer.Option("--shrink", help="Allow a smaller size: drop the data beyond it.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = 5.0,
) -> None:
    """Change the size of a volume.

    Its snapshots keep their own size and data.

    \b
    Examples:
      snapctl resize lab.snap/db --size 20G
      snapctl resize lab.snap/db --size 5G --shrink
    """
    location = locate(path)
    name = location.one_node()
    with session.changing(location.container, wait) as container:
        volume = container.node(name)
        old_size = volume.size_bytes
        volume.resize(size, shrink=shrink)
        what = f"{name} {_from_to(old_size, size)}"
        question = f"resize {what}, dropping what lies beyond"
        outcome = session.settle(container, question, dry_run=dry_run, yes=yes or size >= old_size)
    outcome.report("resized", "would resize", [what])


def _from_to(old_bytes: int, new_bytes: int) -> str:
    """Name two sizes: short where that is exact for both, else in bytes."""
    old, new = format_size(old_bytes), format_size(new_bytes)
    is_exact = (parse_size(old), parse_size(new)) == (old_bytes, new_bytes)
    return f"from {old} to {new}" if is_exact else f"from {old_bytes} to {new_bytes} bytes"


@commands.command("delete")
def delete(
    paths: NodePaths,
    cascade: Annotated[bool, typer.Option("--cascade", help="Delete all that descends from the nodes too.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = 5.0,
) -> None:
    """Delete volumes and snapshots.

    The data that older snapshots need passes to them. A node from which others descend is deleted only with --cascade.
    Prints what was deleted and the bytes that are free now.

    \b
    Examples:
      snapctl delete -n lab.snap/db@mon
      snapctl delete lab.snap/dev --cascade
    """
    locations = [locate(path) for path in paths]
    container_path = common_container(locations)
    with session.changing(container_path, wait) as container:
        deleted = container.delete(*_existing_names(container, locations), cascade=cascade)
        outcome = session.settle(container, f"delete {_shortened(deleted)}", dry_run=dry_run, yes=yes)
    outcome.report("deleted", "would delete", deleted)


def _existing_names(container: Container, locations: Sequence[Location]) -> list[str]:
    names: list[str] = []
    for location in locations:
        if location.of_every_volume:
            names += [node.name for node in session.snapshots_of_every_volume(container, location)]
        else:
            names.append(location.one_node())
    return list(dict.fromkeys(names))


_ASKED_BY_NAME = 5


def _shortened(names: Sequence[str]) -> str:
    """List a few names, and count the rest."""
    more = len(names) - _ASKED_BY_NAME
    return ", ".join(names[:_ASKED_BY_NAME]) + (f" and {more} more" if more > 0 else "")
