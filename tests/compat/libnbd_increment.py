"""Brings a backup up to date by libnbd, reading only what a context says is dirty; run by Debian's Python.

Arguments: the connection string of an export; the context's name; the backup, which is changed in place. Prints how
many bytes it has read.
"""

from __future__ import annotations

import sys

import nbd  # type: ignore[import-not-found]  # Debian's, which no other Python has

STEP_BYTES = 1 << 20


def main(uri: str, context: str, path: str) -> None:
    """Ask for the context from begin to end, and copy the dirty extents."""
    link = nbd.NBD()
    link.set_uri_allow_local_file(True)
    link.add_meta_context(context)
    link.connect_uri(uri)
    assert link.can_meta_context(context)
    dirty: list[tuple[int, int]] = []
    asked = 0

    def take(_context: str, begin: int, entries: list[int], _error: object) -> int:
        nonlocal asked
        for size, flags in zip(entries[::2], entries[1::2], strict=True):
            if flags & 1:
                dirty.append((begin, size))
            begin += size
        asked = begin
        return 0

    while asked < link.get_size():
        link.block_status(link.get_size() - asked, asked, take)
    with open(path, "r+b") as backup:
        for begin, size in dirty:
            for offset in range(begin, begin + size, STEP_BYTES):
                backup.seek(offset)
                backup.write(link.pread(min(STEP_BYTES, begin + size - offset), offset))
    print(sum(size for _, size in dirty))
    link.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
