"""Every structure of a container by name, where it stands, and ways to damage it.

`flip` leaves checksums that no longer fit, as failing disks do. `forge` makes them fit again all the way up to the
superblock, as somebody does who means harm: what is left to find then is what checksums cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from snapctl.format.checksum import crc32c
from snapctl.format.geometry import INDEX_DEPTH, POINTER_BYTES, RECORD_BYTES, VOLUME_DEPTH
from snapctl.format.layout import SUPERBLOCK_BYTES, NodeRecord
from snapctl.format.pointer import PAGE, Pointer, decode_table
from snapctl.format.record import RO_CODE, RawRecord, scan
from snapctl.format.superblock import COPIES, SLOTS, Superblock, build, copy_offset
from snapctl.services.check import Report
from snapctl.storage.backend import Backend
from snapctl.storage.superblocks import choose_superblocks

SPACE_MAP = "space map"
SNAPSHOT_LIST = "snapshot list"
LEVELS = ("first table", "second table", "third table")
_CHECKSUM_IN_POINTER = 8
_BIRTH_IN_POINTER = 12


def fields_of(declaration: Any) -> dict[str, tuple[int, int]]:
    """(offset, length) in bytes of each field that a declaration of `layout` has."""
    fields, offset = {}, 0
    for field in declaration.subcons:
        fields[field.name] = (offset, field.sizeof())
        offset += field.sizeof()
    return fields


_RECORD_FIELDS = fields_of(NodeRecord)


@dataclass(frozen=True)
class Structure:
    """One page, run of bytes or superblock copy of a container.

    Attributes:
        kind: what it is: "superblock copy", "first table", "second table", "third table", "bitmap", "records", "data".
        owner: "superblock", "space map", "snapshot list" or the full name of a node.
        offset: where it begins, in bytes.
        length: how long it is, in bytes.
        index: of the first bitmap, page of records or block beneath it, or of the slot; 0 for a first table.
        above: what points to it; None for superblock copies and for the tables that the superblock points to.
        entry_offset: where in the file its pointer stands; 0 if that is in the superblock.
    """

    kind: str
    owner: str
    offset: int
    length: int
    index: int = 0
    above: Structure | None = None
    entry_offset: int = 0

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return f"{self.owner}: {self.kind} {self.index}"


def structures(backend: Backend, of: Superblock | None = None) -> list[Structure]:
    """All structures of an undamaged container, as of its last commit or of the superblock `of`."""
    return list(_Finder(backend, of or choose_superblocks(backend)[0]).find())


def find(backend: Backend, owner: str, kind: str, index: int | None = None) -> Structure:
    """The first structure of an owner that is of a kind, and of an index unless that is None."""
    return next(
        found
        for found in structures(backend)
        if found.owner == owner and found.kind == kind and index in (None, found.index)
    )


def read(backend: Backend, structure: Structure) -> bytes:
    """The bytes of a structure."""
    return _read(backend, structure.offset, structure.length)


def read_at(backend: Backend, offset: int, length: int) -> bytes:
    """Some bytes of the file."""
    return _read(backend, offset, length)


def pointers(backend: Backend, table: Structure) -> list[Pointer]:
    """The entries of a table."""
    words = decode_table(read(backend, table))
    return [Pointer(words[i], words[i + 1]) for i in range(0, len(words), 2)]


def assert_found(report: Report, where: str, *words: str, exit_code: int = 4) -> None:
    """Hold that a check came to an exit code, and has a finding there whose message has all the words in it."""
    assert report.exit_code == exit_code
    messages = [finding.message for finding in report.findings if finding.where == where]
    assert any(all(word in message for word in words) for message in messages), report.findings


def flip(backend: Backend, offset: int, bit: int = 0) -> None:
    """Turn one bit of the file over."""
    backend.write(offset, [bytes([_read(backend, offset, 1)[0] ^ 1 << bit])])


def forge(backend: Backend, structure: Structure, at: int, data: bytes) -> None:
    """Write bytes into a page and make every checksum above it right again.

    Args:
        backend: the file.
        structure: the page, not a superblock copy.
        at: where to write, in bytes from its start.
        data: what to write.
    """
    backend.write(structure.offset + at, [data])
    seal(backend, structure)


def forge_entry(backend: Backend, table: Structure, entry: int, pointer: Pointer) -> None:
    """Put a pointer into a table, and make every checksum above right again."""
    words = b"".join(word.to_bytes(8, "little") for word in pointer)
    forge(backend, table, entry * POINTER_BYTES, words)


def forge_record(backend: Backend, node: str, field: str, value: int | bytes) -> None:
    """Write into one field of a node's record and make every checksum above right again.

    Args:
        backend: the file.
        node: full name of the node.
        field: as `layout.NodeRecord` calls it; for a pointer, its bytes.
        value: what to write; a number gets the field's length.
    """
    offset, length = _RECORD_FIELDS[field]
    first_table = find(backend, node, LEVELS[0])
    page = first_table.above
    assert page is not None
    at = first_table.entry_offset - _RECORD_FIELDS["first_table"][0] - page.offset
    data = value.to_bytes(length, "little") if isinstance(value, int) else value.ljust(length, b"\0")
    forge(backend, page, at + offset, data)


def forge_use(backend: Backend, page_no: int, *, in_use: bool) -> None:
    """Set or clear the bit of one page in the space map, and make all counts and checksums right again."""
    geometry = choose_superblocks(backend)[0].geometry
    index, bit = divmod(page_no, geometry.units_per_bitmap)
    bitmap = find(backend, SPACE_MAP, "bitmap", index)
    byte = read(backend, bitmap)[bit >> 3]
    assert (byte >> (bit & 7) & 1) != in_use, f"page {page_no} is so already"
    forge(backend, bitmap, bit >> 3, bytes([byte ^ 1 << (bit & 7)]))
    step = 1 if in_use else -1
    table = bitmap.above
    assert table is not None
    for entry_offset in (bitmap.entry_offset, table.entry_offset):
        free = int.from_bytes(_read(backend, entry_offset + _BIRTH_IN_POINTER, 4), "little")
        backend.write(entry_offset + _BIRTH_IN_POINTER, [(free - step).to_bytes(4, "little")])
    seal(backend, table)
    forge_superblock(backend, lambda found: replace(found, pages_used=found.pages_used + step))


def forge_superblock(backend: Backend, change: Callable[[Superblock], Superblock]) -> None:
    """Change the adopted superblock, in both copies."""
    current, _ = choose_superblocks(backend)
    for copy in range(COPIES):
        backend.write(copy_offset(current.slot, copy), [build(change(current))])


def seal(backend: Backend, structure: Structure) -> None:
    """Make the checksum of a page right, and so those of all above it."""
    checksum = crc32c(read(backend, structure))
    if structure.above is not None:
        backend.write(structure.entry_offset + _CHECKSUM_IN_POINTER, [checksum.to_bytes(4, "little")])
        seal(backend, structure.above)
    else:
        field = "space_map" if structure.owner == SPACE_MAP else "snapshot_list"

        def change(found: Superblock) -> Superblock:
            pointer: Pointer = getattr(found, field)
            word1 = pointer.word1 & ~0xFFFF_FFFF | checksum
            return replace(found, **{field: Pointer(pointer.word0, word1)})  # type: ignore[arg-type]

        forge_superblock(backend, change)


def bend(page: bytearray, at: int, checksum: int) -> bytes:
    """Choose the 32 bits at a place in a page such that its CRC32C is as wanted; a CRC is linear in every bit."""

    def with_bits(bits: int) -> int:
        page[at : at + 4] = bits.to_bytes(4, "little")
        return int(crc32c(page))

    wanted = with_bits(0) ^ checksum
    basis: dict[int, tuple[int, int]] = {}
    zero = with_bits(0)
    for i in range(32):
        value, bits = with_bits(1 << i) ^ zero, 1 << i
        while value and value.bit_length() in basis:
            other = basis[value.bit_length()]
            value, bits = value ^ other[0], bits ^ other[1]
        basis[value.bit_length()] = (value, bits)
    chosen = 0
    while wanted:
        value, bits = basis[wanted.bit_length()]
        wanted, chosen = wanted ^ value, chosen ^ bits
    with_bits(chosen)
    return bytes(page)


def _read(backend: Backend, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    assert backend.read_into(offset, buffer) == length, f"the file ends before {offset + length}"
    return bytes(buffer)


class _Finder:
    """Walks a container that is taken to be sound."""

    def __init__(self, backend: Backend, current: Superblock) -> None:
        self._backend = backend
        self._current = current
        self._geometry = current.geometry

    def find(self) -> Iterator[Structure]:
        for slot in range(SLOTS):
            for copy in range(COPIES):
                yield Structure("superblock copy", "superblock", copy_offset(slot, copy), SUPERBLOCK_BYTES, slot)
        table_size = self._geometry.table_size
        yield from self._tree(SPACE_MAP, self._current.space_map, INDEX_DEPTH, "bitmap", table_size)
        records: list[tuple[Structure, int, RawRecord]] = []
        for found in self._tree(SNAPSHOT_LIST, self._current.snapshot_list, INDEX_DEPTH, "records", table_size):
            yield found
            if found.kind == "records":
                raws = enumerate(scan(read(self._backend, found)))
                records += [(found, slot, raw) for slot, raw in raws if raw.id]
        names = {raw.id: raw.name.rstrip(b"\0").decode() for _, _, raw in records}
        for page, slot, raw in records:
            name = f"{names[raw.origin]}@{names[raw.id]}" if raw.kind == RO_CODE else names[raw.id]
            pointer = Pointer(raw.first_table0, raw.first_table1)
            entry_offset = page.offset + slot * RECORD_BYTES + _RECORD_FIELDS["first_table"][0]
            yield from self._tree(
                name, pointer, VOLUME_DEPTH, "data", self._geometry.block_size, above=page, entry_offset=entry_offset
            )

    def _tree(
        self,
        owner: str,
        pointer: Pointer,
        depth: int,
        bottom: str,
        length: int,
        *,
        above: Structure | None = None,
        entry_offset: int = 0,
        level: int = 0,
        index: int = 0,
    ) -> Iterator[Structure]:
        """A page and all below it, the lowest of which are called `bottom` and `length` bytes long."""
        is_table = level < depth
        found = Structure(
            kind=LEVELS[level] if is_table else bottom,
            owner=owner,
            offset=pointer.page_no * self._geometry.unit,
            length=self._geometry.table_size if is_table else length,
            index=index,
            above=above,
            entry_offset=entry_offset,
        )
        yield found
        if not is_table:
            return
        fanout = self._geometry.fanout
        for entry, below in enumerate(pointers(self._backend, found)):
            if below.kind == PAGE:
                yield from self._tree(
                    owner,
                    below,
                    depth,
                    bottom,
                    length,
                    above=found,
                    entry_offset=found.offset + entry * POINTER_BYTES,
                    level=level + 1,
                    index=index + entry * fanout ** (depth - level - 1),
                )
