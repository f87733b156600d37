from __future__ import annotations

from collections.abc import Iterator

from snapctl.cli.hexdump import hexdump


def dump(data: bytes, *, offset: int = 0, chunk: int = 64) -> list[str]:
    def chunks() -> Iterator[memoryview]:
        buffer = bytearray(chunk)
        for start in range(0, len(data), chunk):
            piece = data[start : start + chunk]
            buffer[: len(piece)] = piece
            yield memoryview(buffer)[: len(piece)]

    return list(hexdump(chunks(), offset, offset + len(data)))


def test_line_shows_offset_bytes_and_characters():
    assert dump(b"Hello, world!\n\x00\xff") == [
        "00000000  48 65 6c 6c 6f 2c 20 77  6f 72 6c 64 21 0a 00 ff  |Hello, world!...|",
        "00000010",
    ]


def test_short_last_line_keeps_its_columns():
    assert dump(b"abc") == [
        "00000000  61 62 63                                          |abc|",
        "00000003",
    ]


def test_repeated_lines_fold_into_a_star():
    lines = dump(bytes(160) + b"x" * 16)
    assert [line[:8] for line in lines] == ["00000000", "*", "000000a0", "000000b0"]


def test_two_equal_lines_fold_too():
    assert [line[:8] for line in dump(b"a" * 32)] == ["00000000", "*", "00000020"]


def test_short_line_ends_a_fold():
    assert [line[:8] for line in dump(bytes(51))] == ["00000000", "*", "00000030", "00000033"]


def test_pieces_do_not_show():
    data = b"begin".ljust(64, b"\0") + bytes(640) + b"end".ljust(64, b"\0") + bytes(77)
    assert dump(data, chunk=16) == dump(data, chunk=64) == dump(data, chunk=1024)


def test_offset_starts_the_left_column():
    assert dump(b"ab", offset=0x1234)[0].startswith("00001234  61 62 ")


def test_left_column_is_as_wide_as_the_end_needs():
    assert dump(b"a" * 16, offset=0xFFFFFFF8)[0].startswith("0fffffff8  61")


def test_nothing_is_dumped_of_nothing():
    assert dump(b"") == []
