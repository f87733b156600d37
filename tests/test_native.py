"""The compiled core: there where it can be, like its twins in Python to the letter, and never a crash or a leak.

A function gets its tests by a line in PAIRS, and a line for each wrong call in WRONG_CALLS.
"""

from __future__ import annotations

import copy
import copyreg
import gc
import importlib.util
import mmap
import os
import struct
import subprocess
import sys
import sysconfig
import tracemalloc
from array import array
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapctl import Container
from snapctl.engine.locating import pure_locate_each
from snapctl.engine.placing import pure_enter, pure_plan
from snapctl.engine.runs import pure_runs_of
from snapctl.format.checksum import pure_checksums, pure_checksums_of
from snapctl.format.pointer import KIND_SHIFT, KINDS, PAGE_WORD
from snapctl.services.nbd.plain import plain, pure_plain_requests
from snapctl.storage.backend import pure_read_each, pure_write_each
from snapctl.storage.bitmap import pure_clear_each, pure_find_run, pure_take_runs
from snapctl.storage.spacemap import Bitmap
from tests.support.requires import needs, needs_header

SOURCE = Path(__file__).resolve().parent.parent / "snapctl" / "_native.c"

# Long ones of random bytes, since Hypothesis itself draws few bytes.
_bytes = st.binary() | st.builds(lambda seed, size: Random(seed).randbytes(size), st.integers(), st.integers(0, 16_000))
_buffers = _bytes | st.builds(bytearray, _bytes)
_piece_sizes = st.integers(1, 600) | st.integers(1, 20_000) | st.sampled_from([-1, 0, 512, 4096, 2**63, 2**80])

_OWN_FD = os.open(__file__, os.O_RDONLY)
_STORE_FD = os.memfd_create("store")
_OWN_BYTES = os.pread(_OWN_FD, 1 << 20, 0)  # which has it in memory

FANOUT_SHIFT, BITMAP_SHIFT = 3, 6
PAGES = range(4 << BITMAP_SHIFT)
"""Those that entries lead to; the last ones have no bitmap."""


def _stretches(random: Random, size: int, longest: int, choices: list[int]) -> list[int]:
    """So many of the choices, neighbours often alike."""
    found: list[int] = []
    while len(found) < size:
        found += [random.choice(choices)] * random.randint(1, longest)
    return found[:size]


def _octets(bits: list[int]) -> bytes:
    return sum(bit << at for at, bit in enumerate(bits)).to_bytes(len(bits) // 8, "little")


def _bitmap(random: Random) -> Bitmap:
    """One of fresh pages (0), kept ones (1) and a few that are free (2); it may be short or long."""
    pages = _stretches(random, random.choice([1 << BITMAP_SHIFT, 40, 80]), 40, [0, 0, 0, 0, 1, 1, 1, 2])
    committed = _octets([page == 1 for page in pages])
    return Bitmap(bytearray(_octets([page < 2 for page in pages])), committed, committed)


def _leaf(random: Random, units: int) -> array[int]:
    """Words of entries of all kinds, often pages that follow each other."""
    words: list[int] = []
    while len(words) < 2 << FANOUT_SHIFT:
        page, run = (
            random.choice([0, 61, 63, 126, 200] if random.random() < 0.3 else PAGES[1:140]),
            random.randint(1, 8),
        )
        kind = random.choice([*KINDS, 0x101]) if random.random() < 0.2 else 1
        for at in range(run):
            words += [kind << KIND_SHIFT | (page + at * units if kind & 1 else 0), random.getrandbits(64)]
    return array("Q", words[: 2 << FANOUT_SHIFT])


def _placing(seed: int) -> tuple[Any, ...]:
    """Arguments for `plan`."""
    random = Random(seed)
    block_shift, units = random.choice([0, 2, 9]), random.choice([1, 4])
    there = [number for number in range(4) if random.random() < 0.95]
    runs = []
    for _ in range(random.choice([0, 1, 1, 2, 3, 8])):
        at = random.randrange(1 << FANOUT_SHIFT)
        count = random.choice([1, 1, random.randint(1, (1 << FANOUT_SHIFT) - at)])
        data = random.randbytes(count << block_shift)
        first = random.randrange(4) << FANOUT_SHIFT | at
        runs.append((first, random.choice([bytes, bytearray, memoryview])(data)))
    leaves = {number: _leaf(random, units) for number in there}
    bitmaps = {number: _bitmap(random) for number in range(3) if random.random() < 0.95}
    return leaves, bitmaps, runs, block_shift, FANOUT_SHIFT, BITMAP_SHIFT, units


def _entering(seed: int) -> tuple[Any, ...]:
    """Arguments for `enter`, one number too many or too few at times."""
    random = Random(seed)
    leaves, _, runs, block_shift, fanout_shift, _, _ = _placing(seed)
    counts = [len(data) >> block_shift for _, data in runs]
    pages = [random.choice([0, random.getrandbits(40)]) for _ in range(sum(counts))]
    fresh, sums = (
        [random.getrandbits(bits) for _ in range(size)] for bits, size in ((48, pages.count(0)), (33, len(pages)))
    )
    if random.random() < 0.2:
        wrong = random.choice([pages, fresh, sums])
        wrong[:] = wrong[1:] if random.random() < 0.5 else [*wrong, 1]
    given = range(fresh[0], fresh[0] + len(fresh)) if fresh and random.random() < 0.3 else fresh
    return leaves, runs, pages, given, sums, block_shift, fanout_shift, random.getrandbits(32) << 32


def _locating(seed: int) -> tuple[Any, ...]:
    """Arguments for `locate_each`, most of them of ranges that are found."""
    random = Random(seed)
    block_shift, units = random.choice([0, 2, 9]), random.choice([1, 4])
    leaves = {number: _leaf(random, units) for number in range(4) if random.random() < 0.95}
    ranges = []
    for _ in range(random.choice([0, 1, 2, 5])):
        at = random.randrange(1 << FANOUT_SHIFT)
        count = random.choice([1, 1, random.randint(1, (1 << FANOUT_SHIFT) - at)])
        number = random.randrange(4)
        if random.random() < 0.9 and number in leaves:
            pages = [PAGE_WORD + 9 + i * units for i in range(count)]
            leaves[number][2 * at : 2 * (at + count) : 2] = array("Q", pages)
        odd = random.choice([0] * 30 + [1, -1, 1 << FANOUT_SHIFT << block_shift])
        ranges.append((number << FANOUT_SHIFT + block_shift | at << block_shift, (count << block_shift) + odd))
    ranges = [(offset, max(0, length)) for offset, length in ranges]
    first_page, end_page = random.choice([1, 1, 9, 10]), random.choice([500, 500, 10, 0])
    return leaves, ranges, block_shift, FANOUT_SHIFT, units, random.choice([1, 4096]), first_page, end_page


def _reading(seed: int) -> tuple[Any, ...]:
    """Arguments for `read_each`: this file, in which some ranges do not end."""
    random = Random(seed)
    size, ends = len(_OWN_BYTES), random.random() < 0.8
    places = [(random.randrange(size), random.randint(0, 5000)) for _ in range(random.choice([0, 1, 2, 9]))]
    if ends:
        places = [(offset, min(length, size - offset)) for offset, length in places]
    return _OWN_FD if random.random() < 0.9 else -1, places, random.choice([0, os.RWF_NOWAIT])


def _clearing(seed: int) -> tuple[Any, ...]:
    random = Random(seed)
    size = random.choice([0, 1, 24])
    most = [random.randbytes(size) for _ in range(3)]
    current = _octets([random.random() < 0.99 for _ in range(8 * size)])
    bits = [bit for bit in range(8 * size) if random.random() < 0.1]
    if random.random() < 0.2:
        bits = random.choice([[*bits, 8 * size], bits[::-1], bits * 2, [*bits, 2**64 - 1]])
    free = random.choice([None, bytearray(random.randbytes(size))])
    return bytearray(current), *most[:2], free, bits


def _taking(seed: int) -> tuple[Any, ...]:
    """Arguments for `take_runs`: what is free is not in use, but for a bit now and then."""
    random = Random(seed)
    size = random.choice([8, 64, 64, 1000])
    free = _octets(_stretches(random, size, random.choice([3, 300]), [0, 1]))
    current = bytearray(byte ^ 255 for byte in free)
    if random.random() < 0.1:
        current[random.randrange(len(current))] = 255
    return bytearray(free), current, random.choice([1, 1, 4, 130]), random.choice([-1, 0, 1, 5, 2000])


def _finding(seed: int) -> tuple[Any, ...]:
    """Arguments for `find_run`."""
    random = Random(seed)
    size = random.choice([0, 8, 64, 1000, 3000])
    free = _octets(_stretches(random, size, random.choice([3, 100, 900]), [0, 1])) if size else b""
    return (
        bytearray(free),
        random.choice([size, size, size + 9, random.randint(-9, size)]),
        random.choice([1, 5, 128, 200]),
    )


def _storing(seed: int) -> tuple[Any, ...]:
    """Arguments for `write_each`: pages in buffers of several, some of them neighbours."""
    random = Random(seed)
    size = random.choice([1, 3, 512])
    offsets: list[int] = []
    while len(offsets) < random.choice([0, 1, 3, 30, 200]):
        first = random.randrange(100) * size
        offsets += range(first, first + random.choice([1, 1, 2, 90]) * size, size)
    buffers: list[bytes] = []
    left = len(offsets)
    while left:
        part = random.randint(0, left)
        buffers.append(random.choice([bytes, bytearray, memoryview])(random.randbytes(part * size)))
        left -= part
    if random.random() < 0.1 and offsets:
        offsets.pop()
    return _STORE_FD if random.random() < 0.9 else -1, offsets, buffers, size, random.choice([1, 7, 1024, 1 << 16])


def _writing(seed: int) -> tuple[Any, ...]:
    """Arguments for `runs_of`: apart and in any order, but for some that have something about them."""
    random = Random(seed)
    block_shift = random.choice([0, 3, 9])
    size, block_no = 1 << block_shift, random.choice([0, 5, (2**64 - (24 << block_shift)) >> block_shift])
    writes = []
    for _ in range(random.choice([0, 1, 2, 10])):
        block_no = min(block_no + random.randint(0, 5), (2**64 - 1) >> block_shift)
        room = (1 << FANOUT_SHIFT) - (block_no & (1 << FANOUT_SHIFT) - 1)
        offset, length, odd = block_no * size, random.randint(1, room) * size, random.random()
        block_no += length // size
        if odd < 0.06:
            offset, length = random.choice([(offset + 1, length), (offset, 0), (offset, length - 1), (0, size)])
        elif odd < 0.1:
            length += random.randint(1, 9) * size
        writes.append((min(offset, 2**64 - 1), memoryview(random.randbytes(length))))
    random.shuffle(writes)
    ends = [2**64 - 1, 2**64 - 1, block_no * size, block_no * size - 1]
    end = min(max(0, random.choice(ends)), 2**64 - 1)
    return writes, block_shift, FANOUT_SHIFT, end


def _receiving(seed: int) -> tuple[Any, ...]:
    """Arguments for `plain_requests`, with and without extended headers, and now and then what is not plain."""
    random = Random(seed)
    header_bytes, read, write = plain(is_extended=random.random() < 0.5, takes_writes=True)
    form = ">QQQQ" if header_bytes == 32 else ">QQQL"
    end_bytes, position = random.choice([1000, 1000, 2**63, 2**64 - 1]), random.randint(0, 9)
    data = random.randbytes(position)
    for _ in range(random.randint(0, 12)):
        kind, offset, length = random.choice([read, write]), random.randint(0, 900), random.randint(1, 60)
        odd = random.random()
        if odd < 0.06:
            kind = random.choice([kind | 1 << 48, kind ^ 1 << 16, 0, 2**64 - 1])
        elif odd < 0.12:
            length = random.choice([0, 100, 100, 101, 2**32 - 1, 2**64 - 1 if header_bytes == 32 else 1])
        elif odd < 0.2:
            offset = random.choice([end_bytes, end_bytes - length, end_bytes - length + 1, 2**64 - 1])
        data += struct.pack(form, kind, random.getrandbits(64), offset, length)
        data += random.randbytes(length) if kind & 1 and length < 1000 else b""
    end = len(data) - random.choice([0, 0, random.randint(0, len(data) - position)])
    most_bytes, most = random.choice([1000, 1000, 100, 100, 1, -5]), random.choice([64, 64, 3, 0, -1])
    taken = header_bytes, read, random.choice([write, write, -1])
    return (
        random.choice([bytes, bytearray])(data),
        position,
        end,
        *taken,
        end_bytes,
        most_bytes,
        random.choice([2**64 - 1, 100, 0]),
        most,
    )


_seeds = st.integers(0, 2**64)

# The pure function of each pair -> arguments for both. The compiled one is named without the `pure_`.
PAIRS: dict[Callable[..., Any], st.SearchStrategy[tuple[Any, ...]]] = {
    pure_checksums: st.tuples(_buffers, _piece_sizes),
    pure_checksums_of: st.tuples(st.lists(_buffers, max_size=4), _piece_sizes),
    pure_plan: st.builds(_placing, _seeds),
    pure_enter: st.builds(_entering, _seeds),
    pure_locate_each: st.builds(_locating, _seeds),
    pure_read_each: st.builds(_reading, _seeds),
    pure_write_each: st.builds(_storing, _seeds),
    pure_clear_each: st.builds(_clearing, _seeds),
    pure_take_runs: st.builds(_taking, _seeds),
    pure_find_run: st.builds(_finding, _seeds),
    pure_runs_of: st.builds(_writing, _seeds),
    pure_plain_requests: st.builds(_receiving, _seeds),
}

WRONG_CALLS: list[tuple[Callable[..., Any], tuple[Any, ...], type[Exception]]] = [
    (pure_checksums, (), TypeError),
    (pure_checksums, (b"data",), TypeError),
    (pure_checksums, (b"data", 1, 1), TypeError),
    (pure_checksums, ("data", 1), TypeError),
    (pure_checksums, (None, 1), TypeError),
    (pure_checksums, ([1, 2], 1), TypeError),
    (pure_checksums, (b"data", "1"), TypeError),
    (pure_checksums, (b"data", 1.0), TypeError),
    (pure_checksums, (b"data", None), TypeError),
    (pure_checksums, (b"data", 0), ValueError),
    (pure_checksums, (b"", -1), ValueError),
    (pure_checksums, (b"data", -(2**80)), ValueError),
    (pure_checksums, (memoryview(b"scattered")[::2], 4), BufferError),
    (pure_checksums, (memoryview(b"backwards")[::-1], 4), BufferError),
    (pure_checksums_of, ([b"data"],), TypeError),
    (pure_checksums_of, (5, 1), TypeError),
    (pure_checksums_of, ([b"data", "data"], 1), TypeError),
    (pure_checksums_of, ([b"data"], 1.0), TypeError),
    (pure_checksums_of, ([], 0), ValueError),
    (pure_checksums_of, ([b"data", memoryview(b"scattered")[::2]], 4), BufferError),
    (pure_plan, ({}, {}, [], 0, 3, 6), TypeError),
    (pure_plan, ({}, {}, 5, 0, 3, 6, 1), TypeError),
    (pure_plan, ({}, {}, [5], 0, 3, 6, 1), TypeError),
    (pure_plan, ({}, {}, [("0", b"data")], 0, 3, 6, 1), TypeError),
    (pure_plan, ({0: array("Q", bytes(128))}, {}, [(0, 5)], 0, 3, 6, 1), TypeError),
    (pure_plan, ({}, {}, [(0, b"data")], 0, 3.0, 6, 1), TypeError),
    (pure_plan, ({}, {}, [(0, b"data")], 0, -1, 6, 1), ValueError),
    (pure_enter, ({}, [], [], [], [], 0, 3), TypeError),
    (pure_enter, ({}, [], 5, [], [], 0, 3, 0), TypeError),
    (pure_enter, ({}, [], [], 5, [], 0, 3, 0), TypeError),
    (pure_enter, ({}, [(0, 5)], [0], [1], [1], 0, 3, 0), TypeError),
    (pure_enter, ({}, [(0, b"data")], [0], [1], [1], "0", 3, 0), TypeError),
    (pure_enter, ({}, [(0, b"data")], [0], [1], [1], -1, 3, 0), ValueError),
    (pure_enter, ({}, [(0, b"d")], [], [1], [1], 0, 3, 0), ValueError),
    (pure_enter, ({}, [(0, b"d")], [0], [], [1], 0, 3, 0), ValueError),
    (pure_enter, ({}, [(0, b"d")], [1], [1], [1], 0, 3, 0), ValueError),
    (pure_enter, ({}, [(0, b"d")], [0], [1], [1, 1], 0, 3, 0), ValueError),
    (pure_enter, ({}, [(0, b"d")], [0], [1], [1], 0, 3, 0), KeyError),
    (pure_enter, ({0: array("Q", bytes(128))}, [(0, b"d")], [0], [2**64], [1], 0, 3, 0), OverflowError),
    (pure_enter, ({0: array("Q", bytes(128))}, [(0, b"d")], [0], [1], [1], 0, 3, 2**64), OverflowError),
    (pure_enter, ({0: array("Q", bytes(128))}, [(0, b"d")], [0], [1], [1], 0, 3, -1), OverflowError),
    (pure_locate_each, ({}, [], 0, 3, 1, 1, 1), TypeError),
    (pure_locate_each, ({}, 5, 0, 3, 1, 1, 1, 9), TypeError),
    (pure_locate_each, ({}, [5], 0, 3, 1, 1, 1, 9), TypeError),
    (pure_locate_each, ({}, [("0", 1)], 0, 3, 1, 1, 1, 9), TypeError),
    (pure_locate_each, ({}, [(0, 1.0)], 0, 3, 1, 1, 1, 9), TypeError),
    (pure_locate_each, ({0: 5}, [(0, 1)], 0, 3, 1, 1, 1, 9), TypeError),
    (pure_locate_each, ({}, [], -1, 3, 1, 1, 1, 9), ValueError),
    (pure_write_each, (_STORE_FD, [], [], 1), TypeError),
    (pure_write_each, ("0", [0], [b"1"], 1, 9), TypeError),
    (pure_write_each, (_STORE_FD, ["0"], [b"1"], 1, 9), TypeError),
    (pure_write_each, (_STORE_FD, [0], [1], 1, 9), TypeError),
    (pure_write_each, (_STORE_FD, [0], [b"12"], 1, 9), ValueError),
    (pure_write_each, (_STORE_FD, [0, 1], [b"1"], 1, 9), ValueError),
    (pure_write_each, (_STORE_FD, [0], [b"1", b"2"], 2, 9), ValueError),
    (pure_write_each, (_STORE_FD, [], [], 0, 9), ValueError),
    (pure_write_each, (_OWN_FD, [0], [b"1"], 1, 9), OSError),
    (pure_take_runs, (bytearray(1), bytearray(1), 1), TypeError),
    (pure_take_runs, (b"1", bytearray(1), 1, 1), TypeError),
    (pure_take_runs, (bytearray(1), bytearray(2), 1, 1), ValueError),
    (pure_take_runs, (bytearray(1), bytearray(1), "1", 1), TypeError),
    (pure_find_run, (bytearray(1), 8), TypeError),
    (pure_find_run, ("1", 8, 1), TypeError),
    (pure_find_run, (bytearray(1), "8", 1), TypeError),
    (pure_read_each, (0, []), TypeError),
    (pure_read_each, (0, 5, 0), TypeError),
    (pure_read_each, (0, [5], 0), TypeError),
    (pure_read_each, (0, [("0", 5)], 0), TypeError),
    (pure_read_each, (0, [(0, "5")], 0), TypeError),
    (pure_read_each, ("0", [(0, 5)], 0), TypeError),
    (pure_clear_each, (bytearray(1), bytes(1), bytes(1), None), TypeError),
    (pure_clear_each, (b"\xff", bytes(1), bytes(1), None, [0]), TypeError),
    (pure_clear_each, (bytearray(1), bytes(1), bytes(1), None, 5), TypeError),
    (pure_clear_each, (bytearray(1), bytes(1), bytes(1), None, ["0"]), TypeError),
    (pure_runs_of, ([], 0, 3), TypeError),
    (pure_runs_of, (5, 0, 3, 8), TypeError),
    (pure_runs_of, ([5], 0, 3, 8), TypeError),
    (pure_runs_of, ([(0, 5)], 0, 3, 8), TypeError),
    (pure_runs_of, ([("0", b"data")], 0, 3, 8), TypeError),
    (pure_runs_of, ([], -1, 3, 8), ValueError),
    (pure_plain_requests, (b"", 0, 0, 28, 0, 1, 9, 9, 9), TypeError),
    (pure_plain_requests, (5, 0, 0, 28, 0, 1, 9, 9, 9, 9), TypeError),
    (pure_plain_requests, ("data", 0, 0, 28, 0, 1, 9, 9, 9, 9), TypeError),
    (pure_plain_requests, (b"", "0", 0, 28, 0, 1, 9, 9, 9, 9), TypeError),
    (pure_plain_requests, (b"", 0, 0, 28, 0, 1, 9, 9, 9, 9.0), TypeError),
]

# Calls that no caller makes and that the twins go on with, or refuse in their own way.
SENSELESS_CALLS: list[tuple[Callable[..., Any], tuple[Any, ...], type[Exception]]] = [
    (pure_plan, (None, {}, [], 0, 3, 6, 1), TypeError),
    (pure_plan, ({}, {}, [], 41, 3, 6, 1), ValueError),
    (pure_plan, ({}, {}, [], 0, 41, 6, 1), ValueError),
    (pure_plan, ({}, {}, [], 0, 3, 2**63 - 1, 1), ValueError),
    (pure_plan, ({}, {}, [], 0, 3, 2**63, 1), OverflowError),
    (pure_plan, ({}, {}, [], 0, 3, 6, 0), ValueError),
    (pure_plan, ({}, {}, [], 0, 3, 6, 4097), ValueError),
    (pure_plan, ({}, {}, [(0, b"")], 0, 3, 6, 1), ValueError),
    (pure_plan, ({}, {}, [(0, b"12345")], 2, 3, 6, 1), ValueError),
    (pure_plan, ({}, {}, [(5, b"1234")], 0, 3, 6, 1), ValueError),
    (pure_plan, ({}, {}, [(-1, b"1")], 0, 3, 6, 1), OverflowError),
    (pure_plan, ({}, {}, [(2**64, b"1")], 0, 3, 6, 1), OverflowError),
    (pure_plan, ({}, {}, [(0, [1])], 0, 3, 6, 1), TypeError),
    (pure_plan, ({0: array("Q", bytes(120))}, {}, [(0, b"1")], 0, 3, 6, 1), ValueError),
    (pure_plan, ({0: bytearray(128)}, {}, [(0, b"1")], 0, 3, 6, 1), ValueError),
    (pure_plan, ({0: memoryview(bytearray(136))[1:129].cast("Q")}, {}, [(0, b"1")], 0, 3, 6, 1), ValueError),
    (pure_plan, ({0: bytes(128)}, {}, [(0, b"1")], 0, 3, 6, 1), BufferError),
    (pure_plan, ({0: 5}, {}, [(0, b"1")], 0, 3, 6, 1), TypeError),
    (pure_plan, ({0: array("Q", [PAGE_WORD] * 16)}, {0: 5}, [(0, b"1")], 0, 3, 6, 1), AttributeError),
    (
        pure_plan,
        ({0: array("Q", [PAGE_WORD] * 16)}, {0: Bitmap(b"", b"", b"")}, [(0, b"1")], 0, 3, 6, 1),  # type: ignore[arg-type]
        TypeError,
    ),
    (pure_enter, ({}, [(0, b"1")], [0], [1], [-1], 0, 3, 0), OverflowError),
    (pure_enter, ({}, [(0, b"1")], [0.5], [1], [1], 0, 3, 0), TypeError),
    (pure_locate_each, ({0: array("Q", bytes(120))}, [(0, 1)], 0, 3, 1, 1, 1, 9), ValueError),
    (pure_locate_each, ({0: array("Q", bytes(128))}, [(-1, 1)], 0, 3, 1, 1, 1, 9), OverflowError),
    (pure_locate_each, ({0: array("Q", bytes(128))}, [(0, 2**64)], 0, 3, 1, 1, 1, 9), OverflowError),
    (pure_write_each, (_STORE_FD, [2**63], [b"1"], 1, 9), ValueError),
    (pure_write_each, (2**31, [], [], 1, 9), OverflowError),
    (pure_take_runs, (bytearray(1), bytearray(1), 0, 1), ValueError),
    (pure_clear_each, (bytearray(1), bytes(1), bytes(1), bytearray(2), [0]), ValueError),
    (pure_clear_each, (bytearray(1), bytes(1), bytes(1), bytes(1), [0]), BufferError),
    (pure_read_each, (0, [(0, 2**64)], 0), OverflowError),
    (pure_read_each, (0, [(0, 2**63)], 0), OverflowError),
    (pure_read_each, (0, [(2**64 - 1, 5)], 0), OverflowError),
    (pure_read_each, (2**31, [], 0), OverflowError),
    (pure_read_each, (0, [], 2**31), OverflowError),
    (pure_clear_each, (bytearray(1), bytes(2), bytes(1), None, [0]), ValueError),
    (pure_clear_each, (bytearray(1), bytes(1), bytes(0), None, [0]), ValueError),
    (pure_clear_each, (bytearray(1), bytes(1), bytes(1), None, [-1]), OverflowError),
    (pure_runs_of, ([(0, b"data", 5)], 0, 3, 8), TypeError),
    (pure_runs_of, ([(2**64, b"data")], 0, 3, 8), OverflowError),
    (pure_plain_requests, (b"12345678" * 4, 0, 33, 32, 0, 1, 9, 9, 9, 9), ValueError),
    (pure_plain_requests, (b"12345678" * 4, -1, 32, 32, 0, 1, 9, 9, 9, 9), ValueError),
    (pure_plain_requests, (b"12345678" * 4, 0, -(2**63), 32, 0, 1, 9, 9, 9, 9), ValueError),
    (pure_plain_requests, (b"12345678" * 4, 0, 32, 31, 0, 1, 9, 9, 9, 9), ValueError),
    (pure_plain_requests, (memoryview(bytes(64))[::2], 0, 32, 32, 0, 1, 9, 9, 9, 9), ValueError),
    (pure_plain_requests, (array("Q", bytes(32)), 0, 32, 32, 0, 1, 9, 9, 9, 9), ValueError),
    (pure_plain_requests, (b"", 0, 0, 28, 0, 1, -1, 9, 9, 9), OverflowError),
]

copyreg.pickle(memoryview, lambda view: (memoryview, (bytes(view),)))  # which deepcopy goes by, too


def compiled(pure: Callable[..., Any], module: ModuleType | None = None) -> Callable[..., Any]:
    """The compiled twin of a pure function; a skipped test where there is none."""
    if module is None:
        module = pytest.importorskip("snapctl._native", reason="snapctl was installed without its compiled core")
    found: Callable[..., Any] = getattr(module, pure.__name__.removeprefix("pure_"))
    return found


def told(value: Any) -> Any:
    """A result with the types of all that is in it, views by their content."""
    if value is None:
        return os.pread(_STORE_FD, 1 << 20, 0)  # which is all that tells what some have done
    if isinstance(value, list | tuple):
        return type(value), [told(each) for each in value]
    return type(value), bytes(value) if isinstance(value, memoryview) else value


def outcome(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """What a call returns or the class of what it raises, and its arguments as they are afterwards."""
    arguments = copy.deepcopy(arguments)
    os.truncate(_STORE_FD, 0)
    try:
        return told(function(*arguments)), arguments
    except Exception as error:  # noqa: BLE001 - whatever it is, the twin has to raise it too
        return type(error), arguments


def build(directory: Path, *flags: str) -> Path:
    """Compile the core by itself, with every warning an error."""
    needs_header("stdio.h", package="libc6-dev")
    needs_header("Python.h", package="python3-dev")
    made = directory / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = [
        needs("gcc", package="gcc"),
        "-std=c11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Wconversion",
        "-Wno-sign-conversion",
        "-Werror",
    ]
    command += [*flags, "-shared", "-fPIC", "-I", sysconfig.get_path("include"), str(SOURCE), "-o", str(made)]
    subprocess.run(command, check=True, timeout=120)
    return made


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("snapctl._native", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_there_where_it_can_be_compiled():
    needs_header("stdio.h", package="libc6-dev")
    needs_header("Python.h", package="python3-dev")
    assert importlib.util.find_spec("snapctl._native") is not None, "install snapctl anew to have it compiled"


def test_every_function_has_a_twin_that_it_replaces():
    native = pytest.importorskip("snapctl._native", reason="snapctl was installed without its compiled core")
    functions = {name for name in vars(native) if not name.startswith("__")}
    assert functions == {pure.__name__.removeprefix("pure_") for pure in PAIRS}
    for pure in PAIRS:
        assert compiled(pure, sys.modules[pure.__module__]) is compiled(pure)


@pytest.mark.parametrize("pure", PAIRS, ids=lambda pure: pure.__name__)
@settings(max_examples=300)
@given(data=st.data())
def test_compiled_and_pure_do_the_same(pure: Callable[..., Any], data: st.DataObject):
    arguments = data.draw(PAIRS[pure])
    assert outcome(compiled(pure), arguments) == outcome(pure, arguments)


@pytest.mark.parametrize(("pure", "arguments", "error"), WRONG_CALLS)
def test_both_refuse_a_wrong_call_with_the_same_error(
    pure: Callable[..., Any], arguments: tuple[Any, ...], error: type[Exception]
):
    with pytest.raises(error):
        pure(*arguments)
    with pytest.raises(error):
        compiled(pure)(*arguments)


@pytest.mark.parametrize(("pure", "arguments", "error"), SENSELESS_CALLS)
def test_senseless_calls_are_refused(pure: Callable[..., Any], arguments: tuple[Any, ...], error: type[Exception]):
    with pytest.raises(error):
        compiled(pure)(*arguments)


@pytest.mark.parametrize("pure", [pure_plan, pure_enter])
def test_code_that_a_call_happens_to_run_is_refused_no_harm(pure: Callable[..., Any]):
    """Looking for a key may compare it, and reading an attribute may do anything."""
    leaf, words = array("Q", [PAGE_WORD + 1, 0] * 8), [PAGE_WORD + 1, 0] * 8
    lists: list[list[Any]] = [[(0, b"1"), (8, b"1"), (1, b"1")], [0, 0, 0], [1, 2, 3], [1, 2, 3]]

    class Meddler:
        """As a key equal to none, but compared with its number; as a bitmap without bits that anyone can look at."""

        def __init__(self, number: int) -> None:
            self.number = number

        def __hash__(self) -> int:
            return self.number

        def __eq__(self, other: object) -> bool:
            if bitmaps:
                self.meddle()
            return False

        def meddle(self) -> None:
            for each in lists:
                each.clear()
            leaves.clear()
            bitmaps.clear()
            current.clear()
            with pytest.raises(BufferError):
                leaf.append(0)

        @property
        def current(self) -> bytearray:
            self.meddle()
            return current

        committed = bytes(8)

    current = bytearray(b"\xff" * 8)
    bitmaps: dict[Any, Any] = {}
    leaves: dict[Any, Any] = {0: leaf, Meddler(1): leaf, 1: array("Q", words)}
    bitmaps[0] = Meddler(5)
    if pure is pure_plan:
        assert compiled(pure)(leaves, bitmaps, lists[0], 0, 3, 6, 1) is None
    else:
        with pytest.raises(ValueError, match="not one"):
            compiled(pure)(leaves, *lists, 0, 3, 0)
    assert leaf.tolist() == words


def test_a_page_that_two_blocks_have_is_seen_though_one_is_written_in_place_and_the_other_moves():
    leaf = array("Q", [0] * 64)
    leaf[0], leaf[4], leaf[6] = PAGE_WORD + 9, PAGE_WORD + 9, PAGE_WORD + 20
    bitmaps = {0: Bitmap(bytearray(b"\xff" * 8), bytes(8), bytes(8))}
    for function in pure_plan, compiled(pure_plan):
        assert function({0: leaf}, bitmaps, [(0, b"1"), (2, b"23")], 0, 5, 6, 1) is None
        leaf[4] += 1
        assert function({0: leaf}, bitmaps, [(0, b"1"), (2, b"23")], 0, 5, 6, 1) is not None
        leaf[4] -= 1


def test_leaves_that_a_collector_clears_meanwhile_are_not_looked_for():
    class Meddler:
        me: Any

        def __del__(self) -> None:
            leaves.clear()

    leaves = {0: array("Q", [PAGE_WORD + 9, 0] * 8)}
    ranges = [(0, 1)] * 5000
    held = [(1, str(number)) for number in range(3000)]  # what there is to look through
    thresholds = gc.get_threshold()
    gc.collect()
    meddler = Meddler()
    meddler.me = meddler
    del meddler
    gc.set_threshold(200, 1, 1)
    try:
        places, sums = compiled(pure_locate_each)(leaves, ranges, 0, 3, 1, 1, 1, 99)
    finally:
        gc.set_threshold(*thresholds)
    assert (leaves, len(held)) == ({}, 3000)
    assert len(sums) < len(places) == len(ranges)
    assert None in places


def test_runs_and_payloads_are_what_was_given_and_no_copies():
    first, second = memoryview(b"1234"), memoryview(b"5678")
    received = bytearray(32) + b"payload"
    received[:32] = struct.pack(">QQQQ", 1, 2, 3, 7)
    for function in pure_runs_of, compiled(pure_runs_of):
        found = function([(4, second), (0, first)], 2, 3, 8)
        assert found is not None
        assert found[0][0][1] is first
    for function in pure_plain_requests, compiled(pure_plain_requests):
        *_, [(_, payload)] = function(received, 0, len(received), 32, 0, 1, 99, 99, 99, 9)
        received[32] ^= 1
        assert payload == received[32:]
        with pytest.raises(BufferError):
            received.append(0)
        del payload, _
        received.append(0)
        received.pop()


def test_a_kind_that_is_all_ones_is_no_write_where_none_are_taken():
    data = struct.pack(">QQQL", 2**64 - 1, 1, 0, 4) + b"1234"
    for function in pure_plain_requests, compiled(pure_plain_requests):
        assert function(data, 0, len(data), *plain(is_extended=False, takes_writes=False), 9, 9, 9, 9) == (
            0,
            [],
            [],
            [],
            [],
        )


@pytest.mark.parametrize("pure", PAIRS, ids=lambda pure: pure.__name__)
def test_neither_takes_names_for_arguments(pure: Callable[..., Any]):
    for function in pure, compiled(pure):
        with pytest.raises(TypeError):
            function(data=b"data", size=1)


def test_buffers_of_every_kind_have_the_checksums_of_their_bytes():
    plain = bytes(range(256)) * 40
    with mmap.mmap(-1, len(plain)) as mapped:
        mapped[:] = plain
        kinds = [bytearray(plain), memoryview(plain), memoryview(bytearray(plain)), array("Q", plain), mapped]
        kinds += [memoryview(b"..." + plain + b".")[3:-1], memoryview(plain).cast("I")]
        kinds += [memoryview(plain).cast("B", (40, 256))]
        for size in (1, 7, 512, 4096, len(plain), len(plain) + 1):
            expected = pure_checksums(plain, size)
            for kind in kinds:
                assert compiled(pure_checksums)(kind, size) == pure_checksums(kind, size) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("pure", PAIRS, ids=lambda pure: pure.__name__)
@settings(max_examples=10)
@given(data=st.data())
def test_no_call_keeps_memory_or_a_reference(pure: Callable[..., Any], data: st.DataObject):
    function, drawn, calls = compiled(pure), data.draw(PAIRS[pure]), 200
    arguments = copy.deepcopy(drawn)
    outcome(function, arguments)
    references = sum(map(sys.getrefcount, arguments))
    tracemalloc.start()
    try:
        for _ in range(calls):  # Python keeps some objects for the next of their kind
            outcome(function, arguments)
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(calls):
            outcome(function, arguments)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Python itself keeps a few more or fewer from time to time, but not one for each call.
    assert sum(map(sys.getrefcount, arguments)) < references + calls
    assert after - before < calls * sys.getsizeof(0) / 2


@pytest.mark.parametrize("flags", [(), ("-DPORTABLE_ONLY",)], ids=["with-the-processors-help", "portable"])
def test_buffers_of_every_length_have_the_right_checksum(flags: tuple[str, ...], tmp_path: Path):
    """Each way of dividing a buffer into streams of words and a rest comes up."""
    checksums = compiled(pure_checksums, load(build(tmp_path, *flags)))
    data = memoryview(Random(1).randbytes(13_001))[1:]
    for length in [*range(300), *range(300, 13_000, 23)]:
        assert checksums(data[:length], 13_000) == pure_checksums(data[:length], 13_000), length


def test_sanitizers_find_nothing_in_it(tmp_path: Path):
    """Reads and writes outside of buffers, and what C leaves undefined, end this run of the tests above."""
    made = build(tmp_path, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    library = subprocess.run(
        [needs("gcc", package="gcc"), "-print-file-name=libasan.so"], capture_output=True, check=True, text=True
    )
    code = """
import importlib.util, sys, pytest
spec = importlib.util.spec_from_file_location("snapctl._native", sys.argv[1])
sys.modules["snapctl._native"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["snapctl._native"])
chosen = ["-k", "compiled_and_pure or refuse or every_kind or no_copies"]
sys.exit(pytest.main(["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", *chosen, sys.argv[2]]))
"""
    run = subprocess.run(
        [sys.executable, "-c", code, made, __file__],
        cwd=SOURCE.parent.parent,
        # Python frees not everything at its end, and its own allocator would hide the ends of its objects.
        env=os.environ
        | {"LD_PRELOAD": library.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"},
        capture_output=True,
        check=False,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_commands_work_without_it(tmp_path: Path):
    code = """
import sys
sys.modules["snapctl._native"] = None
from snapctl.__main__ import main
from snapctl.format import checksum
assert checksum.checksums is checksum.pure_checksums
main()
"""
    data = bytes(range(256)) * 1024

    def snapctl(*arguments: str, given: bytes = b"") -> bytes:
        command = [sys.executable, "-c", code, *arguments]
        run = subprocess.run(command, cwd=tmp_path, input=given, capture_output=True, check=False, timeout=60)
        assert (run.returncode, run.stderr) == (0, b"")
        return run.stdout

    snapctl("create", "lab.snap/db", "--size", "1M")
    snapctl("write", "lab.snap/db", "--offset", "6000", given=data)
    snapctl("snapshot", "lab.snap/db@mon")
    snapctl("write", "lab.snap/db", given=bytes(9000))
    assert snapctl("read", "lab.snap/db@mon", "--offset", "6000", "--length", str(len(data))) == data
    assert b"no errors" in snapctl("check", "lab.snap")

    with Container.open(str(tmp_path / "lab.snap")) as lab:
        assert lab["db"].read(9000, 1000) == data[3000:4000]
