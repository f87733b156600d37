"""Records of the snapshot list: one of 512 bytes for every node, base volume, RO and RW snapshot alike.

`layout.NodeRecord` declares the record; `struct` reads whole pages of them here, since a container may hold ten
thousand. `scan` yields what indexes need without judging it; `parse` judges one record and gives a value.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import NamedTuple

from snapctl.errors import BadName, Corruption
from snapctl.format.geometry import RECORD_BYTES, Geometry
from snapctl.format.pointer import KIND_SHIFT, NOWHERE, PAGE, Pointer

NAME_BYTES = 63
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_RECORD = struct.Struct("<8Q QQ QQ QQ 4B 4s 64s 328s")
_KEY = struct.Struct("<3Q 88x B x B 5x 64s 328x")
FREE_RECORD = bytes(RECORD_BYTES)
"""An unused slot."""


class Kind(StrEnum):
    """What a node is."""

    BASE = "base"
    RO = "ro"
    RW = "rw"


class Cow(StrEnum):
    """Who gets the old page at the first write after a snapshot: the snapshot (redirect), or a copy of it (copy)."""

    REDIRECT = "redirect"
    COPY = "copy"


class State(IntEnum):
    """The long operation under way on a node.

    A volume that is being imported is hidden until it is whole; what is left of one is deleted by the next to write.
    """

    IDLE = 0
    IMPORTING = 1


_KINDS = {1: Kind.BASE, 2: Kind.RO, 3: Kind.RW}
_KIND_CODES = {kind: code for code, kind in _KINDS.items()}
_COWS = {1: Cow.REDIRECT, 2: Cow.COPY}
_COW_CODES = {cow: code for code, cow in _COWS.items()}
RO_CODE = _KIND_CODES[Kind.RO]
"""The code of kind RO in a record."""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One node as the snapshot list holds it.

    Attributes:
        id: never used twice in a container, 1 or more.
        name: of a volume its own; of an RO snapshot the part after ``@``.
        parent: id of the node in which lookups continue, 0 for none.
        origin: id of the node it is a copy of, 0 for none.
        created_ns: nanoseconds since 1970 UTC; likewise `expires_ns` and `retained_until_ns`, where 0 is never.
        own_blocks: data blocks that its tables point to.
    """

    id: int
    kind: Kind
    name: str
    parent: int
    origin: int
    size_bytes: int
    created_ns: int
    own_blocks: int = 0
    first_table: Pointer = NOWHERE
    cow: Cow = Cow.REDIRECT
    expires_ns: int = 0
    retained_until_ns: int = 0
    state: State = State.IDLE


class RawRecord(NamedTuple):
    """A record as `struct` gives it, unverified; fields in the order of `layout.NodeRecord`."""

    id: int
    parent: int
    origin: int
    size_bytes: int
    created_ns: int
    expires_ns: int
    retained_until_ns: int
    own_blocks: int
    first_table0: int
    first_table1: int
    attributes0: int
    attributes1: int
    target: int
    cursor: int
    kind: int
    cow: int
    state: int
    flags: int
    reserved_a: bytes
    name: bytes
    reserved_b: bytes


def check_name(name: str) -> None:
    """Refuse what cannot name a volume or a snapshot.

    Raises:
        BadName: not ASCII letters, digits, ``.``, ``_``, ``-`` beginning with a letter or digit, with ``..`` in it, or
            longer than 63 bytes.
    """
    if _NAME.fullmatch(name) is None or ".." in name or len(name) > NAME_BYTES:
        raise BadName(
            f"bad name {name[:80]!r}: use letters, digits, '.', '_' and '-', first a letter or digit, "
            f"no '..', at most {NAME_BYTES}"
        )


def scan(page: bytes | bytearray | memoryview) -> Iterator[RawRecord]:
    """Read every slot of a page of records, unverified, free ones (id 0) included."""
    return map(RawRecord._make, _RECORD.iter_unpack(page))


def scan_keys(page: bytes | bytearray | memoryview) -> Iterator[tuple[int, int, int, int, int, bytes]]:
    """Read what an index needs of every slot of a page of records, unverified.

    Yields:
        (id, parent, origin, kind code, state, name padded with NUL); the id of a free slot is 0.
    """
    return _KEY.iter_unpack(page)


def padded_name(name: str) -> bytes:
    """A name as it stands in a record."""
    return name.encode("ascii", "replace").ljust(NAME_BYTES + 1, b"\0")


def build(record: NodeRecord) -> bytes:
    """Write a record as its 512 bytes."""
    return _RECORD.pack(
        record.id,
        record.parent,
        record.origin,
        record.size_bytes,
        record.created_ns,
        record.expires_ns,
        record.retained_until_ns,
        record.own_blocks,
        *record.first_table,
        *NOWHERE,
        0,
        0,
        _KIND_CODES[record.kind],
        _COW_CODES[record.cow],
        record.state,
        0,
        bytes(4),
        record.name.encode("ascii"),
        b"",
    )


def kind_of(raw: RawRecord) -> Kind | None:
    """The kind that a raw record tells; None if there is no such kind."""
    return _KINDS.get(raw.kind)


def parse(raw: RawRecord, geometry: Geometry) -> NodeRecord:
    """Judge a raw record by itself; what it says of other nodes is for the caller to check.

    Raises:
        Corruption: a field is out of bounds, unknown or reserved.
    """
    name = raw.name.rstrip(b"\0").decode("ascii", "replace")
    try:
        check_name(name)
    except BadName as error:
        raise Corruption(f"node {raw.id}: {error}") from error
    kind, cow = kind_of(raw), _COWS.get(raw.cow)
    faults = [
        what
        for what, wrong in (
            ("kind", kind is None),
            ("cow policy", cow is None),
            ("size", not 1 <= raw.size_bytes <= geometry.max_volume_bytes),
            ("blocks owned", raw.own_blocks > geometry.max_blocks),
            ("first table", raw.first_table0 >> KIND_SHIFT != PAGE),
            ("parent", (raw.parent == 0) != (kind is Kind.BASE) or raw.parent == raw.id),
            ("origin", (raw.origin == 0) != (kind is Kind.BASE) or raw.origin == raw.id),
            ("attributes", (raw.attributes0, raw.attributes1) != NOWHERE),
            ("state", raw.state not in ((State.IDLE, State.IMPORTING) if kind is Kind.BASE else (State.IDLE,))),
            ("reserved field", bool(raw.flags or any(raw.reserved_a) or raw.target or raw.cursor)),
            ("reserved tail", raw.reserved_b.count(0) != len(raw.reserved_b)),
        )
        if wrong
    ]
    if faults or kind is None or cow is None:
        raise Corruption(f"node {raw.id} ({name}): bad {', '.join(faults)} in its record")
    return NodeRecord(
        id=raw.id,
        kind=kind,
        name=name,
        parent=raw.parent,
        origin=raw.origin,
        size_bytes=raw.size_bytes,
        created_ns=raw.created_ns,
        own_blocks=raw.own_blocks,
        first_table=Pointer(raw.first_table0, raw.first_table1),
        cow=cow,
        expires_ns=raw.expires_ns,
        retained_until_ns=raw.retained_until_ns,
        state=State(raw.state),
    )
