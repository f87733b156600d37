"""What a check finds, kept within bounds: a container may be damaged in more places than memory can hold."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MOST_FINDINGS = 1000
"""Findings kept in full; the others are counted."""


class Severity(StrEnum):
    """How bad a finding is."""

    LOST = "lost"
    """Data that an earlier repair has marked as lost; nothing new, and the container is sound."""
    REPAIR = "repair"
    """Not what is wrong but what a repair does about it, or would do."""
    LEAK = "leak"
    """Space that nothing uses and nothing can get; no data is affected."""
    CORRUPTION = "corruption"
    """Bytes that contradict their checksum, their bounds or each other."""

    @property
    def is_fault(self) -> bool:
        """Whether anything is wrong."""
        return self in (Severity.LEAK, Severity.CORRUPTION)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: how bad it is.
        where: the structure or the full name of the node that it is in.
        message: what is wrong, with page numbers and ranges where there are any.
    """

    severity: Severity
    where: str
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a check came to.

    Attributes:
        findings: in the order in which they were found; the last may tell how many were left out.
        nodes: volumes and snapshots that were looked at.
        pages_checked: tables, bitmaps, pages of records and data blocks whose checksums were right.
        data_bytes: how much of that is data.
        logged_flushes: flushes since the commit that stand in the log, sound, beside all that.
    """

    findings: list[Finding]
    nodes: int = 0
    pages_checked: int = 0
    data_bytes: int = 0
    logged_flushes: int = 0

    @property
    def exit_code(self) -> int:
        """What `snapctl check` exits with: 0 nothing is wrong, 3 there are leaks only, 4 there is corruption."""
        severities = {finding.severity for finding in self.findings}
        if Severity.CORRUPTION in severities:
            return 4
        return 3 if Severity.LEAK in severities else 0


class Findings:
    """Takes findings one by one."""

    def __init__(self) -> None:
        self._kept: list[Finding] = []
        self._left_out = dict.fromkeys(Severity, 0)

    def corruption(self, where: str, message: str) -> None:
        """Note a finding of severity CORRUPTION."""
        self._add(Severity.CORRUPTION, where, message)

    def leak(self, where: str, message: str) -> None:
        """Note a finding of severity LEAK."""
        self._add(Severity.LEAK, where, message)

    def lost(self, where: str, message: str) -> None:
        """Note a finding of severity LOST."""
        self._add(Severity.LOST, where, message)

    def repair(self, where: str, message: str) -> None:
        """Note a finding of severity REPAIR."""
        self._add(Severity.REPAIR, where, message)

    def all(self) -> list[Finding]:
        """The findings kept, and for each severity one that counts those that were not."""
        counts = [
            Finding(severity, "check", f"{count} more findings of this severity were left out")
            for severity, count in self._left_out.items()
            if count
        ]
        return self._kept + counts

    def _add(self, severity: Severity, where: str, message: str) -> None:
        if len(self._kept) < MOST_FINDINGS:
            self._kept.append(Finding(severity, where, message))
        else:
            self._left_out[severity] += 1
