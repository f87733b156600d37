"""The records of a container judged one by one, and the tables and the data of each node."""

from __future__ import annotations

from snapctl.errors import Corruption
from snapctl.format.geometry import VOLUME_DEPTH
from snapctl.format.pointer import ABSENT, KINDS, PAGE, PASS, Pointer
from snapctl.format.record import FREE_RECORD, Kind, NodeRecord, RawRecord, parse, scan
from snapctl.format.superblock import Superblock
from snapctl.services.check.faults import Fault
from snapctl.services.check.findings import Findings
from snapctl.services.check.walk import Place, Tree, Walk

SNAPSHOT_LIST = "snapshot list"
_VOLUME_TABLES = ("first table", "second table", "third table")
_FREE = next(scan(FREE_RECORD))
_KINDS_WITHOUT_PASS = tuple(kind for kind in KINDS if kind != PASS)


def read_records(current: Superblock, walk: Walk, findings: Findings) -> tuple[list[RawRecord], bool]:
    """Read the snapshot list.

    Returns:
        The records of all slots that are not free, unverified; and whether no part of the list is lost.
    """
    tree = Tree(SNAPSHOT_LIST, ("first table", "second table"), "pages", (ABSENT, PAGE))
    records: list[RawRecord] = []
    is_whole = True
    per_page = current.geometry.records_per_page
    for leaf in walk.leaves(tree, current.snapshot_list):
        is_whole &= leaf.words is not None
        for index, pointer in leaf.pages():
            what = f"records {index * per_page} to {(index + 1) * per_page - 1}"
            page = walk.page(tree, pointer, current.geometry.table_size, what, Place(1, index, index + 1))
            if page is None:
                is_whole = walk.is_complete = False
                continue
            for slot, raw in enumerate(scan(page)):
                if raw.id:
                    records.append(raw)
                elif raw != _FREE:
                    place = f"record {index * per_page + slot} at page {pointer.page_no}"
                    findings.corruption(SNAPSHOT_LIST, f"{place} is free but not empty")
    if is_whole and len(records) != current.node_count:
        findings.corruption("superblock", f"says that there are {current.node_count} nodes; there are {len(records)}")
    return records, is_whole


def judge_records(
    raws: list[RawRecord], current: Superblock, findings: Findings
) -> tuple[dict[int, NodeRecord], list[RawRecord]]:
    """Judge each record by itself.

    Returns:
        The sound ones by id, in the order of ids, and those that are not.
    """
    sound: dict[int, NodeRecord] = {}
    unsound: list[RawRecord] = []
    for raw in sorted(raws):
        try:
            record = parse(raw, current.geometry)
        except Corruption as error:
            findings.corruption(SNAPSHOT_LIST, str(error))
            unsound.append(raw)
            continue
        if record.id in sound:
            findings.corruption(SNAPSHOT_LIST, f"node {raw.id} ({record.name}): another node has the same id")
            unsound.append(raw)
            continue
        if record.id >= current.next_node_id:
            findings.corruption(
                SNAPSHOT_LIST,
                f"node {raw.id} ({record.name}): the superblock says that {current.next_node_id} is the next id",
            )
        sound[record.id] = record
    return sound, unsound


def check_tables(name: str, kind: Kind, first_table: Pointer, walk: Walk) -> tuple[Tree, int]:
    """Check the tables and the data of one node.

    Returns:
        The tree with its faults, and how many data blocks it has, those not counted whose tables or data are unsound.
    """
    kinds = KINDS if kind is Kind.RO else _KINDS_WITHOUT_PASS
    tree = Tree(name, _VOLUME_TABLES, "blocks", kinds)
    return tree, sum(walk.data(tree, leaf) for leaf in walk.leaves(tree, first_table))


def report_lost(tree: Tree, size_bytes: int, block_size: int, findings: Findings) -> None:
    """Note what an earlier repair has marked as lost in a node, as far as its size goes."""
    for level in range(VOLUME_DEPTH):
        for start, stop in tree.faults.ranges(Fault.KNOWN, level):
            if start * block_size < size_bytes:
                end = min(stop * block_size, size_bytes)
                findings.lost(tree.where, f"bytes {start * block_size} to {end} are marked as lost")
