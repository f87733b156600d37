"""Clients of NBD as Debian has them, on an export whose content is known: over Unix sockets, TCP and TLS."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.harness import digest
from tests.compat.conftest import DISK_BYTES, MIB, Lab
from tests.support.images import allocated_bytes, noise, sparse_file
from tests.support.mounts import require_fuse, tool
from tests.support.requires import needs
from tests.support.served import TIMEOUT_SECONDS, Door, client, make_keys, python_with_libnbd, serve, tls_options

LIBNBD_SCRIPT = Path(__file__).with_name("libnbd_random.py")

# nbdfuse and fio do not let libnbd take certificates from where a connection string says, but from /etc or $HOME only.
without_tls = pytest.mark.parametrize("door", ["unix", "tcp"], indirect=True)


def qemu_img(door: Door, command: str, *words: object, code: int = 0) -> str:
    program = needs("qemu-img", package="qemu-utils")
    return client(program, command, *door.credentials, "--image-opts", *words, code=code)


def raw(path: Path) -> str:
    return f"driver=raw,file.driver=file,file.filename={path}"


def compare(door: Door, image: Path, name: str) -> None:
    assert "Images are identical." in qemu_img(door, "compare", raw(image), door.image(name))


def data_extents(image: Path) -> list[tuple[int, int]]:
    """Where an image is not zeros: begin and end of each run of whole blocks."""
    content = image.read_bytes()
    blocks = [at for at in range(0, len(content), 4096) if any(content[at : at + 4096])]
    found: list[tuple[int, int]] = []
    for at in blocks:
        if found and found[-1][1] == at:
            found[-1] = found[-1][0], at + 4096
        else:
            found.append((at, at + 4096))
    return found


def joined(rows: list[dict[str, int]], offset: str) -> list[tuple[int, int]]:
    """Put together neighbours among the rows that a client has printed."""
    found: list[tuple[int, int]] = []
    for row in rows:
        begin, end = row[offset], row[offset] + row["length"]
        if found and found[-1][1] == begin:
            found[-1] = found[-1][0], end
        else:
            found.append((begin, end))
    return found


def test_qemu_img_sees_what_is_there(door: Door, disk: Lab, tmp_path: Path):
    assert json.loads(qemu_img(door, "info", "--output=json", door.image("db")))["virtual-size"] == DISK_BYTES
    compare(door, disk.db, "db")
    compare(door, disk.mon, "db@mon")
    assert "Content mismatch" in qemu_img(door, "compare", door.image("db"), door.image("db@mon"), code=1)

    qemu_img(door, "convert", "-O", "raw", door.image("db"), tmp_path / "copy")
    assert digest(tmp_path / "copy") == digest(disk.db)
    rows = json.loads(qemu_img(door, "map", "--output=json", door.image("db@mon")))
    assert sum(row["length"] for row in rows) == DISK_BYTES
    assert joined([row for row in rows if row["data"]], "start") == data_extents(disk.mon)


def test_qemu_img_writes_a_disk_over_another(door: Door, disk: Lab, tmp_path: Path):
    sparse_file(tmp_path / "new", DISK_BYTES, [(MIB, noise(3 * MIB, 6)), (9 * MIB, noise(100, 7))])
    qemu_img(door, "convert", "-n", "--target-image-opts", raw(tmp_path / "new"), door.image("db"))
    compare(door, tmp_path / "new", "db")
    compare(door, disk.mon, "db@mon")
    error = qemu_img(door, "convert", "-n", "--target-image-opts", raw(tmp_path / "new"), door.image("db@mon"), code=1)
    assert error == ""
    compare(door, disk.mon, "db@mon")


def test_qemu_io_writes_zeroes_discards_and_reads_back(door: Door, disk: Lab):
    commands = ["write -P 7 1000 70000", "aio_write -P 9 4M 1M", "aio_flush", "write -z -u 3M 128k", "discard 9M 4k"]
    commands += ["writev -P 11 12M 4k 8k", "write -f -P 13 16776704 512", "flush"]
    commands += ["read -P 7 1000 70000", "aio_read -P 9 4M 1M", "aio_flush", "read -P 0 3M 128k", "read -P 0 9M 4k"]
    commands += ["read -P 11 12M 12k"]
    words = [word for command in commands for word in ("-c", command)]
    program = needs("qemu-io", package="qemu-utils")
    printed = client(program, "-t", "writeback", *door.credentials, *words, "--image-opts", door.image("db"))
    assert "failed" not in printed

    with disk.db.open("r+b") as image:
        for offset, data in {
            1000: b"\7" * 70000,
            4 * MIB: b"\t" * MIB,
            3 * MIB: bytes(128 << 10),
            9 * MIB: bytes(4096),
            12 * MIB: b"\v" * 12288,
            DISK_BYTES - 512: b"\r" * 512,
        }.items():
            image.seek(offset)
            image.write(data)
    compare(door, disk.db, "db")
    compare(door, disk.mon, "db@mon")


def test_qemu_nbd_lists_exports_with_their_contexts(door: Door):
    program = needs("qemu-nbd", package="qemu-utils")
    where = ["-k", door.socket] if door.socket else ["-b", door.server["server.host"], "-p", door.server["server.port"]]
    printed = client(program, "-L", *door.credentials, *(["--tls-creds", "tls"] if door.keys else []), *where)
    assert "exports available: 2" in printed
    volume, snapshot = printed.split("export: 'db'")[1].split("export: 'db@mon'")
    assert f"size:  {DISK_BYTES}" in volume
    assert "readonly" not in volume
    assert "readonly" in snapshot
    for context in ("base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:mon"):
        assert context in volume


def nbdinfo(*words: object) -> str:
    return client(needs("nbdinfo", package="libnbd-bin"), *words)


def nbdmap(door: Door, name: str, context: str) -> list[dict[str, int]]:
    rows: list[dict[str, int]] = json.loads(nbdinfo("--json", f"--map={context}", door.uri(name)))
    return rows


def test_nbdinfo_tells_of_exports_and_all_contexts(door: Door, disk: Lab):
    assert nbdinfo("--size", door.uri("db")) == f"{DISK_BYTES}\n"
    listed = json.loads(nbdinfo("--list", "--json", door.uri("")))["exports"]
    assert [(export["export-name"], export["is_read_only"]) for export in listed] == [("db", False), ("db@mon", True)]
    assert all(export["can_multi_conn"] and export["can_flush"] and export["can_fua"] for export in listed)

    rows = nbdmap(door, "db@mon", "base:allocation")
    assert joined([row for row in rows if row["type"] == 0], "offset") == data_extents(disk.mon)
    assert {row["type"] for row in rows} == {0, 3}

    changed = joined([row for row in nbdmap(door, "db", "qemu:dirty-bitmap:mon") if row["type"] == 1], "offset")
    assert changed == [(8192, 12288), (6 * MIB, 6 * MIB + 40960), (9 * MIB + 4096, 9 * MIB + 8192)]
    deep = joined([row for row in nbdmap(door, "db@mon", "qemu:allocation-depth") if row["type"] == 1], "offset")
    assert deep == [(8192, 12288), (9 * MIB + 4096, 9 * MIB + 8192)]  # preserved, and so the snapshot's own


def nbdcopy(*words: object) -> None:
    client(needs("nbdcopy", package="libnbd-bin"), *words)


def test_nbdcopy_copies_out_with_many_connections(door: Door, disk: Lab, tmp_path: Path):
    nbdcopy("--connections=4", "--requests=16", door.uri("db"), tmp_path / "copy")
    assert digest(tmp_path / "copy") == digest(disk.db)
    assert allocated_bytes(tmp_path / "copy") < DISK_BYTES // 2
    nbdcopy("--synchronous", "--no-extents", door.uri("db@mon"), tmp_path / "plain")
    assert digest(tmp_path / "plain") == digest(disk.mon)


def test_nbdcopy_copies_in_with_many_connections(door: Door, disk: Lab, tmp_path: Path):
    sparse_file(tmp_path / "new", DISK_BYTES, [(MIB, noise(5 * MIB, 8)), (12 * MIB + 1, noise(70000, 9))])
    nbdcopy("--connections=4", "--flush", tmp_path / "new", door.uri("db"))
    compare(door, tmp_path / "new", "db")
    nbdcopy("--connections=2", "--flush", door.uri("db@mon"), door.uri("db"))  # back to Monday
    compare(door, disk.mon, "db")
    compare(door, disk.mon, "db@mon")


@without_tls
def test_nbdfuse_shows_an_export_as_a_file(door: Door, disk: Lab, tmp_path: Path):
    unmount, program = require_fuse(), needs("nbdfuse", package="libnbd-bin")
    mount = tmp_path / "mount"
    mount.mkdir()
    process = subprocess.Popen([program, mount / "db", door.uri("db")], stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not mount.is_mount():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert digest(mount / "db") == digest(disk.db)
        for path in (mount / "db", disk.db):
            with path.open("r+b", buffering=0) as file:
                os.pwrite(file.fileno(), b"through a file", 5 * MIB + 77)
                os.fsync(file.fileno())
        tool(unmount, "-u", mount)
        assert process.wait(TIMEOUT_SECONDS) == 0
    finally:
        process.kill()
        process.wait(TIMEOUT_SECONDS)
        tool(unmount, "-q", "-u", "-z", mount, ok=False)
    compare(door, disk.db, "db")


def test_libnbd_from_python_finds_every_request_as_a_model_has_it(door: Door, disk: Lab):
    client(*python_with_libnbd(), LIBNBD_SCRIPT, door.uri("db"), disk.db)
    compare(door, disk.db, "db")
    compare(door, disk.mon, "db@mon")


@without_tls
def test_fio_finds_what_it_has_written(door: Door, disk: Lab, tmp_path: Path):
    every = [f"--uri={door.uri('db')}", "--iodepth=16", "--size=4M", "--verify=crc32c", "--verify_state_save=0"]
    small = ["--name=small", "--rw=randwrite", "--bsrange=512-32k", "--fsync=64"]
    large = ["--name=large", "--rw=write", "--bs=256k", "--offset=8M"]
    report = ["--output-format=json", f"--output={tmp_path / 'report'}"]
    client(needs("fio", package="fio"), "--thread", "--ioengine=nbd", *report, *small, *every, *large, *every)
    printed = (tmp_path / "report").read_text()
    for job in json.loads(printed[printed.index("{") :])["jobs"]:
        assert job["error"] == 0
        assert job["write"]["io_bytes"] == job["read"]["io_bytes"] == 4 * MIB
    compare(door, disk.mon, "db@mon")


def test_a_client_without_a_certificate_is_refused_and_disturbs_nobody(disk: Lab, keys: Path, tmp_path: Path):
    strange, none = make_keys(_made(tmp_path / "strange")), _made(tmp_path / "none")
    for folder in (strange, none):
        (folder / "ca-cert.pem").write_bytes((keys / "ca-cert.pem").read_bytes())
    with serve(disk.container, "--listen", "127.0.0.1:0", *tls_options(keys)) as serving:
        for folder in (strange, none):
            door = serving.door(folder)
            qemu_img(door, "info", door.image("db"), code=1)
            client(needs("nbdinfo", package="libnbd-bin"), "--size", door.uri("db"), code=1)
        plain = serving.door().uri("db").replace("nbds:", "nbd:")
        client(needs("nbdinfo", package="libnbd-bin"), "--size", plain, code=1)
        compare(serving.door(keys), disk.db, "db")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
