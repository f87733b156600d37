"""Bugs planted on purpose, to show that a search would find them. Only tests can switch them on.

Each takes away one of the things that make a commit safe (docs/design.md, "Commit" and "Opening"), and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from snapctl.errors import IoFailure
from snapctl.format.pointer import Pointer
from snapctl.storage.pages import PageFile
from snapctl.storage.spacemap import SpaceMap


@contextmanager
def replaced(owner: object, name: str, stand_in: object) -> Iterator[None]:
    usual = getattr(owner, name)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        setattr(owner, name, usual)


def superblock_before_its_pages() -> AbstractContextManager[None]:
    """Only one sync a commit, that of the superblock: it may reach the disk before the pages that it stands for."""
    unsynced: set[int] = set()
    sync, write_superblock = PageFile.sync, PageFile.write_superblock

    def noting(pages: PageFile, slot: int, page: bytes, *, one_by_one: bool = False) -> None:
        write_superblock(pages, slot, page, one_by_one=one_by_one)
        unsynced.add(id(pages))

    def late(pages: PageFile) -> None:
        if id(pages) in unsynced:
            unsynced.discard(id(pages))
            sync(pages)
        else:
            pages.backend.extend(pages.end_page * pages.geometry.unit)

    @contextmanager
    def both() -> Iterator[None]:
        with replaced(PageFile, "write_superblock", noting), replaced(PageFile, "sync", late):
            yield

    return both()


def reuse_in_the_same_transaction() -> AbstractContextManager[None]:
    """The allocator looks only at what the open transaction has in use, not at what both slots stand for."""
    take = SpaceMap._take

    def careless(space: SpaceMap, index: int, units: int, count: int, found: list[int]) -> None:
        bitmap = space._bitmap(index)
        kept = bitmap.committed, bitmap.previous
        bitmap.committed = bitmap.previous = bytes(bitmap.current)
        bitmap.free = None
        try:
            take(space, index, units, count, found)
        finally:
            bitmap.committed, bitmap.previous = kept
            bitmap.free = None

    return replaced(SpaceMap, "_take", careless)


def overwriting_committed_pages() -> AbstractContextManager[None]:
    """A block that is written again is overwritten in place, whenever it was born."""

    def always(_space: SpaceMap, _page_nos: Sequence[int], _units: int) -> bool:
        return True

    return replaced(SpaceMap, "are_fresh", always)


def going_on_unsynced() -> AbstractContextManager[None]:
    """The adopted superblock is not made durable before the first write of a session."""

    def only_check(pages: PageFile) -> None:
        pages.check_usable()

    return replaced(PageFile, "rewrite_adopted", only_check)


def punching_too_early() -> AbstractContextManager[None]:
    """What a transaction frees is punched out before its superblock is written."""
    write = SpaceMap.write

    def eager(space: SpaceMap) -> Pointer:
        for index, bitmap in space.bitmaps.items():
            freed = int.from_bytes(bitmap.committed, "little") & ~int.from_bytes(bitmap.current, "little")
            for page_no, units in space._long_runs(index, freed):
                space._pages.punch(page_no, units)
        return write(space)

    return replaced(SpaceMap, "write", eager)


def asking_a_failed_sync_again() -> AbstractContextManager[None]:
    """A sync that failed is tried once more; it succeeds, though what the kernel dropped is not on the disk."""
    sync = PageFile.sync

    def stubborn(pages: PageFile) -> None:
        try:
            sync(pages)
        except IoFailure:
            pages._failure = None
            sync(pages)

    return replaced(PageFile, "sync", stubborn)


BUGS = {
    bug.__name__: bug
    for bug in (
        superblock_before_its_pages,
        reuse_in_the_same_transaction,
        overwriting_committed_pages,
        going_on_unsynced,
        punching_too_early,
        asking_a_failed_sync_again,
    )
}
