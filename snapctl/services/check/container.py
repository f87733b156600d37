"""The check of a container from its superblocks down to its data."""

from __future__ import annotations

from snapctl.errors import Corruption
from snapctl.format.pointer import ABSENT, KINDS, PAGE, PASS, Pointer
from snapctl.format.record import FREE_RECORD, Kind, NodeRecord, RawRecord, parse, scan
from snapctl.format.superblock import Superblock
from snapctl.services.check.findings import Findings, Report
from snapctl.services.check.lineage import check_lineage, full_name
from snapctl.services.check.spacemap import MapCheck
from snapctl.services.check.superblocks import check_superblocks
from snapctl.services.check.walk import Tree, Walk
from snapctl.storage import lock
from snapctl.storage.backend import Backend, FileBackend
from snapctl.storage.pages import PageFile
from snapctl.storage.store import choose_superblocks

_SNAPSHOT_LIST = Tree("snapshot list", ("first table", "second table"), "pages", (ABSENT, PAGE))
_VOLUME_TABLES = ("first table", "second table", "third table")
_FREE = next(scan(FREE_RECORD))
_KINDS_WITHOUT_PASS = tuple(kind for kind in KINDS if kind != PASS)


def check_container(path: str, wait_seconds: float) -> Report:
    """Check a container file, locked against writers meanwhile.

    Args:
        path: of the file.
        wait_seconds: how long to wait for a writer to be done.

    Raises:
        NotAContainer: it is something else.
        UnsupportedFormat: made by a newer version, whose rules are not known here.
        Locked: another process holds it for writing.
        IoFailure: it cannot be opened, or its superblocks cannot be read.
    """
    backend = FileBackend.open(path, writable=False)
    try:
        lock.acquire(backend.fd, path, exclusive=False, wait_seconds=wait_seconds)
        return check_backend(backend)
    finally:
        backend.close()


def check_backend(backend: Backend) -> Report:
    """Check what was last committed to an open file, which its owner locks; raises as `check_container`.

    A container may be open on the same backend, even with a transaction under way: only what is committed is looked at.
    """
    findings = Findings()
    try:
        current, _ = choose_superblocks(backend)
    except Corruption as error:
        findings.corruption("superblock", str(error))
        return Report(findings.all())
    check_superblocks(backend, current, findings)
    end_page = current.pages_total
    held = backend.size() // current.geometry.unit
    if held < end_page:
        findings.corruption(
            "container", f"the file is truncated: it holds {held} pages, where its superblock says {end_page}"
        )
        end_page = held
    walk = Walk(PageFile(backend, current.geometry, end_page, None), current.transaction, findings)
    return _check_contents(current, walk, findings)


def _check_contents(current: Superblock, walk: Walk, findings: Findings) -> Report:
    walk.owned.claim(0, current.geometry.first_page)
    space_map = MapCheck(current, walk, findings)
    raws = _read_records(current, walk, findings)
    sound, unsound = _judge_records(raws, current, findings)
    for record in sound.values():
        owned = _check_tables(full_name(record, sound), record.kind, record.first_table, walk)
        if owned not in (None, record.own_blocks):
            findings.corruption(
                full_name(record, sound), f"its tables own {owned} data blocks, its record says {record.own_blocks}"
            )
    for raw in unsound:
        pointer = Pointer(raw.first_table0, raw.first_table1)
        if pointer.kind == PAGE:
            _check_tables(f"node {raw.id}", Kind.RO, pointer, walk)
        else:
            walk.is_complete = False
    check_lineage(sound, {raw.id for raw in unsound}, findings)
    space_map.compare()
    return Report(
        findings.all(),
        nodes=len(raws),
        pages_checked=walk.pages_checked,
        data_bytes=walk.data_blocks * current.geometry.block_size,
    )


def _read_records(current: Superblock, walk: Walk, findings: Findings) -> list[RawRecord]:
    """The records of all slots that are not free, unverified."""
    records: list[RawRecord] = []
    is_whole = True
    per_page = current.geometry.records_per_page
    for leaf in walk.leaves(_SNAPSHOT_LIST, current.snapshot_list):
        is_whole &= leaf.words is not None
        for index, pointer in leaf.pages():
            what = f"records {index * per_page} to {(index + 1) * per_page - 1}"
            page = walk.page(_SNAPSHOT_LIST, pointer, current.geometry.table_size, what)
            if page is None:
                is_whole = walk.is_complete = False
                continue
            for slot, raw in enumerate(scan(page)):
                if raw.id:
                    records.append(raw)
                elif raw != _FREE:
                    place = f"record {index * per_page + slot} at page {pointer.page_no}"
                    findings.corruption(_SNAPSHOT_LIST.where, f"{place} is free but not empty")
    if is_whole and len(records) != current.node_count:
        findings.corruption("superblock", f"says that there are {current.node_count} nodes; there are {len(records)}")
    return records


def _judge_records(
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
            findings.corruption(_SNAPSHOT_LIST.where, str(error))
            unsound.append(raw)
            continue
        if record.id in sound:
            findings.corruption(_SNAPSHOT_LIST.where, f"node {raw.id} ({record.name}): another node has the same id")
            unsound.append(raw)
            continue
        if record.id >= current.next_node_id:
            findings.corruption(
                _SNAPSHOT_LIST.where,
                f"node {raw.id} ({record.name}): the superblock says that {current.next_node_id} is the next id",
            )
        sound[record.id] = record
    return sound, unsound


def _check_tables(name: str, kind: Kind, first_table: Pointer, walk: Walk) -> int | None:
    """Check the tables and the data of one node.

    Returns:
        How many data blocks its tables point to; None if some of its tables cannot be used.
    """
    kinds = KINDS if kind is Kind.RO else _KINDS_WITHOUT_PASS
    tree = Tree(name, _VOLUME_TABLES, "blocks", kinds)
    owned: int | None = 0
    for leaf in walk.leaves(tree, first_table):
        if leaf.words is None:
            owned = None
            continue
        blocks = walk.data(tree, leaf)
        if owned is not None:
            owned += blocks
    return owned
