"""Room that is promised to writes when they are acknowledged, so that none fails for the lack of it afterwards.

A promise covers the worst case: the data, a copy of what it replaces if the volume wants one, every table above it in
the volume and in its newest snapshot, and the space map. It holds for the capacity and for the file system.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from snapctl.engine.model import Cow
from snapctl.errors import IoFailure, NoSpace

if TYPE_CHECKING:
    from snapctl.engine.container import Container
    from snapctl.engine.node import Node
    from snapctl.services.live.generation import Generation

_TABLES_OF_A_COMMIT = 8
"""The snapshot list, the tables above it and above the bitmaps."""


class Room:
    """The room of one container, and what is promised of it."""

    def __init__(self, container: Container) -> None:
        """Take up a container between two transactions."""
        self._container = container
        self._promised = 0
        self._free = 0
        self.look_again()

    def look_again(self) -> None:
        """See how much there is, and that what is promised is kept; to be called between two transactions."""
        self._free = self._container.space.room
        self._end_page = self._container.superblock.pages_total
        self._bitmaps = self._end_page // self._container.geometry.units_per_bitmap + 1
        if self._promised:
            with suppress(NoSpace, IoFailure):  # the file system may have lost it when a transaction was given up
                self._container.pages.reserve.promise(self._end_page, self._promised * self._container.geometry.unit)

    def promise(
        self, generation: Generation, node: Node, start: int, stop: int, *, data_blocks: int, has_heir: bool
    ) -> None:
        """Promise a generation the room for a change of blocks.

        What only gives room back has the reserve, like any trim, if nothing else is promised at the time.

        Args:
            generation: the open one.
            node: the volume.
            start: first block.
            stop: block after the last.
            data_blocks: how many of them are written; the others are zeroed, which takes tables at both ends alone.
            has_heir: the volume has a snapshot, or will have one by the time that they are applied.

        Raises:
            NoSpace: there is not so much, as long as what was promised to others is not used or given back.
            IoFailure: the system refuses.
            Corruption: tables above the blocks cannot be read.
        """
        geometry = self._container.geometry
        is_data = data_blocks == stop - start
        has_reserve = not data_blocks and not self._promised
        tables: set[tuple[int, int, int]] = set()
        spans = (geometry.fanout, geometry.fanout**2, geometry.fanout**3)
        for span in spans:
            entries = range(start // span, (stop - 1) // span + 1) if is_data else {start // span, (stop - 1) // span}
            tables.update((node.id, span, entry) for entry in entries)
        tables -= generation.tables
        heir = node.newest_snapshot
        for _, span, entry in tables:
            if span == geometry.fanout:  # lest a damaged table be found when it is too late to refuse
                for owner in filter(None, (node, heir)):
                    next(owner.tree.spans(entry * span, entry * span + 1))
        units = (2 if has_heir else 1) * len(tables) * geometry.table_units
        units += data_blocks * geometry.block_units * (2 if has_heir and node.cow is Cow.COPY else 1)
        # What is replaced is freed, and each block of it may lie under a bitmap of its own.
        bitmaps = min(stop - start, self._bitmaps - generation.bitmaps)
        units += bitmaps * geometry.table_units
        if not generation.promised_units:
            units += _TABLES_OF_A_COMMIT * geometry.table_units
        if self._promised + units > self._free + (self._container.space.reserve if has_reserve else 0):
            raise self._container.space.full()
        if not has_reserve:
            self._container.pages.reserve.promise(self._end_page, (self._promised + units) * geometry.unit)
        generation.tables |= tables
        generation.bitmaps += bitmaps
        generation.promised_units += units
        self._promised += units

    def promised_beyond(self, batch: Iterable[Generation]) -> int:
        """Units that are promised to other generations than those of a batch."""
        return self._promised - sum(generation.promised_units for generation in batch)

    def release(self, generation: Generation) -> None:
        """Give back what was promised to a generation that is durable or given up."""
        self._promised -= generation.promised_units
        generation.promised_units = 0
