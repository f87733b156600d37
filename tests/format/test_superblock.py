"""Superblocks: what is built is parsed again, and nothing is believed that the checksum does not cover."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapctl.errors import Corruption, UnsupportedFormat
from snapctl.format import layout
from snapctl.format.checksum import crc32c
from snapctl.format.geometry import SUPERBLOCK_AREA, Geometry
from snapctl.format.layout import MAGIC, SUPERBLOCK_BYTES
from snapctl.format.pointer import NOWHERE, page_pointer
from snapctl.format.superblock import (
    COPIES,
    LARGEST_LOG_BYTES,
    LOG_FEATURE,
    SLOTS,
    Superblock,
    build,
    copy_offset,
    has_magic,
    parse,
)

SIZES = st.sampled_from([512, 1024, 4096, 16384, 65536])
pointers = st.builds(page_pointer, st.integers(128, 1 << 40), st.integers(0, (1 << 32) - 1), st.integers(0, 1 << 32))


@st.composite
def superblocks(draw: st.DrawFn) -> Superblock:
    geometry = Geometry(draw(SIZES), draw(SIZES))
    total = draw(st.integers(geometry.first_page, geometry.max_units))
    next_id = draw(st.integers(1, (1 << 63) - 1))
    log_pages = draw(st.integers(0, min(total - geometry.first_page, LARGEST_LOG_BYTES // geometry.unit)))
    log_page = draw(st.integers(geometry.first_page, total - log_pages))
    return Superblock(
        geometry=geometry,
        uuid=draw(st.uuids()),
        transaction=draw(st.integers(1, (1 << 63) - 1)),
        pages_used=draw(st.integers(geometry.first_page, total)),
        pages_total=total,
        pages_limit=draw(st.integers(0, geometry.max_units)),
        next_node_id=next_id,
        node_count=draw(st.integers(0, next_id - 1)),
        snapshot_list=draw(pointers),
        space_map=draw(pointers),
        compatible=draw(st.integers(0, (1 << 64) - 1)),
        read_only_compatible=draw(st.integers(0, (1 << 64) - 1)),
    ).with_log(log_page, log_pages, draw(st.integers(0, (1 << 64) - 1)))


SOUND = Superblock(
    geometry=Geometry(4096, 16384),
    uuid=UUID(int=1),
    transaction=9,
    pages_used=40,
    pages_total=50,
    pages_limit=0,
    next_node_id=4,
    node_count=3,
    snapshot_list=page_pointer(20, 1, 9),
    space_map=page_pointer(24, 2, 0),
)


def resealed(page: bytes | bytearray) -> bytes:
    """Bytes with a checksum that is right for them."""
    body = bytes(page[:-4])
    return body + int(crc32c(body)).to_bytes(4, "little")


def offset_of(field: str) -> int:
    at = 0
    for subcon in layout.Superblock.subcons:
        if subcon.name == field:
            return at
        at += subcon.sizeof()
    raise KeyError(field)


def changed(field: str, value: bytes) -> bytes:
    page = bytearray(build(SOUND))
    at = offset_of(field)
    page[at : at + len(value)] = value
    return resealed(page)


@given(superblocks())
def test_a_superblock_survives_building_and_parsing(superblock: Superblock):
    page = build(superblock)
    assert len(page) == SUPERBLOCK_BYTES == layout.Superblock.sizeof()
    assert has_magic(page)
    assert parse(page) == superblock


@given(superblocks())
def test_a_built_superblock_is_what_the_layout_declares(superblock: Superblock):
    declared = layout.Superblock.parse(build(superblock))
    for name in ("transaction", "pages_used", "pages_total", "pages_limit", "next_node_id", "node_count", "compatible"):
        assert declared[name] == getattr(superblock, name)
    assert declared.uuid == superblock.uuid.bytes
    assert (declared.block_size, declared.table_size) == (
        superblock.geometry.block_size,
        superblock.geometry.table_size,
    )
    log = superblock.log_page, superblock.log_pages, superblock.log_key
    assert (declared.log_page, declared.log_pages, declared.log_key) == log
    assert declared.incompatible == (LOG_FEATURE if superblock.log_pages else 0)
    assert declared.checksum == crc32c(build(superblock)[:-4])


@given(st.binary(max_size=5000))
def test_hostile_bytes_are_corruption(page: bytes):
    with pytest.raises(Corruption):
        parse(page)


@given(st.binary(min_size=SUPERBLOCK_BYTES - 8, max_size=SUPERBLOCK_BYTES - 8))
def test_hostile_bytes_behind_the_magic_are_corruption(rest: bytes):
    with pytest.raises(Corruption):
        parse(MAGIC + rest)


@given(st.binary(max_size=200), st.integers(8, 300))
def test_hostile_bytes_with_a_right_checksum_are_refused_or_within_bounds(junk: bytes, at: int):
    page = bytearray(build(SOUND))
    page[at : at + len(junk)] = junk
    try:
        found = parse(resealed(page))
    except (Corruption, UnsupportedFormat):
        return
    assert found.geometry.first_page <= found.pages_used <= found.pages_total <= found.geometry.max_units


@given(st.integers(0, SUPERBLOCK_BYTES - 1), st.integers(0, 7))
def test_any_flipped_bit_is_noticed(at: int, bit: int):
    page = bytearray(build(SOUND))
    page[at] ^= 1 << bit
    with pytest.raises(Corruption):
        parse(bytes(page))


@pytest.mark.parametrize("size", [0, 1, 8, 4095, 4097, 8192])
def test_a_page_of_another_length_is_no_superblock(size: int):
    with pytest.raises(Corruption, match="no superblock"):
        parse(build(SOUND)[:size].ljust(size, b"\0"))


def test_a_newer_version_is_unsupported_and_says_which():
    with pytest.raises(UnsupportedFormat, match="version 2"):
        parse(changed("version", (2).to_bytes(4, "little")))


def test_a_newer_version_with_a_wrong_checksum_is_not_believed():
    page = bytearray(build(SOUND))
    page[8] = 2
    with pytest.raises(Corruption, match="checksum"):
        parse(bytes(page))


def test_an_unknown_incompatible_feature_is_unsupported_and_named():
    with pytest.raises(UnsupportedFormat, match="0x8000000000000002"):
        parse(changed("incompatible", (1 << 63 | 2).to_bytes(8, "little")))


def test_unknown_compatible_features_are_kept():
    found = parse(changed("compatible", (1 << 40).to_bytes(8, "little")))
    assert found.compatible == 1 << 40
    assert parse(build(found)) == found


def test_the_reserved_tail_is_covered_by_the_checksum_and_otherwise_ignored():
    assert parse(changed("reserved_b", b"for a compatible feature")) == SOUND


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_size", 0),
        ("block_size", 4095),
        ("block_size", 1 << 31),
        ("table_size", 0),
        ("table_size", 256),
        ("reserved_a", 1),
        ("transaction", 0),
        ("pages_used", 0),
        ("pages_used", 51),
        ("pages_total", 39),
        ("pages_total", (1 << 64) - 1),
        ("pages_limit", (1 << 64) - 1),
        ("next_node_id", 3),
        ("node_count", 4),
        ("snapshot_list", 0),
        ("space_map", 0),
    ],
)
def test_numbers_that_make_no_sense_are_corruption_even_with_a_right_checksum(field: str, value: int):
    width = {"block_size": 4, "table_size": 4, "reserved_a": 4, "snapshot_list": 16, "space_map": 16}.get(field, 8)
    with pytest.raises(Corruption):
        parse(changed(field, value.to_bytes(width, "little")))


def test_a_root_pointer_that_names_no_page_is_corruption():
    for found in (replace(SOUND, snapshot_list=NOWHERE), replace(SOUND, space_map=NOWHERE)):
        with pytest.raises(Corruption):
            parse(build(found))


def test_slots_alternate_and_copies_lie_apart_within_the_area():
    assert [replace(SOUND, transaction=number).slot for number in (1, 2, 3, 4)] == [1, 0, 1, 0]
    offsets = {(slot, copy): copy_offset(slot, copy) for slot in range(SLOTS) for copy in range(COPIES)}
    spans = sorted((offset, offset + SUPERBLOCK_BYTES) for offset in offsets.values())
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert spans[-1][1] <= SUPERBLOCK_AREA
    for slot in range(SLOTS):
        assert offsets[slot, 1] - offsets[slot, 0] == 32 * 1024


def test_magic_is_told_from_anything_shorter_or_other():
    assert has_magic(build(SOUND))
    for page in (b"", MAGIC[:-1], b"SNAPCTL1", bytes(4096)):
        assert not has_magic(page)
