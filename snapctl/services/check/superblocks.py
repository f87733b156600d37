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

from dataclasses import dataclass, replace

from snapctl.errors import IoFailure, SnapctlError
from snapctl.format.checksum import crc32c
from snapctl.format.layout import SUPERBLOCK_BYTES
from snapctl.format.superblock import COPIES, SLOTS, Superblock, build, parse
from snapctl.services.check.findings import Findings
from snapctl.storage.backend import Backend
from snapctl.storage.superblocks import read_superblock_copy

_SECTOR_BYTES = 512
_CHECKSUM_BYTES = 4


@dataclass(frozen=True, slots=True)
class _Slot:
    """What is to be expected of the copies of one slot.

    Attributes:
        current: the superblock that was adopted, in this slot or the other.
        last: the transaction last completed in this slot.
        tries: the transactions whose sectors a torn copy may mix.
        sound: the bytes of the copies that stand for `last`.
    """

    current: Superblock
    last: int
    tries: tuple[int, int]
    sound: list[bytes]


def check_superblocks(backend: Backend, current: Superblock, findings: Findings) -> None:
    """Judge all copies, `current` being the superblock that was adopted."""
    for number in range(SLOTS):
        if number == current.slot:
            last, tries = current.transaction, (current.transaction - SLOTS, current.transaction)
        else:
            last, tries = current.transaction - 1, (current.transaction - 1, current.transaction + 1)
        pages = [_read(backend, number, copy) for copy in range(COPIES)]
        copies = [(page, _parse(page)) for page in pages if isinstance(page, bytes)]
        slot = _Slot(current, last, tries, [page for page, found in copies if found and found.transaction == last])
        for copy, page in enumerate(pages):
            if isinstance(page, IoFailure):
                fault: str | None = f"cannot be read: {page}"
            else:
                found = _parse(page)
                fault = _fault_of_damaged(page, slot) if found is None else _fault_of_sound(page, found, slot)
            if fault:
                findings.corruption(copy_name(number, copy), fault)


def copy_name(slot: int, copy: int) -> str:
    """What findings call a superblock copy."""
    return f"superblock slot {slot} copy {copy}"


def _read(backend: Backend, number: int, copy: int) -> bytes | IoFailure:
    try:
        return read_superblock_copy(backend, number, copy).ljust(SUPERBLOCK_BYTES, b"\0")
    except IoFailure as error:
        return error


def _fault_of_sound(page: bytes, found: Superblock, slot: _Slot) -> str | None:
    if not _is_kin(found, slot.current):
        return "belongs to another container"
    if found.transaction == slot.last:
        return None if _is_same(page, slot.sound[0]) else f"differs from the other copy of transaction {slot.last}"
    if found.transaction in slot.tries:
        return None
    return f"is of transaction {found.transaction}, where {slot.last} belongs"


def _fault_of_damaged(page: bytes, slot: _Slot) -> str | None:
    is_blank = slot.tries[0] <= 0 and not any(page[:-_CHECKSUM_BYTES])
    is_torn = _is_torn(page, slot) and not any(_is_rotten(page, sound) for sound in slot.sound)
    return None if is_blank or is_torn else "is damaged; the next commit writes it anew"


def _parse(page: bytes) -> Superblock | None:
    try:
        return parse(page)
    except SnapctlError:
        return None


def _is_same(page: bytes, other: bytes) -> bool:
    """Whether two copies stand for the same, one of which may still say that the repair that it was can be undone."""
    return page == other or replace(parse(page), repaired_from=0) == replace(parse(other), repaired_from=0)


def _is_kin(found: Superblock, current: Superblock) -> bool:
    """Whether two superblocks are of the same container."""
    return (found.uuid, found.geometry) == (current.uuid, current.geometry)


def _is_torn(page: bytes, slot: _Slot) -> bool:
    """Whether a copy that fails its checksum may be a mixture of sectors of the slot's transactions."""
    body = page[:-_CHECKSUM_BYTES]
    believed = _parse(body + int(crc32c(body)).to_bytes(_CHECKSUM_BYTES, "little"))
    return (
        believed is not None
        and _is_kin(believed, slot.current)
        and believed.transaction in slot.tries
        and body[_SECTOR_BYTES:] == build(slot.current)[_SECTOR_BYTES:-_CHECKSUM_BYTES]
    )


def _is_rotten(page: bytes, sound: bytes) -> bool:
    """Whether some sector differs from the sound copy's in one byte only."""
    for start in range(0, len(sound), _SECTOR_BYTES):
        pairs = zip(page[start : start + _SECTOR_BYTES], sound[start : start + _SECTOR_BYTES], strict=True)
        if sum(a != b for a, b in pairs) == 1:
            return True
    return False
