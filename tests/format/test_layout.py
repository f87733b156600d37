"""The declared layout has the sizes that everything else counts on."""

from __future__ import annotations

from construct import Struct

from snapctl.format import layout
from snapctl.format.geometry import POINTER_BYTES, RECORD_BYTES, SUPERBLOCK_AREA
from snapctl.format.superblock import COPIES, SLOTS


def test_declared_sizes_are_those_of_the_format():
    assert layout.Pointer.sizeof() == POINTER_BYTES == 16
    assert layout.NodeRecord.sizeof() == RECORD_BYTES == 512
    assert layout.Superblock.sizeof() == layout.SUPERBLOCK_BYTES == 4096
    assert SLOTS * COPIES * layout.SUPERBLOCK_BYTES <= SUPERBLOCK_AREA


def test_numbers_are_little_endian():
    page = layout.Pointer.build({"page_no": 0x010203040506, "kind": 0x11, "checksum": 0x21222324, "birth": 0x31323334})
    assert page.hex() == "060504030201" + "11" + "00" + "24232221" + "34333231"


def test_numbers_of_eight_bytes_stand_at_multiples_of_eight():
    """So that a table or a page of records can be read as an array of words wherever it lies in memory."""
    for structure in (layout.Superblock, layout.NodeRecord):
        for name, at, size in fields(structure):
            if size in {8, 16} and name != "uuid":
                assert at % 8 == 0, name


def fields(structure: Struct) -> list[tuple[str, int, int]]:
    found, at = [], 0
    for subcon in structure.subcons:
        found.append((subcon.name, at, subcon.sizeof()))
        at += subcon.sizeof()
    return found
