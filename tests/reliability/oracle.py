"""A second reader of containers, for what the engine returns to be held against, whatever stands in the file.

It follows "Reading a block" of docs/format.md on bytes in memory and shares with the engine only the choice of the
superblock and the checksum function. Where it finds anything that it cannot rely on, the range is `BAD`: the engine
must not return bytes there. Where the engine refuses though the oracle reads, nothing is said: refusing is allowed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from snapctl.format.checksum import crc32c
from snapctl.storage.superblocks import choose_superblocks
from tests.support.backends import MemoryBackend

ABSENT, PAGE, ZERO, PASS, LOST = range(5)
_RECORD = struct.Struct("<4Q 32x 2Q")
_PAGE_BITS = (1 << 48) - 1


class Verdict(Enum):
    """What stands in a range that holds no data."""

    ZEROS = "zeros"
    BAD = "bad"


ZEROS, BAD = Verdict.ZEROS, Verdict.BAD


class Piece(NamedTuple):
    """Blocks from `start` to `stop`: the bytes of one block, zeros, or nothing that can be relied on."""

    start: int
    stop: int
    content: bytes | Verdict


class _Record(NamedTuple):
    id: int
    parent: int
    origin: int
    size: int
    table0: int
    table1: int


class Oracle:
    """What can be read in an image.

    Attributes:
        superblock: that the image is read by.
    """

    def __init__(self, image: bytes | bytearray) -> None:
        """Raises SnapctlError if there is no sound superblock."""
        self._image = bytes(image)
        self.superblock, self._previous = choose_superblocks(MemoryBackend(self._image))
        self._geometry = self.superblock.geometry
        self._pages: dict[tuple[int, int, int], bytes | None] = {}
        self._records = {record.id: record for record in self._read_records()}

    @property
    def ids(self) -> set[int]:
        """The nodes that there are records of."""
        return set(self._records)

    def read(self, node_id: int, start: int, stop: int) -> list[Piece]:
        """The blocks from `start` to `stop` of a node, in order and without gaps."""
        record = self._records.get(node_id)
        if record is None:
            return [Piece(start, stop, BAD)]
        return list(self._resolve(record, start, stop, record.size, 0))

    def differs(self, node_id: int, offset: int, data: bytes | bytearray | memoryview) -> str | None:
        """Why bytes that were read at an offset are not what stands there; None if they are."""
        size = self._geometry.block_size
        first, end = offset // size, -(-(offset + len(data)) // size)
        for start, stop, content in self.read(node_id, first, end):
            begin, limit = max(offset, start * size), min(offset + len(data), stop * size)
            found = bytes(data[begin - offset : limit - offset])
            if content is BAD:
                return f"blocks {start} to {stop} of node {node_id} were read, but cannot be relied on"
            expected = content[begin - start * size : limit - start * size] if isinstance(content, bytes) else b""
            if found != expected.ljust(len(found), b"\0"):
                return f"blocks {start} to {stop} of node {node_id} were read wrong"
        return None

    def digest(self, node_id: int) -> list[Piece]:
        """A whole node, in a form in which equal content is equal wherever it stands."""
        record = self._records.get(node_id)
        if record is None:
            return []
        found: list[Piece] = []
        for piece in self.read(node_id, 0, -(-record.size // self._geometry.block_size)):
            content = piece.content
            if isinstance(content, bytes):
                content = content if any(content) else ZEROS
            if found and isinstance(content, Verdict) and found[-1].content is content:
                found[-1] = found[-1]._replace(stop=piece.stop)
            else:
                found.append(Piece(piece.start, piece.stop, content))
        return found

    def is_in_use(self, unit: int) -> bool:
        """Whether one of the two last commits has a unit in use by its map.

        Where the last one's map cannot be read, everything may be in use; of the one before that is nobody's loss.
        """
        if unit < self._geometry.first_page:
            return True
        index, bit = divmod(unit, self._geometry.units_per_bitmap)
        for superblock in (self.superblock, self._previous):
            if superblock is not None:
                for _, _, word0, word1 in self._entries(*superblock.space_map, 2, index, index + 1):
                    page = None if word0 is None else self._page(word0, word1, self._geometry.table_size)
                    if page is None and (word0 is None or word0 >> 48 == PAGE):
                        if superblock is self.superblock:
                            return True
                    elif page is not None and page[bit >> 3] >> (bit & 7) & 1:
                        return True
        return False

    def _read_records(self) -> Iterator[_Record]:
        for _, _, word0, word1 in self._entries(*self.superblock.snapshot_list, 2, 0, self._geometry.fanout**2):
            page = None
            if word0 is not None and word0 >> 48 == PAGE:
                page = self._page(word0, word1, self._geometry.table_size)
            for at in range(0, len(page or b""), 512):
                record = _Record._make(_RECORD.unpack_from(page or b"", at))
                if record.id:
                    yield record

    def _resolve(self, node: _Record, start: int, stop: int, limit: int, hops: int) -> Iterator[Piece]:
        if hops > len(self._records):
            yield Piece(start, stop, BAD)
            return
        size = self._geometry.block_size
        for first, end, word0, word1 in self._entries(node.table0, node.table1, 3, start, stop):
            kind = None if word0 is None else word0 >> 48
            if kind == PAGE and word0 is not None:
                data = self._page(word0, word1, size)
                yield Piece(
                    first, end, BAD if data is None else data[: max(0, limit - first * size)].ljust(size, b"\0")
                )
            elif kind == ZERO:
                yield Piece(first, end, ZEROS)
            elif kind in (ABSENT, PASS):
                yield from self._hop(node, first, end, limit, hops, is_pass=kind == PASS)
            else:
                yield Piece(first, end, BAD)

    def _hop(self, node: _Record, start: int, stop: int, limit: int, hops: int, *, is_pass: bool) -> Iterator[Piece]:
        above = node.parent
        if is_pass:
            origin = self._records.get(node.origin)
            if node.origin and origin is None:
                yield Piece(start, stop, BAD)
                return
            above = origin.parent if origin else 0
        if not above:
            yield Piece(start, stop, ZEROS)
            return
        parent = self._records.get(above)
        if parent is None:
            yield Piece(start, stop, BAD)
            return
        limit = min(limit, parent.size)
        visible = min(stop, max(start, -(-limit // self._geometry.block_size)))
        if start < visible:
            yield from self._resolve(parent, start, visible, limit, hops + 1)
        if visible < stop:
            yield Piece(visible, stop, ZEROS)

    def _entries(
        self, word0: int, word1: int, depth: int, start: int, stop: int, base: int = 0
    ) -> Iterator[tuple[int, int, int | None, int]]:
        """The entries for a range of indexes, or those above that cover them; None for what cannot be read."""
        span = self._geometry.fanout**depth
        low, high = max(start, base), min(stop, base + span)
        if low >= high:
            return
        if word0 >> 48 != PAGE or not depth:
            yield low, high, word0, word1
            return
        page = self._page(word0, word1, self._geometry.table_size)
        if page is None:
            yield low, high, None, 0
            return
        step = span // self._geometry.fanout
        words = struct.unpack(f"<{len(page) // 8}Q", page)
        first = (low - base) // step
        while first * step < high - base:
            end, word0, word1 = first + 1, words[2 * first], words[2 * first + 1]
            if word0 >> 48 != PAGE:
                while end * step < high - base and words[2 * end] >> 48 == word0 >> 48:
                    end += 1
                yield max(low, base + first * step), min(high, base + end * step), word0, word1
            else:
                yield from self._entries(word0, word1, depth - 1, low, high, base + first * step)
            first = end

    def _page(self, word0: int, word1: int, length: int) -> bytes | None:
        """What a pointer of kind PAGE leads to, None unless it is inside the container and its checksum right."""
        key = (word0, word1 & 0xFFFF_FFFF, length)
        if key not in self._pages:
            page_no, unit = word0 & _PAGE_BITS, self._geometry.unit
            page = self._image[page_no * unit : page_no * unit + length]
            is_inside = (
                word0 >> 48 == PAGE
                and self._geometry.first_page <= page_no <= self.superblock.pages_total - length // unit
            )
            is_right = is_inside and len(page) == length and crc32c(page) == key[1]
            self._pages[key] = page if is_right else None
        return self._pages[key]
