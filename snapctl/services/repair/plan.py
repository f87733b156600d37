"""What a repair would do: everything is looked at, and nothing is changed.

Records first, then the tables and data of each node, oldest first, so that of two pointers to one page the older node's
is its owner. The space map and the snapshot list are not looked into for what is in use: both are made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from snapctl.engine.recovery import fault_of
from snapctl.engine.survey import walk_tree
from snapctl.errors import Corruption
from snapctl.format.geometry import VOLUME_DEPTH, Geometry
from snapctl.format.logrecord import Entry
from snapctl.format.pointer import ABSENT, NOWHERE, PASS, PASS_WORD
from snapctl.format.record import Kind, NodeRecord, RawRecord
from snapctl.format.superblock import Superblock
from snapctl.services.check.container import begin_walk
from snapctl.services.check.faults import Fault, Faults, Ranges
from snapctl.services.check.findings import Findings
from snapctl.services.check.lineage import full_name
from snapctl.services.check.nodes import check_tables, judge_records, read_records
from snapctl.services.check.ownership import Ownership
from snapctl.services.check.walk import Walk
from snapctl.services.repair.lineage import Placed, reattach
from snapctl.services.repair.records import LARGEST_ID, mend
from snapctl.storage.backend import Backend
from snapctl.storage.log import read_log
from snapctl.storage.pages import PageFile
from snapctl.storage.spacemap import SpaceMap
from snapctl.storage.superblocks import choose_superblocks
from snapctl.storage.tabletree import TableTree

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Salvage:
    """One node and what is left of it.

    Attributes:
        placed: its record in its new place.
        faults: of its tables.
        sound_blocks: data blocks that are whole and its own.
        gaps: blocks within its size that it had from nodes that are gone.
    """

    placed: Placed
    faults: Faults
    sound_blocks: int
    gaps: Ranges

    @property
    def has_tables(self) -> bool:
        """Whether its first table can be used."""
        is_lost = len(self.faults.ranges(Fault.LOST, -1)) > 0
        return self.placed.record.first_table != NOWHERE and not is_lost

    @property
    def is_changed(self) -> bool:
        """Whether anything has to be done to its tables."""
        return bool(self.faults) or not self.has_tables or self.placed.is_orphan or self.placed.pass_word != PASS_WORD

    def lost(self, geometry: Geometry) -> Iterator[tuple[int, int]]:
        """Ranges of its blocks, within its size, that become unreadable: what they held cannot be had any more.

        Beyond these are its gaps.
        """
        end = geometry.blocks(self.placed.record.size_bytes)
        if not self.has_tables:
            yield 0, end
            return
        for level in range(VOLUME_DEPTH):
            for start, stop in self.faults.ranges(Fault.LOST, level):
                if start < end:
                    yield start, min(stop, end)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a repair would do.

    Attributes:
        geometry: of the container.
        nodes: those that are kept, parents before children.
        owned: the pages that they keep.
        next_node_id: for the superblock.
        lost_nodes: how many there were whose records cannot be read.
        base: the superblock of the state that is repaired.
        gives_up: the transaction that is given up for it; None if it is the state of the last commit.
        log: what was flushed after that state and is brought to its tables, as entries and their data.
        log_faults: what is lost of that, and why.
    """

    geometry: Geometry
    nodes: list[Salvage]
    owned: Ownership
    next_node_id: int
    lost_nodes: int
    base: Superblock
    gives_up: int | None
    log: list[tuple[Entry, memoryview]]
    log_faults: list[str]

    def in_use(self) -> Iterator[tuple[int, int]]:
        """The bitmaps of the space map to be, as (index, bits)."""
        units = self.geometry.units_per_bitmap
        for index in sorted(self.owned.regions(units)):
            yield index, self.owned.bits(index, units)

    def describe(self, findings: Findings) -> None:
        """Note what is done to the nodes, under the full names that they have afterwards."""
        records = {node.placed.record.id: node.placed.record for node in self.nodes}
        if self.gives_up is not None:
            findings.repair(
                "snapshot list",
                f"taken as of transaction {self.base.transaction}, as the last one's is damaged; "
                f"what transaction {self.gives_up} changed is given up",
            )
        if self.lost_nodes:
            findings.repair("snapshot list", f"made anew; nodes whose records are lost: {self.lost_nodes}")
        if self.log:
            findings.repair("log", "what was flushed after the last commit is brought to the tables")
        for fault in self.log_faults:
            findings.repair("log", f"{fault}; what was flushed there is lost")
        for node in self.nodes:
            placed = node.placed
            name = full_name(placed.record, records)
            if not placed.was:
                findings.repair(name, "made in the place of a node that is lost; all of it is lost")
                continue
            if placed.is_orphan:
                findings.repair(name, f"was {placed.was}; its parent is lost")
            elif placed.was != name:
                findings.repair(name, f"was {placed.was}; its parent or origin is lost, or its name was taken")
            elif placed.pass_word != PASS_WORD and placed.record.kind is Kind.RO:
                findings.repair(name, "the parent of its volume is lost")
            self._describe_faults(name, node, findings)

    def _describe_faults(self, name: str, node: Salvage, findings: Findings) -> None:
        size, end = self.geometry.block_size, node.placed.record.size_bytes
        for start, stop in (*node.lost(self.geometry), *node.gaps):
            findings.repair(name, f"bytes {start * size} to {min(stop * size, end)} are marked as lost")
        for level in range(-1, VOLUME_DEPTH):
            for start, stop in node.faults.ranges(Fault.SHARED, level):
                if start * size < end:
                    extent = f"bytes {start * size} to {min(stop * size, end)}"
                    findings.repair(name, f"{extent} get pages of their own; those that they had are others' too")


def make_plan(backend: Backend, progress: Progress | None = None) -> Plan:
    """Look at everything that the last commit holds, or the one before if that has kept more nodes.

    Args:
        backend: the file, which the caller has locked.
        progress: told the bytes verified and how many there are.

    Raises:
        IoFailure: the disk refuses to read something, which may pass; nothing is given up for that.
        SnapctlError: as `choose_superblocks`.
    """
    current, _ = choose_superblocks(backend)
    known = Findings()  # the check has told all this
    base, raws = _choose_list(backend, known)
    records = mend(*judge_records(raws, base, known), base.geometry, current.next_node_id)
    walk = _strict_walk(backend, base, known, progress)
    found: dict[int, tuple[Faults, int]] = {}
    for record in sorted(records.values(), key=lambda record: record.id):
        if record.first_table != NOWHERE:
            tree, sound_blocks = check_tables(record.name, record.kind, record.first_table, walk)
            found[record.id] = tree.faults, sound_blocks
    next_id = max(min(current.next_node_id, LARGEST_ID), max(records, default=0) + 1)
    placed, next_id = reattach(records.values(), next_id)
    nodes = [Salvage(node, *found.get(node.record.id, (Faults(), 0)), _gaps(walk.pages, base, node)) for node in placed]
    lost_nodes = max(0, base.node_count - len(raws))
    gives_up = None if base == current else current.transaction
    log, log_faults = _read_log(backend, base, {node.placed.record.id: node.placed.record for node in nodes})
    if base != current and read_log(backend, current).records:
        log_faults.append(f"transaction {current.transaction} is given up, and with it what followed")
    return Plan(current.geometry, nodes, walk.owned, next_id, lost_nodes, base, gives_up, log, log_faults)


def _read_log(
    backend: Backend, base: Superblock, nodes: dict[int, NodeRecord]
) -> tuple[list[tuple[Entry, memoryview]], list[str]]:
    """What the log has of the nodes that are kept, and what is wrong with the rest."""
    logged = read_log(backend, base)
    kept: list[tuple[Entry, memoryview]] = []
    faults: dict[str, None] = {}
    for record in logged.records:
        for entry, data in record.parts(base.geometry.block_size):
            kind = nodes[entry.node].kind if entry.node in nodes else None
            if fault := fault_of(entry, kind):
                faults[fault] = None
            elif kind is not None:
                kept.append((entry, data))
    if logged.damage:
        faults[logged.damage] = None
    return kept, list(faults)


def _gaps(pages: PageFile, base: Superblock, placed: Placed) -> Ranges:
    """The blocks of a node that it looked up in nodes which are gone."""
    gaps = Ranges()
    gone = {ABSENT} if placed.is_orphan else set()
    if placed.pass_word != PASS_WORD and placed.record.kind is Kind.RO:
        gone.add(PASS)
    if not gone or placed.record.first_table == NOWHERE:
        return gaps
    try:
        tree = TableTree(pages, SpaceMap(pages, base, None), VOLUME_DEPTH, placed.record.first_table, 0, placed.was)
    except Corruption:
        return gaps  # all of it is lost anyway
    for stretch in walk_tree(tree, 0, pages.geometry.blocks(placed.record.size_bytes)):
        for start, stop, kind in stretch.runs():
            if kind in gone:
                gaps.add(start, stop)
        tree.root.children.clear()
    return gaps


def _choose_list(backend: Backend, known: Findings) -> tuple[Superblock, list[RawRecord]]:
    """The state whose snapshot list has lost the fewest nodes, the newer one if they are alike, and its records.

    The list is what everything hangs from, and the commit before is whole (invariant 2). To mix the two would show
    snapshots with what their volumes held at another time.
    """
    current, previous = choose_superblocks(backend)
    raws, is_whole = read_records(current, _strict_walk(backend, current, known), known)
    if is_whole or previous is None or (previous.uuid, previous.geometry) != (current.uuid, current.geometry):
        return current, raws
    earlier, was_whole = read_records(previous, _strict_walk(backend, previous, known), known)
    is_better = was_whole or previous.node_count - len(earlier) < current.node_count - len(raws)
    return (previous, earlier) if is_better else (current, raws)


def _strict_walk(backend: Backend, base: Superblock, known: Findings, progress: Progress | None = None) -> Walk:
    walk = begin_walk(backend, base, known, progress)
    walk.needs_every_sector = True
    return walk
