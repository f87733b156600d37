"""CRC32C (Castagnoli), the one checksum of the format."""

from __future__ import annotations

from collections.abc import Sequence

from crc32c import crc32c

__all__ = ["checksums", "checksums_of", "crc32c"]


def checksums(data: bytes | bytearray | memoryview, size: int) -> list[int]:
    """CRC32C of each piece of `size` bytes of `data`, in order; what is left at the end counts as one."""
    view = memoryview(data)
    return [crc32c(view[at : at + size]) for at in range(0, len(view), size)]


def checksums_of(buffers: Sequence[bytes | bytearray | memoryview], size: int) -> list[int]:
    """CRC32C of each piece of `size` bytes of each of some buffers, in order."""
    found: list[int] = []
    for data in buffers:
        if len(data) == size:
            found.append(crc32c(data))
        else:
            found += checksums(data, size)
    return found
