"""Checked page I/O on a backend, and the poison that follows a failure.

Every read that names a checksum verifies it before a byte is used; every page number is bounded before it becomes an
offset. After a failed write or sync nothing more can be done with the open container (invariant 6), since the page
cache may hold what the disk does not; a lack of space is no such failure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from snapctl.errors import Corruption, IoFailure, NoSpace, Poisoned
from snapctl.format.checksum import crc32c
from snapctl.format.geometry import Geometry
from snapctl.format.pointer import CHECKSUM_MASK, KIND_SHIFT, PAGE, PAGE_MASK
from snapctl.format.superblock import COPIES, copy_offset
from snapctl.storage.backend import Backend, Buffer
from snapctl.storage.reserve import Reserve


class Adopted(NamedTuple):
    """A superblock that is written again, both copies, before anything else is.

    Attributes:
        slot: its slot.
        page: its bytes.
        is_changed: they are not what stands in the file.
    """

    slot: int
    page: bytes
    is_changed: bool = False


class PageFile:
    """The container file seen as pages.

    Attributes:
        end_page: units that belong to the container; pointers must lie below.
        reserve: room beyond the end, and the leave to use it.
        resident_tables: tables taken into memory since whoever bounds them set this to 0.
    """

    def __init__(self, backend: Backend, geometry: Geometry, end_page: int, adopted: Adopted | None) -> None:
        """Take up a file; `adopted` is the superblock that was read from it.

        What was read from the page cache may never have reached the disk, so the adopted superblock is written
        again and synced before anything else is written (invariant 4).
        """
        self.backend = backend
        self.geometry = geometry
        self.end_page = end_page
        self.reserve = Reserve(backend, geometry)
        self._adopted = adopted
        self.resident_tables = 0
        self._failure: str | None = None

    @property
    def is_usable(self) -> bool:
        """Whether no write or sync failed so far."""
        return self._failure is None

    def check_usable(self) -> None:
        """Refuse to go on after a failure.

        Raises:
            Poisoned: a write or sync failed earlier.
        """
        if self._failure is not None:
            raise Poisoned(f"{self.backend.path} is unusable since an earlier failure ({self._failure}); reopen it")

    def locate(self, word0: int, length: int) -> int:
        """Offset in bytes of the page that a pointer's first word names.

        Raises:
            Corruption: not a page pointer, or `length` bytes from there do not lie inside the container.
        """
        page_no = word0 & PAGE_MASK
        unit = self.geometry.unit
        if word0 >> KIND_SHIFT != PAGE:
            raise Corruption(f"pointer of unknown kind {word0 >> KIND_SHIFT:#x}", page_no=page_no)
        if not self.geometry.first_page <= page_no <= self.end_page - length // unit:
            raise Corruption(f"pointer to page {page_no}, outside the container", page_no=page_no)
        return page_no * unit

    def read(self, word0: int, word1: int, length: int, what: str) -> bytearray:
        """Read one page and verify it against its pointer's two words.

        Args:
            word0: first word of the pointer.
            word1: second word of the pointer.
            length: length of the page in bytes.
            what: what the page is, for the message.

        Raises:
            Corruption: bad pointer, or the bytes fail their checksum.
            IoFailure: the system refuses.
        """
        page = bytearray(length)
        self.read_run(self.locate(word0, length), memoryview(page))
        if crc32c(page) != word1 & CHECKSUM_MASK:
            page_no = word0 & PAGE_MASK
            raise Corruption(f"{what} at page {page_no} fails its checksum", page_no=page_no)
        return page

    def read_run(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` in bytes; the caller verifies.

        Raises:
            Corruption: the file ends before.
            IoFailure: the system refuses.
        """
        self.check_usable()
        if self.backend.read_into(offset, buffer) != len(buffer):
            page_no = offset // self.geometry.unit
            raise Corruption(f"{self.backend.path} ends inside page {page_no}", page_no=page_no)

    def write_pages(self, page_nos: Sequence[int], buffers: list[Buffer], size: int) -> None:
        """Write pages wherever they go, those that follow each other on disk at a stroke.

        Args:
            page_nos: where, in ascending order to have many joined.
            buffers: their bytes, one or more pages in each, in the same order.
            size: of a page in bytes.

        Raises:
            Poisoned: a write or sync failed earlier.
            Corruption: a page lies in the superblock area.
            NoSpace: the file system is full; the container stays usable.
            IoFailure: any other refusal, which poisons.
        """
        if not page_nos:
            return
        self.rewrite_adopted()
        lowest, unit = min(page_nos), self.geometry.unit
        if lowest < self.geometry.first_page:
            raise Corruption(f"a write to page {lowest}, in the superblock area, was refused", page_no=lowest)
        if isinstance(page_nos, range):
            offsets = list(range(page_nos.start * unit, page_nos.stop * unit, page_nos.step * unit))
        else:
            offsets = [page_no * unit for page_no in page_nos]
        try:
            try:
                self.backend.write_each(offsets, buffers, size)
            except NoSpace:
                if not self.reserve.lend():
                    raise
                self.backend.write_each(offsets, buffers, size)
        except IoFailure as error:
            self._failure = str(error)
            raise

    def write_again(self, page_nos: Sequence[int], buffers: list[Buffer], size: int) -> None:
        """Write pages that have been written before in this transaction, as `write_pages`.

        The file system has room for them. Should it nevertheless refuse, nothing can be saved, for one may be half
        overwritten.

        Raises:
            IoFailure: it refuses, which poisons.
        """
        self.check_usable()
        with self.poisoned_by_failure():
            self.write_pages(page_nos, buffers, size)

    def write_log(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write a record of the log at an offset in bytes; raises as `write_pages`, but for a page out of place."""
        self.check_usable()
        try:
            self.backend.write(offset, buffers)
        except IoFailure as failure:
            self._failure = str(failure)
            raise

    def write_superblock(self, slot: int, page: bytes, *, one_by_one: bool = False) -> None:
        """Write both copies of a slot.

        Args:
            slot: 0 or 1.
            page: the bytes of the superblock.
            one_by_one: sync after each copy, so that the slot never is without a whole one.

        Raises:
            IoFailure: any refusal, a lack of space included, since one copy may be written; it poisons.
        """
        self.rewrite_adopted()
        with self.poisoned_by_failure():
            for copy in range(COPIES):
                self.backend.write(copy_offset(slot, copy), [page])
                if one_by_one:
                    self.backend.sync()

    def extend(self) -> None:
        """Make the file as long as its pages want it.

        Raises:
            NoSpace: there is no room; the container stays usable.
            IoFailure: the system refuses.
        """
        self.check_usable()
        try:
            self.backend.extend(self.end_page * self.geometry.unit)
        except NoSpace:
            if not self.reserve.lend():
                raise
            self.backend.extend(self.end_page * self.geometry.unit)

    def end_at(self, end_page: int) -> None:
        """Take back that the file has grown, for what found no space and is allocated no more.

        Raises:
            IoFailure: the system refuses.
        """
        self.end_page = end_page
        self.reserve.end_at(end_page)

    def sync(self) -> None:
        """Make all that was written durable.

        Raises:
            IoFailure: the system refuses, a lack of space found this late included; it poisons.
        """
        self.check_usable()
        with self.poisoned_by_failure():
            self.backend.sync()

    def punch(self, page_no: int, units: int) -> None:
        """Give the room of free pages back to the file system, where it can take it."""
        self.check_usable()
        self.backend.punch(page_no * self.geometry.unit, units * self.geometry.unit)

    @contextmanager
    def poisoned_by_failure(self) -> Iterator[None]:
        """Around what must not be left half done: any exception makes the open container unusable.

        Raises:
            IoFailure: in the place of NoSpace, after which the caller could not go on either.
        """
        try:
            yield
        except BaseException as error:
            self._failure = str(error) or type(error).__name__
            if isinstance(error, NoSpace):
                raise IoFailure(str(error)) from error
            raise

    def rewrite_adopted(self) -> None:
        """Write the adopted superblock again and sync it, if that was not done yet.

        Raises:
            IoFailure: the system refuses, which poisons.
        """
        self.check_usable()
        if self._adopted is not None:
            adopted, self._adopted = self._adopted, None
            self.write_superblock(adopted.slot, adopted.page, one_by_one=adopted.is_changed)
            self.sync()
