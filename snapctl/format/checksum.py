"""CRC32C (Castagnoli), the one checksum of the format."""

from __future__ import annotations

from crc32c import crc32c

__all__ = ["checksums", "crc32c"]


def checksums(data: bytes | bytearray | memoryview, size: int) -> list[int]:
    """CRC32C of each piece of `size` bytes of `data`, in order; what is left at the end counts as one."""
    view = memoryview(data)
    return [crc32c(view[at : at + size]) for at in range(0, len(view), size)]
