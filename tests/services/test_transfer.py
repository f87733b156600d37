"""Import and export: what goes in comes out, sparse where it can be, and a failure leaves nothing behind."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.errors import (
    BadSize,
    IoFailure,
    Locked,
    NameTaken,
    NodeNotFound,
    NoSpace,
    SnapctlError,
    UsageError,
)
from snapctl.services import transfer
from snapctl.services.transfer import export_node, import_volume
from tests.support.images import allocated_bytes, noise, sparse_file

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
BLOCK_SIZES = (512, 4096, 65536)


@pytest.fixture
def box(tmp_path: Path) -> Path:
    path = tmp_path / "lab.snap"
    Container.create(str(path)).close()
    return path


def import_file(box: Path, name: str, source: Path | str, cow: Cow = Cow.REDIRECT) -> None:
    with Container.open(str(box), writable=True) as container:
        import_volume(container, name, str(source), cow=cow)


def content_of(box: Path, name: str) -> bytes:
    with Container.open(str(box)) as container:
        node = container.node(name)
        return bytes(node.read(0, node.size_bytes))


def put(box: Path, name: str, content: bytes, *snapshots: str) -> None:
    """Make a volume of some content, with snapshots of it."""
    with Container.open(str(box), writable=True) as container:
        container.create_volume(name, len(content)).write(0, content)
        container.snapshot(*(f"{name}@{snapshot}" for snapshot in snapshots))


def strays(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "lab.snap")


def python(code: str, *arguments: object, **options: object) -> subprocess.Popen[bytes]:
    """Start a process of its own that runs `code`."""
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Let no file of this process grow beyond `limit` bytes; the system answers as it does for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("size", [1, 511, 4096, 4097, 65_535, 4 * MIB - 1, 4 * MIB, 9 * MIB + 12_345])
def test_a_file_of_any_size_comes_out_as_it_went_in(tmp_path: Path, block_size: int, size: int):
    box, source, target = tmp_path / "lab.snap", tmp_path / "in", tmp_path / "out"
    source.write_bytes(noise(size))
    with Container.create(str(box), block_size=block_size) as container:
        node = import_volume(container, "db", str(source))
        assert (node.name, node.size_bytes) == ("db", size)
    assert export_node(str(box), "db", str(target)) >= size
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("cow", list(Cow))
def test_holes_at_odd_places_stay_holes_both_ways(tmp_path: Path, block_size: int, cow: Cow):
    box, source, target = tmp_path / "lab.snap", tmp_path / "in", tmp_path / "out"
    places = [(0, 100), (70_001, 3), (4 * MIB - 5000, 10_000), (13 * MIB + 7, 65_536), (40 * MIB - 1, 1)]
    content = sparse_file(source, 48 * MIB + 333, [(offset, noise(length)) for offset, length in places])
    with Container.create(str(box), block_size=block_size) as container:
        node = import_volume(container, "db", str(source), cow=cow)
        assert node.cow is cow
        assert node.own_bytes <= len(places) * 2 * max(block_size, 4096) + 65_536 + 10_000
    export_node(str(box), "db", str(target))
    assert target.read_bytes() == content
    assert allocated_bytes(target) <= MIB


def test_data_that_lies_far_apart_is_found_at_any_distance(box: Path, tmp_path: Path):
    gib, target = 1 << 30, tmp_path / "out"
    places = [(gib - 2, b"over the edge"), (3 * gib, b"x"), (5 * gib + 4099, b"the end")]
    with Container.open(str(box), writable=True) as container:
        volume = container.create_volume("db", 5 * gib + 4106)
        for offset, data in places:
            volume.write(offset, data)
    assert export_node(str(box), "db", str(target)) == 3 * 4096 + 10
    with target.open("rb") as file:
        for offset, data in places:
            assert os.pread(file.fileno(), len(data), offset) == data
    assert target.stat().st_size == 5 * gib + 4106
    assert allocated_bytes(target) <= 64 << 10


def test_written_zeros_take_no_room_in_the_container(box: Path, tmp_path: Path):
    source = tmp_path / "in"
    source.write_bytes(bytes(8 * MIB) + b"x" + bytes(8 * MIB))
    import_file(box, "db", source)
    with Container.open(str(box)) as container:
        assert container["db"].own_bytes == container.block_size


def test_a_file_that_is_one_hole_becomes_an_empty_volume_of_its_size(box: Path, tmp_path: Path):
    source, target = tmp_path / "in", tmp_path / "out"
    sparse_file(source, 64 * MIB, [])
    import_file(box, "db", source)
    assert export_node(str(box), "db", str(target)) == 0
    assert (target.stat().st_size, allocated_bytes(target)) == (64 * MIB, 0)


@pytest.mark.parametrize("size", [1, 4 * MIB, 9 * MIB + 12_345])
def test_a_pipe_of_unknown_length_gives_a_volume_of_what_came(box: Path, tmp_path: Path, size: int):
    fifo, content = tmp_path / "fifo", noise(size)
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(content,))
    writer.start()
    import_file(box, "db", fifo)
    writer.join()
    assert content_of(box, "db") == content


IMPORT_STANDARD_INPUT = """
import sys
from snapctl.engine.container import Container
from snapctl.services.transfer import import_volume
with Container.open(sys.argv[1], writable=True) as container:
    import_volume(container, "db", "-")
"""

EXPORT_STANDARD_OUTPUT = """
import sys
from snapctl.services.transfer import export_node
try:
    export_node(sys.argv[1], sys.argv[2], "-")
except BrokenPipeError:
    sys.exit(77)
"""


def test_standard_input_is_read_to_its_end(box: Path):
    content = noise(5 * MIB + 1)
    process = python(IMPORT_STANDARD_INPUT, box, stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(content)
    process.stdin.close()
    assert process.wait() == 0
    assert content_of(box, "db") == content


def test_standard_input_from_a_file_is_taken_from_where_it_stands(box: Path, tmp_path: Path):
    content = sparse_file(tmp_path / "in", 5 * MIB, [(0, noise(5000)), (3 * MIB, noise(5000, 2))])
    with (tmp_path / "in").open("rb", buffering=0) as source:
        source.seek(1234)
        assert python(IMPORT_STANDARD_INPUT, box, stdin=source).wait() == 0
    assert content_of(box, "db") == content[1234:]


def test_standard_output_gets_all_bytes_in_order(box: Path, tmp_path: Path):
    content = bytes(MIB) + noise(3 * MIB + 5) + bytes(2 * MIB + 77)
    put(box, "db", content, "mon")
    for name in ("db", "db@mon"):
        with python(EXPORT_STANDARD_OUTPUT, box, name, stdout=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stdout.read() == content
        assert process.returncode == 0


def test_a_reader_that_leaves_is_told_apart_from_a_failure(box: Path):
    put(box, "db", noise(MIB))
    process = python(EXPORT_STANDARD_OUTPUT, box, "db", stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait() == 77


def test_standard_output_that_is_closed_is_one_clear_error(box: Path):
    put(box, "db", b"x")
    code = f"import os; os.close(1)\n{EXPORT_STANDARD_OUTPUT}"
    process = python(code, box, "db", stderr=subprocess.PIPE)
    assert b"IoFailure: standard output is closed" in process.communicate()[1]


def test_an_empty_source_is_refused(box: Path, tmp_path: Path):
    (tmp_path / "in").touch()
    for source in (tmp_path / "in", Path(os.devnull)):
        with pytest.raises(BadSize, match="is empty"):
            import_file(box, "db", source)
    with Container.open(str(box)) as container:
        assert container.nodes == []


def test_a_source_that_cannot_be_one_is_refused_with_its_name(box: Path, tmp_path: Path):
    with pytest.raises(IoFailure, match=r"missing: No such file"):
        import_file(box, "db", tmp_path / "missing")
    with pytest.raises(IoFailure, match=r"is a directory"):
        import_file(box, "db", tmp_path)
    with pytest.raises(UsageError, match="the container itself"):
        import_file(box, "db", box)
    (tmp_path / "link").hardlink_to(box)
    with pytest.raises(UsageError, match="the container itself"):
        import_file(box, "db", tmp_path / "link")


def test_a_source_above_the_largest_size_is_refused_unread(tmp_path: Path):
    sparse_file(tmp_path / "in", MIB + 1, [])
    with Container.create(str(tmp_path / "lab.snap"), block_size=512, table_size=512) as container:
        too_large = container.max_volume_bytes + 1
        os.truncate(tmp_path / "in", too_large)
        with pytest.raises(BadSize):
            import_volume(container, "db", str(tmp_path / "in"))


@pytest.mark.parametrize("tail", ["data", "hole"])
def test_a_source_that_shrinks_while_it_is_read_is_an_error_and_leaves_no_volume(box: Path, tmp_path: Path, tail: str):
    source = tmp_path / "in"
    sparse_file(source, 12 * MIB, [(0, noise(12 * MIB if tail == "data" else MIB))])

    def shrink(_done: int, _total: int | None) -> None:
        os.truncate(source, 6 * MIB)

    with pytest.raises(IoFailure, match="became shorter"), Container.open(str(box), writable=True) as container:
        import_volume(container, "db", str(source), progress=shrink)
    with Container.open(str(box)) as container:
        assert container.nodes == []


def test_an_import_that_does_not_fit_is_no_space_and_changes_nothing(tmp_path: Path):
    box, source = tmp_path / "lab.snap", tmp_path / "in"
    Container.create(str(box), capacity_bytes=4 * MIB).close()
    source.write_bytes(noise(9 * MIB))
    with Container.open(str(box)) as container:
        used = container.used_bytes
    with pytest.raises(NoSpace, match="capacity"):
        import_file(box, "db", source)
    with Container.open(str(box)) as container:
        assert (container.nodes, container.used_bytes) == ([], used)


def test_half_an_import_can_not_be_committed(box: Path, tmp_path: Path):
    source = tmp_path / "in"
    source.write_bytes(noise(9 * MIB))
    with Container.open(str(box), writable=True) as container:
        with pytest.raises(IoFailure):
            import_volume(container, "db", str(source), progress=lambda _done, _total: os.truncate(source, 0))
        with pytest.raises(SnapctlError, match="abort"):
            container.commit()
        container.abort()


def test_a_name_that_is_taken_leaves_the_transaction_as_it_was(box: Path, tmp_path: Path):
    (tmp_path / "in").write_bytes(b"new")
    put(box, "db", b"old")
    with Container.open(str(box), writable=True) as container:
        with pytest.raises(NameTaken):
            import_volume(container, "db", str(tmp_path / "in"))
        import_volume(container, "db2", str(tmp_path / "in"))
    assert (content_of(box, "db"), content_of(box, "db2")) == (b"old", b"new")


def test_progress_rises_to_the_whole(box: Path, tmp_path: Path):
    size = 17 * MIB + 5
    sparse_file(tmp_path / "in", size, [(MIB, noise(9 * MIB))])
    seen: list[tuple[int, int | None]] = []
    with Container.open(str(box), writable=True) as container:
        import_volume(container, "db", str(tmp_path / "in"), progress=lambda *now: seen.append(now))
    assert seen == sorted(seen)
    assert len(seen) > 2
    assert seen[-1] == (size, size)
    seen.clear()
    export_node(str(box), "db", str(tmp_path / "out"), progress=lambda *now: seen.append(now))
    assert seen == sorted(seen)
    assert len(seen) > 2
    assert seen[-1] == (size, size)


def test_an_existing_file_is_refused_without_force_and_left_alone(box: Path, tmp_path: Path):
    put(box, "db", b"new")
    (tmp_path / "out").write_bytes(b"old")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("out", "dangling"):
        with pytest.raises(NameTaken, match="--force"):
            export_node(str(box), "db", str(tmp_path / name))
    assert (tmp_path / "out").read_bytes() == b"old"
    assert not (tmp_path / "nowhere").exists()


def test_force_replaces_a_file_and_keeps_its_mode_and_the_link_to_it(box: Path, tmp_path: Path):
    put(box, "db", b"new")
    (tmp_path / "real").write_bytes(b"something longer than what comes")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    export_node(str(box), "db", str(tmp_path / "link"), force=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640
    assert strays(tmp_path) == ["link", "real"]


def test_force_makes_a_file_that_is_not_there(box: Path, tmp_path: Path):
    put(box, "db", b"new")
    export_node(str(box), "db", str(tmp_path / "out"), force=True)
    assert strays(tmp_path) == ["out"]
    (tmp_path / "plain").touch()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_container_is_never_a_target(box: Path, tmp_path: Path):
    put(box, "db", b"x")
    before = box.read_bytes()
    (tmp_path / "link").hardlink_to(box)
    (tmp_path / "soft").symlink_to(box)
    for name in ("lab.snap", "link", "soft"):
        with pytest.raises(UsageError, match="the container itself"):
            export_node(str(box), "db", str(tmp_path / name), force=True)
    with box.open("ab") as stdout:
        process = python(EXPORT_STANDARD_OUTPUT, box, "db", stdout=stdout, stderr=subprocess.PIPE)
        assert b"the container itself" in process.communicate()[1]
    assert box.read_bytes() == before


def test_a_target_that_cannot_be_one_is_refused_with_its_name(box: Path, tmp_path: Path):
    put(box, "db", b"x")
    for force in (False, True):
        with pytest.raises(IoFailure, match=r"Is a directory"):
            export_node(str(box), "db", str(tmp_path), force=force)
        with pytest.raises(IoFailure, match="No such file or directory"):
            export_node(str(box), "db", str(tmp_path / "missing" / "out"), force=force)
        with pytest.raises(IoFailure, match="Not a directory"):
            export_node(str(box), "db", str(box / "out"), force=force)
    with pytest.raises(NodeNotFound):
        export_node(str(box), "nothing", str(tmp_path / "out"))
    assert strays(tmp_path) == []


def test_a_device_that_exists_is_written_to_not_replaced(box: Path):
    put(box, "db", noise(100_000))
    assert export_node(str(box), "db", os.devnull) == 100_000
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_full_device_is_no_space_and_names_it(box: Path):
    put(box, "db", noise(100_000))
    with pytest.raises(NoSpace, match="/dev/full"):
        export_node(str(box), "db", "/dev/full")


def test_a_named_pipe_gets_all_bytes(box: Path, tmp_path: Path):
    content = bytes(70_000) + noise(MIB) + bytes(70_000)
    put(box, "db", content)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(fifo.read_bytes()))
    reader.start()
    assert export_node(str(box), "db", str(fifo)) == len(content)
    reader.join()
    assert received == [content]


@pytest.mark.parametrize("force", [False, True])
def test_no_space_on_the_target_leaves_what_was_there(box: Path, tmp_path: Path, force: bool):
    put(box, "db", noise(9 * MIB))
    if force:
        (tmp_path / "out").write_bytes(b"old")
    with file_size_limit(5 * MIB), pytest.raises(NoSpace, match=str(tmp_path / "out")):
        export_node(str(box), "db", str(tmp_path / "out"), force=force)
    assert strays(tmp_path) == (["out"] if force else [])
    assert not force or (tmp_path / "out").read_bytes() == b"old"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "made up")])
def test_an_export_that_is_interrupted_leaves_nothing_behind(
    box: Path, tmp_path: Path, force: bool, error: BaseException
):
    put(box, "db", noise(9 * MIB))

    def interrupt(_done: int, _total: int | None) -> None:
        raise error

    with pytest.raises(type(error)):
        export_node(str(box), "db", str(tmp_path / "out"), force=force, progress=interrupt)
    assert strays(tmp_path) == []


EXPORT_AND_WAIT = """
import sys
from snapctl.services.transfer import export_node

def progress(done, total):
    print(done, flush=True)
    sys.stdin.read()

export_node(sys.argv[1], "db", sys.argv[2], progress=progress)
"""


def test_ctrl_c_in_mid_export_removes_the_file(box: Path, tmp_path: Path):
    put(box, "db", noise(9 * MIB))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with python(EXPORT_AND_WAIT, box, tmp_path / "out", **pipes) as process:
        assert process.stdout
        process.stdout.readline()
        assert strays(tmp_path) == ["out"]
        process.send_signal(signal.SIGINT)
        assert process.wait() != 0
    assert strays(tmp_path) == []


def test_damage_found_in_mid_export_leaves_nothing_behind(box: Path, tmp_path: Path):
    content = noise(9 * MIB)
    put(box, "db", content)
    at = box.read_bytes().index(content[8 * MIB : 8 * MIB + 4096])
    with box.open("r+b") as file:
        file.seek(at + 17)
        file.write(bytes([content[8 * MIB + 17] ^ 1]))
    with pytest.raises(SnapctlError, match="checksum") as caught:
        export_node(str(box), "db", str(tmp_path / "out"))
    assert caught.value.exit_code == 4
    assert strays(tmp_path) == []


# A writer that says when it is about to wait for the lock, and does what it is told to once it has it.
WRITER = """
import sys
from snapctl.engine.container import Container
print("ready", flush=True)
with Container.open(sys.argv[1], writable=True, wait_seconds=60) as container:
    exec(sys.argv[2])
"""

OVERWRITE_AND_SNAPSHOT = """
for i in range(3):
    container["db"].write(0, bytes([i + 1]) * container["db"].size_bytes)
    container.snapshot(f"db@new{i}")
    container.commit()
"""


@contextmanager
def writer_during_export(box: Path, work: str) -> Iterator[transfer.Progress]:
    """Start a writer at an export's first piece, through the progress function yielded; wait for its end."""
    started: list[subprocess.Popen[bytes]] = []

    def progress(_done: int, _total: int | None) -> None:
        if not started:
            process = python(WRITER, box, work, stdout=subprocess.PIPE)
            started.append(process)
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"

    yield progress
    with started[0] as process:
        assert process.wait() == 0


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an export let writers in after each of many pieces."""
    monkeypatch.setattr(transfer, "_TURN_SECONDS", 0.0)
    monkeypatch.setattr(transfer, "PIECE_BYTES", 64 << 10)


@pytest.mark.usefixtures("short_turns")
def test_a_writer_gets_its_turn_in_mid_export_of_a_snapshot_which_stays_as_it_was(box: Path, tmp_path: Path):
    content = noise(4 * MIB) + bytes(MIB) + noise(MIB, 2)
    put(box, "db", content, "old", "mon")
    names_at_the_end: list[str] = []

    with writer_during_export(box, OVERWRITE_AND_SNAPSHOT) as start_writer:

        def progress(done: int, total: int | None) -> None:
            start_writer(done, total)
            if done == total:
                with Container.open(str(box)) as container:
                    names_at_the_end.extend(node.name for node in container.nodes)

        export_node(str(box), "db@mon", str(tmp_path / "out"), wait_seconds=60, progress=progress)
    assert (tmp_path / "out").read_bytes() == content
    assert "db@new2" in names_at_the_end
    assert content_of(box, "db@mon") == content
    assert content_of(box, "db") == bytes([3]) * len(content)


@pytest.mark.usefixtures("short_turns")
def test_a_snapshot_deleted_in_mid_export_is_an_error_and_the_file_goes(box: Path, tmp_path: Path):
    put(box, "db", noise(6 * MIB), "mon")
    with writer_during_export(box, "container.delete('db@mon')") as progress:
        with pytest.raises(NodeNotFound, match="db@mon was deleted while"):
            export_node(str(box), "db@mon", str(tmp_path / "out"), wait_seconds=60, progress=progress)
        assert strays(tmp_path) == []


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize("name", ["db", "dev"])
def test_an_export_of_a_volume_keeps_writers_out_to_its_end(box: Path, tmp_path: Path, name: str):
    put(box, "db", noise(MIB), "mon")
    with Container.open(str(box), writable=True) as container:
        container.clone("db@mon", "dev")

    def try_to_write(_done: int, _total: int | None) -> None:
        with pytest.raises(Locked):
            Container.open(str(box), writable=True, wait_seconds=0)

    export_node(str(box), name, str(tmp_path / "out"), progress=try_to_write)
    assert (tmp_path / "out").read_bytes() == noise(MIB)
