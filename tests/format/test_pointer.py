"""Pointers and table pages: the words that the inner loops read are the fields that the layout declares."""

from __future__ import annotations

from array import array
from itertools import pairwise

import pytest
from construct import Array, ConstError
from hypothesis import given
from hypothesis import strategies as st

from snapctl.format import layout, pointer
from snapctl.format.pointer import (
    ABSENT,
    KINDS,
    LOST,
    NOWHERE,
    PAGE,
    PASS,
    ZERO,
    Pointer,
    decode_table,
    encode_table,
    filled_table,
    kind_runs,
    page_pointer,
    pointer_checksums,
    table_checksum,
)
from snapctl.format.superblock import pointer_fields

page_numbers = st.integers(0, (1 << 48) - 1)
kinds = st.integers(0, 255)
words = st.integers(0, (1 << 32) - 1)
fields = st.fixed_dictionaries({"page_no": page_numbers, "kind": kinds, "checksum": words, "birth": words})


def from_bytes(entry: bytes) -> Pointer:
    found = decode_table(entry)
    return Pointer(found[0], found[1])


@given(fields)
def test_the_two_words_are_the_declared_fields(values: dict[str, int]):
    entry = layout.Pointer.build(values)
    assert len(entry) == 16
    assert pointer_fields(from_bytes(entry)) == values


@given(fields)
def test_a_pointer_made_of_words_is_built_as_declared(values: dict[str, int]):
    made = Pointer(values["page_no"] | values["kind"] << 48, values["checksum"] | values["birth"] << 32)
    assert encode_table(array("Q", made)) == layout.Pointer.build(values)


@given(st.binary(min_size=16, max_size=16))
def test_any_sixteen_bytes_are_read_alike_or_show_their_reserved_bits(entry: bytes):
    found = from_bytes(entry)
    if entry[7]:
        with pytest.raises(ConstError):
            layout.Pointer.parse(entry)
        assert found.kind not in KINDS
    else:
        declared = layout.Pointer.parse(entry)
        assert pointer_fields(found) == {name: declared[name] for name in ("page_no", "kind", "checksum", "birth")}


@given(st.integers(2, 64).flatmap(lambda count: st.lists(fields, min_size=count, max_size=count)))
def test_a_table_page_is_an_array_of_declared_pointers(entries: list[dict[str, int]]):
    page = Array(len(entries), layout.Pointer).build(entries)
    table = decode_table(page)
    assert [pointer_fields(Pointer(table[i], table[i + 1])) for i in range(0, len(table), 2)] == entries
    assert encode_table(table) == page


@given(st.binary(min_size=512, max_size=512))
def test_a_table_page_of_any_bytes_survives_decoding_and_encoding(page: bytes):
    for readable in (page, bytearray(page), memoryview(page)):
        assert encode_table(decode_table(readable)) == page


def test_encoding_leaves_the_words_as_they_are():
    table = filled_table(32, pointer.ZERO_WORD)
    encode_table(table)
    assert table == filled_table(32, pointer.ZERO_WORD)


@given(page_numbers, words, st.integers(0, 1 << 64))
def test_a_page_pointer_keeps_page_checksum_and_the_low_bits_of_the_birth(page_no: int, checksum: int, birth: int):
    made = page_pointer(page_no, checksum, birth)
    assert (made.kind, made.page_no, made.checksum, made.birth) == (PAGE, page_no, checksum, birth % (1 << 32))


def test_kinds_are_numbered_as_the_format_says():
    assert (ABSENT, PAGE, ZERO, PASS, LOST) == (0, 1, 2, 3, 4) == KINDS
    for kind in (ZERO, PASS, LOST, PAGE):
        word = getattr(pointer, {ZERO: "ZERO", PASS: "PASS", LOST: "LOST", PAGE: "PAGE"}[kind] + "_WORD")
        assert Pointer(word, 0) == Pointer(kind << 48, 0)
        assert Pointer(word, 0).kind == kind
    assert NOWHERE.kind == ABSENT


def test_a_filled_table_has_one_kind_throughout_and_nothing_else():
    table = filled_table(32, pointer.PASS_WORD)
    assert len(table) == 64
    assert {Pointer(table[i], table[i + 1]) for i in range(0, 64, 2)} == {Pointer(PASS << 48, 0)}
    assert not any(filled_table(1024))


@given(
    st.lists(st.sampled_from([0, 1 << 48, 7 | 1 << 48, 2 << 48, 3 << 48, 4 << 48, 9 << 48, 1 << 56]), max_size=40),
    st.data(),
)
def test_kind_runs_cover_a_range_with_the_longest_runs_of_one_kind(entries: list[int], data: st.DataObject):
    table = array("Q", [word for entry in entries for word in (entry, 5)])
    start = data.draw(st.integers(0, len(entries)))
    stop = data.draw(st.integers(start, len(entries)))
    runs = list(kind_runs(table, start, stop))
    expanded = [kind for first, end, kind in runs for _ in range(first, end)]
    assert expanded == [entry >> 48 for entry in entries[start:stop]]
    assert all(first < end for first, end, _ in runs)
    assert all(a[1] == b[0] and a[2] != b[2] for a, b in pairwise(runs))


@given(st.lists(fields, min_size=2, max_size=64), st.data())
def test_the_checksums_of_a_table_are_those_of_its_pointers(entries: list[dict[str, int]], data: st.DataObject):
    table = decode_table(Array(len(entries), layout.Pointer).build(entries))
    start = data.draw(st.integers(0, len(entries)))
    stop = data.draw(st.integers(start, len(entries)))
    assert pointer_checksums(table, start, stop) == [entry["checksum"] for entry in entries[start:stop]]


def test_the_checksum_of_a_table_is_crc32c():
    assert table_checksum(b"123456789") == 0xE3069283
    assert table_checksum(bytes(32)) == 0x8A9136AA
