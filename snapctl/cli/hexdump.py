"""A hex dump: 16 bytes a line with their characters, repeated lines folded into ``*``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

LINE_BYTES = 16
_SHORTEST_OFFSET = 8
_CHARACTERS = bytes(c if 0x20 <= c < 0x7F else ord(".") for c in range(256))


def hexdump(chunks: Iterable[memoryview], offset_bytes: int, end_bytes: int) -> Iterator[str]:
    """Dump consecutive pieces of data.

    Args:
        chunks: the data; every piece but the last is a multiple of 16 bytes long. Each is done with before the next
            is asked for.
        offset_bytes: where the first piece begins, for the left column.
        end_bytes: where the last one ends, which decides how wide that column is.

    Yields:
        Lines without their ends: the last is the end's offset alone, unless there was no data at all.
    """
    digits = max(_SHORTEST_OFFSET, len(f"{end_bytes:x}"))
    previous, folding = b"", False
    position = offset_bytes
    for chunk in chunks:
        if folding and chunk == previous * (len(chunk) // LINE_BYTES):
            position += len(chunk)
            continue
        for start in range(0, len(chunk), LINE_BYTES):
            line = bytes(chunk[start : start + LINE_BYTES])
            if line != previous:
                folding = False
                yield f"{position:0{digits}x}  {_line(line)}"
            elif not folding:
                folding = True
                yield "*"
            previous = line
            position += len(line)
    if position > offset_bytes:
        yield f"{position:0{digits}x}"


def _line(line: bytes) -> str:
    left, right = line[: LINE_BYTES // 2].hex(" "), line[LINE_BYTES // 2 :].hex(" ")
    return f"{left:<23}  {right:<23}  |{line.translate(_CHARACTERS).decode('ascii')}|"
