"""Putting records back into trees when some of them are lost: which node hangs from which, and what it must not claim.

Trees are grown from the base volumes down, and only along relations that can hold (`services.check.lineage`). What is
not reached that way has lost its parent, and becomes a volume of its own:

- An *RW snapshot* becomes a base volume. What it has no entry for, it had from its parent, so that is lost; and where
  its RO snapshots say PASS, which led past it to that parent, that is lost as well.
- An *RO snapshot* stays what it is, with the older ones of its origin below it, and gets a new volume for its parent
  and origin: one that is lost from end to end. What it has no entry for was held by nodes that are gone, and now ends
  there. PASS led past its origin: to nothing if that is a base volume; to the origin's parent if that is still known,
  from which the new volume is then cloned; else it is lost.

So a node never shows a byte that it did not show before. Everything here is about records; it reads no tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from snapctl.format.pointer import LOST_WORD, PASS_WORD
from snapctl.format.record import NAME_BYTES, Kind, NodeRecord


@dataclass(frozen=True, slots=True)
class Placed:
    """A node in its new place.

    Attributes:
        record: as it is to be.
        was: its full name as it was known before; of a new volume the empty string.
        is_orphan: it lost its parent: what its tables lack, as far as its size goes, is lost.
        pass_word: what PASS in its tables, and in those of its RO snapshots, has to become.
    """

    record: NodeRecord
    was: str
    is_orphan: bool = False
    pass_word: int = PASS_WORD


@dataclass
class _Forest:
    records: dict[int, NodeRecord]
    next_id: int
    placed: dict[int, Placed] = field(default_factory=dict)
    volume_names: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.children: dict[int, list[NodeRecord]] = {}
        for record in sorted(self.records.values(), key=lambda record: -record.id):
            self.children.setdefault(record.parent, []).append(record)

    def grow(self) -> None:
        for record in self.records.values():
            if record.kind is Kind.BASE:
                self.grow_volume(self.place_volume(record))
        orphans = sorted((r for r in self.records.values() if r.id not in self.placed), key=self._rank)
        # Placing one may reach others; what is left in the end are the tops of what has lost its parent, and one of
        # each cycle.
        for preferred in (self._may_go_first, lambda _record: True):
            progress = True
            while progress:
                progress = False
                for record in orphans:
                    if record.id not in self.placed and preferred(record):
                        self.adopt(record)
                        progress = True

    def _rank(self, record: NodeRecord) -> tuple[bool, int]:
        return record.kind is Kind.RO, -record.id

    def _may_go_first(self, record: NodeRecord) -> bool:
        """Whether an orphan need not wait: neither its parent nor what its PASS leads to may yet find a place."""
        waits_for = {record.parent, record.origin} if record.kind is Kind.RO else {record.parent}
        return all(other in self.placed or other not in self.records for other in waits_for)

    def adopt(self, record: NodeRecord) -> None:
        """Make a volume of a node whose parent is lost, or for it."""
        if record.kind is not Kind.RO:
            alone = replace(record, kind=Kind.BASE, parent=0, origin=0)
            self.grow_volume(self.place_volume(alone, is_orphan=True, pass_word=LOST_WORD))
            return
        stand_in, pass_word = self._stand_in(record)
        volume = self.place_volume(stand_in, was="", is_orphan=True, pass_word=pass_word)
        self.grow_chain(volume, record)

    def _stand_in(self, snapshot: NodeRecord) -> tuple[NodeRecord, int]:
        """A volume to hang an RO snapshot from, and what becomes of PASS below it."""
        origin = self.placed.get(snapshot.origin)
        name = f"recovered-{snapshot.parent}"
        made = NodeRecord(
            id=self.next_id,
            kind=Kind.BASE,
            name=name,
            parent=0,
            origin=0,
            size_bytes=snapshot.size_bytes,
            created_ns=snapshot.created_ns,
            cow=snapshot.cow,
        )
        self.next_id += 1
        if origin is None or origin.pass_word != PASS_WORD or origin.record.kind is Kind.RO:
            return made, LOST_WORD
        if origin.record.kind is Kind.RW:
            parent = origin.record.parent
            return replace(made, kind=Kind.RW, parent=parent, origin=parent), PASS_WORD
        return made, PASS_WORD

    def place_volume(
        self, record: NodeRecord, *, was: str | None = None, is_orphan: bool = False, pass_word: int = PASS_WORD
    ) -> Placed:
        name = _free_name(record.name, self.volume_names)
        self.volume_names.add(name)
        known = record.name if was is None else was
        placed = Placed(replace(record, name=name), known, is_orphan, pass_word)
        self.placed[record.id] = placed
        return placed

    def grow_volume(self, volume: Placed) -> None:
        """Place all that descends from a volume."""
        newest = self._snapshot_below(volume.record.id, volume.record.id)
        if newest is not None:
            self.grow_chain(volume, newest)

    def grow_chain(self, volume: Placed, newest: NodeRecord) -> None:
        """Place an RO snapshot below a volume, and all that descends from it."""
        pending = [(volume, newest)]
        while pending:
            volume, newest = pending.pop()
            names: set[str] = set()
            parent, snapshot = volume.record, newest
            while True:
                name = _free_name(snapshot.name, names)
                names.add(name)
                moved = replace(snapshot, name=name, parent=parent.id, origin=volume.record.id)
                self.placed[snapshot.id] = Placed(moved, self._known_name(snapshot), pass_word=volume.pass_word)
                for clone in self._clones_below(moved):
                    first = self._snapshot_below(clone.record.id, clone.record.id)
                    if first is not None:
                        pending.append((clone, first))
                older = self._snapshot_below(snapshot.id, snapshot.origin)
                if older is None:
                    break
                parent, snapshot = moved, older

    def _snapshot_below(self, parent: int, origin: int) -> NodeRecord | None:
        for record in self.children.get(parent, ()):
            is_older = parent == origin or record.id < parent
            if record.kind is Kind.RO and record.origin == origin and is_older and record.id not in self.placed:
                return record
        return None

    def _clones_below(self, snapshot: NodeRecord) -> Iterator[Placed]:
        for clone in self.children.get(snapshot.id, ()):
            if clone.kind is Kind.RW and clone.id not in self.placed:
                volume = self.placed[snapshot.origin].record
                is_taken_over = clone.origin == volume.id and volume.kind is Kind.BASE
                yield self.place_volume(replace(clone, origin=volume.id if is_taken_over else snapshot.id))

    def _known_name(self, snapshot: NodeRecord) -> str:
        origin = self.records.get(snapshot.origin)
        return f"{origin.name if origin else f'#{snapshot.origin}'}@{snapshot.name}"


def reattach(records: Iterable[NodeRecord], next_id: int) -> tuple[list[Placed], int]:
    """Give every node a place.

    Args:
        records: each sane by itself, ids unique.
        next_id: the first id for new nodes, above all others.

    Returns:
        All nodes, parents before children, and the next id that is free. Those that could stay are as they were.
    """
    forest = _Forest({record.id: record for record in records}, next_id)
    forest.grow()
    return list(forest.placed.values()), forest.next_id


def _free_name(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        suffix = f"-{number}"
        free = name[: NAME_BYTES - len(suffix)] + suffix
    return free
