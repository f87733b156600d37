"""Files of known content and with holes at known places."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path


def noise(length: int, seed: int = 1) -> bytes:
    """Bytes that are nowhere zeros for long, the same for the same seed."""
    return random.Random(seed).randbytes(length)


def sparse_file(path: Path, size: int, extents: Iterable[tuple[int, bytes]]) -> bytes:
    """Make a file that holds data at some offsets and is a hole elsewhere; returns all its bytes."""
    content = bytearray(size)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in extents:
            os.pwrite(file.fileno(), data, offset)
            content[offset : offset + len(data)] = data
    return bytes(content)


def allocated_bytes(path: Path) -> int:
    """What a file takes on disk."""
    return path.stat().st_blocks * 512
