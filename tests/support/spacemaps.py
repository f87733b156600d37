"""The space map read straight from a file's bytes, for tests that do not want to take the allocator's word."""

from __future__ import annotations

from collections.abc import Iterator

from snapctl.format.geometry import INDEX_DEPTH
from snapctl.format.pointer import PAGE, Pointer, decode_table
from snapctl.format.superblock import Superblock
from snapctl.storage.superblocks import choose_superblocks
from tests.support.backends import MemoryBackend


def bitmaps(image: bytes | bytearray, superblock: Superblock) -> Iterator[tuple[int, Pointer, bytes]]:
    """The (index, pointer, bytes) of each bitmap that a superblock stands for; nothing is verified."""
    geometry = superblock.geometry

    def walk(pointer: Pointer, level: int, index: int) -> Iterator[tuple[int, Pointer, bytes]]:
        at = pointer.page_no * geometry.unit
        page = bytes(image[at : at + geometry.table_size])
        if level == 0:
            yield index, pointer, page
            return
        words = decode_table(page)
        for entry in range(geometry.fanout):
            below = Pointer(words[2 * entry], words[2 * entry + 1])
            if below.kind == PAGE:
                yield from walk(below, level - 1, index * geometry.fanout + entry)

    yield from walk(superblock.space_map, INDEX_DEPTH, 0)


def units_in_use(image: bytes | bytearray) -> set[int]:
    """The units that the newest commit has in use, those of the superblocks among them."""
    superblock = choose_superblocks(MemoryBackend(image))[0]
    per_bitmap = superblock.geometry.units_per_bitmap
    return {
        index * per_bitmap + bit
        for index, _, page in bitmaps(image, superblock)
        for bit in range(per_bitmap)
        if page[bit >> 3] >> (bit & 7) & 1
    }
