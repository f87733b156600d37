"""Pages are read only where pages may stand, however right the checksum."""

from __future__ import annotations

import pytest

from snapctl.errors import Corruption, IoFailure, NoSpace, Poisoned
from snapctl.format.checksum import crc32c
from snapctl.format.geometry import Geometry
from snapctl.format.pointer import page_pointer
from snapctl.storage.pages import PageFile
from tests.support.backends import FailingBackend, MemoryBackend

GEOMETRY = Geometry(512, 512)
FIRST = GEOMETRY.first_page
END = FIRST + 10
PAGE = b"\x5a" * 512


@pytest.fixture
def pages() -> PageFile:
    """A file full of pages, which goes on behind the end of the container."""
    return PageFile(MemoryBackend(PAGE * (END + 10)), GEOMETRY, END, None)


@pytest.mark.parametrize("page_no", [FIRST, END - 1])
def test_the_first_and_the_last_page_can_be_read(pages: PageFile, page_no: int):
    pointer = page_pointer(page_no, crc32c(PAGE), 1)
    assert pages.read(*pointer, len(PAGE), "table") == PAGE


@pytest.mark.parametrize("page_no", [0, FIRST - 1, END, END + 5])
def test_what_lies_outside_the_container_is_no_page_even_if_its_checksum_is_right(pages: PageFile, page_no: int):
    pointer = page_pointer(page_no, crc32c(PAGE), 1)
    with pytest.raises(Corruption, match="outside the container"):
        pages.read(*pointer, len(PAGE), "table")


def test_a_page_that_reaches_over_the_end_is_no_page_even_if_its_checksum_is_right(pages: PageFile):
    pointer = page_pointer(END - 1, crc32c(PAGE * 2), 1)
    with pytest.raises(Corruption, match="outside the container"):
        pages.read(*pointer, 2 * len(PAGE), "data")


@pytest.mark.parametrize("page_no", [0, FIRST - 1])
def test_nothing_is_written_over_the_superblocks(pages: PageFile, page_no: int):
    with pytest.raises(Corruption, match="superblock area"):
        pages.write_pages([page_no], [PAGE], len(PAGE))


@pytest.mark.parametrize("error", [NoSpace, IoFailure])
def test_what_cannot_be_written_again_poisons_and_the_first_failure_is_the_one_that_is_told(
    error: type[NoSpace | IoFailure],
):
    backend = FailingBackend(PAGE * END, error=error, methods=("write",), fail_at=range(5))
    pages = PageFile(backend, GEOMETRY, END, None)
    with pytest.raises(IoFailure, match="refused"):
        pages.write_again([FIRST], [PAGE], len(PAGE))
    for _ in range(2):
        with pytest.raises(Poisoned) as caught:
            pages.write_again([FIRST], [PAGE], len(PAGE))
        assert str(caught.value).count("earlier failure") == 1
