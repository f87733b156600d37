"""What a scrub finds, kept within bounds: a container may be damaged in more places than memory can hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice

MOST_DAMAGES = 1000
"""Damages kept in full; the others are counted."""
MOST_AFFECTED = 10_000
"""Affected ranges kept, of all damages together; those of damages that are kept are counted."""


class Severity(StrEnum):
    """How bad a damage is."""

    CORRUPTION = "corruption"
    """Bytes that are live and cannot be had."""
    LOST = "lost"
    """Known as lost since a repair; writing it anew heals it."""
    REPAIRED = "repaired"
    """Was wrong, and is right again."""


@dataclass(frozen=True, slots=True)
class Affected:
    """A range of a node that cannot be read.

    Attributes:
        node: full name of the node.
        offset_bytes: where the range begins.
        length_bytes: how long it is.
    """

    node: str
    offset_bytes: int
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong.

    Attributes:
        severity: how bad it is.
        owner: the structure or the full name of the node that it is in.
        what: the part of it: "first table", "data", "bitmap"; empty if it is the owner as a whole.
        cause: what is the matter with it.
        page_no: where it stands, the first page if there are several; None if that is not known.
        byte_range: (offset of the first byte, offset after the last) in a node; entries beyond its end are legal.
        affected: what cannot be read because of it, by node, the owner first.
    """

    severity: Severity
    owner: str
    what: str
    cause: str
    page_no: int | None = None
    byte_range: tuple[int, int] | None = None
    affected: tuple[Affected, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a scrub came to.

    Attributes:
        damages: in the order in which they were found.
        damages_left_out: how many more there are, by severity.
        affected_left_out: how many ranges more are affected by `damages`.
        nodes: volumes and snapshots that were read.
        pages_verified: tables, bitmaps, pages of records and data blocks whose checksums were right.
        bytes_verified: how much that is.
    """

    damages: tuple[Damage, ...]
    damages_left_out: dict[Severity, int] = field(default_factory=dict)
    affected_left_out: int = 0
    nodes: int = 0
    pages_verified: int = 0
    bytes_verified: int = 0

    @property
    def exit_code(self) -> int:
        """What `snapctl scrub` exits with: 4 if there is corruption, else 0."""
        found = {damage.severity for damage in self.damages} | self.damages_left_out.keys()
        return 4 if Severity.CORRUPTION in found else 0


class Notes:
    """Takes damages one by one.

    Attributes:
        nodes: as in `Report`.
        pages_verified: as in `Report`.
        bytes_verified: as in `Report`.
    """

    def __init__(self) -> None:
        self.nodes = 0
        self.pages_verified = 0
        self.bytes_verified = 0
        self._damages: list[Damage] = []
        self._left_out: Counter[Severity] = Counter()
        self._affected = 0
        self._affected_left_out = 0

    def verified(self, count: int, length: int) -> None:
        """Count pages of `length` bytes each whose checksums were right."""
        self.pages_verified += count
        self.bytes_verified += count * length

    def add(
        self,
        severity: Severity,
        owner: str,
        what: str,
        cause: str,
        *,
        page_no: int | None = None,
        byte_range: tuple[int, int] | None = None,
        affected: Iterable[tuple[str, int, int]] = (),
    ) -> None:
        """Note a damage; `affected`, as (node, offset, end), is only looked at if there is room for it."""
        if len(self._damages) >= MOST_DAMAGES:
            self._left_out[severity] += 1
            return
        hit = iter(affected)
        kept = [Affected(node, start, end - start) for node, start, end in islice(hit, MOST_AFFECTED - self._affected)]
        # The owner first, then the others as the way down has met them, the ranges of each together.
        order = {node: i for i, node in reversed(list(enumerate([owner, *(item.node for item in kept)])))}
        kept.sort(key=lambda item: order[item.node])
        self._affected += len(kept)
        self._affected_left_out += sum(1 for _ in hit)
        self._damages.append(Damage(severity, owner, what, cause, page_no, byte_range, tuple(kept)))

    def report(self) -> Report:
        """All of it."""
        return Report(
            tuple(self._damages),
            dict(self._left_out),
            self._affected_left_out,
            self.nodes,
            self.pages_verified,
            self.bytes_verified,
        )
