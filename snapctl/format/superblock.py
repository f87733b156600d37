"""The superblock: where everything hangs from, and the only page that is ever written in place.

Two slots alternate by transaction number, each written as two copies 32 KiB apart. `parse` gives a superblock only
after its checksum was verified; nothing in the bytes is believed before. Reserved bytes are covered by the checksum
and otherwise ignored, so that a compatible feature may use them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from uuid import UUID

from construct import ConstructError

from snapctl.errors import Corruption, SnapctlError, UnsupportedFormat
from snapctl.format import layout
from snapctl.format.checksum import crc32c
from snapctl.format.geometry import Geometry
from snapctl.format.layout import FORMAT_VERSION, MAGIC, SUPERBLOCK_BYTES
from snapctl.format.pointer import BIRTH_SHIFT, KIND_SHIFT, NOWHERE, PAGE, Pointer

SLOTS = 2
COPIES = 2
_COPY_DISTANCE = 32 * 1024
KNOWN_READ_ONLY_COMPATIBLE = 0
LOG_FEATURE = 1
"""The incompatible feature of a superblock that names a log."""
KNOWN_INCOMPATIBLE = LOG_FEATURE
LARGEST_LOG_BYTES = 16 << 20
"""Of a whole log, which is read into memory when it is replayed."""
_LARGEST_NUMBER = 1 << 63
_CHECKSUM_AT = SUPERBLOCK_BYTES - 4


@dataclass(frozen=True, slots=True)
class Superblock:
    """A verified superblock.

    Attributes:
        pages_used: units in use, the superblock area among them.
        pages_total: units the file must hold; every page in use lies below.
        pages_limit: capacity in units, 0 for none.
        repaired_from: the transaction whose damaged state this one replaced; 0 if it is no repair, or
            not one that can be undone any more.
        log_page: the first page of the log.
        log_pages: units of the log; 0 if there is none.
        log_key: what marks the records that continue this state, and no other.
    """

    geometry: Geometry
    uuid: UUID
    transaction: int
    pages_used: int
    pages_total: int
    pages_limit: int
    next_node_id: int
    node_count: int
    snapshot_list: Pointer = NOWHERE
    space_map: Pointer = NOWHERE
    compatible: int = 0
    read_only_compatible: int = 0
    incompatible: int = 0
    repaired_from: int = 0
    log_page: int = 0
    log_pages: int = 0
    log_key: int = 0

    @property
    def slot(self) -> int:
        """The slot it is written to, 0 or 1."""
        return self.transaction % SLOTS

    def with_log(self, page_no: int, units: int, key: int) -> Superblock:
        """The same state, naming a log of `units` from a page on, or with 0 units none."""
        incompatible = self.incompatible & ~LOG_FEATURE | (LOG_FEATURE if units else 0)
        where = (page_no, units, key) if units else (0, 0, 0)
        return replace(self, incompatible=incompatible, log_page=where[0], log_pages=where[1], log_key=where[2])


def copy_offset(slot: int, copy: int) -> int:
    """Offset in bytes of a copy (0 or 1) of a slot (0 or 1)."""
    return copy * _COPY_DISTANCE + slot * SUPERBLOCK_BYTES


def has_magic(page: bytes) -> bool:
    """Whether the bytes begin as a superblock does, sound or not."""
    return page[: len(MAGIC)] == MAGIC


def parse(page: bytes) -> Superblock:
    """Read one superblock copy.

    Raises:
        Corruption: wrong length, magic or checksum, or numbers out of bounds.
        UnsupportedFormat: sound, but of a newer version or with an unknown incompatible feature.
    """
    if len(page) != SUPERBLOCK_BYTES or not has_magic(page):
        raise Corruption("no superblock here")
    if crc32c(memoryview(page)[:_CHECKSUM_AT]) != int.from_bytes(page[_CHECKSUM_AT:], "little"):
        raise Corruption("superblock fails its checksum")
    version = int.from_bytes(page[8:12], "little")
    if version != FORMAT_VERSION:
        raise UnsupportedFormat(f"format version {version}; this snapctl reads version {FORMAT_VERSION}; upgrade it")
    try:
        raw = layout.Superblock.parse(page)
    except ConstructError as error:
        raise Corruption("superblock has a reserved field that is not zero") from error
    if unknown := raw.incompatible & ~KNOWN_INCOMPATIBLE:
        raise UnsupportedFormat(f"unknown incompatible feature 0x{unknown:x}; a newer snapctl is needed to open it")
    try:
        geometry = Geometry(raw.block_size, raw.table_size)
    except SnapctlError as error:
        raise Corruption(f"superblock: {error}") from error
    found = Superblock(
        geometry=geometry,
        uuid=UUID(bytes=raw.uuid),
        transaction=raw.transaction,
        pages_used=raw.pages_used,
        pages_total=raw.pages_total,
        pages_limit=raw.pages_limit,
        next_node_id=raw.next_node_id,
        node_count=raw.node_count,
        snapshot_list=_pointer(raw.snapshot_list),
        space_map=_pointer(raw.space_map),
        compatible=raw.compatible,
        read_only_compatible=raw.read_only_compatible,
        incompatible=raw.incompatible,
        repaired_from=raw.repaired_from,
    )
    if raw.incompatible & LOG_FEATURE:
        found = replace(found, log_page=raw.log_page, log_pages=raw.log_pages, log_key=raw.log_key)
    check_bounds(found)
    return found


def build(superblock: Superblock) -> bytes:
    """Write a superblock as its 4096 bytes, checksum included."""
    fields = {
        "version": FORMAT_VERSION,
        "block_size": superblock.geometry.block_size,
        "table_size": superblock.geometry.table_size,
        "compatible": superblock.compatible,
        "read_only_compatible": superblock.read_only_compatible,
        "incompatible": superblock.incompatible,
        "uuid": superblock.uuid.bytes,
        "transaction": superblock.transaction,
        "pages_used": superblock.pages_used,
        "pages_total": superblock.pages_total,
        "pages_limit": superblock.pages_limit,
        "next_node_id": superblock.next_node_id,
        "node_count": superblock.node_count,
        "snapshot_list": pointer_fields(superblock.snapshot_list),
        "space_map": pointer_fields(superblock.space_map),
        "log_page": superblock.log_page,
        "log_pages": superblock.log_pages,
        "repaired_from": superblock.repaired_from,
        "log_key": superblock.log_key,
        "reserved_b": bytes(layout.Superblock.reserved_b.sizeof()),
        "checksum": 0,
    }
    page: bytes = layout.Superblock.build(fields)
    return page[:_CHECKSUM_AT] + int(crc32c(page[:_CHECKSUM_AT])).to_bytes(4, "little")


def pointer_fields(pointer: Pointer) -> dict[str, int]:
    """The fields of a pointer under the names that `layout.Pointer` gives them."""
    return {
        "page_no": pointer.page_no,
        "kind": pointer.kind,
        "checksum": pointer.checksum,
        "birth": pointer.birth,
    }


def _pointer(raw: layout.Pointer) -> Pointer:
    return Pointer(raw.page_no | raw.kind << KIND_SHIFT, raw.checksum | raw.birth << BIRTH_SHIFT)


def check_bounds(found: Superblock) -> None:
    """Refuse numbers that contradict each other, read from disk or about to be written.

    Raises:
        Corruption: they do.
    """
    geometry = found.geometry
    sane = (
        geometry.first_page <= found.pages_used <= found.pages_total <= geometry.max_units
        and found.pages_limit <= geometry.max_units
        and found.node_count < found.next_node_id
        and found.repaired_from < found.transaction
        and 0 < found.transaction < _LARGEST_NUMBER
        and found.next_node_id < _LARGEST_NUMBER
        and found.snapshot_list.kind == PAGE
        and found.space_map.kind == PAGE
        and (_has_sane_log(found) if found.incompatible & LOG_FEATURE else found.log_pages == 0)
    )
    if not sane:
        raise Corruption("superblock holds numbers that contradict each other")


def _has_sane_log(found: Superblock) -> bool:
    return (
        0 < found.log_pages <= LARGEST_LOG_BYTES // found.geometry.unit
        and found.geometry.first_page <= found.log_page <= found.pages_total - found.log_pages
    )
