"""docs/format.md says enough: a reader written from it alone finds in a container what the engine put there.

The reader takes offsets and sizes from the document's tables and imports nothing of snapctl; only the container is
made by it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from snapctl import Container, Cow
from tests.docs.markdown import section, table, text_of, unquoted
from tests.support.containers import change_of_blocks

DOCUMENT = text_of("docs/format.md")


def fields_of(heading: str) -> dict[str, slice]:
    rows = table(section(DOCUMENT, heading), columns="offset,size,field,meaning")
    return {unquoted(row["field"]): slice(int(row["offset"]), int(row["offset"]) + int(row["size"])) for row in rows}


SUPERBLOCK, POINTER, RECORD = (fields_of(heading) for heading in ("Superblock", "Pointer", "Node record"))
LOG_RECORD, LOG_ENTRY = (fields_of(heading) for heading in ("Log record", "Log entry"))
COPIES = [
    int(row["offset"])
    for row in table(section(DOCUMENT, "The file"), columns="offset,size,what")
    if row["what"].startswith("slot")
]
KINDS = {row["name"]: int(row["kind"]) for row in table(section(DOCUMENT, "Pointer"), columns="kind,name,meaning")}
ABSENT, PAGE, ZERO, PASS = (KINDS[name] for name in ("ABSENT", "PAGE", "ZERO", "PASS"))
BASE, RO, RW = 1, 2, 3


def _register(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_REGISTERS = [_register(byte) for byte in range(256)]


@cache
def crc32c(data: bytes) -> int:
    """The Castagnoli checksum, as the document describes it."""
    register = 0xFFFFFFFF
    for byte in data:
        register = register >> 8 ^ _REGISTERS[(register ^ byte) & 0xFF]
    return register ^ 0xFFFFFFFF


def number(data: bytes, field: slice) -> int:
    return int.from_bytes(data[field], "little")


class Record(NamedTuple):
    id: int
    parent: int
    origin: int
    size: int
    own_blocks: int
    kind: int
    name: str
    first_table: bytes


class Reader:
    """A container file, read as the document says."""

    def __init__(self, path: Path) -> None:
        self.file = path.read_bytes()
        self.used: set[int] = set()
        copies = [self.file[offset : offset + 4096] for offset in COPIES]
        sound = [
            copy
            for copy in copies
            if copy[SUPERBLOCK["magic"]] == b"SNAPCTL\0" and crc32c(copy[:4092]) == number(copy, SUPERBLOCK["checksum"])
        ]
        self.superblock = max(sound, key=lambda copy: number(copy, SUPERBLOCK["transaction"]))
        self.block_size = number(self.superblock, SUPERBLOCK["block_size"])
        self.table_size = number(self.superblock, SUPERBLOCK["table_size"])
        self.unit = min(self.block_size, self.table_size)
        self.fanout = self.table_size // 16
        self.records = dict(self.read_records())
        self.logged: dict[tuple[int, int], bytes] = {}
        if number(self.superblock, SUPERBLOCK["incompatible"]) & 1:
            self.read_log()

    def read_log(self) -> None:
        """What volumes read as by the log, block by block."""
        sector, index = min(self.unit, 4096), 0
        start = number(self.superblock, SUPERBLOCK["log_page"]) * self.unit
        log = self.file[start : start + number(self.superblock, SUPERBLOCK["log_pages"]) * self.unit]
        while True:
            length, count = number(log, LOG_RECORD["length_bytes"]), number(log, LOG_RECORD["entries"])
            record, checksum = log[:length], LOG_RECORD["checksum"]
            if (
                log[LOG_RECORD["magic"]] != b"SNAPLOG\0"
                or log[LOG_RECORD["key"]] != self.superblock[SUPERBLOCK["log_key"]]
                or number(log, LOG_RECORD["index"]) != index
                or length > len(log)
                or crc32c(record[: checksum.start] + record[checksum.stop :]) != number(log, checksum)
            ):
                return
            data = -(-(40 + 32 * count) // sector) * sector
            for at in range(40, 40 + 32 * count, 32):
                entry = {name: number(log[at : at + 32], field) for name, field in LOG_ENTRY.items()}
                for block_no in range(entry["start"], entry["stop"]):
                    block = bytes(self.block_size)
                    if entry["kind"] == 1:
                        block, data = log[data : data + self.block_size], data + self.block_size
                    self.logged[entry["node"], block_no] = block
            log, index = log[length:], index + 1

    def page(self, pointer: bytes, size: int) -> bytes:
        """What a pointer points at, its units noted as used once."""
        page_no = number(pointer, POINTER["page_no"])
        units = set(range(page_no, page_no + size // self.unit))
        self.used |= units
        page = self.file[page_no * self.unit : page_no * self.unit + size]
        assert crc32c(page) == number(pointer, POINTER["checksum"])
        return page

    def look_up(self, first_table: bytes, depth: int, index: int) -> bytes:
        """The entry for an index, or the one that covers it."""
        pointer = first_table
        for level in reversed(range(depth)):
            if pointer[POINTER["kind"]] != bytes([PAGE]):
                break
            entry = index // self.fanout**level % self.fanout
            pointer = self.page(pointer, self.table_size)[16 * entry : 16 * entry + 16]
        return pointer

    def leaves(self, pointer: bytes, depth: int, index: int = 0) -> list[tuple[int, bytes]]:
        """All entries of kind PAGE in the last level of a tree, with their indexes."""
        if pointer[POINTER["kind"]] != bytes([PAGE]):
            return []
        if depth == 0:
            return [(index, pointer)]
        page = self.page(pointer, self.table_size)
        return [
            leaf
            for entry in range(self.fanout)
            for leaf in self.leaves(page[16 * entry : 16 * entry + 16], depth - 1, index * self.fanout + entry)
        ]

    def read_records(self) -> list[tuple[int, Record]]:
        found = []
        for _, pointer in self.leaves(self.superblock[SUPERBLOCK["snapshot_list"]], 2):
            page = self.page(pointer, self.table_size)
            for slot in range(0, self.table_size, 512):
                raw = page[slot : slot + 512]
                record = Record(
                    id=number(raw, RECORD["id"]),
                    parent=number(raw, RECORD["parent"]),
                    origin=number(raw, RECORD["origin"]),
                    size=number(raw, RECORD["size_bytes"]),
                    own_blocks=number(raw, RECORD["own_blocks"]),
                    kind=number(raw, RECORD["kind"]),
                    name=raw[RECORD["name"]].rstrip(b"\0").decode("ascii"),
                    first_table=raw[RECORD["first_table"]],
                )
                if record.id:
                    found.append((record.id, record))
        return found

    def read(self, node: Record, block_no: int) -> bytes:
        """A block of a node, by the rules of "Reading a block"."""
        zeros = bytes(self.block_size)
        start, limit = block_no * self.block_size, node.size
        while True:
            entry = self.look_up(node.first_table, 3, block_no)
            kind = entry[POINTER["kind"]][0]
            if kind == PAGE:
                data = self.page(entry, self.block_size)
                return data[: max(0, limit - start)].ljust(self.block_size, b"\0")
            if kind == ZERO:
                return zeros
            assert kind in (ABSENT, PASS)
            above = node.parent if kind == ABSENT else self.records[node.origin].parent
            if not above:
                return zeros
            node = self.records[above]
            limit = min(limit, node.size)
            if start >= limit:
                return zeros

    def content(self, node: Record) -> bytes:
        blocks = -(-node.size // self.block_size)
        return b"".join(
            self.logged[node.id, block_no] if (node.id, block_no) in self.logged else self.read(node, block_no)
            for block_no in range(blocks)
        )[: node.size]

    def full_name(self, node: Record) -> str:
        return f"{self.records[node.origin].name}@{node.name}" if node.kind == RO else node.name


@pytest.fixture(params=[(512, 512), (1024, 512), (512, 1024)], ids=lambda sizes: f"B{sizes[0]}-T{sizes[1]}")
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A container with every kind of node and entry in it."""
    path = tmp_path / "lab.snap"
    block_size, table_size = request.param
    with Container.create(str(path), block_size=block_size, table_size=table_size) as lab:
        db = lab.create_volume("db", 100_000)
        db.write(0, b"one " * 5_000)
        lab.snapshot("db@mon")
        db.write(3_000, b"two " * 3_000)
        lab.commit()
        dev = lab.clone("db@mon", "dev")
        lab.snapshot("dev@try")
        dev.write(5_000, b"three " * 9_000)
        dev.trim(0, 4_000)
        dev.resize(7_777, shrink=True)
        lab.commit()
        dev.resize(90_001)
        lab.snapshot("db@tue", "dev@two")
        db.trim(0, 50_000)
        lab.create_volume("log", 70_000, cow=Cow.COPY).write(60_000, b"four " * 2_000)
        lab.snapshot("log@x")
        lab["log"].write(61_000, b"five")
    return path


def test_every_node_is_found_with_its_bytes(path: Path):
    reader = Reader(path)
    found = {reader.full_name(node): reader.content(node) for node in reader.records.values()}
    with Container.open(str(path)) as lab:
        assert found == {node.name: node.read(0, node.size_bytes) for node in lab.nodes}
    assert number(reader.superblock, SUPERBLOCK["node_count"]) == len(found)
    assert len(set(found.values())) > 4


def test_every_node_is_found_with_what_a_dead_server_has_left_in_the_log(path: Path):
    lab = Container.open(str(path), writable=True)
    lab.make_log()
    lab.commit()
    size = lab.block_size
    for start, blocks, zeros in ((0, range(3), []), (2, (5, 40, 41), [(1, 2), (30, 45)]), (5, (2, 89_900 // size), [])):
        changes = [
            change_of_blocks(lab[name], {number: bytes([start + number]) * size for number in blocks}, zeros)
            for name in ("db", "dev")
        ]
        assert lab.log(changes)
        lab.sync_log()
    lab.close()
    reader = Reader(path)
    found = {reader.full_name(node): reader.content(node) for node in reader.records.values()}
    with Container.open(str(path)) as lab:
        assert lab.replayed_records == 3
        assert found == {node.name: node.read(0, node.size_bytes) for node in lab.nodes}


def test_records_tell_what_the_engine_says(path: Path):
    reader = Reader(path)
    kinds = {"base": BASE, "ro": RO, "rw": RW}
    with Container.open(str(path)) as lab:
        for node in lab.nodes:
            record = reader.records[node.id]
            parent, origin = (above.id if above else 0 for above in (node.parent, node.origin))
            assert (record.parent, record.origin, record.kind) == (parent, origin, kinds[node.kind.value])
            assert record.own_blocks == node.own_blocks == len(reader.leaves(record.first_table, 3))


def test_space_map_marks_what_is_reached_from_the_superblock_and_nothing_else(path: Path):
    reader = Reader(path)
    per_bitmap = reader.table_size * 8
    marked: set[int] = set()
    for index, pointer in reader.leaves(reader.superblock[SUPERBLOCK["space_map"]], 2):
        bitmap = reader.page(pointer, reader.table_size)
        bits = {n * 8 + b for n, byte in enumerate(bitmap) for b in range(8) if byte & 1 << b}
        assert number(pointer, POINTER["birth"]) == per_bitmap - len(bits)
        marked |= {index * per_bitmap + bit for bit in bits}
    for node in reader.records.values():
        for _, pointer in reader.leaves(node.first_table, 3):
            reader.page(pointer, reader.block_size)
    assert marked == reader.used | set(range(65536 // reader.unit))
    assert number(reader.superblock, SUPERBLOCK["pages_used"]) == len(marked)
    assert max(marked) < number(reader.superblock, SUPERBLOCK["pages_total"]) <= len(reader.file) // reader.unit
