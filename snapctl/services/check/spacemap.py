"""The space map held against what is owned.

Its own pages are claimed first, like all others. What its bitmaps say is compared when everything else has been walked;
they are read once more for that rather than kept, since a small hostile file can name a great many of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from snapctl.errors import Corruption, IoFailure
from snapctl.format.pointer import ABSENT, PAGE, Pointer
from snapctl.format.superblock import Superblock
from snapctl.services.check.findings import Findings
from snapctl.services.check.walk import Leaf, Place, Tree, Walk
from snapctl.storage.bitmap import set_runs

_WHERE = "space map"


class MapCheck:
    """The check of one space map: made, it has claimed the map's pages; `compare` does the rest."""

    def __init__(self, current: Superblock, walk: Walk, findings: Findings) -> None:
        self._geometry = current.geometry
        self._walk = walk
        self._findings = findings
        self._sound: dict[int, Pointer] = {}
        self._unknown: set[int] = set()
        self._unknown_ranges: list[range] = []
        self._tree = Tree(_WHERE, ("first table", "second table"), "bitmaps", (ABSENT, PAGE), has_births=False)
        if current.space_map.birth:
            findings.corruption("superblock", "its pointer to the space map carries a count of free pages")
        used = sum(self._check_leaf(leaf) for leaf in walk.leaves(self._tree, current.space_map))
        if not self._unknown and not self._unknown_ranges and used != current.pages_used:
            findings.corruption(
                "superblock", f"says that {current.pages_used} pages are in use; by the space map it is {used}"
            )

    def compare(self) -> None:
        """Find pages that are owned but free, and pages that are in use but not owned."""
        units = self._geometry.units_per_bitmap
        walk = self._walk
        for index in sorted(walk.owned.regions(units) | walk.named.regions(units) | self._sound.keys()):
            if index in self._unknown or any(index in unknown for unknown in self._unknown_ranges):
                continue
            try:
                bits = self._read_again(index)
            except (Corruption, IoFailure) as error:
                self._findings.corruption(_WHERE, f"bitmap that was sound a moment ago: {error}")
                continue
            owned = walk.owned.bits(index, units) | walk.named.bits(index, units)
            for pages in self._runs(owned & ~bits, index):
                self._findings.corruption(_WHERE, f"{pages} in use, but free by the map")
            for pages in self._runs(bits & ~owned, index):
                excuse = "" if walk.is_complete else ", as far as the damage lets one see"
                self._findings.leak(_WHERE, f"{pages} in use by the map, but nothing owns them{excuse}")

    def _check_leaf(self, leaf: Leaf) -> int:
        """Check a second table of the map and its bitmaps; gives how many units they have in use."""
        if leaf.words is None:
            self._unknown_ranges.append(range(leaf.start, leaf.stop))
            return 0
        units = self._geometry.units_per_bitmap
        used = free = 0
        for index, pointer in leaf.pages():
            what = f"bitmap of pages {index * units} to {(index + 1) * units - 1}"
            place = Place(1, index, index + 1)
            bitmap = self._walk.page(self._tree, pointer, self._geometry.table_size, what, place)
            free += pointer.birth
            if bitmap is None:
                self._unknown.add(index)
                continue
            self._sound[index] = pointer
            in_use = int.from_bytes(bitmap, "little").bit_count()
            used += in_use
            self._check_count(what, pointer, units - in_use)
        absent = leaf.stop - leaf.start - sum(end - first for first, end in leaf.page_runs)
        what = f"second table of bitmaps {leaf.start} to {leaf.stop - 1}"
        self._check_count(what, leaf.pointer, free + absent * units)
        return used

    def _check_count(self, what: str, pointer: Pointer, free: int) -> None:
        if pointer.birth != free:
            self._findings.corruption(
                _WHERE,
                f"{what} at page {pointer.page_no}: its pointer says that {pointer.birth} pages are free, not {free}",
            )

    def _read_again(self, index: int) -> int:
        """The bits of a bitmap that was found sound, or of one that does not exist."""
        pointer = self._sound.get(index)
        if pointer is None:
            return 0
        return int.from_bytes(self._walk.pages.read(*pointer, self._geometry.table_size, "bitmap"), "little")

    def _runs(self, bits: int, index: int) -> Iterator[str]:
        """The runs of set bits of a bitmap, in words."""
        if bits:
            base = index * self._geometry.units_per_bitmap
            for start, count in set_runs(bits, self._geometry.units_per_bitmap):
                first = base + start
                yield f"page {first} is" if count == 1 else f"pages {first} to {first + count - 1} are"
