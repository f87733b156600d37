"""CRC32C (Castagnoli), the one checksum of the format."""

from __future__ import annotations

from crc32c import crc32c

__all__ = ["crc32c"]
