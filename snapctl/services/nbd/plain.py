"""Plain requests, most of what is ever asked: reads and writes without flags, inside the export, and whole.

They are taken out of what was received many at a time, at as little cost as possible. All others end the row, and are
left to the general way, which tells what is wrong with them if anything is.
"""

from __future__ import annotations

from typing import NamedTuple

from snapctl.services.nbd import wire

__all__ = ["Plain", "Requests", "plain", "plain_requests", "pure_plain_requests"]

Requests = tuple[int, list[int], list[tuple[int, int]], list[int], list[tuple[int, memoryview]]]
"""The position behind them; the cookies of reads, and their ranges (offset, length); the cookies of writes, and those
(offset, data)."""


class Plain(NamedTuple):
    """What plain requests of a connection look like: the first eight bytes of each kind, and their length.

    Attributes:
        header_bytes: without payload.
        read: magic number, flags and command as one number.
        write: likewise; -1 if none are taken.
    """

    header_bytes: int
    read: int
    write: int


def plain(*, is_extended: bool, takes_writes: bool) -> Plain:
    """Tell what plain requests look like after a handshake."""
    if is_extended:
        read = wire.EXTENDED_REQUEST_MAGIC << 32 | wire.CMD_READ
        write = wire.EXTENDED_REQUEST_MAGIC << 32 | wire.CMD_FLAG_PAYLOAD_LEN << 16 | wire.CMD_WRITE
        return Plain(wire.EXTENDED_REQUEST.size, read, write if takes_writes else -1)
    read, write = wire.REQUEST_MAGIC << 32 | wire.CMD_READ, wire.REQUEST_MAGIC << 32 | wire.CMD_WRITE
    return Plain(wire.REQUEST.size, read, write if takes_writes else -1)


def pure_plain_requests(
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
) -> Requests:
    """Take plain requests out of what was received; a read of what a write before it writes ends the row.

    So it makes no difference whether reads or writes are executed first.

    Args:
        data: what was received; payloads are views of it.
        position: where the first request begins.
        end: where what was received ends.
        header_bytes: this and the next two, see `Plain`.
        plain_read: likewise.
        plain_write: likewise.
        end_bytes: size of the export.
        most_bytes: what may be read in all, but for the last read.
        most_read_bytes: the longest read that is plain.
        most: requests.
    """
    is_extended = header_bytes == wire.EXTENDED_REQUEST.size
    unpack = (wire.EXTENDED_REQUEST_IN_FOUR if is_extended else wire.REQUEST_IN_FOUR).unpack_from
    view = memoryview(data)
    read_cookies: list[int] = []
    ranges: list[tuple[int, int]] = []
    write_cookies: list[int] = []
    writes: list[tuple[int, memoryview]] = []
    for _ in range(most):
        if position > end - header_bytes or most_bytes <= 0:
            break
        kind, cookie, offset, length = unpack(data, position)
        begin = position + header_bytes
        if not length or offset + length > end_bytes:
            break
        if kind == plain_write and begin + length <= end:
            write_cookies.append(cookie)
            position = begin + length
            writes.append((offset, view[begin:position]))
        elif kind == plain_read and length <= most_read_bytes and not _touches(writes, offset, length):
            read_cookies.append(cookie)
            ranges.append((offset, length))
            position = begin
            most_bytes -= length
        else:
            break
    return position, read_cookies, ranges, write_cookies, writes


def _touches(writes: list[tuple[int, memoryview]], offset: int, length: int) -> bool:
    return any(offset < begin + len(data) and begin < offset + length for begin, data in writes)


try:
    from snapctl._native import plain_requests
except ImportError:
    plain_requests = pure_plain_requests
