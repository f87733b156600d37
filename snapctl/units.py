"""Sizes and ages as people write them: powers of 1024, one letter, one decimal."""

from __future__ import annotations

import re

from snapctl.errors import BadSize

_SIZE = re.compile(r"(\d+)(?:\.(\d+))?\s*(?:([KMGTPE])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII)
_UNITS = "KMGTPE"
_LONGEST = 40


def parse_size(text: str) -> int:
    """Parse a size such as ``512``, ``4K``, ``16KiB``, ``1.5G`` or ``2T``.

    Returns:
        The size in bytes, 0 or more.

    Raises:
        BadSize: not a size, negative, or not a whole number of bytes.
    """
    match = _SIZE.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if match is None:
        raise BadSize(f"{text[:_LONGEST]!r} is not a size; write 512, 4K, 16KiB, 1.5G or 2T")
    whole, fraction, unit = match[1], match[2] or "", match[3]
    scale = 1 << (10 * (_UNITS.index(unit.upper()) + 1)) if unit else 1
    size: int
    size, remainder = divmod(int(whole + fraction) * scale, 10 ** len(fraction))
    if remainder and not unit:
        raise BadSize(f"{text!r} is not a whole number of bytes")
    return size


def format_size(size_bytes: int) -> str:
    """Write a size for people, at most six characters up to 1023T: ``0``, ``512``, ``4K``, ``1.5G``."""
    if size_bytes < 1024:
        return str(size_bytes)
    power = 1
    while size_bytes / 1024**power >= 1023.95 and power < len(_UNITS):
        power += 1
    return f"{size_bytes / 1024**power:.1f}".removesuffix(".0") + _UNITS[power - 1]


def exact_size(size_bytes: int) -> str:
    """Write a size exactly, in the largest unit of which it is a whole number: ``1025``, ``1536M``."""
    power = 0
    while size_bytes and size_bytes % 1024 ** (power + 1) == 0 and power < len(_UNITS):
        power += 1
    return f"{size_bytes // 1024**power}{_UNITS[power - 1] if power else ''}"


def format_age(seconds: float) -> str:
    """Write an age for people in its largest whole unit: ``0s``, ``59s``, ``12m``, ``3h``, ``4d``, ``2y``."""
    whole = max(0, int(seconds))
    for limit, unit, length in ((60, "s", 1), (3600, "m", 60), (86400, "h", 3600), (365 * 86400, "d", 86400)):
        if whole < limit:
            return f"{whole // length}{unit}"
    return f"{whole // (365 * 86400)}y"
