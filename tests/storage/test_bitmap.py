"""Runs of bits against a plain list of booleans."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from snapctl.errors import Corruption
from snapctl.storage.bitmap import clear_bits, set_bits, set_each, set_runs, starts

BITS = 64
bits = st.lists(st.booleans(), min_size=BITS, max_size=BITS)
spans = st.tuples(st.integers(0, BITS - 1), st.integers(1, BITS)).filter(lambda span: sum(span) <= BITS)


def packed(values: list[bool]) -> bytearray:
    return bytearray(sum(value << i for i, value in enumerate(values)).to_bytes(len(values) // 8, "little"))


def runs_of(values: list[bool], wanted: bool) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for i, value in enumerate(values):
        if value is wanted:
            if found and sum(found[-1]) == i:
                found[-1] = (found[-1][0], found[-1][1] + 1)
            else:
                found.append((i, 1))
    return found


@given(bits, spans)
def test_bits_that_are_clear_can_be_set(values: list[bool], span: tuple[int, int]):
    start, count = span
    values[start : start + count] = [False] * count
    bitmap = packed(values)
    set_bits(bitmap, start, count)
    values[start : start + count] = [True] * count
    assert bitmap == packed(values)


@given(bits, spans)
def test_bits_that_are_set_can_be_cleared(values: list[bool], span: tuple[int, int]):
    start, count = span
    values[start : start + count] = [True] * count
    bitmap = packed(values)
    clear_bits(bitmap, start, count)
    values[start : start + count] = [False] * count
    assert bitmap == packed(values)


@given(bits, spans)
def test_setting_a_set_bit_is_refused_and_changes_nothing(values: list[bool], span: tuple[int, int]):
    start, count = span
    assume(any(values[start : start + count]))
    bitmap = packed(values)
    with pytest.raises(Corruption, match="in use"):
        set_bits(bitmap, start, count)
    assert bitmap == packed(values)


@given(bits, spans)
def test_clearing_a_clear_bit_is_refused_and_changes_nothing(values: list[bool], span: tuple[int, int]):
    start, count = span
    assume(not all(values[start : start + count]))
    bitmap = packed(values)
    with pytest.raises(Corruption, match="free"):
        clear_bits(bitmap, start, count)
    assert bitmap == packed(values)


@given(bits, st.integers(1, BITS))
def test_runs_are_the_longest_of_each_kind_in_order(values: list[bool], length: int):
    number = int.from_bytes(packed(values), "little") & ((1 << length) - 1)
    assert set_runs(number, length) == runs_of(values[:length], True)


def test_runs_of_a_bitmap_of_the_usual_size_end_at_its_end():
    length = 16384 * 8
    assert set_runs((1 << length) - 1, length) == [(0, length)]
    assert set_runs(1 << (length - 1), length) == [(length - 1, 1)]
    assert set_runs(0, length) == []


@given(bits, st.integers(1, BITS), st.integers(1, 9))
def test_runs_of_a_length_are_cut_from_the_longest_runs_in_order(values: list[bool], length: int, count: int):
    wanted = [
        start + at for start, found in runs_of(values[:length], True) for at in range(0, found - count + 1, count)
    ]
    assert list(starts(int.from_bytes(packed(values), "little"), length, count)) == wanted


@given(bits, st.sets(st.integers(0, BITS - 1)))
def test_single_bits_can_be_set_where_all_are_clear(values: list[bool], chosen: set[int]):
    bitmap = packed([value and i not in chosen for i, value in enumerate(values)])
    set_each(bitmap, sorted(chosen))
    assert bitmap == packed([value or i in chosen for i, value in enumerate(values)])


@given(st.integers(0, BITS - 1))
def test_setting_one_set_bit_among_others_is_refused(bit: int):
    with pytest.raises(Corruption, match="in use"):
        set_each(packed([i == bit for i in range(BITS)]), range(BITS))
