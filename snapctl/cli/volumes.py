"""Changing and removing what exists: `rename`, `resize` and `delete`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from snapctl.cli import session
from snapctl.cli.options import DryRun, Force, NewName, NodePath, NodePaths, VolumePath, Wait, Yes, size_option
from snapctl.cli.path import common_container, locate, node_name_in
from snapctl.errors import UsageError
from snapctl.units import format_size, parse_size

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
    session.apply(location.container, wait, "rename", {"name": old_name, "new_name": new_name})


@commands.command("resize")
def resize(
    path: VolumePath,
    size: Annotated[int, size_option("--size", "The volume's new size.")],
    shrink: Annotated[bool, typer.Option("--shrink", help="Allow a smaller size: drop the data beyond it.")] = False,
    force: Force = False,
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
    params = {"name": name, "size_bytes": size, "shrink": shrink, "force": force, "dry_run": dry_run}

    def what(result: dict[str, Any]) -> str:
        return f"{name} {_from_to(result['old_size_bytes'], size)}"

    def question(result: dict[str, Any]) -> str | None:
        return f"resize {what(result)}, dropping what lies beyond" if size < result["old_size_bytes"] else None

    ask = question if shrink and not yes else None
    result = session.apply_agreed(location.container, wait, "resize", params, ask=ask)
    session.report(result, "resized", "would resize", [what(result)], dry_run=dry_run)


def _from_to(old_bytes: int, new_bytes: int) -> str:
    """Name two sizes: short where that is exact for both, else in bytes."""
    old, new = format_size(old_bytes), format_size(new_bytes)
    is_exact = (parse_size(old), parse_size(new)) == (old_bytes, new_bytes)
    return f"from {old} to {new}" if is_exact else f"from {old_bytes} to {new_bytes} bytes"


@commands.command("delete")
def delete(
    paths: NodePaths,
    cascade: Annotated[bool, typer.Option("--cascade", help="Delete all that descends from the nodes too.")] = False,
    force: Force = False,
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
    names = [location.node if location.of_every_volume else location.one_node() for location in locations]
    params = {"names": names, "cascade": cascade, "force": force, "dry_run": dry_run}

    def question(result: dict[str, Any]) -> str:
        return f"delete {_shortened(result['names'])}"

    ask = None if yes else question
    result = session.apply_agreed(common_container(locations), wait, "delete", params, ask=ask)
    session.report(result, "deleted", "would delete", result["names"], dry_run=dry_run)


_ASKED_BY_NAME = 5


def _shortened(names: Sequence[str]) -> str:
    """List a few names, and count the rest."""
    more = len(names) - _ASKED_BY_NAME
    return ", ".join(names[:_ASKED_BY_NAME]) + (f" and {more} more" if more > 0 else "")
