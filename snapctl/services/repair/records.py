"""Records that do not make sense, made into ones that do; what they say of data is believed as little as possible."""

from __future__ import annotations

from dataclasses import replace

from snapctl.errors import BadName
from snapctl.format.geometry import Geometry
from snapctl.format.pointer import KIND_SHIFT, NOWHERE, PAGE, Pointer
from snapctl.format.record import Cow, Kind, NodeRecord, RawRecord, State, check_name, kind_of

LARGEST_ID = 1 << 62
"""Ids from here on, which no container ever came to, are given anew."""


def mend(
    sound: dict[int, NodeRecord], unsound: list[RawRecord], geometry: Geometry, next_id: int
) -> dict[int, NodeRecord]:
    """Bring together the records that are sane by themselves and what can be made of the others.

    Args:
        sound: by id.
        unsound: bad fields, or an id that another record bears.
        geometry: of the container.
        next_id: the first id that no node ever had, as far as the superblock is right.

    Returns:
        All by id, ids below 2^62.
    """
    records = {node_id: record for node_id, record in sound.items() if node_id < LARGEST_ID}
    homeless = [record for node_id, record in sound.items() if node_id >= LARGEST_ID]
    for raw in unsound:
        record = _mend(raw, geometry)
        if record.id in records or record.id >= LARGEST_ID:
            homeless.append(record)
        else:
            records[record.id] = record
    next_id = max(min(next_id, LARGEST_ID), max(records, default=0) + 1)
    for record in homeless:
        records[next_id] = replace(record, id=next_id)
        next_id += 1
    # What others are copies of has been whole once, whatever its state says.
    whole = {record.origin for record in records.values()}
    return {
        node_id: replace(record, state=State.IDLE) if node_id in whole else record
        for node_id, record in records.items()
    }


def _mend(raw: RawRecord, geometry: Geometry) -> NodeRecord:
    name = raw.name.rstrip(b"\0").decode("ascii", "replace")
    try:
        check_name(name)
    except BadName:
        name = f"recovered-{raw.id}"
    kind, parent, origin = kind_of(raw), raw.parent, raw.origin
    if kind is None or (kind is Kind.BASE and (parent or origin)):
        kind, parent = Kind.RW, 0  # that it has no parent must not make anybody take what it lacks for zeros
    return NodeRecord(
        id=raw.id,
        kind=kind,
        name=name,
        parent=parent,
        origin=origin,
        size_bytes=min(max(raw.size_bytes, 1), geometry.max_volume_bytes),
        created_ns=raw.created_ns,
        first_table=Pointer(raw.first_table0, raw.first_table1) if raw.first_table0 >> KIND_SHIFT == PAGE else NOWHERE,
        cow=Cow.REDIRECT,
        expires_ns=raw.expires_ns,
        retained_until_ns=raw.retained_until_ns,
    )
