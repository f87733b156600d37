"""The file that holds a container: complete reads and writes, and the system's errors as ours."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapctl.errors import IoFailure, NameTaken, NoSpace, NotAContainer, SnapctlError
from snapctl.storage.backend import Backend, FileBackend, NotCached
from tests.support.backends import (
    FailingBackend,
    MemoryBackend,
    RecordingBackend,
    Stopped,
    StoppingBackend,
)
from tests.support.page_cache import ColdCache

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks for what Linux alone has")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lab.snap"


@pytest.fixture
def file(path: Path) -> Iterator[FileBackend]:
    backend = FileBackend.create(str(path))
    yield backend
    backend.close()


def read(backend: Backend, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    got = backend.read_into(offset, buffer)
    return bytes(buffer[:got])


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to make any file larger, as a full one would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_written_is_read_again_wherever_it_lies(file: FileBackend):
    file.write(1000, [b"abc", bytearray(b"def"), memoryview(b"xghi")[1:]])
    assert file.size() == 1009
    assert read(file, 1000, 9) == b"abcdefghi"
    assert read(file, 998, 4) == b"\0\0ab"
    assert read(file, 1003, 3) == b"def"


def test_a_read_beyond_the_end_is_short_and_says_by_how_much(file: FileBackend):
    file.write(0, [b"abcdef"])
    assert read(file, 4, 100) == b"ef"
    assert read(file, 6, 1) == b""
    assert read(file, 1 << 40, 5) == b""
    assert file.read_into(0, bytearray()) == 0


def test_more_buffers_than_one_call_takes_are_all_written_in_order(file: FileBackend):
    buffers = [b"%05d" % i for i in range(2500)]
    file.write(7, buffers)
    assert read(file, 7, 5 * 2500) == b"".join(buffers)


def test_writing_nothing_changes_nothing(file: FileBackend):
    file.write(5000, [])
    file.write(5000, [b"", b""])
    assert file.size() == 0


def test_extend_makes_a_file_longer_and_never_shorter(file: FileBackend):
    file.write(0, [b"abc"])
    file.extend(4096)
    assert file.size() == 4096
    file.extend(10)
    assert file.size() == 4096
    assert read(file, 0, 5) == b"abc\0\0"


def test_punch_keeps_the_size_and_all_around(file: FileBackend):
    file.write(0, [b"a" * 65536, b"b" * 65536, b"c" * 65536])
    file.punch(65536, 65536)
    assert file.size() == 3 * 65536
    assert read(file, 0, 65536) == b"a" * 65536
    assert read(file, 131072, 65536) == b"c" * 65536


def test_sync_returns_when_all_is_well(file: FileBackend):
    file.write(0, [b"x"])
    file.sync()
    file.sync_directory()


def test_what_the_disk_has_begun_with_can_be_read_and_written_on(file: FileBackend):
    file.write(0, [b"a" * 65536])
    file.start_writing_out()
    file.write(32768, [b"b" * 65536])
    file.start_writing_out()
    assert read(file, 0, 98304) == b"a" * 32768 + b"b" * 65536


def test_create_refuses_a_name_that_is_taken_and_leaves_it(path: Path):
    path.write_bytes(b"precious")
    with pytest.raises(NameTaken, match="exists already"):
        FileBackend.create(str(path))
    assert path.read_bytes() == b"precious"


def test_create_does_not_follow_a_dangling_link(path: Path):
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(NameTaken):
        FileBackend.create(str(path))
    assert not path.exists()


def test_create_in_a_missing_directory_says_so(path: Path):
    with pytest.raises(IoFailure, match=r"cannot create .*No such file"):
        FileBackend.create(str(path / "deeper"))


def test_remove_takes_the_name_away(file: FileBackend, path: Path):
    file.remove()
    assert not path.exists()


def test_open_refuses_what_is_no_regular_file(path: Path):
    fifo = path.with_name("fifo")
    os.mkfifo(fifo)
    for writable in (False, True):
        with pytest.raises(NotAContainer, match="is a directory"):
            FileBackend.open(str(path.parent), writable=writable)
        for other in (str(fifo), os.devnull):
            with pytest.raises(SnapctlError, match=r"is a device, socket or pipe|cannot open") as caught:
                FileBackend.open(other, writable=writable)
            assert isinstance(caught.value, NotAContainer), other


def test_open_of_a_missing_file_says_so(path: Path):
    for writable, purpose in ((False, "reading"), (True, "writing")):
        with pytest.raises(IoFailure, match=rf"cannot open .* for {purpose}: No such file"):
            FileBackend.open(str(path), writable=writable)
    assert not path.exists()


def test_a_file_opened_for_reading_cannot_be_written(path: Path):
    path.write_bytes(b"abc")
    backend = FileBackend.open(str(path), writable=False)
    with pytest.raises(IoFailure, match="cannot write"):
        backend.write(0, [b"x"])
    with pytest.raises(IoFailure, match="cannot extend"):
        backend.extend(10)
    backend.close()
    assert path.read_bytes() == b"abc"


def test_a_closed_file_refuses_everything_and_may_be_closed_again(file: FileBackend):
    file.close()
    file.close()
    for use in (file.size, file.sync, lambda: file.write(0, [b"x"]), lambda: file.read_into(0, bytearray(1))):
        with pytest.raises(IoFailure, match="Bad file descriptor"):
            use()


def test_a_lack_of_room_is_no_space_and_not_a_failure(file: FileBackend):
    file.write(0, [b"a" * 4096])
    with largest_file(8192):
        with pytest.raises(NoSpace, match="free some space"):
            file.write(8192, [b"x"])
        with pytest.raises(NoSpace, match="cannot extend"):
            file.extend(8193)
        file.write(4096, [b"b" * 4096])
    assert read(file, 4095, 2) == b"ab"


def test_a_write_for_which_there_is_room_in_part_is_no_space(file: FileBackend):
    with largest_file(6000), pytest.raises(NoSpace):
        file.write(0, [b"a" * 4096, b"b" * 4096])
    assert file.size() <= 6000
    file.write(0, [b"c" * 8192])
    assert read(file, 0, 9000) == b"c" * 8192


def test_pages_go_each_to_its_place_whatever_buffers_they_come_in(file: FileBackend):
    file.write_each([8, 12, 0, 4096 * 50], [b"aaaa", memoryview(b"bbbbcccc"), bytearray(b"dddd")], 4)
    assert read(file, 0, 16) == b"cccc\0\0\0\0aaaabbbb"
    assert read(file, 4096 * 50, 9) == b"dddd"


def test_pages_for_which_there_is_room_in_part_are_no_space(file: FileBackend):
    with largest_file(6000), pytest.raises(NoSpace, match="free some space"):
        file.write_each([0, 4096], [b"a" * 4096, b"b" * 4096], 4096)
    file.write_each([0, 4096], [b"c" * 8192], 4096)
    assert read(file, 0, 9000) == b"c" * 8192


def test_room_counts_what_the_file_holds_though_the_system_keeps_it_in_less(file: FileBackend):
    free = file.room(0)
    file.extend(1 << 30)
    assert file.room(1 << 30) - free > 1 << 29


@linux
def test_no_descriptor_is_left_behind_by_a_refusal(path: Path):
    fifo = path.with_name("fifo")
    os.mkfifo(fifo)
    before = len(os.listdir("/proc/self/fd"))
    for name in (str(fifo), os.devnull, str(path)):
        with pytest.raises(SnapctlError):
            FileBackend.open(name, writable=True)
    assert len(os.listdir("/proc/self/fd")) == before


@linux
def test_a_read_from_the_cache_alone_says_what_is_missing_until_it_was_fetched(file: FileBackend, path: Path):
    file.write(0, [b"a" * 65536, b"b" * 65536])
    with ColdCache(str(path)) as cache:
        file.warm(0, 32768)
        file.cached_only = True
        assert read(file, 100, 1000) == b"a" * 1000
        buffer = bytearray(65536)
        for offset, missing in ((40000, (40000, 65536)), (16384, (32768, 49152)), (65536, (65536, 65536))):
            with pytest.raises(NotCached) as caught:
                file.read_into(offset, buffer)
            assert (caught.value.offset, caught.value.length) == missing
        file.warm(32768, 98304)
        assert read(file, 16384, 65536) == b"a" * 49152 + b"b" * 16384
        cache.held.clear()
        file.cached_only = False
        assert read(file, 65000, 1000) == b"a" * 536 + b"b" * 464


@linux
def test_what_the_system_has_dropped_from_its_cache_is_read_again_once_it_was_fetched(file: FileBackend):
    """With the system's own cache, which may keep what it was told to drop."""
    data = os.urandom(1 << 20)
    file.write(0, [data])
    file.sync()
    os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    file.cached_only = True
    for offset in range(0, len(data), 65536):
        try:
            found = read(file, offset, 65536)
        except NotCached as missing:
            file.warm(missing.offset, missing.length)
            file.cached_only = False
            found = read(file, offset, 65536)
            file.cached_only = True
        assert found == data[offset : offset + 65536]


def test_a_read_from_the_cache_alone_ends_where_the_file_does(file: FileBackend):
    file.write(0, [b"abcdef"])
    file.warm(0, 1 << 22)
    file.cached_only = True
    assert read(file, 4, 100) == b"ef"
    assert read(file, 6, 1) == b""


@linux
def test_where_the_system_cannot_tell_what_is_cached_reads_wait_as_ever():
    """A file of the system's own, which knows no reads that do not wait."""
    file = FileBackend.open("/proc/self/cmdline", writable=False)
    with pytest.raises(OSError, match="not supported"):
        os.preadv(file.fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    file.cached_only = True
    assert read(file, 0, 1 << 16) == Path("/proc/self/cmdline").read_bytes()
    file.close()


def test_a_failure_to_read_is_one_also_from_the_cache_alone(file: FileBackend):
    file.cached_only = True
    file.close()
    for use in (lambda: file.read_into(0, bytearray(1)), lambda: file.warm(0, 1)):
        with pytest.raises(IoFailure, match="Bad file descriptor"):
            use()


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.lists(st.binary(max_size=40), max_size=4)), max_size=8),
    st.lists(st.tuples(st.integers(0, 600), st.binary(min_size=7, max_size=7)), max_size=8),
)
def test_a_file_in_memory_is_like_a_file(writes: list[tuple[int, list[bytes]]], pages: list[tuple[int, bytes]]):
    """What the tests swap in does the same as what users run."""
    fd = os.memfd_create("backend")
    on_disk, in_memory = FileBackend("memfd", fd), MemoryBackend()
    backends: list[Backend] = [on_disk, in_memory]
    for backend in backends:
        for offset, buffers in writes:
            if any(buffers):
                backend.write(offset, buffers)
        backend.write_each([7 * number for number, _ in pages], [page for _, page in pages], 7)
        backend.extend(100)
    assert on_disk.size() == in_memory.size()
    assert read(on_disk, 0, 5000) == read(in_memory, 0, 5000)
    on_disk.close()


# The stand-ins themselves


def test_a_stopping_file_keeps_what_was_written_before_and_a_part_of_what_it_stopped_at():
    backend = StoppingBackend(b"", stop_at=3, keep=lambda length: length // 2)
    backend.write(0, [b"aa", b"bb"])
    backend.sync()
    backend.write(2, [b"cc"])
    with pytest.raises(Stopped):
        backend.write(4, [b"dd", b"ee"])
    assert backend.stopped_in == "write"
    assert backend.data == b"aaccdd"
    assert backend.durable == b"aabb"


def test_a_stop_is_nothing_that_a_program_could_catch_by_mistake():
    assert not issubclass(Stopped, Exception)


def test_a_failing_file_fails_where_it_is_told_to_and_then_goes_on():
    backend = FailingBackend(fail_at=range(1, 3), error=NoSpace, methods=("write",))
    backend.write(0, [b"a"])
    backend.sync()
    for _ in range(2):
        with pytest.raises(NoSpace):
            backend.write(1, [b"b"])
    backend.write(1, [b"c"])
    assert backend.data == b"ac"


def test_a_recording_file_counts_calls_and_bytes():
    backend = RecordingBackend()
    backend.write(0, [b"abc", b"de"])
    read(backend, 1, 10)
    backend.extend(3)
    backend.extend(9)
    backend.sync()
    assert backend.calls == {"write": 1, "read_into": 1, "extend": 1, "sync": 1}
    assert backend.log == [("write", 0, 5), ("extend", 9, 0), ("sync", 0, 0)]
    assert (backend.written_bytes, backend.read_bytes) == (5, 4)
    backend.forget()
    assert not backend.calls
    assert not backend.log
