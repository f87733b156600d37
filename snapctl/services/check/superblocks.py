"""Judging the four superblock copies: which damage a crash leaves as a matter of course, and which it cannot.

A commit writes both copies of the slot that holds the commit before the last. A power cut in its midst leaves any
mixture of their 512-byte sectors, old and new. Either no copy is whole: then the commit never happened, the other slot
is adopted, and the next commit overwrites this one. Or one copy is whole: then the commit happened, and opening for
writing writes both copies anew. Nothing is lost in either case, so what such a cut leaves is no finding:

- a whole superblock of the commit that had the slot before;
- in a slot's first commit, zeros;
- a *torn* copy: one that would be sound if its checksum were right, belongs to this container and to one of the
  transactions that use the slot, and has nothing else in its reserved room.

A sector that differs from that of a sound copy in a single byte is not torn but damaged: the sectors of two commits
that differ at all differ in checksums, and so in more than that but once in some millions. Everything else is damage
and is found, in either slot, since both are there to be fallen back on.
"""

from __future__ import annotations

from collections.abc import Collection

from snapctl.errors import SnapctlError
from snapctl.format.checksum import crc32c
from snapctl.format.layout import SUPERBLOCK_BYTES
from snapctl.format.superblock import COPIES, SLOTS, Superblock, build, parse
from snapctl.services.check.findings import Findings
from snapctl.storage.backend import Backend
from snapctl.storage.pages import read_superblock_copy

_SECTOR_BYTES = 512
_CHECKSUM_BYTES = 4


def check_superblocks(backend: Backend, current: Superblock, findings: Findings) -> None:
    """Judge all copies, `current` being the superblock that was adopted."""
    for slot in range(SLOTS):
        pages = [read_superblock_copy(backend, slot, copy).ljust(SUPERBLOCK_BYTES, b"\0") for copy in range(COPIES)]
        # The other slot holds the commit before, or what is left of one that never happened.
        is_adopted = slot == current.slot
        newest = current.transaction if is_adopted else current.transaction - 1
        rightful = [page for page in pages if (found := _parsed(page)) and found.transaction == newest]
        attempts = (newest - SLOTS, newest) if is_adopted else (newest, newest + SLOTS)
        for copy, page in enumerate(pages):
            where = f"superblock slot {slot} copy {copy}"
            if fault := _fault(page, current, rightful, newest, attempts):
                findings.corruption(where, fault)


def _fault(
    page: bytes, current: Superblock, rightful: list[bytes], newest: int, attempts: tuple[int, int]
) -> str | None:
    """What is wrong with one copy, if anything.

    Args:
        page: what stands there.
        current: the superblock that was adopted.
        rightful: sound copies of the slot's `newest` transaction.
        newest: the last transaction that was completed in the slot.
        attempts: the transactions, older and newer, between which a torn copy may be caught.
    """
    found = _parsed(page)
    if found is not None:
        if not _is_kin(found, current):
            return "is that of another container, or has other sizes"
        if found.transaction == newest:
            return None if page == rightful[0] else f"differs from the other copy of transaction {newest}"
        if found.transaction == attempts[0]:
            return None
        return f"is of transaction {found.transaction}, where {newest} belongs"
    if attempts[0] <= 0 and not any(page[:-_CHECKSUM_BYTES]):
        return None
    if not _is_torn(page, current, attempts) or any(_is_rotten(page, sound) for sound in rightful):
        return "is damaged; the next commits write it anew, so open the container for writing soon"
    return None


def _parsed(page: bytes) -> Superblock | None:
    try:
        return parse(page)
    except SnapctlError:
        return None


def _is_kin(found: Superblock, current: Superblock) -> bool:
    """Whether two superblocks are of the same container."""
    return (found.uuid, found.geometry) == (current.uuid, current.geometry)


def _is_torn(page: bytes, current: Superblock, attempts: Collection[int]) -> bool:
    body = page[:-_CHECKSUM_BYTES]
    believed = _parsed(body + int(crc32c(body)).to_bytes(_CHECKSUM_BYTES, "little"))
    return (
        believed is not None
        and _is_kin(believed, current)
        and believed.transaction in attempts
        and body[_SECTOR_BYTES:] == build(current)[_SECTOR_BYTES:-_CHECKSUM_BYTES]
    )


def _is_rotten(page: bytes, sound: bytes) -> bool:
    """Whether some sector differs from the sound copy's in one byte only."""
    for start in range(0, len(sound), _SECTOR_BYTES):
        pairs = zip(page[start : start + _SECTOR_BYTES], sound[start : start + _SECTOR_BYTES], strict=True)
        if sum(a != b for a, b in pairs) == 1:
            return True
    return False
