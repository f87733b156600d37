"""Pointers and table pages as pairs of 64-bit words, the form in which the inner loops read them.

A pointer is 16 bytes: page number (48 bits), kind (8), reserved (8); CRC32C of the target (32), birth (32). Read as
two little-endian words these are ``word0 = page_no | kind << 48`` and ``word1 = checksum | birth << 32``. A table
page is an array of such pairs: entry *i* is words ``2*i`` and ``2*i + 1``. Only kind PAGE names a page; in every
other kind the page number, the checksum and the birth are zero.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from snapctl.format.checksum import crc32c
from snapctl.format.geometry import POINTER_BYTES

ABSENT = 0
"""Look in my parent."""
PAGE = 1
"""A table or data page of my own."""
ZERO = 2
"""Reads as zeros; above the last level, all beneath does."""
PASS = 3
"""Only in RO snapshots: my origin had no entry; go on at my origin's parent."""
LOST = 4
"""Damaged beyond repair: reads fail, writing the whole block heals."""

KINDS = (ABSENT, PAGE, ZERO, PASS, LOST)
KIND_SHIFT = 48
PAGE_MASK = (1 << KIND_SHIFT) - 1
CHECKSUM_MASK = 0xFFFF_FFFF
BIRTH_SHIFT = 32
PAGE_WORD = PAGE << KIND_SHIFT
ZERO_WORD = ZERO << KIND_SHIFT
PASS_WORD = PASS << KIND_SHIFT
LOST_WORD = LOST << KIND_SHIFT

_SWAP = sys.byteorder == "big"
_KIND_AT, _RESERVED_AT = (1, 0) if _SWAP else (6, 7)
"""Where a pointer in memory has its kind, and what is always zero."""
_LOW = 3 if _SWAP else 2
"""Which of the four halves of words of a pointer in memory is the checksum."""
_UNKNOWN = 0xFF
RUN = re.compile(rb"(.)\1*", re.DOTALL)
"""A run of one kind among the bytes that `kind_bytes` tells."""


class Pointer(NamedTuple):
    """One pointer, its two words as they stand on disk."""

    word0: int
    word1: int

    @property
    def kind(self) -> int:
        """One of `KINDS`, or a number this version does not know."""
        return self.word0 >> KIND_SHIFT

    @property
    def page_no(self) -> int:
        """The page that it names, in units."""
        return self.word0 & PAGE_MASK

    @property
    def checksum(self) -> int:
        """CRC32C of the page that it names."""
        return self.word1 & CHECKSUM_MASK

    @property
    def birth(self) -> int:
        """Low 32 bits of the transaction that wrote the page; in the space map, the free units beneath."""
        return self.word1 >> BIRTH_SHIFT


NOWHERE = Pointer(0, 0)
"""The absent pointer."""


def page_pointer(page_no: int, checksum: int, birth: int) -> Pointer:
    """Make a pointer of kind PAGE; `birth` is reduced to its low 32 bits."""
    return Pointer(PAGE_WORD | page_no, checksum | (birth & CHECKSUM_MASK) << BIRTH_SHIFT)


def decode_table(page: bytes | bytearray | memoryview) -> array[int]:
    """Read a table page as its words, two a pointer."""
    words = array("Q")
    words.frombytes(page)
    if _SWAP:
        words.byteswap()
    return words


def encode_table(words: array[int]) -> bytes:
    """Write the words of a table page as its bytes."""
    if _SWAP:
        words = words[:]
        words.byteswap()
    return words.tobytes()


def filled_table(fanout: int, word0: int = 0) -> array[int]:
    """Make the words of a table all of whose `fanout` entries are the non-page entry `word0`."""
    return array("Q", (word0, 0)) * fanout


def table_checksum(page: bytes) -> int:
    """CRC32C of a table page's bytes."""
    return int(crc32c(page))


def pointer_checksums(words: array[int], start: int, stop: int) -> list[int]:
    """The checksums that the entries from `start` to `stop` of a table carry."""
    return memoryview(words).cast("B").cast("I")[4 * start + _LOW : 4 * stop : 4].tolist()


def kind_bytes(words: array[int], start: int, stop: int) -> bytes:
    """The kinds of the entries from `start` to `stop` of a table, a byte each, none of `KINDS` for an unknown one."""
    raw = words[2 * start : 2 * stop].tobytes()
    kinds = raw[_KIND_AT::POINTER_BYTES]
    reserved = raw[_RESERVED_AT::POINTER_BYTES]
    if reserved.strip(b"\0"):
        return bytes(_UNKNOWN if high else low for high, low in zip(reserved, kinds, strict=True))
    return kinds


def kind_runs(words: array[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Split the entries from `start` to `stop` of a table into runs of one kind.

    Yields:
        (first, end, kind) in order; an unknown kind or a reserved bit shows as a number not in `KINDS`.
    """
    kinds = kind_bytes(words, start, stop)
    if _UNKNOWN not in kinds:
        for run in RUN.finditer(kinds):
            yield start + run.start(), start + run.end(), run[0][0]
        return
    for kind, entries in groupby(word0 >> KIND_SHIFT for word0 in words[2 * start : 2 * stop : 2]):
        first, start = start, start + sum(1 for _ in entries)
        yield first, start, kind
