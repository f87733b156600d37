"""Each kind of bad input gives one clear line and the right exit code, and leaves the container's bytes alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapctl import Container
from snapctl.format.superblock import copy_offset, has_magic
from snapctl.storage.backend import FileBackend
from tests.cli.harness import Result, command_line, digest, environment, one_line, redirected, run, snapctl
from tests.support.damage import forge_record
from tests.support.requires import needs


@pytest.fixture
def unchanged(lab: Path) -> Iterator[Path]:
    """The container `lab`, whose bytes must be the same when the test ends."""
    before = digest(lab)
    yield lab
    assert digest(lab) == before


def refused(*arguments: object, code: int, stdin: bytes = b"") -> str:
    result = snapctl(*arguments, stdin=stdin)
    assert result.code == code, result
    return one_line(result)


def test_missing_volume_is_named(unchanged: Path):
    assert "no volume nosuch" in refused("read", unchanged / "nosuch", code=1)
    assert "no snapshot tue of db" in refused("read", unchanged / "db@tue", code=1)


def test_taken_name_is_refused(unchanged: Path):
    assert "db" in refused("create", unchanged / "db", "--size", "1M", code=1)
    assert "mon" in refused("snapshot", unchanged / "db@mon", code=1)
    assert "db" in refused("clone", unchanged / "db@mon", "db", code=1)
    assert "exists" in refused("init", unchanged, code=1)


@pytest.mark.parametrize("name", ["-x", ".x", "a..b", "a b", "ä", "x" * 64, "a\x1b[2J", "a:b", "@", "a@"])
def test_bad_name_is_wrong_usage_whatever_makes_it(name: str, unchanged: Path):
    for arguments in (
        ["create", "--size", "1M", "--", unchanged / name],
        ["snapshot", "--", f"{unchanged}/db@{name}"],
        ["clone", "--", unchanged / "db@mon", name],
        ["rename", "--", unchanged / "db", name],
    ):
        message = refused(*arguments, code=2)
        assert message.isprintable()


@pytest.mark.parametrize("command", ["read", "write", "trim"])
@pytest.mark.parametrize("offset", ["-1", "-4K", "x", "1.5", "", "0x10", "1e3"])
def test_offset_that_is_no_size_is_wrong_usage(command: str, offset: str, unchanged: Path):
    length = ["--length", "1"] if command == "trim" else []
    assert "--offset" in refused(command, unchanged / "db", "--offset", offset, *length, code=2)


@pytest.mark.parametrize("offset", ["1048577", "1G", "16E", "9" * 39])
def test_offset_beyond_the_end_is_wrong_usage(offset: str, unchanged: Path):
    assert "db" in refused("write", unchanged / "db", "--offset", offset, stdin=b"x", code=2)
    assert "db" in refused("read", unchanged / "db", "--offset", offset, code=2)
    assert "db" in refused("read", unchanged / "db", "--offset", offset, "--length", "1", code=2)
    assert "db" in refused("trim", unchanged / "db", "--offset", offset, "--length", "1", code=2)


def test_length_beyond_the_end_is_wrong_usage(unchanged: Path):
    assert "db" in refused("read", unchanged / "db", "--offset", "1M", "--length", "1", code=2)
    assert "db" in refused("trim", unchanged / "db", "--offset", "4K", "--length", "1M", code=2)


def test_size_above_the_largest_says_which_block_size_would_do(unchanged: Path):
    assert "--block-size 16K" in refused("create", unchanged / "x", "--size", "5T", code=2)
    assert "--block-size 64K" in refused("create", unchanged / "x", "--size", "17T", code=2)
    assert "no block size" in refused("create", unchanged / "x", "--size", "65T", code=2)
    assert "--block-size 16K" in refused("resize", unchanged / "db", "--size", "5T", code=2)
    refused("create", unchanged / "x", "--size", "0", code=2)


def test_refused_volume_leaves_no_new_container_behind(tmp_path: Path):
    refused("create", tmp_path / "new.snap" / "x", "--size", "5T", code=2)
    refused("create", tmp_path / "new.snap" / "..", "--size", "1M", code=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["8K", "0", "1", "4K.", "64M"])
def test_block_size_outside_the_choice_is_wrong_usage(size: str, tmp_path: Path):
    assert "--block-size" in refused("init", tmp_path / "new.snap", "--block-size", size, code=2)
    assert list(tmp_path.iterdir()) == []


def test_write_beyond_the_end_writes_nothing(unchanged: Path, tmp_path: Path):
    image = tmp_path / "image"
    image.write_bytes(bytes(range(256)) * 4097)
    assert "1048576" in refused("write", unchanged / "db", "--input", image, code=2)
    assert "1048576" in refused("write", unchanged / "db", stdin=image.read_bytes(), code=2)
    refused("write", unchanged / "db", "--offset", "1048575", stdin=b"xx", code=2)
    assert run("read", unchanged / "db", "--length", "6000").out == b"new" * 2000


def test_long_pipe_beyond_the_end_writes_nothing(tmp_path: Path):
    path = tmp_path / "lab.snap"
    run("create", path / "db", "--size", "9M")
    assert "9437184" in refused("write", path / "db", stdin=bytes(10 << 20), code=2)
    assert "9437184" in refused("write", path / "db", "--offset", "1", stdin=b"x" * (9 << 20), code=2)
    assert run("list", "--json", path).json["nodes"][0]["own_bytes"] == 0
    run("check", path)


def test_snapshots_refuse_writes(unchanged: Path):
    for arguments in (
        ["write", unchanged / "db@mon"],
        ["trim", unchanged / "db@mon", "--offset", "0", "--length", "1"],
        ["resize", unchanged / "db@mon", "--size", "2M"],
    ):
        assert "read-only snapshot" in refused(*arguments, stdin=b"x", code=1)


def test_shrinking_needs_to_be_asked_for(unchanged: Path):
    assert "--shrink" in refused("resize", unchanged / "db", "--size", "4K", code=2)


def test_node_with_descendants_is_kept_and_they_are_listed(lab: Path):
    run("clone", lab / "db@mon", "dev")
    before = digest(lab)
    message = refused("delete", lab / "db@mon", code=1)
    assert "dev" in message
    assert "--cascade" in message
    assert "db@mon" in refused("delete", lab / "db", code=1)
    assert digest(lab) == before


def test_commands_for_one_node_refuse_a_container(unchanged: Path):
    for arguments in (["read", unchanged], ["export", unchanged, "-"], ["delete", unchanged], ["write", unchanged]):
        assert f"{unchanged}/db" in refused(*arguments, code=2)
    assert "name the snapshot" in refused("snapshot", unchanged / "db", code=2)


def test_snapshots_in_several_containers_are_refused(unchanged: Path, tmp_path: Path):
    other = tmp_path / "other.snap"
    run("create", other / "db", "--size", "1M")
    assert "same container" in refused("snapshot", unchanged / "db@tue", other / "db@tue", code=2)


def test_truncated_file_is_corruption(lab: Path):
    whole = lab.read_bytes()
    for length in (4096, 65536, len(whole) - 4096):
        lab.write_bytes(whole[:length])
        result = snapctl("read", lab / "db")
        assert result.code == 4
        assert str(lab) in one_line(result)
        assert lab.read_bytes() == whole[:length]


@pytest.mark.parametrize(
    ("field", "value", "says"), [("version", 2, "version 2"), ("incompatible", 1 << 40, "feature")]
)
def test_format_from_the_future_is_refused(field: str, value: int, says: str, lab: Path):
    from snapctl.format import layout

    data = bytearray(lab.read_bytes())
    for slot in (0, 1):
        for copy in (0, 1):
            at = copy_offset(slot, copy)
            page = bytes(data[at : at + layout.SUPERBLOCK_BYTES])
            if has_magic(page):
                data[at : at + layout.SUPERBLOCK_BYTES] = rebuilt(page, field, value)
    lab.write_bytes(data)
    for command in (["list", lab], ["snapshot", lab / "db@tue"]):
        message = refused(*command, code=1)
        assert says in message
        assert str(lab) in message
    assert lab.read_bytes() == data


def rebuilt(page: bytes, field: str, value: int) -> bytes:
    """A superblock with one field changed and a checksum that fits."""
    from snapctl.format import layout
    from snapctl.format.checksum import crc32c

    fields = layout.Superblock.parse(page)
    fields[field] = value
    body: bytes = layout.Superblock.build(fields)[:-4]
    return body + crc32c(body).to_bytes(4, "little")


def without_privileges(*arguments: object) -> Result:
    """Run as someone whom file permissions bind, which they do not if root runs the tests."""
    drop = []
    if os.geteuid() == 0:
        setpriv = needs("setpriv", package="util-linux")
        drop = [setpriv, "--bounding-set=-dac_override,-dac_read_search", "--"]
    done = subprocess.run(
        [*drop, *command_line(*arguments)],
        input=b"x",
        capture_output=True,
        env=environment(),
        check=False,
        timeout=60,
    )
    return Result(done.returncode, done.stdout, done.stderr.decode())


def test_file_that_may_only_be_read_can_be_read_and_not_written(unchanged: Path):
    unchanged.chmod(0o444)
    assert without_privileges("read", unchanged / "db", "--length", "3").out == b"new"
    assert without_privileges("check", unchanged).code == 0
    for arguments in (
        ["write", unchanged / "db"],
        ["snapshot", unchanged / "db@tue"],
        ["delete", "-y", unchanged / "db@mon"],
    ):
        result = without_privileges(*arguments)
        assert result.code == 1
        assert "permission denied" in one_line(result).lower()
        assert str(unchanged) in result.err


def test_file_that_may_not_be_read_is_an_error(unchanged: Path):
    unchanged.chmod(0)
    result = without_privileges("list", unchanged)
    unchanged.chmod(0o600)
    assert result.code == 1
    assert "permission denied" in one_line(result).lower()


def test_folder_that_may_not_be_written_is_an_error(tmp_path: Path):
    (tmp_path / "closed").mkdir(mode=0o500)
    result = without_privileges("create", tmp_path / "closed" / "new.snap" / "db", "--size", "1M")
    assert result.code == 1
    assert "permission denied" in one_line(result).lower()
    assert list((tmp_path / "closed").iterdir()) == []


def test_full_container_refuses_the_write_and_keeps_what_it_has(tmp_path: Path):
    path = tmp_path / "lab.snap"
    run("init", path, "--capacity", "2M")
    run("create", path / "db", "--size", "10M")
    run("write", path / "db", stdin=b"kept")
    before = run("read", path / "db").out
    result = snapctl("write", path / "db", stdin=os.urandom(5 << 20))
    assert result.code == 6
    one_line(result)
    assert run("read", path / "db").out == before
    run("check", path)


def test_output_to_a_full_disk_is_no_space(unchanged: Path):
    for arguments in (
        ["read", unchanged / "db"],
        ["info", "--json", unchanged],
        ["--version"],
        ["--help"],
        ["list", "--help"],
        ["--show-completion", "bash"],
    ):
        result = redirected(">/dev/full", *arguments)
        assert result.code == 6
        assert one_line(result) == "standard output: no space left on device"
    assert redirected("2>/dev/full") == (2, b"", "")
    assert redirected("2>/dev/full", "read", unchanged / "nosuch") == (1, b"", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", ""],
        ["init", ""],
        ["create", "", "--size", "1M"],
        ["read", "LAB/db", "--output", ""],
        ["write", "LAB/db", "--input", ""],
        ["import", "LAB/x", ""],
        ["export", "--force", "LAB/db", ""],
    ],
)
def test_empty_path_is_wrong_usage(arguments: list[str], unchanged: Path):
    message = refused(*(word.replace("LAB", str(unchanged)) for word in arguments), code=2)
    assert message.isprintable()
    assert "empty" in message


def test_snapshot_that_no_volume_has_is_missing(unchanged: Path):
    for command in ("list", "delete"):
        assert "no volume has" in refused(command, f"{unchanged}@nope", code=1)
        refused(command, f"{unchanged}@", code=2)
    refused("list", unchanged / "@", code=2)


def test_import_into_no_container_says_how_to_make_one(tmp_path: Path):
    message = refused("import", tmp_path / "nope.snap" / "x", "/dev/null", code=1)
    assert message == f"{tmp_path}/nope.snap: no such file; 'snapctl init' makes a container"


@pytest.mark.parametrize("relation", ["parent", "origin"])
def test_nodes_in_a_circle_are_corruption(relation: str, lab: Path):
    run("clone", lab / "db@mon", "dev")
    run("snapshot", lab / "dev@a")
    run("clone", lab / "dev@a", "dd")
    backend = FileBackend.open(str(lab), writable=True)
    with Container.open(str(lab)) as container:
        dd = container["dd"].id
    forge_record(backend, "dev", relation, dd)
    backend.close()
    for arguments in (["tree", lab], ["tree", lab / "dev", "--json"], ["tree", lab / "dev"], ["tree", lab, "--dot"]):
        assert "circle" in refused(*arguments, "--by", relation, code=4)


def test_missing_input_file_is_named(unchanged: Path):
    assert "nosuch: no such file" in refused("write", unchanged / "db", "--input", "nosuch", code=1)
    assert "nosuch" in refused("import", unchanged / "x", "nosuch", code=1)
    refused("write", unchanged / "db", "--input", "/", code=1)
    refused("import", unchanged / "x", "/", code=1)


@pytest.mark.parametrize(
    ("redirection", "arguments"),
    [
        ("1<>", ["read", "LAB/db"]),
        (">>", ["list", "LAB"]),
        (">>", ["check", "LAB"]),
        (">>", ["export", "LAB/db", "-"]),
        (">>", ["export", "LAB/db", "NEW"]),
        ("1<>", ["snapshot", "LAB/db@tue"]),
        ("1<>", ["create", "LAB/x", "--size", "1M"]),
    ],
)
def test_container_that_is_standard_output_is_refused(
    redirection: str, arguments: list[str], unchanged: Path, tmp_path: Path
):
    words = [word.replace("LAB", str(unchanged)).replace("NEW", str(tmp_path / "new")) for word in arguments]
    result = redirected(f"{redirection}'{unchanged}'", *words)
    assert (result.code, one_line(result)) == (2, "standard output is the container itself")
    assert not (tmp_path / "new").exists()


def test_container_is_never_written_into_itself(unchanged: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(unchanged)
    assert "itself" in refused("write", unchanged / "db", "--input", tmp_path / "link", code=2)
    assert "itself" in one_line(redirected(f"<'{unchanged}'", "write", unchanged / "db"))
    assert "itself" in refused("import", unchanged / "x", unchanged, code=2)


def test_container_is_never_overwritten_by_its_own_output(unchanged: Path):
    assert "itself" in refused("read", unchanged / "db", "--output", unchanged, code=2)
    assert "itself" in refused("export", "--force", unchanged / "db", unchanged, code=2)


def test_export_needs_force_for_a_file_that_exists(unchanged: Path, tmp_path: Path):
    (tmp_path / "image").write_bytes(b"precious")
    assert "--force" in refused("export", unchanged / "db", tmp_path / "image", code=1)
    assert (tmp_path / "image").read_bytes() == b"precious"
    run("export", "--force", unchanged / "db", tmp_path / "image")
    assert (tmp_path / "image").stat().st_size == 1 << 20


def test_damaged_data_is_never_output(lab: Path, tmp_path: Path):
    damaged = lab.read_bytes()
    assert b"newnewnew" in damaged
    lab.write_bytes(damaged.replace(b"newnewnew", b"newNewnew"))
    result = snapctl("read", lab / "db")
    assert result.code == 4
    assert "db" in one_line(result)
    out = tmp_path / "out"
    assert snapctl("read", lab / "db", "--output", out).code == 4
    assert snapctl("export", lab / "db", out).code == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lab.snap"]


@pytest.mark.parametrize("arguments", [["nosuch"], ["--nosuch"], ["lst"]])
def test_unknown_command_is_wrong_usage(arguments: list[str]):
    refused(*arguments, code=2)


def test_mistyped_command_is_guessed():
    assert "snapshot" in refused("snapshto", code=2)


def test_no_command_shows_the_help_and_is_wrong_usage():
    result = snapctl()
    assert result.code == 2
    assert "Usage: snapctl" in result.err


def test_two_ways_to_print_a_tree_exclude_each_other(unchanged: Path):
    refused("tree", unchanged, "--json", "--dot", code=2)


def test_debug_adds_a_traceback_wherever_it_stands(unchanged: Path):
    for arguments in (["--debug", "read", unchanged / "x"], ["read", unchanged / "x", "--debug"]):
        result = snapctl(*arguments)
        assert result.code == 1
        assert "Traceback" in result.err
        assert result.err.splitlines()[-1].startswith("snapctl: no volume x")


def test_hostile_name_in_an_argument_does_not_reach_the_terminal(tmp_path: Path):
    message = refused("list", tmp_path / "a\x1b[2J\n.snap", code=1)
    assert "\x1b" not in message
    assert r"\x1b[2J" in message


def test_container_copied_over_itself_is_whole(lab: Path):
    """A plain copy of a closed container is a container."""
    shutil.copy(lab, lab.with_name("copy.snap"))
    run("check", lab.with_name("copy.snap"))
