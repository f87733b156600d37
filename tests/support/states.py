"""What a container holds, as plain values that can be compared; and a workload that touches every kind of change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from snapctl.engine.container import Container
from snapctl.engine.model import Cow, Kind
from snapctl.engine.node import Node
from snapctl.format.geometry import Geometry
from snapctl.storage.backend import Backend
from tests.support.backends import MemoryBackend


class NodeState(NamedTuple):
    """All that users can see of a node."""

    kind: Kind
    parent: str | None
    origin: str | None
    content: bytes


State = dict[str, NodeState]


def content_of(node: Node) -> bytes:
    """Every byte of a node; where it says that it has no data, zeros are taken for granted to save time."""
    content = bytearray(node.size_bytes)
    for extent in node.extents():
        if not extent.is_zero:
            end = extent.offset_bytes + extent.length_bytes
            node.read_into(extent.offset_bytes, memoryview(content)[extent.offset_bytes : end])
    return bytes(content)


def state_of(container: Container) -> State:
    """Read every node in full."""
    return {
        node.name: NodeState(
            node.kind,
            node.parent.name if node.parent else None,
            node.origin.name if node.origin else None,
            content_of(node),
        )
        for node in container.nodes
    }


def state_in(image: bytes | bytearray) -> State:
    """Open a file's bytes for reading and read every node in full."""
    return state_of(Container.adopt(MemoryBackend(image), writable=False))


class Step(NamedTuple):
    """Some changes and a commit."""

    name: str
    change: Callable[[Container], object]

    def run(self, backend: Backend) -> Container:
        """Open a file, change, commit."""
        container = Container.adopt(backend)
        self.change(container)
        container.commit()
        return container


def pattern(seed: int, length: int) -> bytes:
    """Bytes of which no two blocks are alike and none is zero."""
    return b"".join(b"%03d:%06d;" % (seed, i) for i in range(length // 11 + 1))[:length]


def workload(geometry: Geometry) -> Sequence[Step]:
    """Create, unaligned writes, snapshots, clones, trims, resizes, renames, deletes; a commit after each step.

    Volumes reach over the edge of a second-level table or, where that would be far, of a last-level one or nowhere.
    """
    size = geometry.block_size
    edges = (geometry.fanout**2, geometry.fanout, 8)
    far = next(blocks for blocks in edges if blocks * size <= 1 << 20) * size

    def create(c: Container) -> None:
        c.create_volume("db", far + 8 * size + 100)
        c["db"].write(size // 3, pattern(1, 5 * size))
        c["db"].write(far - size - 7, pattern(2, 3 * size))

    def take_snapshot(c: Container) -> None:
        c.snapshot("db@a")
        c["db"].write(size + 5, pattern(3, 2 * size))

    def clone_and_copy(c: Container) -> None:
        c.create_volume("log", 6 * size, cow=Cow.COPY)
        c["log"].write(0, pattern(4, 6 * size))
        c.clone("db@a", "dev")
        c["dev"].write(size // 2, pattern(5, size))

    def snapshot_all(c: Container) -> None:
        c.snapshot("db@b", "log@b", "dev@b")
        c["log"].write(size - 1, pattern(6, 2))
        c["db"].write(far, pattern(7, size))
        c["dev"].write(far - 3, pattern(8, 6))

    def trim(c: Container) -> None:
        c["db"].trim(size // 2, 4 * size)
        c["dev"].trim(0, far)
        c["log"].trim(2 * size, 2 * size)

    def shrink(c: Container) -> None:
        c["db"].resize(3 * size + 10, shrink=True)
        c["log"].resize(9 * size)

    def grow(c: Container) -> None:
        c.rename("log", "journal")
        c["db"].resize(far + 2 * size)
        c["db"].write(far, pattern(9, 2 * size))

    def delete_middle(c: Container) -> None:
        c.snapshot("db@c")
        c["db"].write(0, pattern(10, size))
        c.delete("db@b", "journal@b")

    def take_over(c: Container) -> None:
        c.delete("dev@b")
        c.delete("db@a")

    def delete_rest(c: Container) -> None:
        c.delete("db", "journal", cascade=True)

    changes: list[Callable[[Container], None]] = [
        create,
        take_snapshot,
        clone_and_copy,
        snapshot_all,
        trim,
        shrink,
        grow,
        delete_middle,
        take_over,
        delete_rest,
    ]
    return [Step(change.__name__, change) for change in changes]


def images_of(geometry: Geometry, steps: Sequence[Step]) -> list[bytes]:
    """The file before the first step and after each."""
    backend = MemoryBackend()
    Container.format(backend, geometry)
    images = [bytes(backend.data)]
    for step in steps:
        step.run(backend)
        images.append(bytes(backend.data))
    return images
