"""The check of a container from its superblocks down to its data."""

from __future__ import annotations

from collections.abc import Callable

from snapctl.errors import Corruption
from snapctl.format.pointer import PAGE, Pointer
from snapctl.format.record import Kind
from snapctl.format.superblock import Superblock
from snapctl.services import opening
from snapctl.services.check.findings import Findings, Report
from snapctl.services.check.lineage import check_lineage, full_name
from snapctl.services.check.log import check_log
from snapctl.services.check.nodes import check_tables, judge_records, read_records, report_lost
from snapctl.services.check.spacemap import MapCheck
from snapctl.services.check.superblocks import check_superblocks
from snapctl.services.check.walk import Walk
from snapctl.storage.backend import Backend
from snapctl.storage.pages import PageFile
from snapctl.storage.superblocks import choose_superblocks

Progress = Callable[[int, int | None], None]
"""Told the bytes verified so far, and how many there are."""


def check_container(path: str, wait_seconds: float, progress: Progress | None = None) -> Report:
    """Check a container file, locked against writers meanwhile, or a state that its server keeps whole.

    Args:
        path: of the file.
        wait_seconds: how long to wait for a writer to be done.
        progress: called after each piece.

    Raises:
        NotAContainer: it is something else.
        UnsupportedFormat: made by a newer version, whose rules are not known here.
        Locked: another process holds it for writing.
        IoFailure: it cannot be opened, or its superblocks cannot be read.
        ViewEnded: its server ended meanwhile.
    """
    backend = opening.open_file(path, wait_seconds)
    try:
        report = check_backend(backend, progress)
        if report.findings:
            opening.check_lasts(backend)
        return report
    finally:
        backend.close()


def check_backend(backend: Backend, progress: Progress | None = None) -> Report:
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
    walk = begin_walk(backend, current, findings, progress)
    return _check_contents(backend, current, walk, findings)


def begin_walk(backend: Backend, current: Superblock, findings: Findings, progress: Progress | None) -> Walk:
    """Begin to walk over what a superblock stands for, as far as the file reaches."""
    geometry, end_page = current.geometry, current.pages_total
    held = backend.size() // geometry.unit
    if held < end_page:
        findings.corruption(
            "container", f"the file is truncated: it holds {held} pages, where its superblock says {end_page}"
        )
        end_page = held
    total = (current.pages_used - geometry.first_page) * geometry.unit
    told = None if progress is None else lambda done: progress(done, total)
    walk = Walk(PageFile(backend, geometry, end_page, None), current.transaction, findings, told)
    walk.owned.claim(0, geometry.first_page)
    return walk


def _check_contents(backend: Backend, current: Superblock, walk: Walk, findings: Findings) -> Report:
    block_size = current.geometry.block_size
    walk.owned.claim(current.log_page, current.log_pages)
    space_map = MapCheck(current, walk, findings)
    raws, _ = read_records(current, walk, findings)
    sound, unsound = judge_records(raws, current, findings)
    for record in sound.values():
        name = full_name(record, sound)
        tree, owned = check_tables(name, record.kind, record.first_table, walk)
        report_lost(tree, record.size_bytes, block_size, findings)
        if not tree.faults and owned != record.own_blocks:
            findings.corruption(name, f"its tables own {owned} data blocks, its record says {record.own_blocks}")
    for raw in unsound:
        pointer = Pointer(raw.first_table0, raw.first_table1)
        if pointer.kind == PAGE:
            check_tables(f"node {raw.id}", Kind.RO, pointer, walk)
        else:
            walk.is_complete = False
    check_lineage(sound, {raw.id for raw in unsound}, findings)
    flushes = check_log(backend, current, sound, findings)
    space_map.compare()
    return Report(
        findings.all(),
        nodes=len(raws),
        pages_checked=walk.pages_checked,
        data_bytes=walk.data_blocks * block_size,
        logged_flushes=flushes,
    )
