"""Makes containers with as much mapped as one likes, in seconds: the tables are written, the data are holes.

Every block of the one volume has a page of its own, in order, that reads as zeros, and the checksum of zeros; so the
container is as sound as any, and `snapctl check` says so. What lies in the file, in units from the first page on:

    page of records, table and first table of the snapshot list | first, second, third tables of the volume |
    first table, tables and bitmaps of the space map | data
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from snapctl.format.checksum import crc32c
from snapctl.format.geometry import DEFAULT_BLOCK_SIZE, DEFAULT_TABLE_SIZE, SUPERBLOCK_AREA, Geometry
from snapctl.format.pointer import PAGE_WORD, Pointer, encode_table, page_pointer, table_checksum
from snapctl.format.record import Kind, NodeRecord
from snapctl.format.record import build as build_record
from snapctl.format.superblock import COPIES, Superblock, copy_offset
from snapctl.format.superblock import build as build_superblock

_TRANSACTION = 1


def generate(
    path: Path, size_bytes: int, *, block_size: int = DEFAULT_BLOCK_SIZE, table_size: int = DEFAULT_TABLE_SIZE
) -> None:
    """Make a container with the volume ``db``, all of it mapped.

    Args:
        path: of the file, which must not be there.
        size_bytes: of the volume; so large is the file, but takes only what its tables take, 0.4 % at 4 KiB.
        block_size: of the container, in bytes.
        table_size: likewise.
    """
    geometry = Geometry(block_size, table_size)
    geometry.check_volume_size(size_bytes)
    with path.open("xb") as file:
        _Generator(file, geometry).run(size_bytes)


class _Generator:
    """Writes the pages one behind the other; `_next` is the page number of the next."""

    def __init__(self, file: BinaryIO, geometry: Geometry) -> None:
        self._file = file
        self._geometry = geometry
        self._next = geometry.first_page

    def run(self, size_bytes: int) -> None:
        geometry = self._geometry
        blocks = geometry.blocks(size_bytes)
        first_data = self._layout(blocks)
        end = first_data + blocks * geometry.block_units
        # The records name the tables of the volume, which lie behind them.
        self._skip(3)
        first_table = self._tree(list(self._leaves(blocks, first_data)), levels=2)
        record = NodeRecord(
            id=1,
            kind=Kind.BASE,
            name="db",
            parent=0,
            origin=0,
            size_bytes=size_bytes,
            created_ns=0,
            own_blocks=blocks,
            first_table=first_table,
        )
        space_map = self._space_map(end)
        assert self._next == first_data, "the layout was foreseen as it is"
        self._next = geometry.first_page
        self._file.seek(SUPERBLOCK_AREA)
        records = self._write(build_record(record).ljust(geometry.table_size, b"\0"))
        snapshot_list = self._tree([records], levels=2)
        self._file.truncate(end * geometry.unit)
        superblock = build_superblock(
            Superblock(geometry, uuid4(), _TRANSACTION, end, end, 0, 2, 1, snapshot_list, space_map)
        )
        for copy in range(COPIES):
            self._file.seek(copy_offset(_TRANSACTION % 2, copy))
            self._file.write(superblock)

    def _layout(self, blocks: int) -> int:
        """The first page of data, behind all tables; the bitmaps must reach to the end of the data."""
        geometry = self._geometry
        leaves = -(-blocks // geometry.fanout)
        tables = 3 + leaves + -(-leaves // geometry.fanout) + 1
        bitmaps = 0
        while True:
            pages = tables + bitmaps + -(-bitmaps // geometry.fanout) + 1
            first_data = geometry.first_page + pages * geometry.table_units
            needed = -(-(first_data + blocks * geometry.block_units) // geometry.units_per_bitmap)
            if needed == bitmaps:
                return first_data
            bitmaps = needed

    def _leaves(self, blocks: int, first_data: int) -> Iterator[Pointer]:
        """Write the third tables, all entries of which differ in their page number only."""
        geometry = self._geometry
        units, fanout = geometry.block_units, geometry.fanout
        zeros = page_pointer(0, int(crc32c(bytes(geometry.block_size))), _TRANSACTION)
        words = array("Q", zeros) * fanout
        for first in range(0, blocks, fanout):
            held = min(fanout, blocks - first)
            if held < fanout:
                words = array("Q", zeros) * held + array("Q", bytes(16 * (fanout - held)))
            page_word = PAGE_WORD | (first_data + first * units)
            words[0 : 2 * held : 2] = array("Q", range(page_word, page_word + held * units, units))
            yield self._write(encode_table(words))

    def _space_map(self, end: int) -> Pointer:
        geometry = self._geometry
        per_bitmap = geometry.units_per_bitmap
        full = b"\xff" * geometry.table_size
        checksum = table_checksum(full)
        bitmaps = []
        for first in range(0, end, per_bitmap):
            used = min(per_bitmap, end - first)
            page = full if used == per_bitmap else ((1 << used) - 1).to_bytes(geometry.table_size, "little")
            # In place of a birth stands the number of free units.
            free = per_bitmap - used
            bitmaps.append(self._write(page, birth=free, checksum=checksum if page is full else None))
        return self._tree(bitmaps, levels=2, counts_free=True)

    def _tree(self, pointers: list[Pointer], *, levels: int, counts_free: bool = False) -> Pointer:
        """Write tables above pages, up to the first table.

        Args:
            pointers: to the pages.
            levels: of tables.
            counts_free: the births are counts of free units; so are those of the tables right above, but not of others.
        """
        fanout = self._geometry.fanout
        for level in range(levels):
            above = []
            for first in range(0, len(pointers), fanout):
                held = pointers[first : first + fanout]
                lacking = fanout - len(held)
                words = array("Q", [word for pointer in held for word in pointer] + [0, 0] * lacking)
                birth = _TRANSACTION
                if counts_free:
                    free = sum(pointer.birth for pointer in held) + lacking * self._geometry.units_per_bitmap
                    birth = 0 if level else free
                above.append(self._write(encode_table(words), birth=birth))
            pointers = above
        assert len(pointers) == 1, "one first table"
        return pointers[0]

    def _write(self, page: bytes, *, birth: int = _TRANSACTION, checksum: int | None = None) -> Pointer:
        page_no = self._next
        self._file.write(page)
        self._next += self._geometry.table_units
        return page_pointer(page_no, table_checksum(page) if checksum is None else checksum, birth)

    def _skip(self, pages: int) -> None:
        self._next += pages * self._geometry.table_units
        self._file.seek(self._next * self._geometry.unit)
