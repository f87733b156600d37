"""Node records: `struct` and `construct` read the same, and what makes no sense is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from construct import ConstructError
from hypothesis import given
from hypothesis import strategies as st

from snapctl.errors import BadName, Corruption
from snapctl.format import layout
from snapctl.format.geometry import RECORD_BYTES, Geometry
from snapctl.format.pointer import Pointer, page_pointer
from snapctl.format.record import FREE_RECORD, Cow, Kind, NodeRecord, build, check_name, parse, scan
from snapctl.format.superblock import pointer_fields

GEOMETRY = Geometry(512, 512)
NUMBERS = ("id", "parent", "origin", "size_bytes", "created_ns", "expires_ns", "retained_until_ns", "own_blocks")
BYTES = ("kind", "cow", "state", "flags")

numbers = st.integers(0, (1 << 64) - 1)
ids = st.integers(1, (1 << 64) - 1)
first_letter = st.sampled_from("AZaz09")
letters = st.text("ABCxyz0189._-", max_size=62)
names = st.builds(lambda first, rest: first + rest, first_letter, letters).filter(lambda name: ".." not in name)
pointers = st.builds(page_pointer, st.integers(0, (1 << 48) - 1), st.integers(0, (1 << 32) - 1), numbers)


@st.composite
def records(draw: st.DrawFn) -> NodeRecord:
    kind = draw(st.sampled_from(list(Kind)))
    node_id = draw(ids)
    others = st.just(0) if kind is Kind.BASE else ids.filter(lambda other: other != node_id)
    return NodeRecord(
        id=node_id,
        kind=kind,
        name=draw(names),
        parent=draw(others),
        origin=draw(others),
        size_bytes=draw(st.integers(1, GEOMETRY.max_volume_bytes)),
        created_ns=draw(numbers),
        own_blocks=draw(st.integers(0, GEOMETRY.max_blocks)),
        first_table=draw(pointers),
        cow=draw(st.sampled_from(list(Cow))),
        expires_ns=draw(numbers),
        retained_until_ns=draw(numbers),
    )


def raw(page: bytes):
    (found,) = scan(page)
    return found


@given(records())
def test_a_record_survives_building_and_parsing(record: NodeRecord):
    page = build(record)
    assert len(page) == RECORD_BYTES
    assert parse(raw(page), GEOMETRY) == record


@given(records())
def test_a_built_record_is_what_the_layout_declares(record: NodeRecord):
    declared = layout.NodeRecord.parse(build(record))
    for name in NUMBERS:
        assert declared[name] == getattr(record, name)
    assert pointer_fields(record.first_table) == {
        n: declared.first_table[n] for n in pointer_fields(record.first_table)
    }
    assert declared.name.rstrip(b"\0").decode() == record.name
    assert (declared.state, declared.flags, declared.target, declared.cursor) == (0, 0, 0, 0)


declared_fields = st.fixed_dictionaries(
    {
        **dict.fromkeys((*NUMBERS, "target", "cursor"), numbers),
        **dict.fromkeys(BYTES, st.integers(0, 255)),
        **dict.fromkeys(("first_table", "attributes"), st.builds(pointer_fields, pointers)),
        "name": st.binary(min_size=64, max_size=64),
    }
)


@given(declared_fields)
def test_struct_reads_every_field_that_construct_builds(fields: dict[str, Any]):
    found = raw(layout.NodeRecord.build(fields))
    for name in (*NUMBERS, *BYTES, "target", "cursor", "name"):
        assert getattr(found, name) == fields[name]
    for name in ("first_table", "attributes"):
        assert pointer_fields(Pointer(getattr(found, f"{name}0"), getattr(found, f"{name}1"))) == fields[name]


@given(st.lists(st.binary(min_size=RECORD_BYTES, max_size=RECORD_BYTES), max_size=4))
def test_a_page_of_any_bytes_is_scanned_slot_by_slot(slots: list[bytes]):
    page = b"".join(slots)
    for readable in (page, bytearray(page), memoryview(page)):
        assert [found.id for found in scan(readable)] == [int.from_bytes(slot[:8], "little") for slot in slots]


@given(st.binary(min_size=RECORD_BYTES, max_size=RECORD_BYTES))
def test_hostile_bytes_are_a_record_or_corruption_and_nothing_else(page: bytes):
    try:
        record = parse(raw(page), GEOMETRY)
    except Corruption:
        return
    assert build(record) == page


@given(records(), st.integers(0, RECORD_BYTES - 1), st.integers(1, 255))
def test_a_changed_byte_gives_another_sane_record_or_corruption(record: NodeRecord, at: int, bits: int):
    page = bytearray(build(record))
    page[at] ^= bits
    try:
        found = parse(raw(bytes(page)), GEOMETRY)
    except Corruption:
        return
    assert found != record
    check_name(found.name)
    assert 1 <= found.size_bytes <= GEOMETRY.max_volume_bytes


def test_a_free_slot_has_no_id():
    assert raw(FREE_RECORD).id == 0
    assert len(FREE_RECORD) == RECORD_BYTES


SOUND = NodeRecord(
    id=7,
    kind=Kind.RO,
    name="mon",
    parent=3,
    origin=3,
    size_bytes=4096,
    created_ns=1,
    first_table=page_pointer(200, 1, 1),
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", 0),
        ("kind", 4),
        ("kind", 1),  # a base with a parent
        ("cow", 0),
        ("cow", 3),
        ("state", 1),  # of a volume that is no base
        ("state", 2),
        ("flags", 1),
        ("size_bytes", 0),
        ("size_bytes", GEOMETRY.max_volume_bytes + 1),
        ("size_bytes", (1 << 64) - 1),
        ("own_blocks", GEOMETRY.max_blocks + 1),
        ("parent", 0),
        ("parent", 7),
        ("origin", 0),
        ("origin", 7),
        ("target", 1),
        ("cursor", 1),
        ("first_table0", 0),
        ("first_table0", 2 << 48),
        ("first_table0", 1 << 56 | 1 << 48 | 200),
        ("attributes0", 1 << 48 | 200),
        ("attributes0", 200),
        ("attributes1", 1),
        ("name", b"".ljust(64, b"\0")),
        ("name", b"a/b".ljust(64, b"\0")),
        ("name", b"a\0b".ljust(64, b"\0")),
        ("name", b".hidden".ljust(64, b"\0")),
        ("name", b"a..b".ljust(64, b"\0")),
        ("name", "größe".encode().ljust(64, b"\0")),
        ("name", b"\x1b[31m".ljust(64, b"\0")),
        ("name", b"n" * 64),
        ("reserved_a", b"\0\0\0\1"),
        ("reserved_b", b"\1" + bytes(327)),
    ],
)
def test_a_record_with_one_bad_field_is_refused_and_named(field: str, value: object):
    found = raw(build(SOUND))._replace(**{field: value})
    with pytest.raises(Corruption, match=r"^node 7"):
        parse(found, GEOMETRY)


@pytest.mark.parametrize("at", [(116, 120), (184, 188), (508, 512)])
def test_reserved_bytes_are_zero_in_both_readings(at: tuple[int, int]):
    """Wherever a reserved field lies, both readings refuse a record in which it is not zero, or neither does."""
    page = bytearray(build(SOUND))
    page[at[0] : at[1]] = b"\1" * (at[1] - at[0])
    outcomes = []
    for read in (lambda: layout.NodeRecord.parse(bytes(page)), lambda: parse(raw(bytes(page)), GEOMETRY)):
        try:
            read()
        except (ConstructError, Corruption):
            outcomes.append("refused")
        else:
            outcomes.append("read")
    assert outcomes == ["refused", "refused"]


@pytest.mark.parametrize("name", ["a", "0", "db", "A.b_c-d", "2026-11-22T101500Z", "x" * 63, "a.", "a-"])
def test_good_names_pass(name: str):
    check_name(name)
    assert parse(raw(build(replace(SOUND, name=name))), GEOMETRY).name == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "-a", "_a", "a..b", "a b", "a/b", "a@b", "ä", "a\n", "a\0", "x" * 64, "\N{FULLWIDTH DIGIT ONE}"],
)
def test_bad_names_are_refused_with_the_rule(name: str):
    with pytest.raises(BadName, match="bad name"):
        check_name(name)
