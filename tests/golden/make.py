"""Makes the golden containers and writes down what they hold: ``make golden``, or ``python -m tests.golden.make``.

What is made has the same bytes each time, on any machine: the container's uuid and the times in the records are put in
place of those that the engine takes from the system, and nothing else is left to chance. README.md says when to.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.engine.node import Node
from snapctl.errors import DataLost
from snapctl.format.geometry import Geometry
from snapctl.format.logrecord import DATA, ZEROS, Entry, build
from snapctl.format.pointer import LOST_WORD, Pointer
from snapctl.format.record import NAME_BYTES, State
from tests.support import damage
from tests.support.backends import MemoryBackend
from tests.support.containers import BLOCK, LEAF_BYTES, SECOND_BYTES
from tests.support.states import pattern

DIRECTORY = Path(__file__).parent
LONG_NAME = "n" * NAME_BYTES
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
_LOST = Pointer(LOST_WORD, 0)


class Golden(NamedTuple):
    """One container that is kept.

    Attributes:
        file: its name in this directory; one that ends in ``.gz`` is compressed.
        make: fills it.
    """

    file: str
    make: Callable[[], MemoryBackend]

    @property
    def path(self) -> Path:
        return DIRECTORY / self.file

    @property
    def description_path(self) -> Path:
        """The file that says what it holds."""
        return DIRECTORY / f"{self.file.partition('.')[0]}.json"

    def image(self) -> bytes:
        """The bytes of the container that is kept."""
        data = self.path.read_bytes()
        return gzip.decompress(data) if self.path.suffix == ".gz" else data

    def keep(self) -> None:
        """Make it, and write it and its description down."""
        image = bytes(self.make().data)
        self.path.write_bytes(gzip.compress(image, mtime=0) if self.path.suffix == ".gz" else image)
        with Container.adopt(MemoryBackend(image), writable=False) as container:
            self.description_path.write_text(json.dumps(describe(container), indent=1) + "\n")


def describe(container: Container) -> dict[str, object]:
    """What a container holds, in values that JSON has."""
    return {
        "uuid": str(container.uuid),
        "block_size": container.block_size,
        "table_size": container.table_size,
        "capacity_bytes": container.capacity_bytes,
        "nodes": [describe_node(node) for node in container.nodes],
    }


def describe_node(node: Node) -> dict[str, object]:
    """What a node is and reads as.

    The hash is of all its blocks that are not zeros, each after its offset (8 bytes, little-endian): volumes may be
    terabytes. The blocks that are lost are told apart, as ranges of bytes.
    """
    content, lost = hashlib.sha256(), list[list[int]]()
    for offset, block in _blocks(node):
        if block is None:
            if not lost or lost[-1][1] != offset:
                lost.append([offset, offset])
            lost[-1][1] = min(offset + node.container.block_size, node.size_bytes)
        elif any(block):
            content.update(offset.to_bytes(8, "little") + block)
    return {
        "name": node.name,
        "kind": node.kind.value,
        "parent": node.parent.name if node.parent else None,
        "origin": node.origin.name if node.origin else None,
        "size_bytes": node.size_bytes,
        "own_blocks": node.own_blocks,
        "cow": node.cow.value,
        "created": node.created.isoformat(),
        "sha256": content.hexdigest(),
        "lost": lost,
    }


def _blocks(node: Node) -> Iterator[tuple[int, bytes | None]]:
    """Where a node says that it has data: each block with its offset, or None if it is lost."""
    size = node.container.block_size
    for extent in node.extents():
        end = extent.offset_bytes + extent.length_bytes
        for offset in range(extent.offset_bytes, 0 if extent.is_zero else end, size):
            try:
                yield offset, bytes(node.read(offset, min(size, end - offset)))
            except DataLost:
                yield offset, None


def _new(number: int, geometry: Geometry, capacity_bytes: int | None = None) -> tuple[MemoryBackend, Container]:
    """An empty container with a uuid of our choice."""
    backend = MemoryBackend()
    Container.format(backend, geometry, capacity_bytes)
    uuid = UUID(int=number | 0x534E_4150_4354_4C00 << 64, version=4)
    damage.forge_superblock(backend, lambda found: replace(found, uuid=uuid))
    return backend, Container.adopt(backend)


def _dated(*nodes: Node) -> None:
    """Give nodes a time of creation that follows from their number."""
    for node in nodes:
        node.update(created_ns=int((_EPOCH + timedelta(days=node.id)).timestamp()) * 1_000_000_000)


def _snapshot(container: Container, *names: str) -> None:
    _dated(*container.snapshot(*names))


def _clone(container: Container, source: str, name: str) -> Node:
    node = container.clone(source, name)
    _dated(node)
    return node


def _volume(container: Container, name: str, size_bytes: int, cow: Cow = Cow.REDIRECT) -> Node:
    node = container.create_volume(name, size_bytes, cow=cow)
    _dated(node)
    return node


def every_feature() -> MemoryBackend:
    """Every kind of node and of pointer on every level, in blocks and tables of 512 bytes."""
    backend, lab = _new(1, Geometry(BLOCK, BLOCK), capacity_bytes=8 << 20)
    three_levels = SECOND_BYTES + LEAF_BYTES + BLOCK
    db = _volume(lab, "db", 8 * SECOND_BYTES + 100)
    db.write(0, pattern(1, 3 * LEAF_BYTES))
    db.write(8 * SECOND_BYTES - 700, pattern(2, 800))
    log = _volume(lab, "log", 10 * LEAF_BYTES, Cow.COPY)
    log.write(1000, pattern(3, LEAF_BYTES))
    lab.commit()
    _snapshot(lab, "db@mon", "log@mon")
    db.write(BLOCK, pattern(4, 5 * BLOCK))
    db.trim(SECOND_BYTES, three_levels)  # where nothing stood: PASS on all levels of db@mon
    log.write(0, pattern(5, 3 * BLOCK))
    lab.commit()
    _snapshot(lab, "db@tue", f"log@{LONG_NAME}")
    # Clones of clones, each with ZERO on all levels and a partly written block.
    source = "db@mon"
    for depth in range(1, 5):
        clone = _clone(lab, source, f"dev{depth}")
        clone.trim((1 + depth % 2) * SECOND_BYTES, three_levels)
        clone.write(100 + depth * BLOCK, pattern(10 + depth, 700))
        lab.commit()
        source = f"dev{depth}@s"
        _snapshot(lab, source)
        clone.write(depth * LEAF_BYTES, pattern(20 + depth, BLOCK + 1))
        lab.commit()
    # Sizes: entries past the end of snapshots and of volumes that were larger once.
    db.resize(9 * SECOND_BYTES)
    db.write(8 * SECOND_BYTES + 50, pattern(6, 2 * BLOCK))
    log.resize(2 * LEAF_BYTES + 300, shrink=True)
    lab["dev1"].resize(LEAF_BYTES + 7, shrink=True)
    lab.commit()
    log.resize(3 * LEAF_BYTES)
    lab["dev1"].resize(5 * LEAF_BYTES + 9)
    lab["dev1"].write(4 * LEAF_BYTES, pattern(7, 100))
    _volume(lab, LONG_NAME, 1)
    _volume(lab, "empty", 12_345)
    lab.commit()
    _take_over(lab)
    _free_some(lab)
    _lose(backend)
    return backend


def _take_over(lab: Container) -> None:
    """A clone that has taken over the snapshot it was made of, and so hangs from the next newer one."""
    base = _volume(lab, "base", 4 * LEAF_BYTES)
    base.write(0, pattern(30, 2 * LEAF_BYTES))
    _snapshot(lab, "base@old")
    base.write(BLOCK, pattern(31, BLOCK))
    _clone(lab, "base@old", "heir").write(3 * BLOCK, pattern(32, BLOCK))
    _snapshot(lab, "base@new")
    base.write(2 * BLOCK, pattern(33, 3 * BLOCK))
    lab.commit()
    lab.delete("base@old")
    lab.commit()


def _free_some(lab: Container) -> None:
    """Slots in the middle of the snapshot list that are free again, and a snapshot that has inherited."""
    gone = _volume(lab, "gone", LEAF_BYTES)
    gone.write(0, pattern(40, LEAF_BYTES))
    _snapshot(lab, "gone@x", "base@newer")
    lab["base"].write(0, pattern(41, 6 * BLOCK))
    _volume(lab, "last", BLOCK)
    lab.commit()
    lab.delete("gone", cascade=True)
    lab.delete("base@newer")
    lab.rename("empty", "Renamed_1.x-y")
    lab.commit()


def _lose(backend: MemoryBackend) -> None:
    """LOST on all levels: left alone, inherited by a snapshot, and split by writes below it."""
    lost = {"first table": (4, 5, 6), "second table": (28, 29, 30), "third table": (2, 3, 4)}
    for kind, entries in lost.items():
        table = damage.find(backend, "db", kind, 8 * 1024 - 32 if kind == "third table" else 0)
        for entry in entries:
            damage.forge_entry(backend, table, entry, _LOST)
    lab = Container.adopt(backend)
    _snapshot(lab, "db@lost")
    db = lab["db"]
    for first, second, span in ((4, 6, SECOND_BYTES), (28, 30, LEAF_BYTES), (8 * 1024 - 30, 8 * 1024 - 28, BLOCK)):
        db.trim(first * span, span)
        db.write(second * span, pattern(50 + first % 10, BLOCK))
    lab.commit()
    half = lab.create_volume("half", LEAF_BYTES, state=State.IMPORTING)
    _dated(half)
    half.write(0, pattern(60, 3 * BLOCK))
    lab.commit()


def many_bitmaps() -> MemoryBackend:
    """A space map of several bitmaps, and blocks of four units."""
    backend, lab = _new(2, Geometry(2048, 512))
    wide = _volume(lab, "wide", 8 << 20)
    for start in range(0, 7 << 20, 1 << 20):
        wide.write(start, bytes([start >> 20]) * 2048 + b"\x11" * ((1 << 20) - 2048))
        lab.commit()
    _snapshot(lab, "wide@full")
    wide.trim(1 << 20, 5 << 20)
    lab.commit()
    lab.delete("wide@full")
    lab.commit()
    _snapshot(lab, "wide@rest")
    wide.write(5000, pattern(60, 5000))
    lab.commit()
    return backend


def default_sizes() -> MemoryBackend:
    """Blocks of 4 KiB and tables of 16 KiB, as people have them; many records in a page, some slots free."""
    backend, lab = _new(3, Geometry(4096, 16384))
    disk = _volume(lab, "disk", 4 << 40)
    disk.write(1000, pattern(70, 9000))
    disk.write((4 << 40) - 5000, pattern(71, 5000))
    for number in range(6):
        _snapshot(lab, f"disk@{number}")
        disk.write(number * 4096, pattern(72 + number, 4096))
        lab.commit()
    clone = _clone(lab, "disk@2", "clone")
    clone.write(0, pattern(80, 100))
    clone.trim(1 << 30, 3 << 40)
    lab.commit()
    lab.delete("disk@1", "disk@4")
    lab.commit()
    return backend


def logged_flushes() -> MemoryBackend:
    """What a server that was killed leaves: a log with records that nobody has applied yet, and one that is torn."""
    backend, lab = _new(4, Geometry(4096, 16384))
    disk = _volume(lab, "disk", 1 << 20)
    disk.write(0, pattern(90, 100_000))
    _snapshot(lab, "disk@before")
    clone = _clone(lab, "disk@before", "clone")
    assert lab.make_log()
    lab.commit()
    page_no, units, key = lab.superblock.log_page, lab.superblock.log_pages, 0x6C6F_6720_6B65_7920
    damage.forge_superblock(
        backend, lambda found: found.with_log(page_no, units, key) if found.log_pages == units else found
    )
    position = page_no * lab.geometry.unit
    for index, entries in enumerate(
        (
            [Entry(disk.id, 3, 4, DATA)],
            [Entry(disk.id, 2, 20, ZEROS), Entry(clone.id, 0, 2, DATA), Entry(clone.id, 255, 256, DATA)],
            [Entry(disk.id, 3, 5, DATA)],
            [Entry(disk.id, 0, 1, DATA)],
        )
    ):
        count = sum(entry.stop - entry.start for entry in entries if entry.kind == DATA)
        blocks = [pattern(91 + index, 4096)] * count
        record = b"".join(build(key, index, entries, blocks, lab.geometry))
        backend.data[position : position + len(record)] = record
        position += len(record)
    backend.data[position - 1000 : position] = bytes(1000)
    return backend


GOLDEN = (
    Golden("every-feature.snap", every_feature),
    Golden("many-bitmaps.snap.gz", many_bitmaps),
    Golden("default-sizes.snap.gz", default_sizes),
    Golden("logged-flushes.snap.gz", logged_flushes),
)


@cache
def made(golden: Golden) -> bytes:
    """The bytes of a golden container, made anew."""
    return bytes(golden.make().data)


if __name__ == "__main__":
    for each in GOLDEN:
        each.keep()
        print(each.path, each.path.stat().st_size)
