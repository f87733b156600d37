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


class _Names:
    """Names that may be given once only."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._last: dict[str, int] = {}

    def take(self, name: str) -> str:
        """A name that nobody has so far: the one that is wanted, or that with a number added."""
        free = name
        while free in self._taken:
            # Not from 2 on each time: a hostile container may hold a great many nodes of one name.
            number = self._last[name] = self._last.get(name, 1) + 1
            suffix = f"-{number}"
            free = name[: NAME_BYTES - len(suffix)] + suffix
        self._taken.add(free)
        return free


@dataclass
class _Forest:
    records: dict[int, NodeRecord]
    next_id: int
    placed: dict[int, Placed] = field(default_factory=dict)
    volume_names: _Names = field(default_factory=_Names)

    def __post_init__(self) -> None:
        self.children: dict[int, list[NodeRecord]] = {}
        for record in sorted(self.records.values(), key=lambda record: -record.id):
            self.children.setdefault(record.parent, []).append(record)

    def grow(self) -> None:
        for record in self.records.values():
            if record.kind is Kind.BASE:
                self.grow_volume(self.place_volume(record))
        # Placing one may reach others, so each waits for those that it names; in a cycle one has to go first.
        begun: set[int] = set()
        pending = sorted((r for r in self.records.values() if r.id not in self.placed), key=self._rank, reverse=True)
        while pending:
            record = pending[-1]
            names = [record.parent, record.origin] if record.kind is Kind.RO else [record.parent]
            waits_for = [
                self.records[n] for n in names if n in self.records and n not in self.placed and n not in begun
            ]
            if record.id in self.placed:
                pending.pop()
            elif record.id not in begun and waits_for:
                pending.extend(waits_for)
            else:
                self.adopt(record)
            begun.add(record.id)

    def _rank(self, record: NodeRecord) -> tuple[bool, int]:
        return record.kind is Kind.RO, -record.id

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
        name = self.volume_names.take(record.name)
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
            names = _Names()
            parent, snapshot = volume.record, newest
            while True:
                moved = replace(snapshot, name=names.take(snapshot.name), parent=parent.id, origin=volume.record.id)
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
