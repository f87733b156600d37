"""The situation that the claims describe, made anew for each test."""

from __future__ import annotations

from dataclasses import dataclass

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.engine.node import Node
from snapctl.format.geometry import Geometry
from tests.support.backends import RecordingBackend
from tests.support.states import pattern

GEOMETRY = Geometry(512, 512)
"""32 pointers to a table, so that three levels are soon used."""
SIZE = 512
FANOUT = 32
BLOCK = (5 * FANOUT + 6) * FANOUT + 7
"""A block whose address has three different portions, none of them zero: 5, 6 and 7."""
BLOCKS = 8 * FANOUT * FANOUT
ORIGINAL = pattern(1, SIZE)
MIDDLE = pattern(2, SIZE)
NEW = pattern(3, SIZE)


@dataclass
class Chain:
    """A base volume and the snapshots taken of it.

    Attributes:
        container: what they live in.
        backend: what that lives in.
        base: the base volume.
    """

    container: Container
    backend: RecordingBackend
    base: Node

    @classmethod
    def make(cls, cow: Cow) -> Chain:
        """A base volume with ORIGINAL in block BLOCK, committed."""
        backend = RecordingBackend()
        container = Container.format(backend, GEOMETRY)
        base = container.create_volume("base", BLOCKS * SIZE, cow=cow)
        base.write(BLOCK * SIZE, ORIGINAL)
        container.commit()
        return cls(container, backend, base)

    def snapshot(self, name: str) -> Node:
        """Take an RO snapshot of the base and commit."""
        (snapshot,) = self.container.snapshot(f"base@{name}")
        self.container.commit()
        return snapshot

    def write(self, data: bytes, block_no: int = BLOCK, *, to: Node | None = None) -> None:
        """Write one block of the base, or of another volume, and commit."""
        (to or self.base).write(block_no * SIZE, data)
        self.container.commit()

    def read(self, node: Node, block_no: int = BLOCK) -> bytes:
        """One block of a node, as users see it."""
        return bytes(node.read(block_no * SIZE, SIZE))


@dataclass
class Pair(Chain):
    """Claim 1's situation: base -> S2 (newer) -> S1 (older), each with a value of its own in block BLOCK.

    Attributes:
        older: S1, taken when the block held ORIGINAL.
        newer: S2, taken when the block held MIDDLE; the base holds NEW.
    """

    older: Node
    newer: Node

    @classmethod
    def make(cls, cow: Cow) -> Pair:
        chain = Chain.make(cow)
        older = chain.snapshot("s1")
        chain.write(MIDDLE)
        newer = chain.snapshot("s2")
        chain.write(NEW)
        return cls(chain.container, chain.backend, chain.base, older, newer)
