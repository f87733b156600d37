"""Records of the log: what one flush made durable, as changes of blocks in order.

A record is a header with its entries, filled up to a whole number of sectors, and the data that they tell of.
`layout.LogRecord` and `layout.LogEntry` declare both; `struct` builds and reads them here, since a flush waits for it.
A record belongs to the superblock whose key it bears. The key is drawn anew for each commit and known to nobody but who
reads the file, so that neither what stood in the log before nor data that looks like a record is ever taken for one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from snapctl.errors import Corruption
from snapctl.format.checksum import crc32c
from snapctl.format.geometry import Geometry
from snapctl.format.layout import LOG_MAGIC

DATA = 1
"""An entry over blocks whose data follows."""
ZEROS = 2
"""An entry over blocks that are to read as zeros."""
MOST_ZEROED_BLOCKS = 1 << 16
"""In one record, which bounds what a replay has to do."""
_LARGEST_SECTOR = 4096
_HEADER = struct.Struct("<8sQQII4s")
_CHECKSUM = struct.Struct("<I")
_ENTRY = struct.Struct("<QQQI4s")
_FIXED_BYTES = _HEADER.size + _CHECKSUM.size
_BLANK = bytes(4)

Buffer = bytes | bytearray | memoryview


class Entry(NamedTuple):
    """A change of the blocks from `start` to `stop` of a node, of kind DATA or ZEROS."""

    node: int
    start: int
    stop: int
    kind: int


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A verified record.

    Attributes:
        entries: in the order in which they happened.
        data: of the entries of kind DATA, one after the other.
        length_bytes: of the record as it stands in the log.
    """

    entries: list[Entry]
    data: memoryview
    length_bytes: int

    def parts(self, block_size: int) -> Iterator[tuple[Entry, memoryview]]:
        """Each entry with the data that belongs to it, none for ZEROS."""
        start = 0
        for entry in self.entries:
            stop = start + (entry.stop - entry.start) * block_size if entry.kind == DATA else start
            yield entry, self.data[start:stop]
            start = stop


def sector_bytes(geometry: Geometry) -> int:
    """What records begin at multiples of, so that none shares a page of the disk with one that is durable."""
    return min(geometry.unit, _LARGEST_SECTOR)


def header_bytes(entries: int, geometry: Geometry) -> int:
    """Length of a record without its data."""
    sector = sector_bytes(geometry)
    return -(-(_FIXED_BYTES + entries * _ENTRY.size) // sector) * sector


def build(key: int, index: int, entries: Sequence[Entry], blocks: Sequence[Buffer], geometry: Geometry) -> list[Buffer]:
    """Make a record.

    Args:
        key: of the superblock that it continues.
        index: its number among the records of that superblock, from 0.
        entries: what changes.
        blocks: the data of the entries of kind DATA, block by block.
        geometry: of the container.

    Returns:
        What is to be written, one after the other; the blocks are not copied.
    """
    length = header_bytes(len(entries), geometry)
    total = length + len(blocks) * geometry.block_size
    head = _HEADER.pack(LOG_MAGIC, key, index, total, len(entries), _BLANK)
    body = b"".join([_ENTRY.pack(*entry, _BLANK) for entry in entries]).ljust(length - _FIXED_BYTES, b"\0")
    checksum = crc32c(body, crc32c(head))
    for block in blocks:
        checksum = crc32c(block, checksum)
    return [head + _CHECKSUM.pack(checksum) + body, *blocks]


def is_later(page: Buffer, key: int, index: int) -> bool:
    """Whether bytes begin like a record of the same superblock that came after the one with number `index`."""
    if len(page) < _FIXED_BYTES:
        return False
    magic, found_key, found_index = _HEADER.unpack_from(page)[:3]
    return (magic, found_key) == (LOG_MAGIC, key) and found_index > index


def parse(log: memoryview, offset: int, key: int, index: int, geometry: Geometry) -> LogRecord | None:
    """Read the record with number `index` of a superblock.

    Args:
        log: the whole log.
        offset: where the record has to begin, in bytes.
        key: of the superblock.
        index: its number.
        geometry: of the container.

    Returns:
        The record; None if it does not stand there, or not whole.

    Raises:
        Corruption: it is whole and makes no sense.
    """
    if len(log) - offset < _FIXED_BYTES:
        return None
    magic, found_key, found_index, length, count, reserved = _HEADER.unpack_from(log, offset)
    if (magic, found_key, found_index) != (LOG_MAGIC, key, index) or not _FIXED_BYTES < length <= len(log) - offset:
        return None
    body = log[offset + _FIXED_BYTES : offset + length]
    (checksum,) = _CHECKSUM.unpack_from(log, offset + _HEADER.size)
    if crc32c(body, crc32c(log[offset : offset + _HEADER.size])) != checksum:
        return None
    start = _FIXED_BYTES + count * _ENTRY.size
    end = header_bytes(count, geometry)
    if reserved != _BLANK or not count or end > length or bytes(log[offset + start : offset + end]).strip(b"\0"):
        raise Corruption(f"record {index} of the log makes no sense")
    entries = list(_entries(body[: count * _ENTRY.size], index, geometry))
    data_blocks = sum(entry.stop - entry.start for entry in entries if entry.kind == DATA)
    zeroed_blocks = sum(entry.stop - entry.start for entry in entries if entry.kind == ZEROS)
    if end + data_blocks * geometry.block_size != length or zeroed_blocks > MOST_ZEROED_BLOCKS:
        raise Corruption(f"record {index} of the log makes no sense")
    return LogRecord(entries, log[offset + end : offset + length], length)


def _entries(body: memoryview, index: int, geometry: Geometry) -> Iterator[Entry]:
    for *fields, reserved in _ENTRY.iter_unpack(body):
        entry = Entry(*fields)
        is_sane = entry.node and entry.kind in (DATA, ZEROS) and entry.start < entry.stop <= geometry.max_blocks
        if not is_sane or reserved != _BLANK:
            raise Corruption(f"record {index} of the log makes no sense")
        yield entry
