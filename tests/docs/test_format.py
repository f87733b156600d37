"""docs/format.md and snapctl-format(5) against the declarations of the format, both ways."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest

from snapctl.format import layout, pointer, record, superblock
from snapctl.format.geometry import (
    BLOCK_SIZES,
    DEFAULT_BLOCK_SIZE,
    DEFAULT_TABLE_SIZE,
    INDEX_DEPTH,
    RECORD_BYTES,
    SUPERBLOCK_AREA,
    VOLUME_DEPTH,
    Geometry,
)
from snapctl.units import parse_size
from tests.docs import mdoc
from tests.docs.markdown import Row, section, table, text_of, unquoted

DOCUMENT = text_of("docs/format.md")
MANUAL = mdoc.Page("man/snapctl-format.5")

STRUCTURES = {
    "Superblock": layout.Superblock,
    "Pointer": layout.Pointer,
    "Node record": layout.NodeRecord,
    "Log record": layout.LogRecord,
    "Log entry": layout.LogEntry,
}
KINDS = {name: getattr(pointer, name) for name in ("ABSENT", "PAGE", "ZERO", "PASS", "LOST")}


class Field(NamedTuple):
    offset: int
    size: int
    name: str


def declared(structure: Any) -> list[Field]:
    """The fields of a `construct` declaration."""
    fields, offset = [], 0
    for member in structure.subcons:
        fields.append(Field(offset, member.sizeof(), member.name))
        offset += member.sizeof()
    return fields


def documented(heading: str) -> list[Field]:
    rows = table(section(DOCUMENT, heading), columns="offset,size,field,meaning")
    return [Field(int(row["offset"]), int(row["size"]), unquoted(row["field"])) for row in rows]


def in_manual(heading: str) -> list[Field]:
    return [Field(int(offset), int(size), name) for offset, size, name, _ in MANUAL.columns(heading.upper())]


@pytest.mark.parametrize("heading", STRUCTURES)
def test_every_field_is_documented_where_it_is(heading: str):
    assert documented(heading) == declared(STRUCTURES[heading])


@pytest.mark.parametrize("heading", STRUCTURES)
def test_every_field_is_in_the_manual_where_it_is(heading: str):
    assert in_manual(heading) == declared(STRUCTURES[heading])


@pytest.mark.parametrize("heading", STRUCTURES)
def test_documented_fields_leave_no_gap(heading: str):
    end = 0
    for field in documented(heading):
        assert field.offset == end
        end += field.size
    assert f"{end} bytes" in section(DOCUMENT, heading)


def test_superblock_copies_are_documented_where_they_are():
    copies = {
        f"slot {slot}, copy {copy}": superblock.copy_offset(slot, copy)
        for slot in range(superblock.SLOTS)
        for copy in range(superblock.COPIES)
    }
    rows = table(section(DOCUMENT, "The file"), columns="offset,size,what")
    assert {row["what"]: int(row["offset"]) for row in rows if row["what"].startswith("slot")} == copies
    assert {
        name: int(offset) for name, offset, _ in MANUAL.columns("CONTAINER FILE") if name.startswith("slot")
    } == copies
    end = 0
    for row in rows[:-1]:
        assert int(row["offset"]) == end
        end += int(row["size"])
    assert end == int(rows[-1]["offset"]) == SUPERBLOCK_AREA
    assert all(int(row["size"]) == layout.SUPERBLOCK_BYTES for row in rows if row["what"].startswith("slot"))


def test_version_is_documented():
    assert f"# The container format, version {layout.FORMAT_VERSION}\n" in DOCUMENT
    (row,) = [
        row
        for row in table(section(DOCUMENT, "Superblock"), columns="offset,size,field,meaning")
        if "version" in row["field"]
    ]
    assert int(row["meaning"]) == layout.FORMAT_VERSION
    assert f"version {layout.FORMAT_VERSION}" in MANUAL.text


def test_kinds_of_pointers_are_documented():
    assert set(KINDS.values()) == set(pointer.KINDS)
    rows = table(section(DOCUMENT, "Pointer"), columns="kind,name,meaning")
    assert {row["name"]: int(row["kind"]) for row in rows} == KINDS
    assert {name: int(kind) for kind, name, _ in MANUAL.columns("POINTER", 1)} == KINDS


@pytest.mark.parametrize(
    ("field", "enumeration"), [("kind", record.Kind), ("cow", record.Cow), ("state", record.State)]
)
def test_codes_in_records_are_documented(field: str, enumeration: type[record.Kind | record.Cow | record.State]):
    """Each code, written into a record, is read back as what the document says."""
    rows = table(section(DOCUMENT, "Node record"), columns="offset,size,field,meaning")
    (meaning,) = [row["meaning"] for row in rows if row["field"] == f"`{field}`"]
    stated = {int(code): name.split()[0].lower() for code, name in re.findall(r"(\d) ([\w ]+)", meaning)}
    built = {}
    for value in enumeration:
        node = record.NodeRecord(1, record.Kind.BASE, "db", 0, 0, 1, 0)
        changes: Any = {field: value}
        page = record.build(_replace(node, **changes))
        built[layout.NodeRecord.parse(page)[field]] = value.name.lower() if isinstance(value, int) else value.value
    assert stated == built


def _replace(node: record.NodeRecord, **changes: Any) -> record.NodeRecord:
    from dataclasses import replace

    return replace(node, **changes)


def test_sizes_that_a_user_may_choose_are_documented():
    rows: dict[str, Row] = {
        row["name"]: row for row in table(section(DOCUMENT, "Sizes and units"), columns="name,meaning,values")
    }
    offered = rows["B, block size"]["values"]
    assert [parse_size(size.replace("(default)", "")) for size in offered.split(",")] == list(BLOCK_SIZES)
    (default,) = re.findall(r"([\w ]+) \(default\)", offered)
    assert parse_size(default) == DEFAULT_BLOCK_SIZE
    assert parse_size(rows["T, table size"]["values"]) == DEFAULT_TABLE_SIZE


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_limits_are_documented(block_size: int):
    rows = {row[""]: row for row in table(section(DOCUMENT, "Limits"), columns=",B = 4 KiB,B = 16 KiB,B = 64 KiB")}
    geometry = Geometry(block_size, DEFAULT_TABLE_SIZE)
    column = f"B = {block_size // 1024} KiB"
    assert parse_size(rows["unit"][column]) == geometry.unit
    assert parse_size(rows["largest volume"][column]) == geometry.max_volume_bytes
    assert parse_size(rows["largest container"][column]) == geometry.max_units * geometry.unit
    assert int(rows["most nodes"][column]) == geometry.fanout**INDEX_DEPTH * geometry.records_per_page


@pytest.mark.parametrize("sizes", [(512, 512), (4096, 16384), (65536, 16384), (1024, 65536)])
def test_formulas_are_those_of_the_code(sizes: tuple[int, int]):
    block, table_size = sizes
    geometry = Geometry(block, table_size)
    unit, fanout = min(block, table_size), table_size // 16
    assert (geometry.unit, geometry.fanout, geometry.first_page) == (unit, fanout, 64 * 1024 // unit)
    assert (geometry.block_units, geometry.table_units) == (block // unit, table_size // unit)
    assert (geometry.units_per_bitmap, geometry.records_per_page) == (table_size * 8, table_size // 512)
    assert geometry.max_blocks == fanout**3
    assert geometry.max_units == min(fanout**2 * table_size * 8, 2**48, 2**63 // unit)


def test_trees_are_documented():
    rows = table(section(DOCUMENT, "Table page"), columns="tree,depth,index,what the last level points at")
    depths = {row["tree"]: int(row["depth"]) for row in rows}
    assert depths == {"tables of a node": VOLUME_DEPTH, "snapshot list": INDEX_DEPTH, "space map": INDEX_DEPTH}


def test_names_and_records_have_the_documented_length():
    assert f"A name is 1 to {record.NAME_BYTES} letters" in DOCUMENT
    assert layout.NodeRecord.sizeof() == RECORD_BYTES
