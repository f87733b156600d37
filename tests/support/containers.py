"""Small containers for tests: blocks and tables of 512 bytes, so that all three levels fit in a few megabytes."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.engine.node import Node
from snapctl.engine.recovery import Change
from snapctl.format.geometry import Geometry
from tests.support.backends import MemoryBackend

BLOCK = 512
FANOUT = 32
LEAF_BYTES = FANOUT * BLOCK
"""What one third table covers."""
SECOND_BYTES = FANOUT * LEAF_BYTES
"""What one second table covers."""


def small_container(
    backend: MemoryBackend | None = None, *, block_size: int = BLOCK, table_size: int = BLOCK
) -> Container:
    """Make an empty container, by default in memory, open for writing."""
    return Container.format(backend or MemoryBackend(), Geometry(block_size, table_size))


def change_of_blocks(node: Node, blocks: Mapping[int, bytes], zeros: Sequence[tuple[int, int]] = ()) -> Change:
    """What a log and `apply` take, from whole blocks by number."""
    leaves: dict[int, dict[int, bytes]] = {}
    for number, block in blocks.items():
        leaves.setdefault(number // node.container.geometry.fanout, {})[number] = block
    return Change(node, zeros, leaves)


def fill(container: Container) -> None:
    """Put into a small container volumes, snapshots and clones to depth 4, with every kind of pointer on every level.

    Leaves it committed, by several transactions.
    """
    noise = random.Random(7)
    db = container.create_volume("db", 3 * SECOND_BYTES + 100)
    db.write(0, noise.randbytes(3 * LEAF_BYTES))
    db.write(SECOND_BYTES - 700, noise.randbytes(700))
    log = container.create_volume("log", 10 * LEAF_BYTES, cow=Cow.COPY)
    log.write(1000, noise.randbytes(LEAF_BYTES))
    container.commit()
    container.snapshot("db@mon", "log@mon")
    db.write(BLOCK, noise.randbytes(5 * BLOCK))
    # Nothing stood there: PASS on the first, the second and the third level of db@mon.
    db.trim(SECOND_BYTES, SECOND_BYTES + LEAF_BYTES + BLOCK)
    log.write(0, noise.randbytes(3 * BLOCK))
    container.commit()
    container.snapshot("db@tue")
    db.write(0, noise.randbytes(LEAF_BYTES))
    dev = container.clone("db@mon", "dev")
    # In a clone: ZERO on all three levels.
    dev.trim(SECOND_BYTES, SECOND_BYTES + LEAF_BYTES + BLOCK)
    dev.write(100, noise.randbytes(2000))
    container.commit()
    container.snapshot("dev@a")
    dev.write(0, noise.randbytes(4 * BLOCK))
    container.clone("dev@a", "lab").write(BLOCK, noise.randbytes(BLOCK))
    container.commit()
    container.snapshot("lab@x", "log@tue")
    container["lab"].trim(0, LEAF_BYTES)
    container.commit()


@cache
def filled_image() -> bytes:
    """The bytes of a small container that `fill` has filled."""
    backend = MemoryBackend()
    fill(small_container(backend))
    return bytes(backend.data)
