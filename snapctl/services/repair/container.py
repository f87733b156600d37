"""The repair of a container file from the first check to the last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from snapctl.errors import SnapctlError
from snapctl.services.check import Finding, Report, check_backend
from snapctl.services.check.findings import Findings
from snapctl.services.repair.plan import Progress, make_plan
from snapctl.services.repair.rebuild import rebuild
from snapctl.storage.backend import Backend
from snapctl.storage.store import open_locked, undo_repair

_SOUND = 0


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair found and did, or would do.

    Attributes:
        found: the check before.
        actions: what it does to the container; none if nothing is wrong.
        applied: False after a dry run, a no, or if there is nothing to do.
    """

    found: Report
    actions: list[Finding]
    applied: bool = False

    @property
    def exit_code(self) -> int:
        """What `snapctl check --repair` exits with: 0 if the container is sound now, else that of the check."""
        return _SOUND if self.applied else self.found.exit_code


def repair_container(
    path: str,
    wait_seconds: float,
    *,
    agree: Callable[[Repair], bool] | None,
    progress: Progress | None = None,
) -> Repair:
    """Repair a container file; see `repair_backend`.

    Args:
        path: of the file.
        wait_seconds: how long to wait for others to let go of it.
        agree: see there.
        progress: see there.

    Raises:
        SnapctlError: also as `snapctl.services.check.check_container`.
    """
    backend = open_locked(path, writable=agree is not None, wait_seconds=wait_seconds)
    try:
        return repair_backend(backend, agree=agree, progress=progress)
    finally:
        backend.close()


def repair_backend(
    backend: Backend, *, agree: Callable[[Repair], bool] | None, progress: Progress | None = None
) -> Repair:
    """Repair what was last committed to a file, which its owner has locked and opened for writing.

    Args:
        backend: the file; after an error it may be closed.
        agree: told what would be done; nothing is written if it says no. None for a dry run, which only reads.
        progress: told the bytes verified, and how many there are, in each of three rounds.

    Raises:
        Corruption: no superblock is sound, so there is nothing to begin with.
        NoSpace: no room for what has to be written.
        IoFailure: the system refuses.
        SnapctlError: what came out was not sound; the container is as before.
    """
    found = check_backend(backend, progress)
    if found.exit_code == _SOUND:
        return Repair(found, [])
    plan = make_plan(backend, progress)
    actions = Findings()
    plan.describe(actions)
    actions.repair("space map", "made anew from what is in use")
    proposed = Repair(found, actions.all())
    if agree is None or not agree(proposed):
        return proposed
    rebuild(backend, plan)
    after = check_backend(backend, progress)
    if after.exit_code != _SOUND:
        undo_repair(backend)
        first = next(finding for finding in after.findings if finding.severity.is_fault)
        raise SnapctlError(
            f"the repair of {backend.path} did not come out sound and was undone ({first.where}: {first.message}); "
            "please report it"
        )
    return Repair(found, proposed.actions, applied=True)


def undo_repair_of(path: str, wait_seconds: float) -> int:
    """Bring a container file back to the state before a repair.

    Returns:
        The number of the transaction whose state it has again.

    Raises:
        SnapctlError: the last commit was no repair, or the file cannot be opened or written.
    """
    backend = open_locked(path, writable=True, wait_seconds=wait_seconds)
    try:
        return undo_repair(backend)
    finally:
        backend.close()
