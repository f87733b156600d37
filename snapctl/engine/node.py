"""A node of an open container: a base volume, an RO snapshot or an RW snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from snapctl.engine import reading, writing
from snapctl.engine.model import Cow, Extent, Kind
from snapctl.errors import Corruption, NodeNotFound, OutOfRange, ReadOnlyNode
from snapctl.format.pointer import Pointer
from snapctl.format.record import NodeRecord
from snapctl.storage.backend import Buffer, NotCached
from snapctl.storage.tabletree import TableTree

if TYPE_CHECKING:
    from array import array

    from snapctl.engine.runs import Run
    from snapctl.engine.session import Session


class Node:
    """A volume or a snapshot, valid while its container is open and it is not deleted.

    Attributes:
        container: the container it belongs to.
        is_snapshot: it is an RO snapshot, which never changes.
        is_clone: it is an RW snapshot, whose parent shows where it has nothing of its own.
        own_blocks: data blocks its tables point to, in the open transaction.
        tables: its tables, if the first of them is in memory.
        view: for an RO snapshot, what `Views` keeps of it, by leaf.
    """

    def __init__(self, container: Session, record: NodeRecord) -> None:
        """Not for callers; ask the container for its nodes."""
        self.container = container
        self.view: dict[int, array[int]] = {}
        self.take(record)

    def take(self, record: NodeRecord) -> None:
        """Take the state of `record`, forgetting any other."""
        self._record = record
        self.tables: TableTree | None = None
        self.own_blocks = record.own_blocks
        self.is_gone = False
        self.is_snapshot = record.kind is Kind.RO
        self.is_clone = record.kind is Kind.RW

    def __repr__(self) -> str:
        return f"<{self._record.kind.value} {self._record.name} of {self.container.path}>"

    @property
    def record(self) -> NodeRecord:
        """Its record as the open transaction has it, except the first table, which is known once it is written."""
        self._check_there()
        if self.own_blocks < 0:
            raise Corruption(f"{self.name} gave up more blocks than its record says it owns; run check", node=self.name)
        return replace(self._record, own_blocks=self.own_blocks, first_table=self.tree_pointer)

    @property
    def id(self) -> int:
        """Its number, never used twice in a container."""
        return self._record.id

    @property
    def short_name(self) -> str:
        """Its name without the volume: ``db``, or ``mon`` for ``db@mon``."""
        return self._record.name

    @property
    def name(self) -> str:
        """Its full name: ``db`` or ``db@mon``."""
        if self._record.kind is Kind.RO:
            return f"{self.container.by_id(self._record.origin).short_name}@{self._record.name}"
        return self._record.name

    @property
    def kind(self) -> Kind:
        """Base volume, RO snapshot or RW snapshot."""
        return self._record.kind

    @property
    def cow(self) -> Cow:
        """Who gets the old page at the first write after a snapshot."""
        return self._record.cow

    @property
    def size_bytes(self) -> int:
        """Its size; a snapshot's is the size its origin had."""
        return self._record.size_bytes

    @property
    def own_bytes(self) -> int:
        """Data that it alone holds, tables not counted."""
        return self.own_blocks * self.container.block_size

    @property
    def created(self) -> datetime:
        """When it was created, in UTC."""
        return datetime.fromtimestamp(self._record.created_ns / 1e9, UTC)

    @property
    def parent(self) -> Node | None:
        """The node in which lookups continue; None for a base volume."""
        return self.container.by_id(self._record.parent) if self._record.parent else None

    @property
    def origin(self) -> Node | None:
        """The node it is a copy of; None for a base volume."""
        return self.container.by_id(self._record.origin) if self._record.origin else None

    @property
    def children(self) -> list[Node]:
        """The nodes whose parent it is."""
        return self.container.children(self)

    @property
    def newest_snapshot(self) -> Node | None:
        """The RO snapshot directly below this volume: the one that inherits what is overwritten."""
        return self.container.newest_snapshot(self)

    @property
    def snapshots(self) -> list[Node]:
        """The RO snapshots of this volume, newest first."""
        return self.container.snapshots(self)

    @property
    def tree(self) -> TableTree:
        """Its tables, the first of which is read on first use."""
        if self.tables is None:
            self.tables = self.container.open_tree(self.name, self._record.first_table)
        return self.tables

    @property
    def tree_pointer(self) -> Pointer:
        """The pointer to its first table as last written."""
        return self._record.first_table if self.tables is None else self.tables.pointer

    @property
    def tables_changed(self) -> bool:
        """Whether its tables differ from those on disk."""
        return self.tables is not None and self.tables.changed

    def begin_tables(self) -> None:
        """Give a new node its empty first table (claim 5)."""
        self.tables = self.container.open_tree(self.name, None)

    def relieve(self, *, may_write: bool) -> None:
        """Forget its tables, or write out and forget changed ones below the first if `may_write`."""
        if self.tables is None:
            return
        if self.tables.changed:
            if may_write:
                self.tables.spill()
        elif self.tables.pointer == self._record.first_table:
            self.tables = None

    def committed(self, transaction: int) -> None:
        """Take note that its state is durable and that `transaction` is open now."""
        self._record = self.record
        if self.tables is not None:
            self.tables.transaction = transaction

    def update(self, **fields: object) -> None:
        """Change fields of its record in the open transaction."""
        self._record = replace(self._record, **fields)  # type: ignore[arg-type]
        self.container.put_record(self)

    def read(self, offset: int, length: int) -> bytearray:
        """Read a range.

        Args:
            offset: where to begin, in bytes.
            length: how much, in bytes.

        Raises:
            OutOfRange: the range does not lie inside the node.
            Corruption: data or tables fail their checksum, or a block is lost.
            IoFailure: the system refuses.
        """
        self.check_range(offset, length)
        return reading.read(self, offset, length)

    def read_each(self, ranges: list[tuple[int, int]]) -> list[Buffer | NotCached | None]:
        """Read ranges, offset and length each, as far as that can be done at the least cost.

        Returns:
            Of each range the data, or what has to be fetched first while the backend reads from memory alone; None if
            `read` has to do it, or to say why it cannot be done.

        Raises:
            IoFailure: the system refuses.
        """
        end = max([offset + length for offset, length in ranges], default=0)
        if end > self._record.size_bytes or self.is_gone or self.container.is_broken:
            return [None] * len(ranges)
        return reading.read_each(self, ranges)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` from `offset` in bytes; raises as `read`."""
        self.check_range(offset, len(buffer))
        reading.read_into(self, offset, memoryview(buffer))

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """Tell data from zeros in a range (to the node's end unless told), in order and without gaps.

        Raises:
            OutOfRange: the range does not lie inside the node.
            Corruption: tables fail their checksum.
        """
        if length is None:
            length = self.size_bytes - offset
        self.check_range(offset, length)
        return reading.extents(self, offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        """Write bytes at any offset, preserving what they replace in the newest snapshot (claims 5 and 6).

        What lies beneath one leaf of the tables is written as a whole or not at all, leaf after leaf, and the open
        transaction can go on after a failure, but for these: what failed is a write to the file for another reason than
        lack of space, or to a page that was written in this transaction, which poisons; or the space map is damaged,
        after which the transaction may only be aborted.

        Args:
            offset: where to begin, in bytes.
            data: what to write, any length.

        Raises:
            ReadOnlyNode: an RO snapshot (claims 3 and 7), or a container opened for reading.
            OutOfRange: the data would go beyond the volume's end.
            NoSpace: the capacity has no room, and nothing at all was changed; or the file system has none.
            Corruption: a block that is written in part, or a table of the volume or of its newest snapshot, cannot be
                read.
            IoFailure: the system refuses.
        """
        view = memoryview(data).cast("B")
        self.check_writable()
        self.check_range(offset, len(view))
        if view:
            writing.check_room(self, offset, view)
            with self.container.attempting(moves_pages=self._copies):
                writing.write(self, offset, view)

    def write_runs(self, runs: list[Run]) -> None:
        """Write whole blocks for which the caller has room, all of them or none; raises as `write`.

        Args:
            runs: the number of a first block and the bytes of one or more, in order, apart from each other, each
                beneath one leaf. Of a last block that the size cuts, what lies beyond must be zeros.
        """
        self.check_writable()
        if runs:
            with self.container.attempting(moves_pages=self._copies):
                writing.write_runs(self, runs)

    def trim(self, offset: int, length: int) -> None:
        """Make a range read as zeros, giving up its data; snapshots keep theirs. Raises as `write`.

        After a failure as for `write` the open transaction can go on; each block of the range reads as before or as
        zeros, and snapshots as before.
        """
        self.check_writable()
        self.check_range(offset, length)
        if length:
            with self.container.attempting(moves_pages=self._copies):
                writing.trim(self, offset, length)

    def resize(self, size_bytes: int, *, shrink: bool = False) -> None:
        """Change the volume's size; snapshots keep their own size and data.

        Args:
            size_bytes: the new size.
            shrink: allow it to be smaller than the present one.

        Raises:
            BadSize: the format cannot hold it, or it is smaller and `shrink` is not set.
            ReadOnlyNode: as `write`.
        """
        self.check_writable()
        writing.check_resize(self, size_bytes, shrink=shrink)
        if size_bytes != self.size_bytes:
            with self.container.changing():
                writing.resize(self, size_bytes)

    def check_writable(self) -> None:
        """Refuse to change what must not change.

        Raises:
            ReadOnlyNode: an RO snapshot, or a container opened for reading.
        """
        self.container.check_writable()
        self._check_there()
        if self.kind is Kind.RO:
            raise ReadOnlyNode(f"{self.name} is a read-only snapshot; clone it and write to the clone")

    @property
    def _copies(self) -> bool:
        """Whether a write moves an original rather than its pointer."""
        return self._record.cow is Cow.COPY

    def check_range(self, offset: int, length: int) -> None:
        """Refuse a range in bytes that does not lie inside the node.

        Raises:
            OutOfRange: it does not.
        """
        self.container.check_whole()
        self._check_there()
        size = self._record.size_bytes
        if 0 <= offset <= offset + length <= size:
            return
        if offset > size:
            raise OutOfRange(f"offset {offset} lies beyond the end of {self.name}, which has {size} bytes")
        raise OutOfRange(f"bytes {offset} to {offset + length} do not lie inside {self.name}, which has {size}")

    def _check_there(self) -> None:
        if self.is_gone:
            raise NodeNotFound(f"{self._record.name} has been deleted")
