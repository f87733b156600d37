"""Who owns which page: a bit a unit, in chunks that come into being where pages are claimed."""

from __future__ import annotations

from collections.abc import Iterator

from snapctl.errors import Corruption
from snapctl.storage.bitmap import clear_bits, set_bits

_CHUNK_UNITS = 4096
"""Units of one chunk of claims; divides the units of every bitmap of the space map."""


class Ownership:
    """Which units of the file have an owner."""

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray] = {}

    def take(self, page_no: int, units: int) -> bool:
        """Claim a run of units if none of them has an owner.

        Returns:
            Whether it was so; if not, nothing is claimed.
        """
        taken: list[tuple[bytearray, int, int]] = []
        for chunk, bit, count in self._parts(page_no, units):
            try:
                set_bits(chunk, bit, count)
            except Corruption:
                for part in taken:
                    clear_bits(*part)
                return False
            taken.append((chunk, bit, count))
        return True

    def release(self, page_no: int, units: int) -> None:
        """Take back what `take` has claimed."""
        for part in self._parts(page_no, units):
            clear_bits(*part)

    def claim(self, page_no: int, units: int) -> bool:
        """Claim a run of units, those that have an owner too.

        Returns:
            Whether none of them had one.
        """
        if self.take(page_no, units):
            return True
        for unit in range(page_no, page_no + units):
            self.take(unit, 1)
        return False

    def regions(self, units: int) -> set[int]:
        """The numbers of the regions of `units` units each in which something has an owner."""
        return {key * _CHUNK_UNITS // units for key in self._chunks}

    def bits(self, region: int, units: int) -> int:
        """The claims of a region of `units` units, lowest unit in the lowest bit."""
        count = units // _CHUNK_UNITS
        blank = bytes(_CHUNK_UNITS // 8)
        chunks = (self._chunks.get(key, blank) for key in range(region * count, (region + 1) * count))
        return int.from_bytes(b"".join(chunks), "little")

    def _parts(self, page_no: int, units: int) -> Iterator[tuple[bytearray, int, int]]:
        while units:
            key, bit = divmod(page_no, _CHUNK_UNITS)
            count = min(units, _CHUNK_UNITS - bit)
            chunk = self._chunks.get(key)
            if chunk is None:
                chunk = self._chunks[key] = bytearray(_CHUNK_UNITS // 8)
            yield chunk, bit, count
            page_no += count
            units -= count
