"""The log: what was flushed since the commit has to fit the volumes as the commit left them.

A check looks at the tables as they stand in the file, so what is in the log is judged by itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from snapctl.engine.recovery import fault_of
from snapctl.errors import IoFailure
from snapctl.format.record import NodeRecord
from snapctl.format.superblock import Superblock
from snapctl.services.check.findings import Findings
from snapctl.storage.backend import Backend
from snapctl.storage.log import read_log

_WHERE = "log"


def check_log(backend: Backend, current: Superblock, nodes: Mapping[int, NodeRecord], findings: Findings) -> int:
    """Judge the log of the adopted superblock.

    Returns:
        How many flushes stand in it.
    """
    try:
        logged = read_log(backend, current)
    except IoFailure as error:
        findings.corruption(_WHERE, f"cannot be read: {error}")
        return 0
    if logged.damage:
        findings.corruption(_WHERE, logged.damage)
    for record in logged.records:
        for entry in record.entries:
            kind = nodes[entry.node].kind if entry.node in nodes else None
            if fault := fault_of(entry, kind):
                findings.corruption(_WHERE, fault)
    return len(logged.records)
