"""Looking at a container: `list`, `tree` and `info`. Nothing here changes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from snapctl.cli import output, session
from snapctl.cli.options import AnyPath, Json, Wait
from snapctl.cli.path import Location, locate
from snapctl.errors import UsageError
from snapctl.units import format_size

if TYPE_CHECKING:
    from snapctl.cli.ancestry import Ancestry
    from snapctl.engine.container import Container
    from snapctl.engine.node import Node

commands = typer.Typer()

_SIZE_COLUMNS = frozenset({2, 3})
_OWNERS_SHOWN = 10


@commands.command("list")
def list_(path: AnyPath = None, as_json: Json = False, wait: Wait = 5.0) -> None:
    """List volumes and snapshots of a container or a volume.

    OWN is the data that a node alone holds: deleting others frees none of it.

    \b
    Example:
      snapctl list lab.snap
    """
    from snapctl.cli import report

    location = locate(path)
    with session.reading(location.container, wait) as container:
        nodes = _selected(container, location)
        if as_json:
            fields = [report.node_fields(node) for node in nodes]
            output.emit_json({"container": report.container_fields(container), "nodes": fields})
            return
        rows = [
            (
                node.name,
                node.kind.value,
                format_size(node.size_bytes),
                format_size(node.own_bytes),
                report.timestamp(node.created),
            )
            for node in nodes
        ]
        table = output.Table(("NAME", "KIND", "SIZE", "OWN", "CREATED"), rows, _SIZE_COLUMNS)
        output.emit_table(table, [node.kind.value for node in nodes])


def _selected(container: Container, location: Location) -> Sequence[Node]:
    """Return the nodes to list: all, a volume and its snapshots, one snapshot, or one of every volume."""
    if location.node is None:
        return sorted(container.nodes, key=lambda node: (node.name.partition("@")[0], node.id))
    if location.of_every_volume:
        from snapctl.services.operations import snapshots_called

        return snapshots_called(container, location.node or "")
    node = container.node(location.node)
    return [node, *reversed(node.snapshots)]


@commands.command("tree")
def tree(
    path: AnyPath = None,
    by: Annotated[
        Literal["parent", "origin"],
        typer.Option(
            "--by",
            help="What a node hangs from: 'parent', where reads of it continue (a snapshot hangs from the next newer "
            "one, the newest from the volume), or 'origin', what it is a copy of.",
        ),
    ] = "parent",
    as_json: Json = False,
    dot: Annotated[bool, typer.Option("--dot", help="Print the tree for Graphviz.")] = False,
    wait: Wait = 5.0,
) -> None:
    """Draw the snapshot tree of a container or below a node.

    By parent, the snapshots of a volume are a chain drawn straight down, newest first; clones branch off it.

    \b
    Examples:
      snapctl tree lab.snap
      snapctl tree lab.snap/db --dot | dot -Tsvg > tree.svg
    """
    from snapctl.cli import ancestry, report

    if as_json and dot:
        raise UsageError("--json and --dot exclude each other")
    location = locate(path)
    with session.reading(location.container, wait) as container:
        forest = ancestry.Ancestry(container.nodes, by)
        roots = forest.roots if location.node is None else [container.node(location.one_node())]
        if as_json:
            for piece in report.nested_json(container, roots, forest.children):
                output.emit(piece)
        elif dot:
            output.emit_lines(ancestry.graphviz(forest.below(roots), by))
        else:
            _draw(forest, roots)


def _draw(forest: Ancestry, roots: Sequence[Node]) -> None:
    from datetime import UTC, datetime

    from snapctl.cli import ancestry, report

    guides = ancestry.UNICODE if output.can_print("".join(ancestry.UNICODE)) else ancestry.ASCII
    now = datetime.now(UTC)
    rows, kinds = [], []
    for before, node in forest.draw(roots, guides):
        kinds.append(node.kind.value)
        rows.append(
            (
                before + node.name,
                node.kind.value,
                format_size(node.size_bytes),
                format_size(node.own_bytes),
                report.age(node, now),
            )
        )
    output.emit_table(output.Table(("NAME", "KIND", "SIZE", "OWN", "AGE"), rows, _SIZE_COLUMNS | {4}), kinds)


@commands.command("info")
def info(path: AnyPath = None, as_json: Json = False, wait: Wait = 5.0) -> None:
    """Show all about a container, a volume or a snapshot.

    Of a container also how full it is, and which nodes own the most data.

    \b
    Example:
      snapctl info lab.snap/db@mon
    """
    from datetime import UTC, datetime

    from snapctl.cli import report

    location = locate(path)
    with session.reading(location.container, wait) as container:
        node = None if location.node is None else container.node(location.one_node())
        if as_json:
            what: report.Fields = (
                {"usage": report.usage_fields(container)} if node is None else {"node": report.node_details(node)}
            )
            output.emit_json({"container": report.container_fields(container), **what})
        elif node is None:
            output.emit_fields(report.container_lines(container))
            _emit_owners(container)
        else:
            output.emit_fields(report.node_lines(node, datetime.now(UTC)))
        if node is None:
            session.warn_if_nearly_full(container.path, container.usage)


def _emit_owners(container: Container) -> None:
    from snapctl.cli import report

    owners = report.owners(container)
    if not owners:
        return
    shown = owners[:_OWNERS_SHOWN]
    rows = report.owner_rows(shown, container.data_bytes)
    output.emit_lines([""])
    output.emit_table(output.Table(("NAME", "OWN", "SHARE"), rows, frozenset({1, 2})), [n.kind.value for n in shown])
    if len(owners) > _OWNERS_SHOWN:
        output.emit_lines([f"and {len(owners) - _OWNERS_SHOWN} more"])
