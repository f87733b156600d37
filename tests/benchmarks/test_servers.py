"""What goes wrong under comparison is told, and no process outlives it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import fio, processes
from benchmarks.measure import MIB, Failed
from benchmarks.servers import Snapctl
from tests.support.requires import needs


def test_errors_of_fio_are_told(tmp_path: Path):
    needs("fio", package="fio")

    with pytest.raises(Failed, match=r"^fio ended with [1-9]"):
        fio.load(f"nbd+unix:///db?socket={tmp_path / 'none'}", tmp_path / "report", "--rw=read", "--bs=4k")


def test_a_load_tells_what_was_done(tmp_path: Path):
    needs("fio", package="fio")
    server = Snapctl("snapctl", tmp_path)
    server.prepare(processes.random_image(tmp_path / "disk.img", MIB))

    with server.running():
        written = server.load("--rw=write", "--bs=16k", "--iodepth=4")
        server.snapshot()
        read = server.load("--rw=read", "--bs=64k", export="db@s1")

    assert (written.written, read.written) == (MIB, 0)
    assert written.operations == pytest.approx(written.mib * 64, rel=0.05)
    assert read.operations == pytest.approx(read.mib * 16, rel=0.05)
    assert 0 < written.longest_seconds < 60


def test_a_server_that_does_not_start_says_why(tmp_path: Path):
    server = Snapctl("snapctl", tmp_path)

    with pytest.raises(Failed, match=r"does not serve: .*work\.snap"):
        server.start()


def test_a_command_that_fails_says_what_it_said(tmp_path: Path):
    with pytest.raises(Failed, match=r"cp .*: ended with 1: cp: "):
        processes.run("cp", tmp_path / "none", tmp_path / "copy")


def test_every_other_mib_of_an_image_with_holes_is_data(tmp_path: Path):
    image = processes.random_image(tmp_path / "disk.img", 4 * MIB, every=2)

    data = image.read_bytes()
    pieces = [data[i : i + MIB] for i in range(0, len(data), MIB)]
    assert [any(piece) for piece in pieces] == [True, False, True, False]
    assert pieces[0] != pieces[2]
    assert image.stat().st_blocks * 512 < 3 * MIB
