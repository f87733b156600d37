"""An open container as its users see it: making, finding, snapshotting, cloning, renaming and deleting nodes."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from snapctl.engine import deletion, recovery
from snapctl.engine.model import Cow, Kind, Usage
from snapctl.engine.session import Session
from snapctl.errors import BadName, NameTaken, NodeNotFound, SnapctlError
from snapctl.format.geometry import DEFAULT_BLOCK_SIZE, DEFAULT_TABLE_SIZE, Geometry
from snapctl.format.record import State, check_name
from snapctl.storage import lock
from snapctl.storage.backend import Backend, FileBackend
from snapctl.storage.scratch import ScratchBackend
from snapctl.storage.store import Store, open_locked

if TYPE_CHECKING:
    from uuid import UUID

    from snapctl.engine.node import Node

_CREATE_WAIT_SECONDS = 5.0
"""How long `create` waits for somebody who opened the new file before it was locked."""


class Container(Session):
    """A container file that is open, and locked while it is.

    As a context manager it commits and closes, or after an exception gives up what was not committed and closes.
    """

    @classmethod
    def create(
        cls,
        path: str,
        *,
        block_size: int = DEFAULT_BLOCK_SIZE,
        table_size: int = DEFAULT_TABLE_SIZE,
        capacity_bytes: int | None = None,
    ) -> Container:
        """Make a new container file and open it for writing.

        Args:
            path: of the file, which must not exist.
            block_size: bytes of a data block, a power of two from 512 to 65,536.
            table_size: bytes of a table page, likewise.
            capacity_bytes: what it may grow to; None for no limit.

        Raises:
            NameTaken: something of that name exists.
            BadSize: a size that the format does not have, or too small a capacity.
            NoSpace: the file system is full.
        """
        geometry = Geometry(block_size, table_size)
        backend = FileBackend.create(path)
        try:
            lock.acquire(backend.fd, path, exclusive=True, wait_seconds=_CREATE_WAIT_SECONDS)
            container = cls.format(backend, geometry, capacity_bytes)
            backend.sync_directory()
        except BaseException:
            backend.remove()
            backend.close()
            raise
        return container

    @classmethod
    def open(cls, path: str, *, writable: bool = False, wait_seconds: float = 5.0) -> Container:
        """Open a container file, waiting up to `wait_seconds` for others to let go of it.

        Raises:
            NotAContainer: it is something else.
            UnsupportedFormat: made by a newer version.
            Locked: others hold it.
            Corruption: its superblock, space map or snapshot list is damaged.
            IoFailure: the system refuses.
        """
        backend = open_locked(path, writable=writable, wait_seconds=wait_seconds)
        try:
            return cls.adopt(backend, writable=writable)
        except BaseException:
            backend.close()
            raise

    @classmethod
    def format(cls, backend: Backend, geometry: Geometry, capacity_bytes: int | None = None) -> Container:
        """Make a container in an empty file of any backend; it stands when this returns."""
        container = cls(Store.format(backend, geometry, capacity_bytes))
        container._is_changed = True
        container.commit()
        return container

    @classmethod
    def adopt(cls, backend: Backend, *, writable: bool = True) -> Container:
        """Open what stands in a file of any backend, which its owner locks; raises as `open`.

        What a writer that died has left in a log is part of it: written, it is committed first.

        Raises:
            NoSpace: there is no room for that.
        """
        if writable:
            return cls(Store.adopt(backend, writable=True))._ready()
        store, replayed = recovery.adopt_to_read(backend, cls)
        container = cls(store)
        container.replayed_records = replayed
        return container

    def destroy(self) -> None:
        """Unlink the file of a container that was made for nothing, while its lock keeps everybody else out."""
        backend = self._store.pages.backend
        if isinstance(backend, FileBackend):
            backend.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._store.writable:
                self.commit()
        finally:
            self.close()

    def __getitem__(self, name: str) -> Node:
        return self.node(name)

    @property
    def uuid(self) -> UUID:
        """What tells this container from all others."""
        return self._store.superblock.uuid

    @property
    def file_identity(self) -> tuple[int, int]:
        """What tells its file from all others on this machine, copies of it included: (device, inode)."""
        backend = self._store.pages.backend
        if isinstance(backend, ScratchBackend):
            backend = backend.below
        return backend.identity() if isinstance(backend, FileBackend) else (0, 0)

    @property
    def table_size(self) -> int:
        """Bytes of a table page."""
        return self.geometry.table_size

    @property
    def capacity_bytes(self) -> int | None:
        """What it may grow to; None for no limit."""
        return self._store.superblock.pages_limit * self.geometry.unit or None

    @property
    def used_bytes(self) -> int:
        """All pages in use as of the last commit, data, tables and superblocks."""
        return self._store.superblock.pages_used * self.geometry.unit

    @property
    def usage(self) -> Usage:
        """How full it is, as of the last commit.

        Raises:
            IoFailure: the system does not tell.
        """
        unit, pages, superblock = self.geometry.unit, self._store.pages, self._store.superblock
        capacity = (superblock.pages_limit or self.geometry.max_units) * unit
        reserves = self._store.space.reserve * unit, pages.reserve.length(superblock.pages_total)
        room = min(capacity - reserves[0], pages.backend.room(self.used_bytes) - reserves[1])
        return Usage(self.used_bytes, max(0, room - self.used_bytes), max(reserves))

    @property
    def data_bytes(self) -> int:
        """The part of `used_bytes` that is data of nodes; the rest is tables, records, bitmaps and superblocks."""
        return sum(self.by_id(node_id).own_bytes for node_id in self.node_ids)

    @property
    def file_bytes(self) -> int:
        """Length of the file, holes included."""
        return self._store.pages.backend.size()

    @property
    def max_volume_bytes(self) -> int:
        """The largest volume that it can hold."""
        return self.geometry.max_volume_bytes

    @property
    def volumes(self) -> list[Node]:
        """The base volumes and RW snapshots, oldest first."""
        return [node for node in self.nodes if node.kind is not Kind.RO]

    def node(self, name: str) -> Node:
        """The node called ``db`` or ``db@mon``.

        Raises:
            NodeNotFound: there is none.
            BadName: nothing can be called that.
        """
        volume, at, snapshot = name.partition("@")
        node_id = self._find(0, volume)
        if node_id is None or node_id in self._list.unfinished:
            raise NodeNotFound(f"no volume {volume} in {self.path}")
        if not at:
            return self.by_id(node_id)
        snapshot_id = self._find(node_id, snapshot)
        if snapshot_id is None:
            raise NodeNotFound(f"no snapshot {snapshot} of {volume} in {self.path}")
        return self.by_id(snapshot_id)

    def create_volume(self, name: str, size_bytes: int, *, cow: Cow = Cow.REDIRECT, state: State = State.IDLE) -> Node:
        """Make an empty base volume.

        With state IMPORTING its name is taken, and that is all that others see of it, until it is `finished`; what
        was committed of it and never finished is deleted when the container is opened for writing.

        Raises:
            BadName: it cannot be called that.
            NameTaken: a volume is called that.
            BadSize: not from 1 to `max_volume_bytes`.
        """
        self.check_writable()
        self._check_free(0, name)
        self.geometry.check_volume_size(size_bytes)
        with self.changing():
            return self.add(Kind.BASE, name, size_bytes=size_bytes, cow=cow, state=state)

    def finish(self, node: Node) -> None:
        """Have a volume that was being imported be one like any other."""
        self.check_writable()
        with self.changing():
            node.update(state=State.IDLE)

    def discard(self, node: Node) -> None:
        """Delete a volume that was being imported; raises as `delete`."""
        self.check_writable()
        deletion.plan([node], cascade=False)
        with self.changing():
            deletion.delete(node)

    def snapshot(self, *names: str) -> list[Node]:
        """Take RO snapshots, ``volume@name`` each, all of the same instant (claims 1 and 2).

        Raises:
            ReadOnlyNode: the container was opened for reading; so say all that change it.
            BadName: not of that form, or named twice.
            NodeNotFound: no such volume.
            NameTaken: the volume has a snapshot of that name.
        """
        self.check_writable()
        wanted: list[tuple[Node, str]] = []
        for full_name in names:
            volume_name, at, name = full_name.partition("@")
            if not at:
                raise BadName(f"{full_name} names no snapshot; write {full_name}@NAME")
            volume = self.node(volume_name)
            self._check_free(volume.id, name)
            if (volume, name) in wanted:
                raise BadName(f"{full_name} is named twice")
            wanted.append((volume, name))
        with self.changing(moves_pages=False):
            return [self._snapshot(volume, name) for volume, name in wanted]

    def clone(self, source: str, name: str) -> Node:
        """Make an RW snapshot of an RO snapshot; of a volume, by way of an RO snapshot in the same transaction.

        The RO snapshot on the way gets a dated name; none is taken where the newest one already equals the volume.

        Raises:
            BadName: it cannot be called that.
            NodeNotFound: no such source.
            NameTaken: a volume is called that.
        """
        self.check_writable()
        node = self.node(source)
        self._check_free(0, name)
        with self.changing(moves_pages=False):
            if node.kind is not Kind.RO:
                newest = node.newest_snapshot
                is_equal = newest is not None and newest.size_bytes == node.size_bytes and newest.tree.is_empty
                node = newest if newest is not None and is_equal else self._snapshot(node, self._dated_name(node))
            return self.add(Kind.RW, name, size_bytes=node.size_bytes, cow=node.cow, parent=node.id, origin=node.id)

    def rename(self, name: str, new_name: str) -> Node:
        """Rename a volume, or with a short name a snapshot.

        Raises:
            BadName: it cannot be called that.
            NodeNotFound: no such node.
            NameTaken: the new name is in use.
        """
        self.check_writable()
        node = self.node(name)
        self._check_free(node.record.origin if node.kind is Kind.RO else 0, new_name)
        with self.changing():
            node.update(name=new_name)
        return node

    def delete(self, *names: str, cascade: bool = False) -> list[str]:
        """Delete nodes together; what remains reads as before.

        Args:
            names: full names of the nodes.
            cascade: delete whatever descends from them too.

        Returns:
            The full names of all that was deleted, in that order.

        Raises:
            NodeNotFound: no such node.
            HasDependents: something descends from a node and is not deleted with it.
        """
        self.check_writable()
        doomed = deletion.plan([self.node(name) for name in names], cascade=cascade)
        deleted = [node.name for node in doomed]
        with self.changing():
            for node in doomed:
                deletion.delete(node)
        return deleted

    def _ready(self) -> Self:
        """Replay the log; delete imports that never came to their end, of which what cannot be deleted stays hidden."""
        if self.superblock.log_pages:
            recovery.replay(self)
        for node_id in sorted(self._list.unfinished):
            try:
                self.discard(self.by_id(node_id))
                self.commit()
            except SnapctlError:
                self.abort()
        return self

    def _find(self, volume_id: int, name: str) -> int | None:
        check_name(name)
        return self._list.find(volume_id, name)

    def _check_free(self, volume_id: int, name: str) -> None:
        found = self._find(volume_id, name)
        if found in self._list.unfinished:
            raise NameTaken(f"{name} is being imported into {self.path}")
        if found is not None:
            what = f"{self.by_id(volume_id).short_name}@{name}" if volume_id else name
            raise NameTaken(f"{what} exists already in {self.path}")

    def _dated_name(self, volume: Node) -> str:
        name = stamp = time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime())
        number = 1
        while self._find(volume.id, name) is not None:
            number += 1
            name = f"{stamp}-{number}"
        return name

    def _snapshot(self, volume: Node, name: str) -> Node:
        """Insert an RO snapshot between a volume and its newest one (claim 1)."""
        older = volume.newest_snapshot
        snapshot = self.add(
            Kind.RO, name, size_bytes=volume.size_bytes, cow=volume.cow, parent=volume.id, origin=volume.id
        )
        if older is not None:
            older.update(parent=snapshot.id)
        return snapshot
