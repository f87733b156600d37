"""What follows from a container's two sizes, and what they cannot hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapctl.errors import BadSize
from snapctl.format.geometry import BLOCK_SIZES, DEFAULT_TABLE_SIZE, SUPERBLOCK_AREA, Geometry

POWERS = [512 << n for n in range(8)]
TIB = 1 << 40


@pytest.mark.parametrize(("block_size", "largest"), [(4096, 4 * TIB), (16384, 16 * TIB), (65536, 64 * TIB)])
def test_the_largest_volume_is_that_of_three_levels_of_1024(block_size: int, largest: int):
    geometry = Geometry(block_size, DEFAULT_TABLE_SIZE)
    assert geometry.fanout == 1024
    assert geometry.max_volume_bytes == largest
    geometry.check_volume_size(largest)
    geometry.check_volume_size(1)


@pytest.mark.parametrize("table_size", POWERS)
@pytest.mark.parametrize("block_size", POWERS)
def test_numbers_of_every_pair_of_sizes_agree(block_size: int, table_size: int):
    geometry = Geometry(block_size, table_size)
    assert geometry.unit == min(block_size, table_size)
    assert geometry.block_units * geometry.unit == block_size
    assert geometry.table_units * geometry.unit == table_size
    assert geometry.first_page * geometry.unit == SUPERBLOCK_AREA
    assert geometry.fanout * 16 == table_size
    assert geometry.records_per_page * 512 == table_size
    assert geometry.units_per_bitmap == 8 * table_size
    assert geometry.max_units * geometry.unit <= 1 << 63
    assert geometry.max_units <= 1 << 48
    assert geometry.max_blocks == geometry.fanout**3


@pytest.mark.parametrize("size", [0, -512, 1, 256, 511, 513, 768, 4095, 5000, 131_072, 1 << 40])
def test_sizes_that_are_no_power_of_two_in_range_are_refused(size: int):
    with pytest.raises(BadSize, match="block size"):
        Geometry(size, 512)
    with pytest.raises(BadSize, match="table size"):
        Geometry(512, size)


def test_a_volume_too_large_is_refused_with_the_block_size_that_would_do():
    geometry = Geometry(4096, DEFAULT_TABLE_SIZE)
    with pytest.raises(BadSize, match=r"above the largest volume of this container, 4T at 4K blocks.*--block-size 16K"):
        geometry.check_volume_size(4 * TIB + 1)
    with pytest.raises(BadSize, match=r"--block-size 64K"):
        geometry.check_volume_size(16 * TIB + 1)


def test_a_volume_that_no_block_size_can_hold_is_refused_with_that():
    for block_size in BLOCK_SIZES:
        with pytest.raises(BadSize, match="no block size can hold that"):
            Geometry(block_size, DEFAULT_TABLE_SIZE).check_volume_size(64 * TIB + 1)


@pytest.mark.parametrize("size", [0, -1, -(1 << 70)])
def test_a_volume_of_no_bytes_is_refused(size: int):
    with pytest.raises(BadSize, match="at least 1"):
        Geometry(512, 512).check_volume_size(size)


@given(st.integers(0, 1 << 50), st.sampled_from(POWERS))
def test_blocks_of_a_size_are_those_that_it_touches(size_bytes: int, block_size: int):
    blocks = Geometry(block_size, 512).blocks(size_bytes)
    assert blocks * block_size >= size_bytes
    assert (blocks - 1) * block_size < size_bytes or blocks == 0
