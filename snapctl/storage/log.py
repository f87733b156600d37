"""The intent log: changes of blocks that are durable before the commit that brings them to the tables.

A log is a run of pages that the superblock names. Records follow one another from its beginning, and continue the state
of that superblock: it alone has their key, so the next commit empties the log by being durable. It is the one exception
from invariant 2, and harmless, since nothing in a log that lacks the key, the right number or its checksum means
anything to anybody.

Each record is durable before the next is begun. So what a crash leaves of the last one, whole or not, is the end of the
log, while a record behind one that cannot be read tells that this was damaged later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from snapctl.errors import Corruption, SnapctlError
from snapctl.format.geometry import Geometry
from snapctl.format.logrecord import (
    MOST_ZEROED_BLOCKS,
    ZEROS,
    Entry,
    LogRecord,
    build,
    header_bytes,
    is_later,
    parse,
    sector_bytes,
)
from snapctl.format.superblock import LARGEST_LOG_BYTES, Superblock
from snapctl.storage.backend import Backend, Buffer
from snapctl.storage.pages import PageFile
from snapctl.storage.view import ViewBackend

_TABLES = 256
"""Length of a log, in tables: 4 MiB with those of 16 KiB, which is some 500 flushes of a block."""


def log_units(geometry: Geometry) -> int:
    """How long a new log is, in units of allocation."""
    return min(_TABLES * geometry.table_size, LARGEST_LOG_BYTES) // geometry.unit


class Log:
    """The log of an open container's last commit, to be written to.

    Attributes:
        is_synced: whether all records are durable.
    """

    def __init__(self, pages: PageFile, superblock: Superblock) -> None:
        """Take up an empty log: that of a superblock which is durable, and continued by nobody yet."""
        self._pages = pages
        self._key = superblock.log_key
        self._position = superblock.log_page * pages.geometry.unit
        self._end = self._position + superblock.log_pages * pages.geometry.unit
        self._index = 0
        self.is_synced = True

    def append(self, entries: Sequence[Entry], blocks: Sequence[Buffer]) -> bool:
        """Write a record, with one call.

        Returns:
            Whether there was room for it; if not, nothing was written.

        Raises:
            SnapctlError: the record before is not durable yet.
            NoSpace: the file system has no room to overwrite; the container stays usable.
            IoFailure: the system refuses, which poisons.
        """
        if not self.is_synced:
            raise SnapctlError(f"the last record in the log of {self._pages.backend.path} is not durable yet")
        geometry = self._pages.geometry
        length = header_bytes(len(entries), geometry) + len(blocks) * geometry.block_size
        zeroed = sum(entry.stop - entry.start for entry in entries if entry.kind == ZEROS)
        if self._position + length > self._end or zeroed > MOST_ZEROED_BLOCKS:
            return False
        self._pages.write_log(self._position, build(self._key, self._index, entries, blocks, geometry))
        self._position += length
        self._index += 1
        self.is_synced = False
        return True

    def sync(self) -> None:
        """Make the last record durable.

        Raises:
            IoFailure: the system refuses, which poisons.
        """
        self._pages.sync()
        self.is_synced = True


@dataclass(frozen=True, slots=True)
class Logged:
    """What stands in a log.

    Attributes:
        records: in order.
        damage: what is wrong with the record after them, if it was durable once; None if nothing is.
    """

    records: list[LogRecord] = field(default_factory=list)
    damage: str | None = None


def read_log(backend: Backend, superblock: Superblock) -> Logged:
    """Read what continues the state of a superblock.

    A view stands for a commit: nothing in it is continued, though its server may be writing to the log.

    Raises:
        IoFailure: the system refuses.
    """
    geometry = superblock.geometry
    if not superblock.log_pages or isinstance(backend, ViewBackend):
        return Logged()
    log = memoryview(bytearray(superblock.log_pages * geometry.unit))
    log = log[: backend.read_into(superblock.log_page * geometry.unit, log)]
    records: list[LogRecord] = []
    offset = 0
    try:
        while record := parse(log, offset, superblock.log_key, len(records), geometry):
            records.append(record)
            offset += record.length_bytes
    except Corruption as error:
        return Logged(records, str(error))
    sector = sector_bytes(geometry)
    if any(is_later(log[at:], superblock.log_key, len(records)) for at in range(offset + sector, len(log), sector)):
        return Logged(records, f"record {len(records)} of the log is damaged, and some that came after it are there")
    return Logged(records)
