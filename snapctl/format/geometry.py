"""What follows from a container's block and table size: spans, limits, page arithmetic.

A *unit* is the granule of allocation, ``min(block size, table size)``; page numbers count units from the start of the
file. Data blocks and table pages are runs of one or more units. The first 64 KiB hold the superblocks, so the first
page that a pointer may name is ``first_page``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from snapctl.errors import BadSize
from snapctl.units import format_size

SUPERBLOCK_AREA = 64 * 1024
"""Bytes at the start of the file that belong to the superblocks."""
POINTER_BYTES = 16
RECORD_BYTES = 512
VOLUME_DEPTH = 3
"""Levels of tables between a node and its data blocks (claim 1)."""
INDEX_DEPTH = 2
"""Levels of tables above the pages of the snapshot list and of the space map."""
SMALLEST_PAGE = 512
LARGEST_PAGE = 64 * 1024
BLOCK_SIZES = (4 * 1024, 16 * 1024, 64 * 1024)
"""Block sizes offered to users; tests may go down to 512."""
DEFAULT_BLOCK_SIZE = 4 * 1024
DEFAULT_TABLE_SIZE = 16 * 1024


def _is_page_size(size: int) -> bool:
    return SMALLEST_PAGE <= size <= LARGEST_PAGE and size & (size - 1) == 0


@dataclass(frozen=True, slots=True)
class Geometry:
    """The numbers that the two sizes of a container determine.

    Raises:
        BadSize: a size is not a power of two from 512 to 65,536 bytes.
    """

    block_size: int
    table_size: int
    unit: int = field(init=False)
    fanout: int = field(init=False)
    block_units: int = field(init=False)
    block_shift: int = field(init=False)
    fanout_shift: int = field(init=False)
    fanout_mask: int = field(init=False)
    spans: tuple[int, ...] = field(init=False)
    table_units: int = field(init=False)
    first_page: int = field(init=False)
    max_blocks: int = field(init=False)
    units_per_bitmap: int = field(init=False)
    bitmap_shift: int = field(init=False)
    max_units: int = field(init=False)
    records_per_page: int = field(init=False)

    def __post_init__(self) -> None:
        for what, size in (("block", self.block_size), ("table", self.table_size)):
            if not _is_page_size(size):
                raise BadSize(f"{what} size {size} is not a power of two from 512 to 65536")
        unit = min(self.block_size, self.table_size)
        fanout = self.table_size // POINTER_BYTES
        derived = {
            "unit": unit,
            "fanout": fanout,
            "block_units": self.block_size // unit,
            "block_shift": self.block_size.bit_length() - 1,
            "fanout_shift": fanout.bit_length() - 1,
            "fanout_mask": fanout - 1,
            "spans": tuple(fanout**level for level in range(1, VOLUME_DEPTH + 1)),
            "table_units": self.table_size // unit,
            "first_page": SUPERBLOCK_AREA // unit,
            "max_blocks": fanout**VOLUME_DEPTH,
            "units_per_bitmap": self.table_size * 8,
            "bitmap_shift": self.table_size.bit_length() + 2,
            "max_units": min(fanout**INDEX_DEPTH * self.table_size * 8, 1 << 48, (1 << 63) // unit),
            "records_per_page": self.table_size // RECORD_BYTES,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def max_volume_bytes(self) -> int:
        """The largest volume that three levels of tables can address."""
        return self.max_blocks * self.block_size

    def blocks(self, size_bytes: int) -> int:
        """Number of blocks that `size_bytes` bytes touch when they start at 0."""
        return -(-size_bytes // self.block_size)

    def check_volume_size(self, size_bytes: int) -> None:
        """Refuse a volume size the format cannot hold.

        Raises:
            BadSize: not from 1 to `max_volume_bytes`; says which block size would do.
        """
        if size_bytes < 1:
            raise BadSize("a volume's size must be at least 1 byte")
        if size_bytes <= self.max_volume_bytes:
            return
        larger = [b for b in BLOCK_SIZES if Geometry(b, self.table_size).max_volume_bytes >= size_bytes]
        advice = (
            f"a container made with --block-size {format_size(larger[0])} can"
            if larger
            else "no block size can hold that"
        )
        raise BadSize(
            f"size {size_bytes} is above the largest volume of this container, "
            f"{format_size(self.max_volume_bytes)} at {format_size(self.block_size)} blocks; {advice}"
        )
