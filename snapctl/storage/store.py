"""Commit and recovery: one open container below the level of nodes.

A commit writes new pages, syncs, writes the superblock into the slot that holds the commit before the last, and syncs
again (invariant 4). Until the second sync begins the last commit is untouched; after it the new one is durable. It
goes in three steps: `seal` writes, `make_durable` syncs, `conclude` takes note.
Opening takes the sound superblock with the highest transaction number; a damaged copy costs nothing, a torn slot
means that the commit in flight never happened.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from snapctl.errors import (
    BadSize,
    Corruption,
    NoSpace,
    ReadOnlyNode,
    SnapctlError,
    Truncated,
    UnsupportedFormat,
)
from snapctl.format.geometry import SUPERBLOCK_AREA, Geometry
from snapctl.format.pointer import NOWHERE, Pointer
from snapctl.format.superblock import (
    KNOWN_READ_ONLY_COMPATIBLE,
    Superblock,
    build,
    check_bounds,
)
from snapctl.storage import lock
from snapctl.storage.backend import Backend, FileBackend
from snapctl.storage.log import Log, log_units
from snapctl.storage.pages import Adopted, PageFile
from snapctl.storage.pins import Pin
from snapctl.storage.spacemap import SpaceMap
from snapctl.storage.superblocks import choose_superblocks, sound_page, superblock_area
from snapctl.units import exact_size

_SMALLEST_CAPACITY_TABLES = 64


class Pinned(NamedTuple):
    """A committed state that is kept whole.

    Attributes:
        pin: what keeps it.
        superblock: what it hangs from.
        area: the superblock area of a file that holds this state and no later one.
    """

    pin: Pin
    superblock: Superblock
    area: bytes


class Store:
    """The pages, the space map and the superblock of one open container.

    Attributes:
        superblock: as of the last commit.
        space: the space map of the open transaction.
        log: of the last commit, if it was made here and names one.
    """

    def __init__(self, pages: PageFile, space: SpaceMap, superblock: Superblock, *, writable: bool) -> None:
        self.pages = pages
        self.space = space
        self.superblock = superblock
        self.writable = writable
        self._repairs = 0
        self._sealed: Superblock | None = None
        self._log_run = superblock.log_page, superblock.log_pages
        self.log: Log | None = None
        self._is_empty_commit = False

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
                f"{current.pages_total * geometry.unit}; 'check --repair' keeps what is left of it"
            )
        if writable:
            check_features(backend, current)
            # Beyond lies what a transaction wrote that never was committed.
            backend.truncate(current.pages_total * geometry.unit)
        pages = PageFile(backend, geometry, current.pages_total, _adopted(backend, current))
        return cls(pages, SpaceMap(pages, current, previous), current, writable=writable)

    @classmethod
    def rebuild(cls, backend: Backend, base: Superblock, in_use: Iterable[tuple[int, int]], next_node_id: int) -> Store:
        """Begin a repair: a store without nodes and with a map made anew, whose first commit replaces the last one.

        That commit writes beyond the end of the file only. Until something else is written it can be undone
        (`undo_repair`).

        Args:
            backend: the file.
            base: the superblock of the state that is repaired, that of the last commit or of the one before.
            in_use: what the nodes to be put into it own, as for `SpaceMap.rebuild`.
            next_node_id: the id that the next new node gets.

        Raises:
            SnapctlError: as `choose_superblocks`, or the container has a feature that is unknown here.
        """
        current, _ = choose_superblocks(backend)
        check_features(backend, current)
        # A file that was cut short ends where it ends.
        held = backend.size() // current.geometry.unit
        end_page = min(max(current.pages_total, base.pages_total), held)
        pages = PageFile(backend, current.geometry, end_page, _adopted(backend, current))
        pages.reserve.may_be_used = True
        blank = replace(
            base,
            transaction=current.transaction,
            pages_total=end_page,
            snapshot_list=NOWHERE,
            space_map=NOWHERE,
            node_count=0,
            next_node_id=next_node_id,
        ).with_log(0, 0, 0)
        store = cls(pages, SpaceMap.rebuild(pages, blank, in_use), blank, writable=True)
        store._repairs = current.transaction
        return store

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

    def give_back(self) -> None:
        """Give the file system what is kept of free room beyond `SpaceMap.idle_units`.

        Raises:
            IoFailure: the system refuses.
        """
        for page_no, units in self.space.surplus():
            self.pages.punch(page_no, units)

    def reset(self) -> None:
        """Forget the open transaction; the space map is again that of the last commit.

        Raises:
            IoFailure: the system refuses.
        """
        self.discard()
        _, previous = choose_superblocks(self.pages.backend)
        self.pages.end_page = self.superblock.pages_total
        self.space = self.space.anew(self.superblock, previous)
        self._log_run = self.superblock.log_page, self.superblock.log_pages

    @property
    def names_log(self) -> bool:
        """Whether the next superblock will name a log, as the open transaction has it."""
        return self._log_run[1] > 0

    def make_log(self) -> bool:
        """Begin a log in the open transaction; it can be written to once that is committed.

        Its pages are written, with zeros, so that writing them again changes nothing but their content: then a record
        is durable with one sync of the file's data.

        Returns:
            Whether there was room for it.

        Raises:
            IoFailure: the system refuses, which poisons.
        """
        units = log_units(self.geometry)
        try:
            page_no = self.space.allocate_run(units)
        except NoSpace:
            return False
        zeros = bytes(self.geometry.table_size)
        try:
            page_nos = range(page_no, page_no + units, self.geometry.table_units)
            self.pages.write_pages(page_nos, [zeros] * len(page_nos), len(zeros))
        except NoSpace:
            self.space.free(page_no, units)
            return False
        self._log_run = page_no, units
        return True

    def drop_log(self) -> None:
        """Give the pages of the log back in the open transaction.

        Raises:
            Corruption: they are not in use.
        """
        page_no, units = self._log_run
        self._log_run = 0, 0
        if units:
            self.space.free(page_no, units)

    def pin(self) -> Pinned:
        """Keep the state of the last commit whole, whatever is done after, until `unpin`.

        The open transaction does not matter, nor does one that is being committed: the state is the one of
        `superblock`, even if the file has a later one already.

        Raises:
            Poisoned: a failure made the container unusable.
            IoFailure: the system refuses.
        """
        self.pages.check_usable()
        area = superblock_area(self.pages.backend, self.superblock, self.space.previous)
        return Pinned(self.space.pin(), self.superblock, area)

    def unpin(self, pinned: Pinned) -> None:
        """End a pin; long runs that it alone kept go back to the file system.

        Raises:
            IoFailure: the system refuses.
        """
        retired = self.space.unpin(pinned.pin)
        if self.pages.is_usable:
            for page_no, units in retired:
                self.pages.punch(page_no, units)

    def seal(self, snapshot_list: Pointer, next_node_id: int, node_count: int, *, keeps_log: bool = False) -> None:
        """Write the placed space map: with it all is written that the next superblock refers to, but for the sync.

        From here to `conclude` nothing may be changed, allocated or freed; reading goes on. With `keeps_log` the new
        state is the same as the last, so that what is in the log continues it.

        Raises:
            NoSpace: the file system is full; the last commit stands and the container stays usable.
            IoFailure: the system refuses; the container is poisoned.
        """
        self.space.place()
        reserve = self.pages.reserve
        if not reserve.may_be_used:
            reserve.keep(self.pages.end_page)
        space_map = self.space.write()
        self.pages.extend()
        self._seal(
            replace(
                self.superblock,
                space_map=space_map,
                snapshot_list=snapshot_list,
                next_node_id=next_node_id,
                node_count=node_count,
            ),
            keeps_log=keeps_log,
        )

    def make_durable(self) -> None:
        """Make what is sealed the container's state; the one step that waits for the disk.

        It can be taken on another thread, while others read.

        Raises:
            IoFailure: the system refuses; the last commit stands, or this one, and the container is poisoned.
        """
        if self._sealed is None:
            raise SnapctlError(f"nothing of {self.pages.backend.path} was sealed")
        self.pages.sync()
        with self.pages.poisoned_by_failure():
            # From here on the disk may be a commit ahead of what is in memory.
            self.pages.write_superblock(self._sealed.slot, build(self._sealed), one_by_one=bool(self._repairs))
            self.pages.sync()

    def conclude(self) -> bool:
        """Take note that what was sealed is durable, and give the room back for which no slot stands any more.

        Returns:
            Whether a commit of nothing is sealed now, which gives more room back; the caller makes it durable, too.

        Raises:
            IoFailure: the system refuses, which poisons.
        """
        done = self._sealed
        if done is None:
            raise SnapctlError(f"nothing of {self.pages.backend.path} was sealed")
        with self.pages.poisoned_by_failure():
            if done.log_key != self.superblock.log_key:
                self.log = Log(self.pages, done) if done.log_pages else None
            self.superblock, self._sealed = done, None
            for page_no, units in self.space.rotate(done):
                self.pages.punch(page_no, units)
        if not self._repairs and not self._is_empty_commit and self.space.wants_empty_commit():
            self._seal(self.superblock, keeps_log=True)
            self._is_empty_commit = True
            return True
        self._is_empty_commit = False
        self.pages.reserve.may_be_used = False
        self.pages.reserve.restore(self.pages.end_page)
        return False

    def _seal(self, draft: Superblock, *, keeps_log: bool = False) -> None:
        key = draft.log_key if keeps_log else int.from_bytes(os.urandom(8), "little")
        self._sealed = replace(
            draft,
            transaction=self.superblock.transaction + 1,
            pages_used=self.space.used,
            pages_total=self.pages.end_page,
            repaired_from=self._repairs,
        ).with_log(*self._log_run, key)
        check_bounds(self._sealed)


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
    """Go back to the state before a repair, since which nothing was written.

    The caller has locked the file for writing.

    Returns:
        The number of the transaction whose state the container has again.

    Raises:
        SnapctlError: the last commit is no repair, something was written since, or the state before is not there.
    """
    current, previous = choose_superblocks(backend)
    before = state_before_repair(backend, current, previous)
    check_features(backend, before)
    # The file keeps its length: the repaired state stays whole in the other slot. It may have been cut short before.
    pages_total = max(current.pages_total, before.pages_total)
    state = replace(before, transaction=current.transaction + 1, pages_total=pages_total, repaired_from=0)
    check_bounds(state)
    adopted = Adopted(current.slot, sound_page(backend, current))  # so that a power cut leaves what can be undone
    pages = PageFile(backend, state.geometry, current.pages_total, adopted)
    pages.write_superblock(state.slot, build(state), one_by_one=True)
    return before.transaction


def state_before_repair(backend: Backend, current: Superblock, previous: Superblock | None) -> Superblock:
    """The superblock that an undo would go back to; raises as `undo_repair`."""
    if not current.repaired_from:
        raise SnapctlError(
            f"the last thing written to {backend.path} is not a repair; there is nothing that can be undone"
        )
    if previous is None or previous.transaction != current.repaired_from:
        raise Corruption(f"the superblock from before the repair of {backend.path} is damaged; it cannot be undone")
    return previous


def _adopted(backend: Backend, current: Superblock) -> Adopted:
    """How an adopted superblock is written again before anything else is.

    From then on a repair cannot be undone: pages may be overwritten that only the state before it has, whose space map
    nobody could rely on.
    """
    if current.repaired_from:
        return Adopted(current.slot, build(replace(current, repaired_from=0)), is_changed=True)
    return Adopted(current.slot, sound_page(backend, current))


def check_features(backend: Backend, superblock: Superblock) -> None:
    """Refuse to write a container of which some part is unknown here.

    Raises:
        UnsupportedFormat: so it is.
    """
    if unknown := superblock.read_only_compatible & ~KNOWN_READ_ONLY_COMPATIBLE:
        raise UnsupportedFormat(
            f"{backend.path} uses feature 0x{unknown:x}, unknown here; it can be read but not written"
        )
