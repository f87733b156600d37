"""CRC32C (Castagnoli), the one checksum of the format."""

from __future__ import annotations

from crc32c import crc32c

__all__ = ["checksums", "checksums_of", "crc32c", "pure_checksums", "pure_checksums_of"]


def pure_checksums(data: bytes | bytearray | memoryview, size: int, /) -> list[int]:
    """CRC32C of each piece of `size` bytes of `data`, in order; what is left at the end counts as one.

    Raises:
        ValueError: `size` is less than 1.
        BufferError: `data` does not lie in memory in one piece.
    """
    if size < 1:
        raise ValueError("size must be at least 1")
    view = memoryview(data)
    if not view.c_contiguous:
        raise BufferError("the buffer is not contiguous")
    view = view.cast("B")
    return [crc32c(view[at : at + size]) for at in range(0, len(view), size)]


def pure_checksums_of(buffers: list[bytes | bytearray | memoryview], size: int, /) -> list[int]:
    """As `checksums`, of some buffers one after the other."""
    if size < 1:
        raise ValueError("size must be at least 1")
    found: list[int] = []
    for data in buffers:
        found += pure_checksums(data, size)
    return found


try:
    from snapctl._native import checksums, checksums_of
except ImportError:
    checksums, checksums_of = pure_checksums, pure_checksums_of
