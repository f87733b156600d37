from array import array
from collections.abc import Sequence
from typing import Any

from snapctl.storage.backend import Buffer

def checksums(data: Buffer, size: int, /) -> list[int]: ...
def checksums_of(buffers: list[Buffer], size: int, /) -> list[int]: ...
def plan(
    leaves: dict[int, array[int]],
    bitmaps: dict[int, Any],
    runs: list[tuple[int, Buffer]],
    block_shift: int,
    fanout_shift: int,
    bitmap_shift: int,
    units: int,
    /,
) -> tuple[list[int], list[int], list[Buffer], list[Buffer], list[int]] | None: ...
def enter(
    leaves: dict[int, array[int]],
    runs: list[tuple[int, Buffer]],
    pages: list[int],
    fresh: Sequence[int],
    sums: list[int],
    block_shift: int,
    fanout_shift: int,
    birth: int,
    /,
) -> None: ...
def locate_each(
    leaves: dict[int, array[int]],
    ranges: list[tuple[int, int]],
    block_shift: int,
    fanout_shift: int,
    units: int,
    unit: int,
    first_page: int,
    end_page: int,
    /,
) -> tuple[list[tuple[int, int] | None], list[int]]: ...
def read_each(fd: int, places: list[tuple[int, int]], flags: int, /) -> list[Buffer] | None: ...
def write_each(fd: int, offsets: list[int], buffers: list[Buffer], size: int, portion: int, /) -> None: ...
def clear_each(
    current: bytearray, committed: bytes, previous: bytes, free: bytearray | None, bits: list[int], /
) -> tuple[int, int] | None: ...
def take_runs(free: bytearray, current: bytearray, units: int, count: int, /) -> list[int] | None: ...
def find_run(free: bytearray, stop: int, least: int, /) -> tuple[int, int] | None: ...
def runs_of(
    writes: list[tuple[int, memoryview]], block_shift: int, fanout_shift: int, size_bytes: int, /
) -> tuple[list[tuple[int, Buffer]], set[int], int] | None: ...
def plain_requests(
    data: bytes | bytearray,
    position: int,
    end: int,
    header_bytes: int,
    plain_read: int,
    plain_write: int,
    end_bytes: int,
    most_bytes: int,
    most_read_bytes: int,
    most: int,
    /,
) -> tuple[int, list[int], list[tuple[int, int]], list[int], list[tuple[int, memoryview]]]: ...
