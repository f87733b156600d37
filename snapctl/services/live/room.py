"""Room that is promised to writes when they are acknowledged, so that none fails for the lack of it afterwards.

A promise covers the worst case: the data, a copy of what it replaces if the volume wants one, every table above it in
the volume and in its newest snapshot, and the space map. It holds for the capacity and for the file system; of one
that cannot keep room for a file, as long as other files leave what was free when it was given.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from snapctl.engine.model import Cow
from snapctl.errors import IoFailure, NoSpace

if TYPE_CHECKING:
    from snapctl.engine.container import Container
    from snapctl.engine.node import Node
    from snapctl.services.live.generation import Generation

Table = tuple[int, int, int]
"""Node id, blocks below, and which of those tables."""

_AHEAD_UNITS = 1024
"""What the file system is asked to keep beyond a promise, so that it is not asked for every write."""

_TABLES_OF_A_COMMIT = 8
"""The snapshot list, the tables above it and above the bitmaps."""


class Room:
    """The room of one container, and what is promised of it.

    Attributes:
        promised_units: to writes that are not applied, and for the tables of those that are.
    """

    def __init__(self, container: Container) -> None:
        """Take up a container between two transactions."""
        self._container = container
        self.promised_units = 0
        self._free = 0
        self._tables: set[Table] = set()  # of the open transaction, as are the next three
        self._leaves: dict[int, set[int]] = {}  # by node, those of them that are leaves and were asked for by `take`
        self._transaction_bitmaps = 0
        self._transaction_units = 0
        self.look_again()

    def look_again(self) -> None:
        """See how much there is, and that what is promised is kept."""
        container = self._container
        self._free = container.space.room
        self._end_page = container.pages.end_page
        self._bitmaps = self._end_page // container.geometry.units_per_bitmap + 1
        self._kept_units = 0
        if self.promised_units:
            with suppress(NoSpace, IoFailure):  # the file system may have lost it when a transaction was given up
                self._keep(self.promised_units)

    def promise(
        self,
        generation: Generation,
        node: Node,
        start: int,
        stop: int,
        *,
        data_blocks: int,
        credit_blocks: int = 0,
        has_heir: bool,
    ) -> None:
        """Promise a generation the room for a change of blocks; what it holds for them is not counted off.

        What only gives room back has the reserve, like any trim, if nothing else is promised at the time.

        Args:
            generation: the open one.
            node: the volume.
            start: first block.
            stop: block after the last.
            data_blocks: how many of them are written; the others are zeroed, which takes tables at both ends alone.
            credit_blocks: more that are to be written under the same leaves.
            has_heir: the volume has a snapshot, or will have one by the time that they are applied.

        Raises:
            NoSpace: there is not so much, as long as what was promised to others is not used or given back.
            IoFailure: the system refuses.
            Corruption: tables above the blocks cannot be read.
        """
        geometry = self._container.geometry
        is_data = data_blocks == stop - start
        has_reserve = not data_blocks and not self.promised_units
        copies = 2 if has_heir and node.cow is Cow.COPY else 1
        first, last = start // geometry.fanout, (stop - 1) // geometry.fanout
        is_known = first == last and (node.id, geometry.fanout, first) in generation.tables
        tables = set() if is_known else self._new_tables(generation, node, start, stop, is_data=is_data)
        # What is replaced is freed, and each block of it may lie under a bitmap of its own.
        bitmaps = min(stop - start + credit_blocks, self._bitmaps - generation.bitmaps)
        overhead = ((2 if has_heir else 1) * len(tables) + bitmaps) * geometry.table_units
        if not generation.promised_units:
            overhead += _TABLES_OF_A_COMMIT * geometry.table_units
        units = overhead + (data_blocks + credit_blocks) * geometry.block_units * copies
        if self.promised_units + units > self._free + (self._container.space.reserve if has_reserve else 0):
            raise self._container.space.full()
        if not has_reserve and self.promised_units + units > self._kept_units:
            self._keep(self.promised_units + units)
        generation.tables |= tables
        generation.has_heir |= has_heir
        generation.bitmaps += bitmaps
        generation.promised_units += units
        self.promised_units += units

    def take(self, node: Node, leaves: set[int], blocks: int) -> None:
        """Take room for blocks that are written to the open transaction at once, and promise it what tables they need.

        Args:
            node: the volume.
            leaves: the numbers of the last-level tables above them.
            blocks: how many they are.

        Raises:
            NoSpace: as `promise`.
            IoFailure: the system refuses.
        """
        geometry, heir = self._container.geometry, node.newest_snapshot
        copies = 2 if heir is not None and node.cow is Cow.COPY else 1
        fanout, node_id, tables = geometry.fanout, node.id, self._tables
        known = self._leaves.setdefault(node_id, set())
        leaves = leaves - known  # for those all above count as well
        new = {(node_id, span, leaf * fanout // span) for leaf in leaves for span in geometry.spans} - tables
        bitmaps = min(blocks, self._bitmaps - self._transaction_bitmaps)
        overhead = ((1 if heir is None else 2) * len(new) + bitmaps) * geometry.table_units
        if not self._transaction_units:
            overhead += _TABLES_OF_A_COMMIT * geometry.table_units
        wanted = self.promised_units + overhead + blocks * geometry.block_units * copies
        if wanted > self._free:
            raise self._container.space.full()
        if wanted > self._kept_units:
            self._keep(wanted)
        self._tables |= new
        known |= leaves
        self._transaction_bitmaps += bitmaps
        self._transaction_units += overhead
        self.promised_units += overhead

    def taken(self) -> None:
        """Take note that blocks whose room was taken have been written."""
        pages = self._container.pages
        if pages.end_page == self._end_page and not pages.reserve.is_lent:
            self._free = self._container.space.room
        else:
            self.look_again()

    def applied(self, generation: Generation) -> None:
        """Take note that the data has its pages; tables that the open transaction changes anyway count once."""
        geometry = self._container.geometry
        new = generation.tables - self._tables
        bitmaps = min(generation.bitmaps, self._bitmaps - self._transaction_bitmaps)
        units = ((2 if generation.has_heir else 1) * len(new) + bitmaps) * geometry.table_units
        if not self._transaction_units and units:
            units += _TABLES_OF_A_COMMIT * geometry.table_units
        self._tables |= new
        self._transaction_bitmaps += bitmaps
        self._transaction_units += units
        self.promised_units += units
        self.release(generation)
        self.look_again()

    def committed(self) -> None:
        """Take note that the open transaction has become durable, and its tables have their pages."""
        self.promised_units -= self._transaction_units
        self._tables.clear()
        self._leaves.clear()
        self._transaction_bitmaps = self._transaction_units = 0
        self.look_again()

    def give_back(self, generation: Generation, credit_blocks: int) -> None:
        """Give back the room for blocks that were not written; that for copies of them the generation gives back."""
        units = credit_blocks * self._container.geometry.block_units
        generation.promised_units -= units
        self.promised_units -= units

    def release(self, generation: Generation) -> None:
        """Give back what was promised to a generation."""
        self.promised_units -= generation.promised_units
        generation.promised_units = 0

    def _keep(self, units: int) -> None:
        """Have the file system keep room; raises as `promise`."""
        reserve, unit = self._container.pages.reserve, self._container.geometry.unit
        try:
            is_kept, ahead = reserve.promise(self._end_page, (units + _AHEAD_UNITS) * unit), _AHEAD_UNITS
        except NoSpace:
            is_kept, ahead = reserve.promise(self._end_page, units * unit), 0
        self._kept_units = units + ahead if is_kept else 0  # else it is looked for each time

    def _new_tables(self, generation: Generation, node: Node, start: int, stop: int, *, is_data: bool) -> set[Table]:
        """The tables above blocks that a generation has nothing promised for; raises as `promise` for damaged ones."""
        fanout = self._container.geometry.fanout
        tables: set[Table] = set()
        for span in self._container.geometry.spans:
            entries = range(start // span, (stop - 1) // span + 1) if is_data else {start // span, (stop - 1) // span}
            tables.update((node.id, span, entry) for entry in entries)
        tables -= generation.tables
        for _, span, entry in tables:
            if span == fanout:  # lest a damaged table be found when it is too late to refuse
                for owner in filter(None, (node, node.newest_snapshot)):
                    next(owner.tree.spans(entry * span, entry * span + 1))
        return tables
