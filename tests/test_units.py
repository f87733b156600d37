"""Sizes and ages as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapctl.errors import BadSize
from snapctl.units import exact_size, format_age, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("4K", 4096),
        ("4k", 4096),
        ("4KB", 4096),
        ("4KiB", 4096),
        ("4kib", 4096),
        ("16 KiB", 16384),
        ("  2T ", 2 << 40),
        ("1.5G", 3 << 29),
        ("0.5K", 512),
        ("3P", 3 << 50),
        ("1E", 1 << 60),
        ("1.0", 1),
        ("0.001K", 1),
        ("007", 7),
    ],
)
def test_sizes_are_parsed_in_powers_of_1024(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "K",
        "-1",
        "+1",
        "-4K",
        "1.5",
        ".5K",
        "1.K",
        "1,5G",
        "1e3",
        "0x10",
        "4Ki",
        "4X",
        "4 K B",
        "4KK",
        "4KiBB",
        "nan",
        "inf",
        "\N{ARABIC-INDIC DIGIT FOUR}K",
        "\N{SUPERSCRIPT TWO}",
        "4\u212a",  # the Kelvin sign, which is a K to careless case folding
        "4\x00K",
        "9" * 41,
    ],
)
def test_what_is_no_size_is_refused_in_one_line(text: str):
    with pytest.raises(BadSize) as caught:
        parse_size(text)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@given(st.text(max_size=60))
def test_any_text_is_a_size_or_refused(text: str):
    try:
        assert parse_size(text) >= 0
    except BadSize:
        pass


@given(st.integers(0, 1 << 62))
def test_plain_numbers_are_themselves(size: int):
    assert parse_size(str(size)) == size


@given(st.integers(0, 999), st.sampled_from("KMGTPE"), st.sampled_from(["", "B", "iB"]))
def test_a_unit_is_a_power_of_1024_however_it_is_written(count: int, unit: str, suffix: str):
    assert parse_size(f"{count}{unit}{suffix}") == count << 10 * ("KMGTPE".index(unit) + 1)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (512, "512"),
        (1023, "1023"),
        (1024, "1K"),
        (1536, "1.5K"),
        (4096, "4K"),
        (1 << 20, "1M"),
        ((1 << 20) - 1, "1M"),
        (3 << 29, "1.5G"),
        (4 << 40, "4T"),
        (1023 << 40, "1023T"),
        (1 << 60, "1E"),
        (1 << 70, "1024E"),
    ],
)
def test_sizes_are_written_short(size: int, text: str):
    assert format_size(size) == text


@given(st.integers(0, 1023 << 40))
def test_a_written_size_is_short_and_close_to_what_it_says(size: int):
    text = format_size(size)
    assert len(text) <= 7
    assert abs(parse_size(text) - size) <= size / 20


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (3600, "1h"),
        (86399, "23h"),
        (86400, "1d"),
        (364 * 86400, "364d"),
        (365 * 86400, "1y"),
        (1000 * 86400, "2y"),
    ],
)
def test_ages_are_written_in_their_largest_whole_unit(seconds: float, text: str):
    assert format_age(seconds) == text


@given(st.integers(0, 1 << 70))
def test_an_exact_size_is_the_same_number_again(size: int):
    assert parse_size(exact_size(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (1, "1"), (1025, "1025"), (1 << 10, "1K"), (1088 << 10, "1088K"), (3 << 29, "1536M"), (2 << 40, "2T")],
)
def test_an_exact_size_takes_the_largest_unit_that_fits(size: int, text: str):
    assert exact_size(size) == text
