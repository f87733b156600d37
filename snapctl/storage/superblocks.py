"""The four superblock copies in a file: which of them is the container's state, and keeping them sound."""

from __future__ import annotations

from collections.abc import Iterator

from snapctl.errors import Corruption, IoFailure, NotAContainer, UnsupportedFormat
from snapctl.format.geometry import SUPERBLOCK_AREA
from snapctl.format.layout import SUPERBLOCK_BYTES
from snapctl.format.superblock import (
    COPIES,
    KNOWN_READ_ONLY_COMPATIBLE,
    SLOTS,
    Superblock,
    build,
    copy_offset,
    has_magic,
    parse,
)
from snapctl.storage.backend import Backend


def read_superblock_copy(backend: Backend, slot: int, copy: int) -> bytes:
    """Read one superblock copy before any geometry is known; short at the end of the file.

    Raises:
        IoFailure: the system refuses.
    """
    page = bytearray(SUPERBLOCK_BYTES)
    got = backend.read_into(copy_offset(slot, copy), page)
    return bytes(page[:got])


def superblock_copies(backend: Backend) -> Iterator[tuple[int, int, Superblock | Corruption | IoFailure]]:
    """Read all four copies.

    Yields:
        (slot, copy, what stands there): the superblock, or why it is none or cannot be read.

    Raises:
        UnsupportedFormat: one is sound but newer than this program.
    """
    for slot in range(SLOTS):
        for copy in range(COPIES):
            try:
                yield slot, copy, parse(read_superblock_copy(backend, slot, copy))
            except (Corruption, IoFailure) as error:
                yield slot, copy, error


def choose_superblocks(backend: Backend) -> tuple[Superblock, Superblock | None]:
    """The superblock of the last commit, and that of the commit before if its slot is sound.

    Raises:
        NotAContainer: no copy even begins like a superblock.
        UnsupportedFormat: one is sound but newer than this program.
        Corruption: none is sound.
        IoFailure: one that cannot be read may be that of the last commit.
    """
    slots: list[list[Superblock | Corruption | IoFailure]] = [[] for _ in range(SLOTS)]
    try:
        for slot, _, found in superblock_copies(backend):
            slots[slot].append(found)
    except UnsupportedFormat as error:
        raise UnsupportedFormat(f"{backend.path}: {error}") from error
    for pair in slots:
        unreadable = [found for found in pair if isinstance(found, IoFailure)]
        if unreadable and not any(isinstance(found, Superblock) for found in pair):
            # It may hold the last commit, which going on from the other slot would lose for a passing failure.
            raise unreadable[0]
    copies = [found for pair in slots for found in pair if isinstance(found, Superblock)]
    if not copies:
        if not any(has_magic(read_superblock_copy(backend, s, c)) for s in range(SLOTS) for c in range(COPIES)):
            raise NotAContainer(f"{backend.path} is not a snapctl container")
        raise Corruption(
            f"{backend.path}: no sound superblock is left, so nothing can be repaired; restore it from a copy"
        )
    current = max(copies, key=lambda found: found.transaction)
    # A copy in the slot of the last commit is no state to keep: opening for writing writes both copies of that slot.
    others = (found for found in copies if found.transaction < current.transaction and found.slot != current.slot)
    return current, max(others, key=lambda found: found.transaction, default=None)


def superblock_area(backend: Backend, current: Superblock, previous: Superblock | None) -> bytes:
    """The superblock area as it stands in the file, but for a commit that is being written after `current`.

    In the slot that such a commit is written to, `previous` stood, and stands again in what this returns.

    Raises:
        IoFailure: the system refuses.
    """
    area = bytearray(SUPERBLOCK_AREA)
    backend.read_into(0, area)
    slot = 1 - current.slot
    places = [slice(at, at + SUPERBLOCK_BYTES) for at in (copy_offset(slot, copy) for copy in range(COPIES))]
    if any(_is_later(bytes(area[place]), current) for place in places):
        for place in places:
            area[place] = bytes(SUPERBLOCK_BYTES) if previous is None else build(previous)
    return bytes(area)


def _is_later(page: bytes, current: Superblock) -> bool:
    try:
        return parse(page).transaction > current.transaction
    except (Corruption, UnsupportedFormat):
        return False


def heal_superblocks(backend: Backend) -> list[tuple[int, int]]:
    """Write damaged or outdated superblock copies anew from the sound copy of the same slot, and sync.

    Which commit is adopted stays the same, now and after a crash: a slot gets only what it stands for already, and the
    sound copy is not touched. What has no such copy is left as it is, and so is a file that is cut short.

    Args:
        backend: a writable file, which the caller has locked against everybody else.

    Returns:
        (slot, copy) of each one that was written.

    Raises:
        SnapctlError: as `choose_superblocks`.
        IoFailure: the system refuses.
    """
    healed = healable(backend)
    for slot, copy, page in healed:
        backend.write(copy_offset(slot, copy), [page])
    if healed:
        backend.sync()
    return [(slot, copy) for slot, copy, _ in healed]


def healable(backend: Backend) -> list[tuple[int, int, bytes]]:
    """What `heal_superblocks` would write: (slot, copy, bytes); raises as `choose_superblocks`."""
    current, _ = choose_superblocks(backend)
    is_cut = backend.size() < current.pages_total * current.geometry.unit
    if is_cut or current.read_only_compatible & ~KNOWN_READ_ONLY_COMPATIBLE:
        return []
    found: list[tuple[int, int, bytes]] = []
    for slot in range(SLOTS):
        last = current.transaction - (slot != current.slot)
        pages = [_page_of(backend, slot, copy, last, current) for copy in range(COPIES)]
        sound = next(filter(None, pages), None)
        for copy, page in enumerate(pages):
            if sound and not page:
                found.append((slot, copy, sound))
    return found


def _page_of(backend: Backend, slot: int, copy: int, transaction: int, current: Superblock) -> bytes | None:
    """The bytes of a superblock copy if it is sound and stands for a transaction of this container."""
    try:
        page = read_superblock_copy(backend, slot, copy)
        found = parse(page)
    except (Corruption, IoFailure, UnsupportedFormat):
        return None
    wanted = (current.uuid, current.geometry, transaction)
    return page if (found.uuid, found.geometry, found.transaction) == wanted else None


def sound_page(backend: Backend, superblock: Superblock) -> bytes:
    """The very bytes that an adopted superblock was read from, reserved ones included."""
    for copy in range(COPIES):
        try:
            page = read_superblock_copy(backend, superblock.slot, copy)
            if parse(page) == superblock:
                return page
        except (Corruption, IoFailure):
            continue
    return build(superblock)
