"""A disk as an image and as a volume, served in every way that clients come in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.harness import run
from tests.support.images import noise, sparse_file
from tests.support.served import Door, make_keys, serve, tls_options

MIB = 1 << 20
DISK_BYTES = 16 * MIB

MONDAY = {0: noise(MIB + 123, 1), 3 * MIB + 4096: noise(2 * MIB, 2), 9 * MIB: noise(8192, 3), DISK_BYTES - 5: b"tail!"}
TUESDAY = {8192: noise(700, 4), 6 * MIB: noise(40960, 5), 9 * MIB + 4096: bytes(4096)}
"""What was written after the snapshot, by offset."""


class Lab(NamedTuple):
    """A container with a volume `db` and its snapshot `db@mon`, beside images of both."""

    container: Path
    db: Path
    mon: Path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `disk` gives each test a copy of."""
    folder = tmp_path_factory.mktemp("disk")
    sparse_file(folder / "mon.img", DISK_BYTES, MONDAY.items())
    run("init", folder / "lab.snap")
    run("import", folder / "lab.snap/db", folder / "mon.img")
    run("snapshot", folder / "lab.snap/db@mon")
    shutil.copy(folder / "mon.img", folder / "db.img")
    with (folder / "db.img").open("r+b") as image:
        for offset, data in TUESDAY.items():
            image.seek(offset)
            image.write(data)
            run("write", folder / "lab.snap/db", "--offset", offset, stdin=data)
    return folder


@pytest.fixture
def disk(finished: Path, tmp_path: Path) -> Lab:
    for name in ("lab.snap", "db.img", "mon.img"):
        shutil.copy(finished / name, tmp_path / name)
    return Lab(tmp_path / "lab.snap", tmp_path / "db.img", tmp_path / "mon.img")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates."""
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(params=["unix", "tcp", "tls"])
def door(request: pytest.FixtureRequest, disk: Lab, tmp_path: Path) -> Iterator[Door]:
    """The disk is being served: over a Unix socket, over TCP, or with TLS and certificates on both sides."""
    certificates = request.getfixturevalue("keys") if request.param == "tls" else None
    options = ["--unix", tmp_path / "nbd"] if request.param == "unix" else ["--listen", "127.0.0.1:0"]
    with serve(disk.container, *options, *(tls_options(certificates) if certificates else [])) as serving:
        yield serving.door(certificates)
