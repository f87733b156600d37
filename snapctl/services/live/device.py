"""A node as a block device: what a server exports and a mount shows as a file.

Writes go to the overlay of the open generation, whole blocks at a time; reads look there first, then at what older
overlays have (`Cache.overlays`), newest first, then in the node's tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from snapctl.engine import changes
from snapctl.engine.model import Extent, Kind
from snapctl.engine.runs import runs_of
from snapctl.services.live.overlay import Content, Overlay, Stretch
from snapctl.storage.backend import Buffer, NotCached

if TYPE_CHECKING:
    from snapctl.engine.node import Node
    from snapctl.engine.runs import Run, Runs
    from snapctl.services.live.cache import Cache


_WRITE_THROUGH_BYTES, _WRITE_THROUGH_BLOCKS = 64 << 10, 16
"""Writes of whole blocks, of so many bytes or blocks, need not wait in memory for neighbours: they have enough."""


class Device:
    """A volume or a snapshot of a live container.

    Attributes:
        node: the node, which may be deleted or resized meanwhile.
        block_size: bytes of a block; requests of whole blocks cost the least.
    """

    def __init__(self, cache: Cache, node: Node) -> None:
        """Not for callers; ask the live container."""
        self._cache = cache
        self.node = node
        self.block_size = node.container.block_size
        self._fanout = node.container.geometry.fanout
        self._write_through_bytes = min(_WRITE_THROUGH_BYTES, _WRITE_THROUGH_BLOCKS * self.block_size)

    @property
    def name(self) -> str:
        """Its full name: ``db`` or ``db@mon``."""
        return self.node.name

    @property
    def size_bytes(self) -> int:
        """Its size now; a client keeps the size that it was told."""
        return self.node.size_bytes

    @property
    def is_read_only(self) -> bool:
        """Whether it takes no writes: an RO snapshot, or a container opened for reading."""
        return self.node.kind is Kind.RO or not self.node.container.writable

    def read(self, offset: int, length: int) -> Buffer:
        """Read a range, acknowledged writes included; raises as `Node.read`. What comes back must not be changed."""
        overlays = self._cache.overlays(self.node)
        if overlays:
            block_no, at = divmod(offset, self.block_size)
            if at == 0 and length == self.block_size and offset + length <= self.node.size_bytes:
                for overlay in overlays:
                    if overlay.content(block_no) is not Content.BELOW:
                        return overlay.get(block_no) or bytes(length)
            elif any(overlay.touches(block_no, -(-(offset + length) // self.block_size)) for overlay in overlays):
                buffer = bytearray(length)
                self.read_into(offset, buffer)
                return buffer
        return self.node.read(offset, length)

    def read_each(self, ranges: list[tuple[int, int]]) -> list[Buffer | NotCached | None]:
        """As `Node.read_each`, acknowledged writes included."""
        size, overlays = self.block_size, self._cache.overlays(self.node)
        if not any(overlays):
            return self.node.read_each(ranges)
        spans = [(offset // size, -(-(offset + length) // size)) for offset, length in ranges]
        is_below = [not any(overlay.touches(*span) for overlay in overlays) for span in spans]
        below = iter(self.node.read_each([each for each, is_it in zip(ranges, is_below, strict=True) if is_it]))
        return [next(below) if is_it else None for is_it in is_below]

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` from `offset` in bytes, acknowledged writes included; raises as `Node.read`."""
        overlays = self._cache.overlays(self.node)
        if not overlays:
            self.node.read_into(offset, buffer)
            return
        self.node.check_range(offset, len(buffer))
        self._fill(overlays, offset, memoryview(buffer))

    def write(self, offset: int, data: Buffer) -> bool:
        """Take bytes at any offset; they are read at once, and durable after the next flush.

        `data` must not change afterwards.

        Returns:
            False if the cache has no room just now and nothing was taken: await `LiveContainer.until_room`, try again.

        Raises:
            NoSpace: the container has no room for them; nothing was taken.
            SnapctlError: else as `Node.write`.
        """
        size, fanout = self.block_size, self._fanout
        length = len(data)
        first, at = divmod(offset, size)
        count, rest = divmod(length, size)
        if not (at or rest) and first % fanout + count <= fanout and length < self._write_through_bytes:
            overlay, number = self._cache.open_overlay(self.node), first // fanout
            is_inside = offset + length <= self.node.size_bytes
            if overlay is not None and number in overlay.promised and is_inside and count <= overlay.credit_blocks:
                # All else was checked when room was promised.
                overlay.credit_blocks -= count
                leaf = overlay.leaves.setdefault(number, {})
                if count == 1:
                    leaf[first] = data
                else:
                    view = memoryview(data)
                    for i in range(count):
                        leaf[first + i] = view[i * size : i * size + size]
                return True
        return self._write(offset, memoryview(data).cast("B"))

    def write_together(self, writes: list[tuple[int, memoryview]]) -> bool:
        """Take writes that have come together, (offset, data) each, at less cost than one by one.

        Returns:
            False if nothing was taken: they are not whole blocks, touch each other, or had better be taken by `write`,
            which needs data that does not change afterwards.

        Raises:
            SnapctlError: as `Node.write`; nothing was taken.
        """
        geometry = self.node.container.geometry
        runs = runs_of(writes, geometry.block_shift, geometry.fanout_shift, self.node.size_bytes)
        return runs is not None and self._cache.write_through(self.node, *runs)

    def zero(self, offset: int, length: int) -> bool:
        """Make a range read as zeros and give up the data of its whole blocks; returns and raises as `write`."""
        self._check_writable(offset, length)
        if not length:
            return True
        size, end = self.block_size, offset + length
        start, stop = -(-offset // size), end // size
        if end == self.size_bytes:
            stop = -(-end // size)
        if start >= stop:
            return self.write(offset, bytes(length))
        first, last = offset // size, -(-end // size)
        head = self._patched(first, offset, memoryview(bytes(start * size - offset))) if first < start else None
        tail = self._patched(stop, stop * size, memoryview(bytes(end - stop * size))) if stop < last else None
        overlay = self._cache.admit(self.node, first, last, last - first - (stop - start))
        if overlay is None:
            return False
        overlay.zero(start, stop)
        if head is not None:
            overlay.put(first, head)
        if tail is not None:
            overlay.put(stop, tail)
        return True

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Tell data from zeros, acknowledged writes included, in order and without gaps; raises as `Node.extents`."""
        for begin, end, content in self._runs(offset, length):
            if content is Content.BELOW:
                yield from self.node.extents(begin, end - begin)
            else:
                yield Extent(begin, end - begin, is_zero=content is Content.ZEROS)

    def depths(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Tell how far along the tree data is found, as `engine.changes.depths` does; neighbours may be alike."""
        for begin, end, content in self._runs(offset, length):
            if content is Content.BELOW:
                yield from changes.depths(self.node, begin, end - begin)
            else:
                yield end - begin, int(content is Content.DATA)

    def changes(self, since: Node, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Tell what may have changed since a snapshot, as `engine.changes.changes` does; neighbours may be alike.

        Args:
            since: an older RO snapshot of the same volume; a node and no name, as a name may come to mean another one.
            offset: of the range, in bytes.
            length: of the range, in bytes.

        Raises:
            NodeNotFound: `since` has been deleted, whatever the range; else as `engine.changes.changes`.
        """
        since.check_range(0, 0)
        for begin, end, content in self._runs(offset, length):
            if content is Content.BELOW:
                yield from changes.changes(self.node, since, begin, end - begin)
            else:
                yield end - begin, True

    def _write(self, offset: int, view: memoryview) -> bool:
        """Write any bytes anywhere; as `write`."""
        length = len(view)
        self._check_writable(offset, length)
        if not length:
            return True
        size, end = self.block_size, offset + length
        first, stop = offset // size, -(-end // size)
        is_large = length >= self._write_through_bytes and not (offset % size or end % size)
        if is_large and self._cache.write_through(self.node, *self._runs_of(first, view)):
            return True
        head = self._patched(first, offset, view) if offset % size or length < size else None
        has_tail = bool(end % size) and stop - 1 > first
        tail = self._patched(stop - 1, offset, view) if has_tail else None
        overlay = self._cache.admit(self.node, first, stop, stop - first)
        if overlay is None:
            return False
        if head is not None:
            overlay.put(first, head)
            first += 1
        if tail is not None:
            stop -= 1
            overlay.put(stop, tail)
        for block_no in range(first, stop):
            begin = block_no * size - offset
            overlay.put(block_no, view[begin : begin + size])
        return True

    def _runs_of(self, first: int, data: memoryview) -> Runs:
        """Whole blocks from the block `first` on, a leaf at a time."""
        size, step = self.block_size, self._fanout
        begin = -(first % step) * size
        starts = range(begin, len(data), step * size)
        runs: list[Run] = [(first + max(0, at) // size, data[max(0, at) : at + step * size]) for at in starts]
        return runs, {block_no // step for block_no, _ in runs}, len(data) // size

    def _check_writable(self, offset: int, length: int) -> None:
        self.node.check_writable()
        self.node.check_range(offset, length)

    def _patched(self, block_no: int, offset: int, data: memoryview) -> bytearray:
        """A block that a write touches in part, with those bytes in it; raises as `read_into`."""
        size = self.block_size
        start = block_no * size
        visible = min(size, self.size_bytes - start)
        begin, end = max(start, offset), min(start + size, offset + len(data))
        block = bytearray(size)
        if end - begin < visible:
            self.read_into(start, memoryview(block)[:visible])
        block[begin - start : end - start] = data[begin - offset : end - offset]
        return block

    def _fill(self, overlays: Sequence[Overlay], offset: int, target: memoryview) -> None:
        if not overlays:
            self.node.read_into(offset, target)
            return
        size, end = self.block_size, offset + len(target)
        for start, stop, content in overlays[0].runs(offset // size, -(-end // size)):
            begin, finish = max(offset, start * size), min(end, stop * size)
            part = target[begin - offset : finish - offset]
            if content is Content.BELOW:
                self._fill(overlays[1:], begin, part)
            elif content is Content.ZEROS:
                part[:] = bytes(len(part))
            else:
                block = memoryview(overlays[0].get(start) or b"")
                part[:] = block[begin - start * size : finish - start * size]

    def _runs(self, offset: int, length: int) -> Iterator[Stretch]:
        """What the overlays have of a range, now, as (begin, end, content) in bytes; neighbours are joined."""
        self.node.check_range(offset, length)
        size, end = self.block_size, offset + length
        found = _stacked(self._cache.overlays(self.node), offset // size, -(-end // size)) if length else ()
        begin, last = offset, Content.BELOW
        for start, _, content in found:
            position = max(offset, start * size)
            if content is not last:
                if position > begin:
                    yield begin, position, last
                begin, last = position, content
        if end > begin:
            yield begin, end, last


def _stacked(overlays: Sequence[Overlay], start: int, stop: int) -> Iterator[Stretch]:
    """What the first overlay that has anything has, for each block of a range."""
    if not overlays:
        yield start, stop, Content.BELOW
        return
    for run in overlays[0].runs(start, stop):
        if run[2] is Content.BELOW:
            yield from _stacked(overlays[1:], run[0], run[1])
        else:
            yield run
