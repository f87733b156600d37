"""`snapctl mount` as people and scripts meet it: how it begins, how it ends, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.harness import ROOT, Result, Terminal, command_line, finish, one_line, run, snapctl
from tests.support.mounts import TIMEOUT_SECONDS, mounted, require_fuse, unmount, wait_until_unmounted


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory."""
    require_fuse()
    directory = tmp_path / "m"
    directory.mkdir()
    return directory


def refused(*arguments: object, code: int = 1, **env: Any) -> str:
    result = snapctl("mount", *arguments, **env)
    assert result.code == code, result
    return one_line(result)


def write(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.write(data)


@pytest.mark.parametrize("signal_no", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unmounts_and_commits(signal_no: signal.Signals, lab: Path, place: Path):
    with mounted(lab, place) as mount:
        write(place / "db", b"written")
        mount.process.send_signal(signal_no)
        assert finish(mount.process) == Result(0, b"", "")
        assert not os.path.ismount(place)
    assert run("read", lab / "db", "--length", "7").out == b"written"


def test_the_ready_line_names_container_and_directory(lab: Path, place: Path):
    terminal = Terminal(command_line("mount", lab.name, place.name), cwd=lab.parent, columns=1000)
    try:
        terminal.expect(f"{lab} is mounted on {place}\r\n")
        terminal.type("\x03")
        code, seen = terminal.close()
        assert (code, seen.count("\n")) == (0, 1)
    finally:
        subprocess.run([require_fuse(), "-quz", place], check=False, timeout=TIMEOUT_SECONDS)


def test_a_mount_in_use_leaves_the_directory_and_goes_on_until_it_is_closed(lab: Path, place: Path):
    with mounted(lab, place) as mount, (place / "db").open("r+b", buffering=0) as file:
        mount.process.terminate()
        assert mount.process.stderr is not None
        assert mount.process.stderr.readline() == f"snapctl: waiting for db: process {os.getpid()} ".encode() + comm()
        wait_until_unmounted(place)
        file.write(b"written late")
        file.close()
        assert finish(mount.process).code == 0
    assert run("read", lab / "db", "--length", "12").out == b"written late"


def comm() -> bytes:
    return f"({Path('/proc/self/comm').read_text().strip()})\n".encode()


def test_a_second_signal_does_not_wait_for_users_and_keeps_what_they_wrote(lab: Path, place: Path):
    with mounted(lab, place) as mount:
        file = os.open(place / "db", os.O_RDWR)
        os.write(file, b"written")
        mount.process.terminate()
        assert mount.process.stderr is not None
        assert b"waiting for db" in mount.process.stderr.readline()
        mount.process.terminate()
        ended = finish(mount.process)
        assert ended.code == 1
        assert "still in use" in one_line(ended)
        with pytest.raises(OSError, match="not connected"):
            os.pread(file, 1, 0)
        with pytest.raises(OSError, match="not connected"):
            os.close(file)
    assert run("read", lab / "db", "--length", "7").out == b"written"


def test_a_path_with_a_comma_and_a_space_is_mounted(lab: Path, tmp_path: Path):
    require_fuse()
    odd = lab.rename(tmp_path / "a, b\\c.snap")
    with mounted(odd, tmp_path / "m, n") as mount:
        assert (tmp_path / "m, n" / "db").stat().st_size == 1 << 20
        assert mount.unmount().code == 0


def test_directories_that_cannot_be_mounted_on_are_refused(lab: Path, place: Path):
    assert "no such directory" in refused(lab, place / "missing")
    assert "not a directory" in refused(lab, lab)
    (place / "file").touch()
    assert "not empty" in refused(lab, place)
    (place / "file").unlink()
    assert "not empty" not in refused(place / "missing.snap", place)
    assert "name the container" in refused(lab / "db", place, code=2)


def test_a_directory_with_a_mount_on_it_dead_or_alive_is_refused_with_what_clears_it(lab: Path, place: Path):
    with mounted(lab, place) as mount:
        assert f"fusermount3 -u {place}" in refused(lab, place)
        mount.process.kill()
        mount.process.wait(TIMEOUT_SECONDS)
        assert "dead" in refused(lab, place)
        assert f"fusermount3 -u {place}" in refused(lab, place)
        unmount(place)
    with mounted(lab, place) as mount:
        assert mount.unmount().code == 0


def test_a_mounted_container_is_changed_through_its_mount_and_not_mounted_again(lab: Path, place: Path, tmp_path: Path):
    with mounted(lab, place) as mount:
        run("snapshot", lab / "db@now")
        assert (mount.directory / "db@now").exists()
        (tmp_path / "other").mkdir()
        assert "snapctl" in refused(lab, tmp_path / "other", "--wait", "0", code=5)
        assert mount.unmount().code == 0


@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        ("mfusepy", "pip install 'snapctl[fuse]'"),
        ("libfuse", "apt-get install fuse3"),
        ("fusermount3", "apt-get install fuse3"),
    ],
)
def test_what_is_not_installed_is_named_with_how_to_install_it(
    missing: str, advice: str, lab: Path, place: Path, tmp_path: Path
):
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "mfusepy.py").write_text("raise ImportError('hidden')")
    environment: dict[str, Any] = {
        "mfusepy": {"PYTHONPATH": f"{tmp_path / 'hidden'}:{ROOT}"},
        "libfuse": {"FUSE_LIBRARY_NAME": "no-such-library"},
        "fusermount3": {"PATH": str(tmp_path)},
    }[missing]
    message = refused(lab, place, **environment)
    assert missing in message
    assert message.endswith(advice)
