"""The snapshot list: the records of all nodes, in pages that hang off a table tree of depth 2.

Records are read in bulk and judged one by one when somebody asks for them, so that a command pays for the nodes it
touches and not for the ten thousand others.
"""

from __future__ import annotations

from collections.abc import Iterator

from snapctl.errors import Corruption, NoSpace
from snapctl.format.checksum import crc32c
from snapctl.format.geometry import INDEX_DEPTH, RECORD_BYTES
from snapctl.format.pointer import KIND_SHIFT, NOWHERE, PAGE, Pointer, page_pointer
from snapctl.format.record import (
    FREE_RECORD,
    RO_CODE,
    NodeRecord,
    State,
    build,
    padded_name,
    parse,
    scan,
    scan_keys,
)
from snapctl.storage.store import Store
from snapctl.storage.tabletree import TableTree


class SnapshotList:
    """The records of one open container.

    Attributes:
        next_id: the id that the next node gets; ids are never used twice.
        unfinished: ids of the nodes that are not IDLE.
    """

    def __init__(self, store: Store) -> None:
        """Read the list of the last commit.

        Raises:
            Corruption: a page of it is damaged, or two records bear the same id.
        """
        self._store = store
        pointer = store.superblock.snapshot_list
        self._tree = TableTree(
            store.pages,
            store.space,
            INDEX_DEPTH,
            None if pointer == NOWHERE else pointer,
            store.transaction,
            "snapshot list",
        )
        self.next_id = store.superblock.next_node_id
        self.unfinished: set[int] = set()
        self._pages: dict[int, bytearray] = {}
        self._changed: dict[int, int] = {}
        self._slots: dict[int, int] = {}
        self._used_slots: set[int] = set()
        self._first_free = 0
        self._names: dict[tuple[int, bytes], int] = {}
        self._children: dict[int, list[int]] = {}
        self._load()

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, node_id: int) -> bool:
        return node_id in self._slots

    def __iter__(self) -> Iterator[int]:
        """The ids, in ascending order."""
        return iter(sorted(self._slots))

    def get(self, node_id: int) -> NodeRecord:
        """The record of a node.

        Raises:
            Corruption: there is none of that id, or it makes no sense.
        """
        slot = self._slots.get(node_id)
        if slot is None:
            raise Corruption(f"a record names node {node_id}, which does not exist; run check")
        return parse(next(scan(self._bytes(slot))), self._store.geometry)

    def find(self, volume_id: int, name: str) -> int | None:
        """The id of the snapshot `name` of a volume, or with `volume_id` 0 of the volume `name`."""
        return self._names.get((volume_id, padded_name(name)))

    def children(self, node_id: int) -> list[int]:
        """The ids of the nodes whose parent is `node_id`."""
        return list(self._children.get(node_id, ()))

    def newest_snapshot(self, volume_id: int) -> int | None:
        """The id of the RO snapshot that stands directly below a volume."""
        for child in self._children.get(volume_id, ()):
            _, _, origin, kind, _, _ = self._key(child)
            if kind == RO_CODE and origin == volume_id:
                return child
        return None

    def new_id(self) -> int:
        """Hand out the next id."""
        node_id, self.next_id = self.next_id, self.next_id + 1
        return node_id

    def put(self, record: NodeRecord) -> None:
        """Add a record, or put it in the place of the one with the same id.

        Raises:
            NoSpace: the list is full.
        """
        if record.id in self._slots:
            self._unindex(record.id)
        else:
            self._slots[record.id] = self._free_slot()
        self._store_record(self._slots[record.id], build(record))
        self._index(*self._key(record.id))

    def remove(self, node_id: int) -> None:
        """Drop a record."""
        self._unindex(node_id)
        slot = self._slots.pop(node_id)
        self._used_slots.discard(slot)
        self._first_free = min(self._first_free, slot)
        self._store_record(slot, FREE_RECORD)

    def place(self) -> None:
        """Give every changed page of records a place.

        Raises:
            NoSpace: no room is left.
        """
        units = self._store.geometry.table_units
        for index, page_no in list(self._changed.items()):
            is_needed = any(self._pages[index])
            if page_no and not is_needed:
                self._store.space.free(page_no, units)
                self._changed[index] = 0
            elif is_needed and not page_no:
                self._changed[index] = self._store.space.allocate(units, 1)[0]
            # Without its checksum yet, but it keeps the table above from being dropped as empty, and changes it again
            # if an earlier attempt at this commit has written it.
            page_no = self._changed[index]
            self._tree.put(index, page_pointer(page_no, 0, 0) if page_no else NOWHERE)
        self._tree.place()

    def write(self) -> Pointer:
        """Write the placed pages and tables.

        Returns:
            The pointer to the list's first table.

        Raises:
            NoSpace: the file system is full; it can be tried again.
            IoFailure: the system refuses.
        """
        batch: dict[int, bytes] = {}
        for index, page_no in self._changed.items():
            if page_no:
                page = bytes(self._pages[index])
                batch[page_no] = page
                self._tree.put(index, page_pointer(page_no, crc32c(page), self._tree.transaction))
        self._store.pages.write_pages(list(batch), list(batch.values()), self._store.geometry.table_size)
        return self._tree.write()

    def committed(self) -> None:
        """Take note that what was written is now the container's state."""
        self._changed.clear()
        self._tree.transaction = self._store.transaction

    def _load(self) -> None:
        table_size = self._store.geometry.table_size
        per_page = self._store.geometry.records_per_page
        fanout = self._store.geometry.fanout
        for start, stop, leaf, _ in self._tree.spans(0, self._tree.capacity):
            if leaf is None:
                continue
            for index in range(start, stop):
                word0, word1 = leaf.words[2 * (index % fanout)], leaf.words[2 * (index % fanout) + 1]
                if word0 >> KIND_SHIFT != PAGE:
                    continue
                page = self._store.pages.read(word0, word1, table_size, "snapshot list: records")
                self._pages[index] = page
                if not any(page):
                    # No commit leaves such a page; many pointers to one would cost memory without end.
                    raise Corruption("a page of the snapshot list holds no record; run check")
                for slot, key in enumerate(scan_keys(page), index * per_page):
                    if key[0]:
                        if key[0] in self._slots:
                            raise Corruption(f"two records of the snapshot list bear the id {key[0]}; run check")
                        self._slots[key[0]] = slot
                        self._index(*key)
                        self._first_free += slot == self._first_free
        self._used_slots.update(self._slots.values())
        if max(self._slots, default=0) >= self.next_id:
            raise Corruption("a node's id is not below the next one to be given; run check")
        if len(self._slots) != self._store.superblock.node_count:
            raise Corruption(
                f"the snapshot list holds {len(self._slots)} nodes, its superblock says "
                f"{self._store.superblock.node_count}; run check"
            )

    def _free_slot(self) -> int:
        slot = self._first_free
        while slot in self._used_slots:
            slot += 1
        if slot >= self._tree.capacity * self._store.geometry.records_per_page:
            raise NoSpace("the snapshot list is full; delete snapshots first")
        self._first_free = slot + 1
        self._used_slots.add(slot)
        return slot

    def _bytes(self, slot: int) -> memoryview:
        index, position = divmod(slot, self._store.geometry.records_per_page)
        return memoryview(self._pages[index])[position * RECORD_BYTES : (position + 1) * RECORD_BYTES]

    def _store_record(self, slot: int, record: bytes) -> None:
        index = slot // self._store.geometry.records_per_page
        self._pages.setdefault(index, bytearray(self._store.geometry.table_size))
        if index not in self._changed:
            pointer = self._tree.get(index)
            if pointer.kind == PAGE:
                self._store.space.free(pointer.page_no, self._store.geometry.table_units)
            self._changed[index] = 0
        self._bytes(slot)[:] = record

    def _key(self, node_id: int) -> tuple[int, int, int, int, int, bytes]:
        return next(scan_keys(self._bytes(self._slots[node_id])))

    def _index(self, node_id: int, parent: int, origin: int, kind: int, state: int, name: bytes) -> None:
        if state != State.IDLE:
            self.unfinished.add(node_id)
        self._names[origin if kind == RO_CODE else 0, name] = node_id
        if parent in self._children:
            self._children[parent].append(node_id)
        else:
            self._children[parent] = [node_id]

    def _unindex(self, node_id: int) -> None:
        _, parent, origin, kind, _, name = self._key(node_id)
        self.unfinished.discard(node_id)
        self._names.pop((origin if kind == RO_CODE else 0, name), None)
        self._children[parent].remove(node_id)
