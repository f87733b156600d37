"""Commit and recovery: one open container below the level of nodes.

A commit writes new pages, syncs, writes the superblock into the slot that holds the commit before the last, and syncs
again (invariant 4). Until the second sync begins the last commit is untouched; after it the new one is durable.
Opening takes the sound superblock with the highest transaction number; a damaged copy costs nothing, a torn slot
means that the commit in flight never happened.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace

from snapctl.errors import (
    BadSize,
    Corruption,
    IoFailure,
    NotAContainer,
    ReadOnlyNode,
    SnapctlError,
    Truncated,
    UnsupportedFormat,
)
from snapctl.format.geometry import SUPERBLOCK_AREA, Geometry
from snapctl.format.pointer import NOWHERE, Pointer
from snapctl.format.superblock import (
    COPIES,
    KNOWN_READ_ONLY_COMPATIBLE,
    SLOTS,
    Superblock,
    build,
    check_bounds,
    copy_offset,
    has_magic,
    parse,
)
from snapctl.storage import lock
from snapctl.storage.backend import Backend, FileBackend
from snapctl.storage.pages import PageFile, read_superblock_copy
from snapctl.storage.spacemap import SpaceMap
from snapctl.units import exact_size

_SMALLEST_CAPACITY_TABLES = 64


class Store:
    """The pages, the space map and the superblock of one open container.

    Attributes:
        superblock: as of the last commit.
        space: the space map of the open transaction.
    """

    def __init__(self, pages: PageFile, space: SpaceMap, superblock: Superblock, *, writable: bool) -> None:
        self.pages = pages
        self.space = space
        self.superblock = superblock
        self.writable = writable
        self._repairs = 0

    @property
    def geometry(self) -> Geometry:
        """The container's sizes."""
        return self.superblock.geometry

    @property
    def transaction(self) -> int:
        """Number of the open transaction."""
        return self.superblock.transaction + 1

    @classmethod
    def format(cls, backend: Backend, geometry: Geometry, capacity_bytes: int | None) -> Store:
        """Begin a container in an empty file; nothing can be opened before the first commit.

        Raises:
            BadSize: the capacity is too small to hold anything.
        """
        limit = 0 if capacity_bytes is None else min(capacity_bytes // geometry.unit, geometry.max_units)
        least = geometry.first_page + _SMALLEST_CAPACITY_TABLES * geometry.table_units
        if capacity_bytes is not None and limit < least:
            given, smallest = exact_size(capacity_bytes), exact_size(least * geometry.unit)
            raise BadSize(f"a capacity of {given} is too small; it must be at least {smallest}")
        blank = Superblock(
            geometry=geometry,
            uuid=uuid.uuid4(),
            transaction=0,
            pages_used=0,
            pages_total=geometry.first_page,
            pages_limit=limit,
            next_node_id=1,
            node_count=0,
        )
        backend.extend(SUPERBLOCK_AREA)
        backend.reserve(0, SUPERBLOCK_AREA)  # no superblock may ever find the file system full
        pages = PageFile(backend, geometry, geometry.first_page, None)
        return cls(pages, SpaceMap(pages, blank, None), blank, writable=True)

    @classmethod
    def adopt(cls, backend: Backend, *, writable: bool) -> Store:
        """Open what stands in a file.

        Raises:
            NotAContainer: nothing in it looks like a superblock.
            UnsupportedFormat: made by a newer version.
            Truncated: shorter than the superblock says.
            Corruption: no superblock copy is sound, or the space map is damaged.
        """
        current, previous = choose_superblocks(backend)
        geometry = current.geometry
        if backend.size() < current.pages_total * geometry.unit:
            raise Truncated(
                f"{backend.path} is truncated: {backend.size()} bytes, where its superblock says "
                f"{current.pages_total * geometry.unit}; restore it from a copy"
            )
        if writable:
            _check_features(backend, current)
            # Beyond lies what a transaction wrote that never was committed.
            backend.truncate(current.pages_total * geometry.unit)
        pages = PageFile(backend, geometry, current.pages_total, (current.slot, _sound_page(backend, current)))
        return cls(pages, SpaceMap(pages, current, previous), current, writable=writable)

    @classmethod
    def rebuild(cls, backend: Backend, in_use: Iterable[tuple[int, int]], next_node_id: int) -> Store:
        """Begin a repair: a store without nodes and with a map made anew, whose first commit replaces the last one.

        That commit writes beyond the end of the file only. Until the next it can be undone (`undo_repair`).

        Args:
            backend: the file.
            in_use: what the nodes to be put into it own, as for `SpaceMap.rebuild`.
            next_node_id: the id that the next new node gets.

        Raises:
            SnapctlError: as `choose_superblocks`, or the container has a feature that is unknown here.
        """
        current, _ = choose_superblocks(backend)
        _check_features(backend, current)
        # A file that was cut short ends where it ends.
        end_page = min(current.pages_total, backend.size() // current.geometry.unit)
        pages = PageFile(backend, current.geometry, end_page, (current.slot, _sound_page(backend, current)))
        pages.reserve.may_be_used = True
        blank = replace(
            current,
            pages_total=end_page,
            snapshot_list=NOWHERE,
            space_map=NOWHERE,
            node_count=0,
            next_node_id=next_node_id,
        )
        store = cls(pages, SpaceMap.rebuild(pages, blank, in_use), blank, writable=True)
        store._repairs = current.transaction
        return store

    @classmethod
    def open_file(cls, path: str, *, writable: bool, wait_seconds: float) -> Store:
        """Open and lock a container file.

        Raises:
            Locked: others hold it for longer than `wait_seconds`.
            SnapctlError: as `FileBackend.open` and `adopt`.
        """
        backend = open_locked(path, writable=writable, wait_seconds=wait_seconds)
        try:
            return cls.adopt(backend, writable=writable)
        except BaseException:
            backend.close()
            raise

    def check_writable(self) -> None:
        """Refuse to change a container that was opened for reading.

        Raises:
            ReadOnlyNode: it was.
            Poisoned: a failure made it unusable.
        """
        self.pages.check_usable()
        if not self.writable:
            raise ReadOnlyNode(f"{self.pages.backend.path} was opened for reading only")

    def discard(self) -> None:
        """Give the room that the open transaction has taken back to the file system, and restore the reserve.

        Raises:
            IoFailure: the system refuses.
        """
        for page_no, units in self.space.fresh_runs():
            self.pages.punch(page_no, units)
        self.pages.reserve.cut(self.superblock.pages_total)

    def reset(self) -> None:
        """Forget the open transaction; the space map is again that of the last commit.

        Raises:
            IoFailure: the system refuses.
        """
        self.discard()
        _, previous = choose_superblocks(self.pages.backend)
        self.pages.end_page = self.superblock.pages_total
        self.space = SpaceMap(self.pages, self.superblock, previous)

    def commit(self, snapshot_list: Pointer, next_node_id: int, node_count: int) -> None:
        """Write the placed space map and make everything written so far the container's state.

        Raises:
            NoSpace: the file system is full; the last commit stands and the container stays usable.
            IoFailure: the system refuses; the last commit stands, or this one, and the container is poisoned.
        """
        self.space.place()
        reserve = self.pages.reserve
        if not reserve.may_be_used:
            reserve.keep(self.pages.end_page)
        self._advance(
            replace(
                self.superblock,
                space_map=self.space.write(),
                snapshot_list=snapshot_list,
                next_node_id=next_node_id,
                node_count=node_count,
            )
        )
        if not self._repairs and self.space.wants_empty_commit():
            self._advance(self.superblock)
        reserve.may_be_used = False
        reserve.restore(self.pages.end_page)

    def _advance(self, draft: Superblock) -> None:
        done = replace(
            draft,
            transaction=self.superblock.transaction + 1,
            pages_used=self.space.used,
            pages_total=self.pages.end_page,
            repaired_from=self._repairs,
        )
        check_bounds(done)
        self.pages.sync()
        with self.pages.poisoned_by_failure():
            # From here on the disk may be a commit ahead of what is in memory.
            self.pages.write_superblock(done.slot, build(done))
            self.pages.sync()
            self.superblock = done
            for page_no, units in self.space.rotate(done):
                self.pages.punch(page_no, units)


def open_locked(path: str, *, writable: bool, wait_seconds: float) -> FileBackend:
    """Open a container file and lock it: against everybody to write, against writers to read.

    Raises:
        Locked: others hold it for longer than `wait_seconds`.
        SnapctlError: as `FileBackend.open`.
    """
    while True:
        backend = FileBackend.open(path, writable=writable)
        try:
            lock.acquire(backend.fd, path, exclusive=writable, wait_seconds=wait_seconds)
            if backend.is_named():
                return backend
        except BaseException:
            backend.close()
            raise
        # While we waited, whoever held the lock removed or replaced the file: what we locked is no container.
        backend.close()


def undo_repair(backend: Backend) -> int:
    """Go back to the state before a repair, which nothing was committed since.

    The caller has locked the file for writing.

    Returns:
        The number of the transaction whose state the container has again.

    Raises:
        SnapctlError: the last commit is no repair, or the state before it is not there any more.
    """
    current, previous = choose_superblocks(backend)
    if not current.repaired_from:
        raise SnapctlError(f"the last commit of {backend.path} is not a repair; there is nothing to undo")
    if previous is None or previous.transaction != current.repaired_from:
        raise Corruption(f"the superblock from before the repair of {backend.path} is damaged; it cannot be undone")
    _check_features(backend, previous)
    # The file keeps its length: the repaired state stays whole in the other slot. It may have been cut short before.
    pages_total = max(current.pages_total, previous.pages_total)
    state = replace(previous, transaction=current.transaction + 1, pages_total=pages_total, repaired_from=0)
    check_bounds(state)
    pages = PageFile(backend, state.geometry, current.pages_total, (current.slot, _sound_page(backend, current)))
    pages.write_superblock(state.slot, build(state))
    pages.sync()
    return previous.transaction


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
        raise Corruption(f"{backend.path}: no sound superblock is left; restore it from a copy")
    current = max(copies, key=lambda found: found.transaction)
    # A copy in the slot of the last commit is no state to keep: opening for writing writes both copies of that slot.
    others = (found for found in copies if found.transaction < current.transaction and found.slot != current.slot)
    return current, max(others, key=lambda found: found.transaction, default=None)


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
    current, _ = choose_superblocks(backend)
    is_cut = backend.size() < current.pages_total * current.geometry.unit
    if is_cut or current.read_only_compatible & ~KNOWN_READ_ONLY_COMPATIBLE:
        return []
    healed: list[tuple[int, int]] = []
    for slot in range(SLOTS):
        last = current.transaction - (slot != current.slot)
        pages = [_page_of(backend, slot, copy, last, current) for copy in range(COPIES)]
        sound = next(filter(None, pages), None)
        for copy, page in enumerate(pages):
            if sound and not page:
                backend.write(copy_offset(slot, copy), [sound])
                healed.append((slot, copy))
    if healed:
        backend.sync()
    return healed


def _page_of(backend: Backend, slot: int, copy: int, transaction: int, current: Superblock) -> bytes | None:
    """The bytes of a superblock copy if it is sound and stands for a transaction of this container."""
    try:
        page = read_superblock_copy(backend, slot, copy)
        found = parse(page)
    except (Corruption, IoFailure, UnsupportedFormat):
        return None
    wanted = (current.uuid, current.geometry, transaction)
    return page if (found.uuid, found.geometry, found.transaction) == wanted else None


def _check_features(backend: Backend, superblock: Superblock) -> None:
    """Refuse to write a container of which some part is unknown here.

    Raises:
        UnsupportedFormat: so it is.
    """
    if unknown := superblock.read_only_compatible & ~KNOWN_READ_ONLY_COMPATIBLE:
        raise UnsupportedFormat(
            f"{backend.path} uses feature 0x{unknown:x}, unknown here; it can be read but not written"
        )


def _sound_page(backend: Backend, superblock: Superblock) -> bytes:
    """The very bytes that a superblock was read from, reserved ones included."""
    for copy in range(COPIES):
        try:
            page = read_superblock_copy(backend, superblock.slot, copy)
            if parse(page) == superblock:
                return page
        except (Corruption, IoFailure):
            continue
    return build(superblock)
