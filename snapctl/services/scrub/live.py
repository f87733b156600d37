"""Reading and verifying all that is live in an open container, while others write to it.

The scrub holds the shared lock and lets go of it about once a second. It goes through the nodes parents before
children, and through each node's blocks in order. Nothing that was live all the time escapes it, whatever is committed
in between: a page keeps its block for life, and changes its node only downwards. The first write to a block hands it to
the newest RO snapshot, a delete to the next older one, a take-over to the clone; all of these hang, at some depth, from
the node that gives. So what has not been read yet stays in a node that has not been visited yet, or behind the position
in the present one. A snapshot that is put in between its visited volume and its visited elder gets only what was read
in the volume or is younger; it is visited all the same. (An operation that moves pages up, as a rollback would, has to
tell the scrubs under way.) What holds of data holds of tables, which change hands whole or are written anew.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from math import inf
from typing import NamedTuple

from snapctl.engine.container import Container
from snapctl.engine.impact import affected
from snapctl.engine.node import Node
from snapctl.engine.survey import Stretch, walk, walk_tree
from snapctl.errors import Corruption, IoFailure
from snapctl.format.checksum import crc32c
from snapctl.format.geometry import SUPERBLOCK_AREA
from snapctl.format.pointer import CHECKSUM_MASK, KINDS, LOST, PAGE, Pointer
from snapctl.services.check.ownership import Ownership
from snapctl.services.scrub.report import Notes, Severity

Progress = Callable[[int, int | None], None]
"""Told the bytes verified so far, and how many there are."""

_TURN_SECONDS = 1.0
"""How long the lock is held before writers get a turn."""
_LONGEST_READ = 1 << 20
_TABLES = ("first table", "second table", "third table")


class _Fault(NamedTuple):
    """Neighbouring blocks of a node that are damaged in the same way.

    Attributes:
        severity: how bad it is.
        what: which part of the node.
        cause: what is the matter.
        page_no: of the first one; None for what has none.
        start: first block.
        stop: block after the last.
    """

    severity: Severity
    what: str
    cause: str
    page_no: int | None
    start: int
    stop: int


class LiveScrub:
    """One scrub of an open container."""

    def __init__(self, container: Container, progress: Progress, notes: Notes) -> None:
        """Begin; `notes` takes what is found."""
        self._container = container
        self._geometry = container.geometry
        self._progress = progress
        self._notes = notes
        self._buffer = memoryview(bytearray(max(_LONGEST_READ, self._geometry.block_size, self._geometry.table_size)))
        self._turn_ends = time.monotonic() + _TURN_SECONDS
        self._fault: _Fault | None = None
        self._leaves = Ownership()

    def run(self) -> None:
        """Read all of it.

        Raises:
            Corruption: what was committed meanwhile cannot be opened.
        """
        self._index("space map", "bitmap", lambda: self._container.superblock.space_map)
        self._index("snapshot list", "records", lambda: self._container.superblock.snapshot_list)
        visited: set[int] = set()
        while waiting := [node_id for node_id in _parents_first(self._container) if node_id not in visited]:
            transaction = self._container.transaction
            for node_id in waiting:
                visited.add(node_id)
                self._visit(node_id)
                if self._container.transaction != transaction:
                    break  # others have nodes now, or the same ones in another order
        self._notes.nodes = len(visited)
        self._report(is_done=True)

    def _index(self, owner: str, what: str, pointer_of: Callable[[], Pointer]) -> None:
        """Read the tables of the space map or the snapshot list, and the pages that they lead to."""
        table_size, position, is_done = self._geometry.table_size, 0, False
        while not is_done:
            pointer = pointer_of()
            try:
                tree = self._container.open_index(owner, pointer)
            except (Corruption, IoFailure) as error:
                self._note_page(owner, _TABLES[0], pointer, self._cause(pointer, table_size) or str(error))
                return
            is_done = True
            for stretch in walk_tree(tree, position, tree.capacity):
                self._notes.verified(stretch.tables, table_size)
                if stretch.error:
                    cause = self._cause(stretch.pointer, table_size) or str(stretch.error)
                    self._note_page(owner, _TABLES[stretch.level], stretch.pointer, cause)
                for page in _pages(stretch):
                    if fault := self._cause(page, table_size):
                        self._note_page(owner, what, page, fault)
                    else:
                        self._notes.verified(1, table_size)
                position = stretch.stop
                self._report()
                if self._is_turn_over():
                    is_done = False
                    break
            if not is_done:
                self._let_writers_in()

    def _visit(self, node_id: int) -> None:
        """Read the tables and the data of one node; it may be gone before, or meanwhile."""
        try:
            node = self._container.by_id(node_id)
            _ = node.parent, node.name  # for which other records have to be there and sound
        except Corruption as error:
            if node_id in self._container.node_ids:
                self._notes.add(Severity.CORRUPTION, "snapshot list", "record", str(error))
            return
        position, is_done = 0, False
        while not is_done:
            is_done = True
            for stretch in walk(node, position, self._geometry.max_blocks):
                self._look_at(node, stretch)
                position = stretch.stop
                self._report()
                if self._is_turn_over():
                    is_done = False
                    break
            self._settle(node)
            if not is_done:
                self._let_writers_in()
                is_done = node.is_gone

    def _look_at(self, node: Node, stretch: Stretch) -> None:
        table_size = self._geometry.table_size
        self._notes.verified(stretch.tables, table_size)
        if stretch.error:
            cause = self._cause(stretch.pointer, table_size) or str(stretch.error)
            what, page_no = _TABLES[stretch.level], stretch.pointer.page_no
            self._note(node, _Fault(Severity.CORRUPTION, what, cause, page_no, stretch.start, stretch.stop))
        if stretch.leaf is not None and not self._leaves.take(stretch.pointer.page_no, self._geometry.table_units):
            # Few pages may name each other in so many ways that nobody could read it all.
            cause = "has another owner, too"
            fault = _Fault(
                Severity.CORRUPTION, _TABLES[-1], cause, stretch.pointer.page_no, stretch.start, stretch.stop
            )
            self._note(node, fault)
            return
        for start, stop, kind in stretch.runs():
            if kind == PAGE and stretch.leaf is not None:
                self._read_data(node, stretch.leaf.words, start, stop)
            elif kind == LOST:
                cause = "is marked as lost"
                self._note(node, _Fault(Severity.LOST, "data", cause, None, start, stop))
            elif kind not in KINDS:
                self._note(node, _Fault(Severity.CORRUPTION, "data", "pointer of unknown kind", None, start, stop))

    def _read_data(self, node: Node, words: array[int], start: int, stop: int) -> None:
        """Verify blocks of one leaf, those that are neighbours on disk at a stroke."""
        size, units = self._geometry.block_size, self._geometry.block_units
        most = len(self._buffer) // size
        first = start % self._geometry.fanout
        i, end = first, first + stop - start
        while i < end:
            j = i + 1
            while j < end and j - i < most and words[2 * j] == words[2 * i] + (j - i) * units:
                j += 1
            if self._is_sound(words, i, j):
                self._notes.verified(j - i, size)
            else:
                for k in range(i, j):
                    pointer = Pointer(words[2 * k], words[2 * k + 1])
                    if cause := self._cause(pointer, size):
                        block = start + k - first
                        fault = _Fault(Severity.CORRUPTION, "data", cause, pointer.page_no, block, block + 1)
                        self._note(node, fault)
                    else:
                        self._notes.verified(1, size)
            i = j

    def _is_sound(self, words: array[int], i: int, j: int) -> bool:
        """Whether the blocks of the entries from `i` to `j`, which are neighbours on disk, all can be had."""
        size, buffer, pages = self._geometry.block_size, self._buffer, self._container.pages
        try:
            pages.read_run(pages.locate(words[2 * i], (j - i) * size), buffer[: (j - i) * size])
        except (Corruption, IoFailure):
            return False
        begin = 0
        for seal in words[2 * i + 1 : 2 * j : 2]:
            end = begin + size
            if crc32c(buffer[begin:end]) != seal & CHECKSUM_MASK:
                return False
            begin = end
        return True

    def _cause(self, pointer: Pointer, length: int) -> str | None:
        """Why a page of `length` bytes cannot be had; None if it can."""
        pages, page = self._container.pages, self._buffer[:length]
        try:
            offset = pages.locate(pointer.word0, length)
        except Corruption as error:
            return str(error)
        try:
            pages.read_run(offset, page)
        except (Corruption, IoFailure) as error:
            return f"cannot be read: {error}"
        return None if crc32c(page) == pointer.checksum else "fails its checksum"

    def _note_page(self, owner: str, what: str, pointer: Pointer, cause: str) -> None:
        self._notes.add(Severity.CORRUPTION, owner, what, cause, page_no=pointer.page_no)

    def _note(self, node: Node, fault: _Fault) -> None:
        """Take a fault of a node, joining it to the last one if it continues that."""
        last = self._fault
        if last is not None and fault.start == last.stop and fault[:3] == last[:3]:
            behind = None
            if last.page_no is not None:
                behind = last.page_no + (last.stop - last.start) * self._geometry.block_units
            if fault.page_no == behind and fault.what == "data":
                self._fault = last._replace(stop=fault.stop)
                return
        self._settle(node)
        self._fault = fault

    def _settle(self, node: Node) -> None:
        """Note the last fault of a node, as nothing continues it."""
        fault, self._fault = self._fault, None
        if fault is None:
            return
        self._notes.add(
            fault.severity,
            node.name,
            fault.what,
            fault.cause,
            page_no=fault.page_no,
            byte_range=(fault.start * self._geometry.block_size, fault.stop * self._geometry.block_size),
            affected=((hit.name, offset, end) for hit, offset, end in affected(node, fault.start, fault.stop)),
        )

    def _is_turn_over(self) -> bool:
        return time.monotonic() >= self._turn_ends

    def _let_writers_in(self) -> None:
        # It has begun, and waits for whoever takes the lock as long as that takes, rather than lose what it has found.
        before = self._container.superblock
        self._container.let_writers_in(inf)
        if self._container.superblock != before:
            self._leaves = Ownership()  # what was a table may be another by now
        self._turn_ends = time.monotonic() + _TURN_SECONDS

    def _report(self, *, is_done: bool = False) -> None:
        total = max(0, self._container.used_bytes - SUPERBLOCK_AREA)
        self._progress(total if is_done else min(total, self._notes.bytes_verified), total)


def _parents_first(container: Container) -> Iterator[int]:
    """The numbers of all nodes, parents before children; those that hang from nothing, in hostile files, at the end."""
    met: set[int] = set()
    for root in (0, *container.node_ids):
        pending = [root]
        while pending:
            node_id = pending.pop()
            if node_id in met:
                continue
            met.add(node_id)
            if node_id:
                yield node_id
            pending += container.child_ids(node_id)


def _pages(stretch: Stretch) -> Iterator[Pointer]:
    """The pages that a last-level table points to."""
    if stretch.leaf is not None:
        words, fanout = stretch.leaf.words, len(stretch.leaf.words) // 2
        for start, stop, kind in stretch.runs():
            if kind == PAGE:
                for i in range(start % fanout, start % fanout + stop - start):
                    yield Pointer(words[2 * i], words[2 * i + 1])
