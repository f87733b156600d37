"""What is said about a container and its nodes: the values behind the tables, and the JSON that programs read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from snapctl.units import format_age, format_size

if TYPE_CHECKING:
    from snapctl.engine.container import Container
    from snapctl.engine.node import Node

Fields = dict[str, object]


def timestamp(moment: datetime) -> str:
    """Write a moment as ISO 8601 in UTC, to the second: ``2026-03-01T12:30:00Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def age(node: Node, now: datetime) -> str:
    """Write a node's age for people."""
    return format_age((now - node.created).total_seconds())


def size(size_bytes: int) -> str:
    """Write a size both ways: ``4096 (4K)``."""
    return f"{size_bytes} ({format_size(size_bytes)})"


def container_fields(container: Container) -> Fields:
    """Describe a container in JSON, by what it holds alone."""
    return {
        "path": container.path,
        "uuid": str(container.uuid),
        "block_size_bytes": container.block_size,
        "table_size_bytes": container.table_size,
        "capacity_bytes": container.capacity_bytes,
        "used_bytes": container.used_bytes,
        "file_bytes": container.file_bytes,
        "transaction": _last_commit(container),
    }


def usage_fields(container: Container) -> Fields:
    """Describe in JSON how full a container is and what with, as `info` does."""
    usage, data_bytes = container.usage, container.data_bytes
    return {
        "free_bytes": usage.free_bytes,
        "reserve_bytes": usage.reserve_bytes,
        "full_percent": usage.full_percent,
        "data_bytes": data_bytes,
        "metadata_bytes": _metadata_bytes(container, data_bytes),
        "owners": [{"name": node.name, "own_bytes": node.own_bytes} for node in owners(container)],
    }


def owners(container: Container) -> list[Node]:
    """Find the nodes that hold data of their own, the largest holding first."""
    found = [(-node.own_bytes, node.name, node) for node in container.nodes if node.own_bytes]
    return [node for _, _, node in sorted(found, key=lambda item: item[:2])]


def owner_rows(nodes: Sequence[Node], data_bytes: int) -> list[tuple[str, str, str]]:
    """Describe owners for people: name, data, and their share of all data."""
    return [(node.name, format_size(node.own_bytes), f"{100 * node.own_bytes / data_bytes:.1f} %") for node in nodes]


def _metadata_bytes(container: Container, data_bytes: int) -> int:
    """Return what is used and not data; 0 where damaged records claim more data than there is."""
    return max(0, container.used_bytes - data_bytes)


def _last_commit(container: Container) -> int:
    """Return the number of the last commit; the open transaction has the next one."""
    return container.transaction - 1


def node_fields(node: Node) -> Fields:
    """Describe a node in JSON, as `list` and `tree` do."""
    return {
        "name": node.name,
        "kind": node.kind.value,
        "parent": node.parent.name if node.parent else None,
        "origin": node.origin.name if node.origin else None,
        "size_bytes": node.size_bytes,
        "own_bytes": node.own_bytes,
        "created": timestamp(node.created),
    }


def node_details(node: Node) -> Fields:
    """Describe a node in JSON, as `info` does: with its policy, its snapshots and its clones."""
    return {
        **node_fields(node),
        "cow": node.cow.value,
        "snapshots": [snapshot.name for snapshot in node.snapshots],
        "clones": _clone_names(node),
    }


def _clone_names(node: Node) -> list[str]:
    return [child.name for child in node.children if child.kind.value == "rw"]


def container_lines(container: Container) -> list[tuple[str, str]]:
    """Describe a container for people: names and values."""
    capacity_bytes = container.capacity_bytes
    volumes = len(container.volumes)
    usage, data_bytes = container.usage, container.data_bytes
    lines = [
        ("container", container.path),
        ("uuid", str(container.uuid)),
        ("block size", size(container.block_size)),
        ("table size", size(container.table_size)),
        ("capacity", "unlimited" if capacity_bytes is None else size(capacity_bytes)),
        ("used", size(usage.used_bytes)),
        ("  data", size(data_bytes)),
        ("  metadata", size(_metadata_bytes(container, data_bytes))),
        ("free", size(usage.free_bytes)),
        ("reserve", size(usage.reserve_bytes)),
        ("full", f"{usage.full_percent} %"),
        ("file", size(container.file_bytes)),
        ("volumes", str(volumes)),
        ("snapshots", str(len(container.nodes) - volumes)),
        ("transaction", str(_last_commit(container))),
    ]
    if container.replayed_records:
        lines.append(("logged flushes", str(container.replayed_records)))
    return lines


def node_lines(node: Node, now: datetime) -> list[tuple[str, str]]:
    """Describe a node for people: names and values."""
    kinds = {"base": "base volume", "ro": "read-only snapshot", "rw": "read-write snapshot"}
    lines = [
        ("name", node.name),
        ("kind", f"{node.kind.value} ({kinds[node.kind.value]})"),
        ("size", size(node.size_bytes)),
        ("own data", size(node.own_bytes)),
        ("created", f"{timestamp(node.created)} ({age(node, now)} ago)"),
        ("parent", node.parent.name if node.parent else "-"),
        ("origin", node.origin.name if node.origin else "-"),
        ("cow", node.cow.value),
    ]
    relatives = {"snapshots": [snapshot.name for snapshot in node.snapshots], "clones": _clone_names(node)}
    lines += [(what, ", ".join(names)) for what, names in relatives.items() if names]
    return lines


def nested_json(
    container: Container, roots: Sequence[Node], children_of: Callable[[Node], Sequence[Node]]
) -> Iterator[str]:
    """Write a tree as JSON in pieces, one node a line, whatever its depth.

    A chain of 10,000 snapshots nests 10,000 deep, and `json.dumps` would recurse as deep.

    Yields:
        Text whose concatenation is one JSON object.
    """
    import json

    yield f'{{"version": 1, "container": {json.dumps(container_fields(container))}, "nodes": [\n'
    pending: list[Node | str] = _separated(roots)
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
            continue
        children = children_of(item)
        yield json.dumps(node_fields(item))[:-1] + ', "children": [' + ("\n" if children else "")
        pending.append("]}")
        pending += _separated(children)
    yield "\n]}\n"


def _separated(nodes: Sequence[Node]) -> list[Node | str]:
    """Return the nodes with commas between them, last first, to be popped in order."""
    items: list[Node | str] = []
    for node in reversed(nodes):
        if items:
            items.append(",\n")
        items.append(node)
    return items
