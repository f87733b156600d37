"""The scrub of a container: its superblocks, then all that can be reached from them, or else what keeps it shut."""

from __future__ import annotations

from snapctl.engine.container import Container
from snapctl.errors import Corruption, IoFailure, Locked, NoSpace
from snapctl.services import check, opening
from snapctl.services.check.findings import Findings
from snapctl.services.check.superblocks import check_superblocks
from snapctl.services.scrub.live import LiveScrub, Progress
from snapctl.services.scrub.report import Notes, Report, Severity
from snapctl.storage.backend import Backend
from snapctl.storage.store import open_locked
from snapctl.storage.superblocks import choose_superblocks, heal_superblocks
from snapctl.storage.view import ViewBackend

_Faults = dict[str, str]
"""What is wrong with superblock copies, by copy."""


def _ignore(_done_bytes: int, _total_bytes: int | None) -> None:
    """Report progress to nobody."""


def scrub_container(path: str, wait_seconds: float, progress: Progress = _ignore) -> Report:
    """Read and verify all that is live in a container file; superblock copies are repaired where the file allows it.

    Beside a server nothing is repaired.

    Args:
        path: of the file.
        wait_seconds: how long to wait for writers at first; after a turn that it gives them, as long as they take.
        progress: called after each piece, with the bytes verified so far and those in use.

    Raises:
        NotAContainer: it is something else.
        UnsupportedFormat: made by a newer version.
        Locked: another process holds it for writing.
        IoFailure: it cannot be opened.
        ViewEnded: its server ended meanwhile.
    """
    notes = Notes()
    backend = opening.open_file(path, wait_seconds)
    try:
        left = faults = _superblock_faults(backend)
        if faults and not isinstance(backend, ViewBackend):
            backend.close()
            left = _heal_file(path, wait_seconds, faults)
            backend = opening.open_file(path, wait_seconds)
        _note_superblocks(faults, left, notes)
        _scrub(backend, progress, notes)
        report = notes.report()
        if report.damages:
            opening.check_lasts(backend)
        return report
    finally:
        backend.close()


def scrub_backend(backend: Backend, *, heal: bool = False) -> Report:
    """Scrub what was last committed to an open file, which its owner locks; raises as `scrub_container`.

    Args:
        backend: the file.
        heal: repair superblock copies; the file has to be writable, and locked against everybody else.
    """
    notes = Notes()
    left = faults = _superblock_faults(backend)
    if faults and heal:
        heal_superblocks(backend)
        left = _superblock_faults(backend)
    _note_superblocks(faults, left, notes)

    _scrub(backend, _ignore, notes)
    return notes.report()


def _scrub(backend: Backend, progress: Progress, notes: Notes) -> None:
    """Scrub what can be opened; of what cannot, or not again after a turn of the writers, say what a check can see."""
    try:
        LiveScrub(Container.adopt(backend, writable=False), progress, notes).run()
    except (Corruption, IoFailure) as error:
        report = check.check_backend(backend)
        notes.nodes, notes.pages_verified, notes.bytes_verified = report.nodes, report.pages_checked, report.data_bytes
        notes.add(Severity.CORRUPTION, "container", "", f"cannot be opened, so nothing in it can be had: {error}")
        for finding in report.findings:
            if finding.severity is check.Severity.CORRUPTION and not finding.where.startswith("superblock slot "):
                notes.add(Severity.CORRUPTION, finding.where, "", finding.message)


def _superblock_faults(backend: Backend) -> _Faults:
    findings = Findings()
    try:
        current, _ = choose_superblocks(backend)
    except Corruption:
        return {}  # nothing can be opened, which is said by whoever tries
    check_superblocks(backend, current, findings)
    return {finding.where: finding.message for finding in findings.all()}


def _heal_file(path: str, wait_seconds: float, faults: _Faults) -> _Faults:
    """Write damaged superblock copies anew if the file can be written and others let go of it; gives what is left."""
    try:
        backend = open_locked(path, writable=True, wait_seconds=wait_seconds)
    except (IoFailure, Locked):
        return faults
    try:
        heal_superblocks(backend)
        return _superblock_faults(backend)
    except (NoSpace, IoFailure, Corruption):
        return faults
    finally:
        backend.close()


def _note_superblocks(faults: _Faults, left: _Faults, notes: Notes) -> None:
    for where, message in faults.items():
        if where not in left:
            was = message.partition(";")[0].replace("is ", "was ", 1)
            notes.add(Severity.REPAIRED, where, "", f"{was}; written anew from the other copy")
    for where, message in left.items():
        notes.add(Severity.CORRUPTION, where, "", message)
