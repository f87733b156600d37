"""The repair of a container file from the first check to the last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from snapctl.errors import SnapctlError
from snapctl.format.superblock import COPIES, SLOTS
from snapctl.services.check import Finding, Report, check_backend
from snapctl.services.check.findings import Findings
from snapctl.services.check.superblocks import copy_name
from snapctl.services.repair.plan import Progress, make_plan
from snapctl.services.repair.rebuild import rebuild
from snapctl.storage.backend import Backend
from snapctl.storage.store import check_features, open_locked, state_before_repair, undo_repair
from snapctl.storage.superblocks import choose_superblocks, heal_superblocks, healable

_SOUND = 0
_COPY_NAMES = {copy_name(slot, copy) for slot in range(SLOTS) for copy in range(COPIES)}


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
    current, _ = choose_superblocks(backend)
    check_features(backend, current)
    actions = Findings()
    plan = None
    if _needs_healing_only(backend, found):
        actions.repair("superblock", "damaged copies are written anew from the sound ones")
    else:
        plan = make_plan(backend, progress)
        if any(finding.where in _COPY_NAMES for finding in found.findings):
            actions.repair("superblock", "all copies are written anew")
        plan.describe(actions)
        actions.repair("space map", "made anew from what is in use")
    proposed = Repair(found, actions.all())
    if agree is None or not agree(proposed):
        return proposed
    if plan is None:
        heal_superblocks(backend)
        return Repair(found, proposed.actions, applied=True)
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


def _needs_healing_only(backend: Backend, found: Report) -> bool:
    """Whether nothing is wrong but superblock copies that have a sound one beside them."""
    faults = sum(finding.severity.is_fault for finding in found.findings)
    in_copies = sum(finding.where in _COPY_NAMES for finding in found.findings)
    return faults == in_copies <= len(healable(backend))


def undo_repair_of(path: str, wait_seconds: float, *, agree: Callable[[int], bool] | None) -> int:
    """Bring a container file back to the state before a repair.

    Args:
        path: of the file.
        wait_seconds: how long to wait for others to let go of it.
        agree: told the number of the transaction whose state it would have; nothing is written if it says no. None for
            a dry run, which only reads.

    Returns:
        That number.

    Raises:
        SnapctlError: the last commit was no repair, or the file cannot be opened or written.
    """
    backend = open_locked(path, writable=agree is not None, wait_seconds=wait_seconds)
    try:
        transaction = state_before_repair(backend, *choose_superblocks(backend)).transaction
        return undo_repair(backend) if agree is not None and agree(transaction) else transaction
    finally:
        backend.close()
