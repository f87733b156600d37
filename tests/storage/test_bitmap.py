"""Runs of bits against a plain list of booleans."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from snapctl.errors import Corruption
from snapctl.storage.bitmap import clear_bits, find_run, set_bits, set_runs, set_where_clear, take_runs

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


@given(bits, bits, bits, spans)
def test_bits_are_set_where_no_other_bitmap_has_them(
    values: list[bool], one: list[bool], other: list[bool], span: tuple[int, int]
):
    bitmap, run = packed(values), range(span[0], sum(span))
    set_where_clear(bitmap, (bytes(packed(one)), bytes(packed(other))), *span)
    assert bitmap == packed([values[i] or (i in run and not (one[i] or other[i])) for i in range(BITS)])


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


@given(bits, st.integers(1, BITS), st.integers(1, 9), st.integers(0, 20))
def test_runs_of_a_length_are_cut_from_the_longest_runs_in_order(
    values: list[bool], length: int, count: int, most: int
):
    wanted = [
        start + at for start, found in runs_of(values[:length], True) for at in range(0, found - count + 1, count)
    ]
    free, current = packed([*values[:length], *[False] * (BITS - length)]), packed([False] * BITS)
    assert take_runs(free, current, count, most) == wanted[:most]
    taken = {bit for start in wanted[:most] for bit in range(start, start + count)}
    assert current == packed([bit in taken for bit in range(BITS)])
    assert free == packed([value and bit < length and bit not in taken for bit, value in enumerate(values)])


@given(st.integers(0, BITS - 1))
def test_what_is_in_use_is_not_taken_and_nothing_else_then(bit: int):
    free, current = packed([True] * BITS), packed([i == bit for i in range(BITS)])
    assert take_runs(free, current, 1, BITS) is None
    assert (free, current) == (packed([True] * BITS), packed([i == bit for i in range(BITS)]))


@given(bits, st.integers(-5, BITS + 5), st.integers(1, 9))
def test_the_first_run_that_is_long_enough_is_found_to_its_end(values: list[bool], stop: int, least: int):
    wanted = [(start, start + count) for start, count in runs_of(values[: max(0, stop)], True) if count >= least]
    assert find_run(packed(values), stop, least) == (wanted[0] if wanted else None)
