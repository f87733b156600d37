"""The compiled core (`snapctl/_native.c`), if it was built; what it does is done in Python else, at more cost."""

from __future__ import annotations

__all__ = ["IS_COMPILED", "native"]

try:
    from snapctl import _native as native
except ImportError:
    native = None  # type: ignore[assignment]

IS_COMPILED: bool = native is not None
