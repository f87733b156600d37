"""The inside of an open container: its nodes in memory, and the transaction that changes them.

A transaction begins by itself with the first change and ends with `commit` or `abort`; nothing of it is visible to
anybody else before. An operation that fails midway leaves a transaction that can only be aborted, and everything else
is refused until then.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from snapctl.engine import recovery
from snapctl.engine.model import Cow, Kind
from snapctl.engine.node import Node
from snapctl.engine.snapshot_list import SnapshotList
from snapctl.engine.views import Views
from snapctl.errors import Corruption, NoSpace, SnapctlError
from snapctl.format.checksum import crc32c
from snapctl.format.geometry import INDEX_DEPTH, VOLUME_DEPTH
from snapctl.format.pointer import Pointer
from snapctl.format.record import NodeRecord, State
from snapctl.format.superblock import Superblock
from snapctl.storage import lock
from snapctl.storage.backend import FileBackend
from snapctl.storage.log import log_units
from snapctl.storage.scratch import ScratchBackend
from snapctl.storage.spacemap import SpaceMap
from snapctl.storage.store import Pinned, Store
from snapctl.storage.superblocks import choose_superblocks
from snapctl.storage.tabletree import TableTree
from snapctl.storage.view import ViewBackend

if TYPE_CHECKING:
    from snapctl.engine.recovery import Change

_RESIDENT_BYTES = 64 * 1024 * 1024
_LOGS_OF_ROOM = 4
"""How many logs there must be room for before one is made."""
_VIEW_BYTES = 32 * 1024 * 1024


class _Guard:
    """Around what breaks the open transaction if it fails, but for failures of some classes."""

    __slots__ = ("_harmless", "_session")

    def __init__(self, session: Session, harmless: type[SnapctlError] | tuple[()]) -> None:
        self._session = session
        self._harmless = harmless

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not issubclass(kind, self._harmless):
            self._session.is_broken = True


class Session:
    """What nodes and the modules of the engine share of an open container.

    Attributes:
        most_resident_tables: tables kept in memory, changed or not, before they are written out or forgotten.
        geometry: its sizes and what follows from them.
        pages: its pages.
        views: what its RO snapshots show, as far as it is kept in memory.
        is_broken: an operation failed midway, so that the open transaction can only be aborted.
        zero_block: a block of zeros.
        zero_checksum: its checksum.
        replayed_records: flushes that were found in a log on opening.
    """

    def __init__(self, store: Store) -> None:
        """Take up an open store."""
        self._store = store
        self.geometry = store.geometry
        self.most_resident_tables = _RESIDENT_BYTES // store.geometry.table_size
        self.views = Views(_VIEW_BYTES // store.geometry.table_size)
        self.zero_block = bytes(store.geometry.block_size)
        self.zero_checksum = crc32c(self.zero_block)
        self.replayed_records = 0
        self._is_changed = self._is_wanted = self._is_sealed = self.is_broken = self._keeps_log = False
        self._begin()

    def __len__(self) -> int:
        return len(self._list)

    @property
    def path(self) -> str:
        """The container file."""
        return self._store.pages.backend.path

    @property
    def block_size(self) -> int:
        """Bytes of a data block."""
        return self.geometry.block_size

    @property
    def transaction(self) -> int:
        """Number of the open transaction."""
        return self._store.transaction

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._store.writable

    @property
    def space(self) -> SpaceMap:
        """Its space map."""
        return self._store.space

    @property
    def superblock(self) -> Superblock:
        """The superblock of the last commit."""
        return self._store.superblock

    @property
    def node_ids(self) -> list[int]:
        """The numbers of all nodes, whether or not their records are sound, oldest first."""
        return list(self._list)

    @property
    def nodes(self) -> list[Node]:
        """All nodes that can be used, oldest first; what is being imported cannot."""
        return [self.by_id(node_id) for node_id in self._list if node_id not in self._list.unfinished]

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

    def child_ids(self, node_id: int) -> list[int]:
        """The numbers of the nodes whose parent bears the number `node_id`, 0 for those that have none."""
        return self._list.children(node_id)

    def newest_snapshot(self, node: Node) -> Node | None:
        """The RO snapshot directly below a volume."""
        newest = self._list.newest_snapshot(node.id)
        return None if newest is None else self.by_id(newest)

    def older_snapshot(self, node: Node) -> Node | None:
        """The RO snapshot directly below an RO snapshot: the next older one of the same origin."""
        for child in self.children(node):
            if child.kind is Kind.RO:
                return child
        return None

    def snapshots(self, node: Node) -> list[Node]:
        """The RO snapshots of a volume, newest first.

        Raises:
            Corruption: they form a cycle, or one of their records is unsound.
        """
        found: list[Node] = []
        snapshot = self.newest_snapshot(node)
        while snapshot is not None:
            found.append(snapshot)
            if len(found) > len(self._list):
                raise Corruption(f"the snapshots of {node.name} form a cycle; run check", node=node.name)
            snapshot = self.older_snapshot(snapshot)
        return found

    def preview_used_bytes(self) -> int:
        """What `used_bytes` would be if the open transaction were committed now.

        Raises:
            NoSpace: it could not be committed.
        """
        with self._retriable():
            self._place()
            self._store.space.place()
        return self._store.space.used * self.geometry.unit

    def commit(self) -> None:
        """Make the open transaction durable, all of it at once (invariant 4).

        Raises:
            NoSpace: no room; the transaction stays open and the commit can be tried again.
            IoFailure: the system refuses; the container has to be reopened.
        """
        again = self.seal()
        while again:
            self.make_durable()
            again = self.conclude()

    def seal(self) -> bool:
        """Write out the open transaction, which from here to the end of `conclude` cannot be changed (invariant 7).

        `commit` is this, then `make_durable` and `conclude` in turns, for whoever cannot wait for the disk.

        Returns:
            Whether there is anything to make durable.

        Raises:
            NoSpace: no room; the transaction stays open and can be sealed again.
            IoFailure: the system refuses; the container has to be reopened.
        """
        self.check_writable()
        if not (self._is_changed or self._is_wanted):
            return False
        with self._retriable():
            self._place()
            for node in self._nodes.values():
                if node.tables_changed:
                    node.tree.write()
                if node.id in self._changed:
                    self._list.put(node.record)
            nodes, root = self._list, self._list.write()
            self._store.seal(root, nodes.next_id, len(nodes), keeps_log=self._keeps_log or not self._is_changed)
        self._is_sealed = True
        return True

    @property
    def is_sealed(self) -> bool:
        """Whether a commit is in flight, so that nothing can be changed."""
        return self._is_sealed

    def make_durable(self) -> None:
        """Wait for the disk until what is sealed is durable; others may read meanwhile, on another thread.

        Raises:
            IoFailure: the system refuses; the container has to be reopened.
        """
        with self._retriable():
            self._store.make_durable()

    def conclude(self) -> bool:
        """Take note that what was sealed is durable.

        Returns:
            Whether a commit of nothing is sealed now, to give room back: `make_durable` and `conclude` once more.

        Raises:
            IoFailure: the system refuses; the container has to be reopened.
        """
        with self._retriable():
            if self._store.conclude():
                return True
            self._list.committed()
            for node in self._nodes.values():
                node.committed(self.transaction)
        self._changed.clear()
        self._removed.clear()
        self._is_changed = self._is_wanted = self._is_sealed = self._keeps_log = False
        return False

    @property
    def has_log(self) -> bool:
        """Whether the last commit has a log to write to."""
        return self._store.log is not None

    def make_log(self, promised_bytes: int = 0) -> bool:
        """Begin a log in the open transaction, for `log` to write to once that is committed.

        Args:
            promised_bytes: room that the caller has promised to others.

        Returns:
            Whether it was begun; not if there is one, or not plenty of room beside it.

        Raises:
            IoFailure: the system refuses; the container has to be reopened.
        """
        self.check_writable()
        store, unit = self._store, self.geometry.unit
        used = self.superblock.pages_used * unit
        held = used + store.pages.reserve.length(store.pages.end_page)
        free = min(store.space.room * unit, store.pages.backend.room(used) - held)
        if store.names_log or free < promised_bytes + _LOGS_OF_ROOM * log_units(self.geometry) * unit:
            return False
        with self.changing():
            return store.make_log()

    def log(self, changes: Sequence[Change]) -> bool:
        """Write down changes of blocks before they are brought to the tables; they are durable after `sync_log`.

        Whoever calls this applies the same changes, in the same order, before the next commit that changes anything,
        which empties the log; or has it `keep_log`.

        Returns:
            Whether they are written down; not if there is no log, or no room in it: then only a commit will do.

        Raises:
            SnapctlError: the open transaction has changes, a commit is in flight, the last record was not synced, or
                the changes do not fit their volumes.
            NoSpace: the file system has no room, though the log is there; likewise.
            IoFailure: the system refuses; the container has to be reopened.
        """
        self.check_writable()
        if self._is_changed or self._is_sealed:
            raise SnapctlError(f"{self.path} has changes that only a commit can make durable")
        if self._store.log is None:
            return False
        entries, blocks = recovery.written_down(changes)
        return not entries or self._store.log.append(entries, blocks)

    def sync_log(self) -> None:
        """Make what was logged durable; others may read and write meanwhile, on another thread.

        Raises:
            IoFailure: the system refuses; the container has to be reopened.
        """
        if self._store.log is None:
            raise SnapctlError(f"{self.path} has no log")
        self._store.log.sync()

    def keep_log(self) -> None:
        """Have the next commit keep what is in the log, as not all of it has been applied: it is, after that commit.

        That is right if it makes no difference whether what is logged happened before or after what is committed.
        """
        self.check_writable()
        self._keeps_log = True

    def drop_log(self) -> None:
        """Give up the log in the open transaction, to which everything in it has been applied.

        Raises:
            Corruption: by the space map its pages are not in use.
        """
        self.check_writable()
        if self._store.names_log:
            with self.changing():
                self._store.drop_log()

    def settle(self) -> None:
        """Make durable what was found on opening, which a process that died may have left in the system's cache.

        The room that such a process was promised goes back to the file system.

        Raises:
            IoFailure: the system refuses; the container has to be reopened.
        """
        self.check_writable()
        self._store.pages.rewrite_adopted()
        self._store.pages.backend.release()

    def abort(self) -> None:
        """Give up the open transaction: everything is again as of the last commit.

        Raises:
            Poisoned: a write or sync failed; the container has to be reopened.
            IoFailure: the system refuses to read.
            SnapctlError: a commit is in flight.
        """
        self._store.pages.check_usable()
        if self._is_sealed:
            raise SnapctlError(f"the commit to {self.path} that is in flight cannot be given up")
        self._keeps_log = False
        if self._is_changed or self._is_wanted or self.is_broken:
            self._store.reset()
            self._begin({**self._nodes, **self._removed})

    def pin(self) -> Pinned:
        """Keep the state of the last commit whole for somebody else to read, until `unpin`; raises as `Store.pin`."""
        return self._store.pin()

    def unpin(self, pinned: Pinned) -> None:
        """End a pin; raises as `Store.unpin`."""
        self._store.unpin(pinned)

    def close(self) -> None:
        """Close the file and let go of the lock, giving up what was not committed and the room that it took.

        Of a commit in flight, which the disk may have already, everything is left in the file.
        """
        try:
            if self._store.pages.is_usable and not self._is_sealed:
                if self._is_changed or self.is_broken:
                    self._store.discard()
                elif self.kept_bytes:
                    self._give_back()
                self._store.pages.reserve.take_back(self._store.superblock.pages_total)
        finally:
            self._store.pages.backend.close()

    def start_writing_out(self) -> None:
        """Have the disk begin with what was written so far, in the middle of much that a commit will wait for."""
        backend = self._store.pages.backend
        if isinstance(backend, FileBackend):
            backend.start_writing_out()

    @property
    def kept_bytes(self) -> int:
        """How much freed room may be kept for what is written next, until the container is closed.

        At first none: what a commit frees in long runs goes back to the file system before it returns.
        """
        return self._store.space.idle_units * self.geometry.unit

    @kept_bytes.setter
    def kept_bytes(self, most: int) -> None:
        self._store.space.idle_units = most // self.geometry.unit

    def _give_back(self) -> None:
        self.kept_bytes = 0
        self._store.give_back()
        if self._store.space.wants_empty_commit():
            self.note_commit()
            self.commit()

    def let_writers_in(self, wait_seconds: float) -> None:
        """In the middle of a long read, let go of the lock for a moment and take up what was committed meanwhile.

        There is no lock on a view, which is exchanged for a newer one from time to time. Nodes deleted meanwhile are
        gone; those that remain can be used as before.

        Raises:
            Locked: others held it for longer than `wait_seconds`; the container is closed, lest it be read unlocked.
            ViewEnded: the server of the view is gone.
            Corruption: what was committed meanwhile cannot be read.
        """
        backend = self._store.pages.backend
        base = backend.base if isinstance(backend, ScratchBackend) else self.superblock
        if isinstance(backend, ScratchBackend):
            backend = backend.below
        if isinstance(backend, ViewBackend):
            if not backend.renew():
                return
        elif self.writable or not isinstance(backend, FileBackend):
            return
        else:
            try:
                lock.pause(backend.fd, backend.path, wait_seconds=wait_seconds)
            except BaseException:
                backend.close()
                raise
        if choose_superblocks(backend)[0] != base:
            self._store, self.replayed_records = recovery.adopt_to_read(backend, type(self))
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
        if self.is_broken:
            raise SnapctlError(f"an operation on {self.path} failed midway; abort the transaction")

    def changing(self, *, moves_pages: bool = True) -> _Guard:
        """Around a change that must not be left half done: one that fails breaks the open transaction.

        Args:
            moves_pages: a page that holds what an RO snapshot shows may come to stand elsewhere, or be freed.
        """
        self._begin_change(moves_pages=moves_pages)
        return _Guard(self, ())

    def attempting(self, *, moves_pages: bool = True) -> _Guard:
        """Around a change that keeps `changing` around what must not be left half done; elsewhere it may fail.

        An interrupt may strike anywhere, and breaks the open transaction in any case.
        """
        self._begin_change(moves_pages=moves_pages)
        return _Guard(self, SnapctlError)

    def _begin_change(self, *, moves_pages: bool) -> None:
        if self._is_sealed:
            raise SnapctlError(f"{self.path} cannot be changed while a commit is in flight")
        if moves_pages:
            self.views.forget()
        self._is_changed = True

    def _retriable(self) -> _Guard:
        """Around a commit: after a lack of space it can be tried again, any other failure breaks the transaction."""
        return _Guard(self, NoSpace)

    def note_commit(self) -> None:
        """Have the next commit happen although nothing was changed: it frees what only the other slot stands for.

        If nothing is changed until then, what is in the log stays there.
        """
        self.check_writable()
        self._is_wanted = True

    def note_change(self, node: Node) -> None:
        """Take note that a node's tables or block count changed, which its record tells at the commit."""
        self._changed.add(node.id)

    def put_record(self, node: Node) -> None:
        """Enter a node's changed record in the snapshot list."""
        self._changed.add(node.id)
        self._list.put(node.record)

    def add(
        self,
        kind: Kind,
        name: str,
        *,
        size_bytes: int,
        cow: Cow,
        parent: int = 0,
        origin: int = 0,
        state: State = State.IDLE,
    ) -> Node:
        """Make a node with an empty first table (claim 5)."""
        record = NodeRecord(
            id=self._list.new_id(),
            kind=kind,
            name=name,
            parent=parent,
            origin=origin,
            size_bytes=size_bytes,
            created_ns=time.time_ns(),
            cow=cow,
            state=state,
        )
        node = Node(self, record)
        node.begin_tables()
        return self._enter(node)

    def restore(self, record: NodeRecord) -> Node:
        """Put a node into the list as its record has it, with the tables that it names (for a repair)."""
        return self._enter(Node(self, record))

    def remove(self, node: Node) -> None:
        """Drop the record of a node whose tables have been given up."""
        self._list.remove(node.id)
        self._changed.discard(node.id)
        self._removed[node.id] = self._nodes.pop(node.id)
        node.is_gone = True

    def relieve(self, *, may_write: bool) -> None:
        """Bound the memory that tables take; called where no caller holds on to a table but the first of a tree.

        Args:
            may_write: write changed tables out; else only unchanged trees are forgotten, as a read must not fail for
                lack of space.
        """
        if self._store.pages.resident_tables < self.most_resident_tables:
            return
        for node in self._nodes.values():
            node.relieve(may_write=may_write)
        self._store.pages.resident_tables = 0

    def open_tree(self, what: str, pointer: Pointer | None) -> TableTree:
        """The tables of a node, or with no pointer an empty first table."""
        return TableTree(self._store.pages, self._store.space, VOLUME_DEPTH, pointer, self.transaction, what)

    def open_index(self, what: str, pointer: Pointer) -> TableTree:
        """The tables above the space map or the snapshot list, as committed, apart from those that are in use."""
        return TableTree(self._store.pages, self._store.space, INDEX_DEPTH, pointer, self.transaction, what)

    def _begin(self, known: dict[int, Node] | None = None) -> None:
        """Take up the state of the last commit; nodes that callers hold take it up as well."""
        self.pages = self._store.pages
        self.views.forget()
        self._list = SnapshotList(self._store)
        self._nodes: dict[int, Node] = {}
        self._removed: dict[int, Node] = {}
        self._changed: set[int] = set()
        self._is_changed = self._is_wanted = self._is_sealed = self.is_broken = self._keeps_log = False
        for node_id, node in (known or {}).items():
            if node_id in self._list:
                node.take(self._list.get(node_id))
                self._nodes[node_id] = node
            else:
                node.is_gone = True

    def _enter(self, node: Node) -> Node:
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
