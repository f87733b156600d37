"""Records of the log: what is built is parsed again, and nothing else is taken for a record."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapctl.errors import Corruption
from snapctl.format import layout
from snapctl.format.checksum import crc32c
from snapctl.format.geometry import Geometry
from snapctl.format.logrecord import (
    DATA,
    MOST_ZEROED_BLOCKS,
    ZEROS,
    Entry,
    build,
    header_bytes,
    is_later,
    parse,
    sector_bytes,
)

SIZES = st.sampled_from([512, 1024, 4096, 16384])
KEYS = st.integers(0, (1 << 64) - 1)
TINY = Geometry(512, 512)


@st.composite
def records(draw: st.DrawFn) -> tuple[Geometry, list[Entry], list[bytes]]:
    geometry = Geometry(draw(SIZES), draw(SIZES))
    entries, blocks = [], []
    for _ in range(draw(st.integers(1, 20))):
        kind, count = draw(st.sampled_from([DATA, ZEROS])), draw(st.integers(1, 3))
        start = draw(st.integers(0, geometry.max_blocks - count))
        entries.append(Entry(draw(st.integers(1, 1 << 40)), start, start + count, kind))
        if kind == DATA:
            blocks += [draw(st.binary(min_size=1, max_size=1)) * geometry.block_size for _ in range(count)]
    return geometry, entries, blocks


def joined(*parts: object) -> memoryview:
    return memoryview(b"".join(bytes(part) for part in parts))  # type: ignore[call-overload]


@given(records(), KEYS, st.integers(0, 1 << 40), st.binary(max_size=3000), st.binary(max_size=100))
def test_a_record_survives_building_and_parsing(
    made: tuple[Geometry, list[Entry], list[bytes]], key: int, index: int, before: bytes, after: bytes
):
    geometry, entries, blocks = made
    buffers = build(key, index, entries, blocks, geometry)
    assert buffers[1:] == blocks
    length = sum(map(len, buffers))
    assert length % sector_bytes(geometry) == 0
    found = parse(joined(before, *buffers, after), len(before), key, index, geometry)
    assert found is not None
    assert found.entries == entries
    assert found.data == b"".join(blocks)
    assert found.length_bytes == length
    parts = list(found.parts(geometry.block_size))
    assert [entry for entry, _ in parts] == entries
    assert b"".join(data for _, data in parts) == b"".join(blocks)


@given(records(), KEYS, st.integers(0, 1 << 40))
def test_a_record_is_what_the_layout_declares(made: tuple[Geometry, list[Entry], list[bytes]], key: int, index: int):
    geometry, entries, blocks = made
    record = b"".join(build(key, index, entries, blocks, geometry))
    head = layout.LogRecord.parse(record)
    assert (head.key, head.index, head.length_bytes, head.entries) == (key, index, len(record), len(entries))
    fixed, step = layout.LogRecord.sizeof(), layout.LogEntry.sizeof()
    assert head.checksum == crc32c(record[: fixed - 4] + record[fixed:])
    declared = [layout.LogEntry.parse(record[fixed + i * step :]) for i in range(len(entries))]
    assert [Entry(entry.node, entry.start, entry.stop, entry.kind) for entry in declared] == entries
    assert header_bytes(len(entries), geometry) == len(record) - sum(map(len, blocks))


def example() -> bytearray:
    entries = [Entry(3, 7, 9, DATA), Entry(4, 0, 32, ZEROS)]
    return bytearray(b"".join(build(99, 5, entries, [b"a" * 512, b"b" * 512], TINY)))


@pytest.mark.parametrize(("key", "index"), [(98, 5), (99, 4), (99, 6)])
def test_a_record_of_another_superblock_or_of_another_place_is_none(key: int, index: int):
    assert parse(memoryview(example()), 0, key, index, TINY) is None


def test_a_record_of_which_a_bit_is_wrong_is_none():
    record = example()
    for bit in random.Random(1).sample(range(8 * len(record)), 400):
        bad = bytearray(record)
        bad[bit // 8] ^= 1 << bit % 8
        assert parse(memoryview(bad), 0, 99, 5, TINY) is None


def test_a_record_that_reaches_beyond_the_end_of_the_log_is_none():
    record = memoryview(example())
    for end in range(0, len(record), 40):
        assert parse(record[:end], 0, 99, 5, TINY) is None
    assert parse(record, len(record), 99, 5, TINY) is None


def resealed(record: bytearray, at: int, data: bytes) -> memoryview:
    """A record with other bytes in it, and the checksum that they ought to have."""
    record[at : at + len(data)] = data
    record[36:40] = int(crc32c(bytes(record[:36] + record[40:]))).to_bytes(4, "little")
    return memoryview(record)


@pytest.mark.parametrize(
    ("at", "value", "size"),
    [
        (28, 0, 4),  # no entries
        (28, 1, 4),  # fewer than there are
        (28, 3, 4),  # more
        (28, (1 << 32) - 1, 4),
        (32, 1, 4),  # reserved
        (40, 0, 8),  # node
        (48, 9, 8),  # start, where stop is
        (56, 10, 8),  # stop: more blocks than there is data
        (56, (1 << 64) - 1, 8),
        (64, 0, 4),  # kind
        (64, 3, 4),
        (64, ZEROS, 4),
        (68, 1, 4),  # reserved
        (88, TINY.max_blocks + 1, 8),
        (88, MOST_ZEROED_BLOCKS + 1, 8),
        (96, DATA, 4),
        (300, 1, 1),  # behind the entries
    ],
)
def test_a_whole_record_that_makes_no_sense_is_corruption(at: int, value: int, size: int):
    with pytest.raises(Corruption, match="makes no sense"):
        parse(resealed(example(), at, value.to_bytes(size, "little")), 0, 99, 5, TINY)


@given(st.binary(max_size=2000), KEYS)
def test_hostile_bytes_are_no_record(page: bytes, key: int):
    assert parse(memoryview(page), 0, key, 0, TINY) is None
    assert not is_later(page, key, -1)


def test_what_came_later_is_known_by_its_number():
    record = bytes(example())
    assert is_later(record, 99, 4)
    assert not is_later(record, 99, 5)
    assert not is_later(record, 98, 4)
    assert not is_later(record[:20], 99, 4)
