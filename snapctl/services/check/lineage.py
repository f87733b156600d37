"""How the records of a container have to relate: names, parents and origins.

An RO snapshot stands between its origin volume and the next older RO snapshot of it, so its parent is that volume or a
newer RO snapshot of the same origin, and no two have the same parent. An RW snapshot hangs from an RO snapshot, which
is also its origin, or after a take-over from an RO snapshot of the base that is its origin.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from snapctl.format.record import Kind, NodeRecord, State
from snapctl.services.check.findings import Findings


def full_name(record: NodeRecord, records: Mapping[int, NodeRecord]) -> str:
    """The name by which people know a node, ``db`` or ``db@mon``; an unknown origin shows as ``#`` and its id."""
    if record.kind is not Kind.RO:
        return record.name
    origin = records.get(record.origin)
    return f"{origin.name if origin else f'#{record.origin}'}@{record.name}"


def check_lineage(records: Mapping[int, NodeRecord], unsound: Collection[int], findings: Findings) -> None:
    """Judge how records relate.

    Args:
        records: all sound records, by id.
        unsound: ids of records that are there but cannot be relied on; what refers to them is not judged.
        findings: takes what is wrong.
    """
    known: dict[tuple[int, str], int] = {}
    has_snapshot: dict[int, NodeRecord] = {}
    for record in records.values():
        name = full_name(record, records)
        key = (record.origin if record.kind is Kind.RO else 0, record.name)
        if known.setdefault(key, record.id) != record.id:
            findings.corruption(name, f"nodes {known[key]} and {record.id} bear the same name")
        if record.kind is Kind.BASE:
            continue
        for what, other in (("parent", record.parent), ("origin", record.origin)):
            if other not in records and other not in unsound:
                findings.corruption(name, f"its {what}, node {other}, does not exist")
        parent, origin = records.get(record.parent), records.get(record.origin)
        if parent is None or origin is None:
            continue
        if origin.state is State.IMPORTING:
            findings.corruption(name, f"its origin, node {origin.id}, is still being imported")
        fault = _misplaced_clone(parent, origin) if record.kind is Kind.RW else _misplaced(record, parent, origin)
        if fault:
            findings.corruption(name, fault)
        if record.kind is Kind.RO and has_snapshot.setdefault(parent.id, record) is not record:
            other_name = full_name(has_snapshot[parent.id], records)
            findings.corruption(name, f"hangs from {full_name(parent, records)}, as {other_name} does; only one can")
    _check_cycles(records, findings)


def _misplaced(record: NodeRecord, parent: NodeRecord, origin: NodeRecord) -> str | None:
    if origin.kind is Kind.RO:
        return f"its origin, node {origin.id}, is an RO snapshot; only volumes have RO snapshots"
    if parent.id == origin.id:
        return None
    if parent.kind is not Kind.RO or parent.origin != origin.id:
        return f"its parent, node {parent.id}, is neither its origin nor an RO snapshot of the same origin"
    if parent.id < record.id:
        return f"its parent, node {parent.id}, is older than itself"
    return None


def _misplaced_clone(parent: NodeRecord, origin: NodeRecord) -> str | None:
    if parent.kind is not Kind.RO:
        return f"its parent, node {parent.id}, is not an RO snapshot"
    if origin.id != parent.id and (origin.kind is not Kind.BASE or parent.origin != origin.id):
        return f"its origin, node {origin.id}, is neither its parent nor the base that its parent is a snapshot of"
    return None


def _check_cycles(records: Mapping[int, NodeRecord], findings: Findings) -> None:
    """Find the nodes from which no base volume is reached because their parents form a cycle."""
    ends_well: dict[int, bool] = {}
    for start in records.values():
        path: dict[int, None] = {}
        node_id = start.id
        while node_id in records and node_id not in ends_well and node_id not in path:
            path[node_id] = None
            node_id = records[node_id].parent
        is_well = node_id not in path and ends_well.get(node_id, True)
        if node_id in path:
            findings.corruption(full_name(records[node_id], records), "its ancestors form a cycle")
        ends_well.update(dict.fromkeys(path, is_well))
