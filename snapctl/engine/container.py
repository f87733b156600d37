"""An open container: its nodes, its transaction, and the operations on the snapshot tree.

A transaction begins by itself with the first change and ends with `commit` or `abort`; nothing of it is visible to
anybody else before. An operation that fails midway leaves a transaction that can only be aborted, and `commit`
refuses it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from snapctl.engine import deletion
from snapctl.engine.model import Cow, Kind
from snapctl.engine.node import Node
from snapctl.engine.snapshot_list import SnapshotList
from snapctl.errors import BadName, Corruption, NameTaken, NodeNotFound, SnapctlError
from snapctl.format.checksum import crc32c
from snapctl.format.geometry import DEFAULT_BLOCK_SIZE, DEFAULT_TABLE_SIZE, VOLUME_DEPTH, Geometry
from snapctl.format.pointer import Pointer
from snapctl.format.record import NodeRecord, check_name
from snapctl.storage import lock
from snapctl.storage.backend import Backend, FileBackend
from snapctl.storage.pages import PageFile
from snapctl.storage.spacemap import SpaceMap
from snapctl.storage.store import Store
from snapctl.storage.tabletree import TableTree

if TYPE_CHECKING:
    from uuid import UUID

_CREATE_WAIT_SECONDS = 5.0
"""How long `create` waits for somebody who opened the new file before it was locked."""
_RESIDENT_BYTES = 64 * 1024 * 1024
"""Tables kept in memory, changed or not, before they are written out or forgotten."""


class Container:
    """A container file that is open, and locked while it is.

    As a context manager it commits and closes, or after an exception aborts and closes.

    Attributes:
        most_resident_tables: tables kept in memory, changed or not, before they are written out or forgotten.
    """

    def __init__(self, store: Store) -> None:
        """Take up an open store; callers use `create` or `open`."""
        self._store = store
        self.most_resident_tables = _RESIDENT_BYTES // store.geometry.table_size
        self._is_changed = False
        self._is_broken = False
        self._begin()

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
        store = Store.open_file(path, writable=writable, wait_seconds=wait_seconds)
        try:
            return cls(store)
        except BaseException:
            store.pages.backend.close()
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
        """Open what stands in a file of any backend, which its owner locks; raises as `open`."""
        return cls(Store.adopt(backend, writable=writable))

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

    def __len__(self) -> int:
        return len(self._list)

    @property
    def path(self) -> str:
        """The container file."""
        return self._store.pages.backend.path

    @property
    def uuid(self) -> UUID:
        """What tells this container from all others."""
        return self._store.superblock.uuid

    @property
    def geometry(self) -> Geometry:
        """Its sizes and what follows from them."""
        return self._geometry

    @property
    def block_size(self) -> int:
        """Bytes of a data block."""
        return self._geometry.block_size

    @property
    def table_size(self) -> int:
        """Bytes of a table page."""
        return self._geometry.table_size

    @property
    def transaction(self) -> int:
        """Number of the open transaction."""
        return self._store.transaction

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._store.writable

    @property
    def capacity_bytes(self) -> int | None:
        """What it may grow to; None for no limit."""
        return self._store.superblock.pages_limit * self._geometry.unit or None

    @property
    def used_bytes(self) -> int:
        """All pages in use as of the last commit, data, tables and superblocks."""
        return self._store.superblock.pages_used * self._geometry.unit

    @property
    def file_bytes(self) -> int:
        """Length of the file, holes included."""
        return self._store.pages.backend.size()

    @property
    def max_volume_bytes(self) -> int:
        """The largest volume that it can hold."""
        return self._geometry.max_volume_bytes

    @property
    def pages(self) -> PageFile:
        """Its pages."""
        return self._store.pages

    @property
    def space(self) -> SpaceMap:
        """Its space map."""
        return self._store.space

    @property
    def nodes(self) -> list[Node]:
        """All nodes, oldest first."""
        return [self.by_id(node_id) for node_id in self._list]

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
        if node_id is None:
            raise NodeNotFound(f"no volume {volume} in {self.path}")
        if not at:
            return self.by_id(node_id)
        snapshot_id = self._find(node_id, snapshot)
        if snapshot_id is None:
            raise NodeNotFound(f"no snapshot {snapshot} of {volume} in {self.path}")
        return self.by_id(snapshot_id)

    def by_id(self, node_id: int) -> Node:
        """The node with a number.

        Raises:
            Corruption: a record names a node that does not exist, or is itself unsound.
        """
        node = self._nodes.get(node_id)
        if node is None:
            node = self._nodes[node_id] = Node(self, self._list.get(node_id))
        return node

    def children(self, node: Node) -> list[Node]:
        """The nodes whose parent is `node`."""
        return [self.by_id(child) for child in self._list.children(node.id)]

    def newest_snapshot(self, node: Node) -> Node | None:
        """The RO snapshot directly below a volume."""
        newest = self._list.newest_snapshot(node.id)
        return None if newest is None else self.by_id(newest)

    def older_snapshot(self, node: Node) -> Node | None:
        """The RO snapshot of the same origin directly below an RO snapshot."""
        for child in self.children(node):
            if child.kind is Kind.RO:
                return child
        return None

    def snapshots(self, node: Node) -> list[Node]:
        """The RO snapshots of a volume, newest first."""
        found: list[Node] = []
        snapshot = self.newest_snapshot(node)
        while snapshot is not None:
            found.append(snapshot)
            if len(found) > len(self._list):
                raise Corruption(f"the snapshots of {node.name} form a cycle; run check", node=node.name)
            snapshot = self.older_snapshot(snapshot)
        return found

    def create_volume(self, name: str, size_bytes: int, *, cow: Cow = Cow.REDIRECT) -> Node:
        """Make an empty base volume.

        Raises:
            BadName: it cannot be called that.
            NameTaken: a volume is called that.
            BadSize: not from 1 to `max_volume_bytes`.
        """
        self.check_writable()
        self._check_free(0, name)
        self._geometry.check_volume_size(size_bytes)
        with self.changing():
            return self._add(Kind.BASE, name, size_bytes=size_bytes, cow=cow)

    def snapshot(self, *names: str) -> list[Node]:
        """Take RO snapshots, ``volume@name`` each, all of the same instant (claims 1 and 2).

        Raises:
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
        with self.changing():
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
        with self.changing():
            if node.kind is not Kind.RO:
                newest = node.newest_snapshot
                is_equal = newest is not None and newest.size_bytes == node.size_bytes and newest.tree.is_empty
                node = newest if newest is not None and is_equal else self._snapshot(node, self._dated_name(node))
            return self._add(Kind.RW, name, size_bytes=node.size_bytes, cow=node.cow, parent=node.id, origin=node.id)

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

    def preview_used_bytes(self) -> int:
        """What `used_bytes` would be if the open transaction were committed now.

        Raises:
            NoSpace: it could not be committed.
        """
        self._place()
        self._store.space.place()
        return self._store.space.used * self._geometry.unit

    def commit(self) -> None:
        """Make the open transaction durable, all of it at once (invariant 4).

        Raises:
            NoSpace: no room; the transaction stays open and the commit can be tried again.
            IoFailure: the system refuses; the container has to be reopened.
        """
        self.check_writable()
        if not self._is_changed:
            return
        self._place()
        for node in list(self._nodes.values()):
            if node.id in self._list:
                if node.tables_changed:
                    node.tree.write()
                if node.id in self._changed:
                    self._list.put(node.record)
        self._store.commit(self._list.write(), self._list.next_id, len(self._list))
        self._list.committed()
        for node in self._nodes.values():
            node.committed(self.transaction)
        self._changed.clear()
        self._is_changed = False

    def abort(self) -> None:
        """Give up the open transaction: everything is again as of the last commit."""
        if self._is_changed or self._is_broken:
            self._store.reset()
            self._begin(self._nodes)

    def close(self) -> None:
        """Close the file and let go of the lock, giving up what was not committed."""
        self._store.pages.backend.close()

    def let_writers_in(self, wait_seconds: float) -> None:
        """In the middle of a long read, let go of the lock for a moment and take up what was committed meanwhile.

        Nodes deleted meanwhile are gone; those that remain can be used as before.

        Raises:
            Locked: others held it for longer than `wait_seconds`.
        """
        backend = self._store.pages.backend
        if self.writable or not isinstance(backend, FileBackend):
            return
        lock.pause(backend.fd, backend.path, wait_seconds=wait_seconds)
        store = Store.adopt(backend, writable=False)
        if store.superblock != self._store.superblock:
            self._store = store
            self._begin(self._nodes)

    def check_writable(self) -> None:
        """Refuse to change a container that was opened for reading, or that failed.

        Raises:
            ReadOnlyNode: so it was.
            Poisoned: so it did.
        """
        self._store.check_writable()
        self.check_whole()

    def check_whole(self) -> None:
        """Refuse to go on with what a failure left half-changed.

        Raises:
            Poisoned: a write or sync failed; the container has to be reopened.
            SnapctlError: an operation failed midway; the transaction has to be aborted.
        """
        self._store.pages.check_usable()
        if self._is_broken:
            raise SnapctlError(f"an operation on {self.path} failed midway; abort the transaction")

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Around every change: one that fails midway breaks the open transaction."""
        self._is_changed = True
        try:
            yield
        except BaseException:
            self._is_broken = True
            raise

    def put_record(self, node: Node) -> None:
        """Enter a node's changed record in the snapshot list."""
        self._changed.add(node.id)
        self._list.put(node.record)

    def note_change(self, node: Node) -> None:
        """Take note that a node's tables or block count changed, which its record tells at the commit."""
        self._changed.add(node.id)

    def relieve(self) -> None:
        """Bound the memory that tables take; called where no caller holds on to a table but the first of a tree."""
        if self._store.pages.resident_tables < self.most_resident_tables:
            return
        for node in self._nodes.values():
            node.relieve()
        self._store.pages.resident_tables = 0

    def open_tree(self, what: str, pointer: Pointer | None) -> TableTree:
        """The tables of a node, or with no pointer an empty first table."""
        return TableTree(self._store.pages, self._store.space, VOLUME_DEPTH, pointer, self.transaction, what)

    def remove(self, node: Node) -> None:
        """Drop the record of a node whose tables have been given up."""
        self._list.remove(node.id)
        self._changed.discard(node.id)
        del self._nodes[node.id]
        node.is_gone = True

    def _begin(self, known: dict[int, Node] | None = None) -> None:
        """Take up the state of the last commit; nodes that callers hold take it up as well."""
        self._geometry = self._store.geometry
        self.zero_block = bytes(self._geometry.block_size)
        self.zero_checksum = crc32c(self.zero_block)
        self._list = SnapshotList(self._store)
        self._nodes: dict[int, Node] = {}
        self._changed: set[int] = set()
        self._is_changed = False
        self._is_broken = False
        for node_id, node in (known or {}).items():
            if node_id in self._list:
                node.take(self._list.get(node_id))
                self._nodes[node_id] = node
            else:
                node.is_gone = True

    def _find(self, volume_id: int, name: str) -> int | None:
        check_name(name)
        return self._list.find(volume_id, name)

    def _check_free(self, volume_id: int, name: str) -> None:
        if self._find(volume_id, name) is not None:
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
        snapshot = self._add(
            Kind.RO, name, size_bytes=volume.size_bytes, cow=volume.cow, parent=volume.id, origin=volume.id
        )
        if older is not None:
            older.update(parent=snapshot.id)
        return snapshot

    def _add(self, kind: Kind, name: str, *, size_bytes: int, cow: Cow, parent: int = 0, origin: int = 0) -> Node:
        record = NodeRecord(
            id=self._list.new_id(),
            kind=kind,
            name=name,
            parent=parent,
            origin=origin,
            size_bytes=size_bytes,
            created_ns=time.time_ns(),
            cow=cow,
        )
        node = Node(self, record)
        node.begin_tables()
        self._nodes[node.id] = node
        self.put_record(node)
        return node

    def _place(self) -> None:
        for node in list(self._nodes.values()):
            if node.tables_changed:
                node.tree.place()
                self._changed.add(node.id)
        for node_id in self._changed:
            self._list.put(self._nodes[node_id].record)
        self._list.place()
