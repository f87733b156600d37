"""The container's layout, declared with `construct`; docs/format.md states the same and a test compares the two.

All integers are little-endian. These declarations parse and build the superblock and single records; the inner loops
(tables, whole pages of records) read the same bytes with `array` and `struct` in `pointer` and `record`, and a test
holds both readings equal.
"""

from __future__ import annotations

from construct import Bytes, BytesInteger, Const, Int8ul, Int32ul, Int64ul, Struct

MAGIC = b"SNAPCTL\0"
LOG_MAGIC = b"SNAPLOG\0"
FORMAT_VERSION = 1
SUPERBLOCK_BYTES = 4096

Pointer = Struct(
    "page_no" / BytesInteger(6, swapped=True),
    "kind" / Int8ul,
    "reserved" / Const(b"\0"),
    "checksum" / Int32ul,
    "birth" / Int32ul,
)

_superblock_fields = (
    "magic" / Const(MAGIC),
    "version" / Int32ul,
    "block_size" / Int32ul,
    "table_size" / Int32ul,
    "reserved_a" / Const(bytes(4)),
    "compatible" / Int64ul,
    "read_only_compatible" / Int64ul,
    "incompatible" / Int64ul,
    "uuid" / Bytes(16),
    "transaction" / Int64ul,
    "pages_used" / Int64ul,
    "pages_total" / Int64ul,
    "pages_limit" / Int64ul,
    "next_node_id" / Int64ul,
    "node_count" / Int64ul,
    "snapshot_list" / Pointer,
    "space_map" / Pointer,
    "log_page" / Int64ul,
    "log_pages" / Int64ul,
    "repaired_from" / Int64ul,
    "log_key" / Int64ul,
)
_superblock_used = sum(field.sizeof() for field in _superblock_fields)

Superblock = Struct(
    *_superblock_fields,
    "reserved_b" / Bytes(SUPERBLOCK_BYTES - 4 - _superblock_used),
    "checksum" / Int32ul,
)

_record_fields = (
    "id" / Int64ul,
    "parent" / Int64ul,
    "origin" / Int64ul,
    "size_bytes" / Int64ul,
    "created_ns" / Int64ul,
    "expires_ns" / Int64ul,
    "retained_until_ns" / Int64ul,
    "own_blocks" / Int64ul,
    "first_table" / Pointer,
    "attributes" / Pointer,
    "target" / Int64ul,
    "cursor" / Int64ul,
    "kind" / Int8ul,
    "cow" / Int8ul,
    "state" / Int8ul,
    "flags" / Int8ul,
    "reserved_a" / Const(bytes(4)),
    "name" / Bytes(64),
)
_record_used = sum(field.sizeof() for field in _record_fields)

NodeRecord = Struct(*_record_fields, "reserved_b" / Const(bytes(512 - _record_used)))

LogRecord = Struct(
    "magic" / Const(LOG_MAGIC),
    "key" / Int64ul,
    "index" / Int64ul,
    "length_bytes" / Int32ul,
    "entries" / Int32ul,
    "reserved" / Const(bytes(4)),
    "checksum" / Int32ul,
)

LogEntry = Struct(
    "node" / Int64ul,
    "start" / Int64ul,
    "stop" / Int64ul,
    "kind" / Int32ul,
    "reserved" / Const(bytes(4)),
)
