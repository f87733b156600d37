"""Bugs planted in the log on purpose, as `tests.support.bugs` plants others. Only tests switch them on."""

from __future__ import annotations

from contextlib import AbstractContextManager

from snapctl.format import logrecord
from snapctl.format.checksum import crc32c
from snapctl.format.geometry import Geometry
from snapctl.format.logrecord import LogRecord
from snapctl.format.superblock import Superblock
from snapctl.storage import log
from snapctl.storage.log import Log
from snapctl.storage.store import Store
from tests.support.bugs import replaced

_KEY = slice(8, 16)


def any_key_will_do() -> AbstractContextManager[None]:
    """A record is replayed whatever commit it continues."""

    def careless(found: memoryview, offset: int, _key: int, index: int, geometry: Geometry) -> LogRecord | None:
        key = int.from_bytes(found[offset:][_KEY], "little")
        return logrecord.parse(found, offset, key, index, geometry)

    return replaced(log, "parse", careless)


def a_key_for_all_commits() -> AbstractContextManager[None]:
    """The key is drawn when the log is made, and not again: a commit does not empty the log."""
    seal = Store._seal

    def keeping(store: Store, draft: Superblock, *, keeps_log: bool = False) -> None:
        seal(store, draft, keeps_log=keeps_log)
        if draft.log_key and store._sealed is not None and store._sealed.log_pages:
            store._sealed = store._sealed.with_log(*store._log_run, draft.log_key)
            store.log = Log(store.pages, store._sealed)

    return replaced(Store, "_seal", keeping)


def a_torn_record_is_believed() -> AbstractContextManager[None]:
    """The checksum of a record is not looked at."""

    def unverified(found: memoryview, offset: int, key: int, index: int, geometry: Geometry) -> LogRecord | None:
        at = offset + logrecord._HEADER.size
        if at + 4 > len(found):
            return None
        head = found[offset:at]
        length = int.from_bytes(head[24:28], "little")
        copy = memoryview(bytearray(found))
        body = copy[at + 4 : offset + length]
        copy[at : at + 4] = crc32c(body, crc32c(head)).to_bytes(4, "little")
        return logrecord.parse(copy, offset, key, index, geometry)

    return replaced(log, "parse", unverified)


def a_flush_that_does_not_sync() -> AbstractContextManager[None]:
    """A flush returns when its record is written."""

    def at_once(written: Log) -> None:
        written.is_synced = True

    return replaced(Log, "sync", at_once)


def a_log_emptied_before_the_commit_is_durable() -> AbstractContextManager[None]:
    """The log is used again from its beginning as soon as the commit is sealed."""
    seal = Store._seal

    def early(store: Store, draft: Superblock, *, keeps_log: bool = False) -> None:
        seal(store, draft, keeps_log=keeps_log)
        if store.log is not None and not keeps_log:
            store.pages.write_log(store.superblock.log_page * store.geometry.unit, [bytes(512)])

    return replaced(Store, "_seal", early)


def a_log_given_up_before_it_is_replayed() -> AbstractContextManager[None]:
    """Opening for writing begins with an empty log."""
    adopt = Store.adopt.__func__  # type: ignore[attr-defined]

    def forgetful(cls: type[Store], backend: object, *, writable: bool) -> Store:
        store: Store = adopt(cls, backend, writable=writable)
        if writable and store.superblock.log_pages:
            store.superblock = store.superblock.with_log(0, 0, 0)
        return store

    return replaced(Store, "adopt", classmethod(forgetful))


LOG_BUGS = {
    bug.__name__: bug
    for bug in (
        any_key_will_do,
        a_key_for_all_commits,
        a_torn_record_is_believed,
        a_flush_that_does_not_sync,
        a_log_emptied_before_the_commit_is_durable,
        a_log_given_up_before_it_is_replayed,
    )
}
