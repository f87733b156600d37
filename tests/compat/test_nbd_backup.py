"""Incremental backups as existing programs make them, from the dirty bitmaps that a server shows of its snapshots."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

from tests.cli.harness import digest, run
from tests.compat.conftest import DISK_BYTES, MIB, TUESDAY, Lab
from tests.support.requires import needs
from tests.support.served import Door, client, python_with_libnbd

INCREMENT_SCRIPT = Path(__file__).with_name("libnbd_increment.py")
BLOCK = 4096


def change(door: Door, image: Path, seed: int) -> set[int]:
    """Write to `db` as a machine does, and the same to an image; returns the numbers of the blocks touched."""
    dice = random.Random(seed)
    pattern = seed + 100
    writes = [(dice.randrange(DISK_BYTES - 6000), dice.randrange(1, 6000)) for _ in range(20)]
    writes.append((10 * MIB + seed * 70000, 300_000))
    zeroed = (seed * MIB, MIB // 2)
    commands = [f"write -P {pattern} {offset} {length}" for offset, length in writes]
    commands += ["write -z -u {} {}".format(*zeroed), "flush"]
    words = [word for command in commands for word in ("-c", command)]
    client(needs("qemu-io", package="qemu-utils"), *door.credentials, *words, "--image-opts", door.image("db"))
    with image.open("r+b") as file:
        for offset, length in writes:
            file.seek(offset)
            file.write(bytes([pattern]) * length)
        file.seek(zeroed[0])
        file.write(bytes(zeroed[1]))
    return blocks_of([*writes, zeroed])


def blocks_of(extents: Iterable[tuple[int, int]]) -> set[int]:
    return {no for offset, length in extents for no in range(offset // BLOCK, (offset + length - 1) // BLOCK + 1)}


ON_TUESDAY = blocks_of((offset, len(data)) for offset, data in TUESDAY.items())


def compare(door: Door, image: str, name: str) -> None:
    program = needs("qemu-img", package="qemu-utils")
    client(program, "compare", *door.credentials, "--image-opts", image, door.image(name))


def dirty_rows(door: Door, name: str, since: str) -> list[tuple[int, int]]:
    """What nbdinfo tells is dirty: offset and length."""
    printed = client(
        needs("nbdinfo", package="libnbd-bin"), "--json", f"--map=qemu:dirty-bitmap:{since}", door.uri(name)
    )
    return [(row["offset"], row["length"]) for row in json.loads(printed) if row["type"] == 1]


def test_qemu_copies_what_its_dirty_bitmap_option_tells_into_an_increment(door: Door, disk: Lab, tmp_path: Path):
    qemu_img, qemu_io = needs("qemu-img", package="qemu-utils"), needs("qemu-io", package="qemu-utils")
    full, increment = tmp_path / "full.qcow2", tmp_path / "increment.qcow2"
    client(qemu_img, "convert", "-O", "qcow2", *door.credentials, "--image-opts", door.image("db@mon"), full)
    touched = ON_TUESDAY | change(door, disk.db, 1)
    run("snapshot", disk.container / "db@tue")
    change(door, disk.db, 2)  # is in no snapshot, and must be in no increment

    bitmap = door.image("db@tue", {"x-dirty-bitmap": "qemu:dirty-bitmap:mon"})
    rows = json.loads(client(qemu_img, "map", "--output=json", *door.credentials, "--image-opts", bitmap))
    dirty = [(row["start"], row["length"]) for row in rows if not row["data"]]  # which is how the option shows it
    assert blocks_of(dirty) == touched

    client(qemu_img, "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", increment, DISK_BYTES)
    backing = ",".join(f"backing.{option}" for option in door.image("db@tue").split(","))
    reads = [word for offset, length in dirty for word in ("-c", f"read {offset} {length}")]
    overlay = f"driver=qcow2,file.driver=file,file.filename={increment},{backing}"
    client(qemu_io, "-C", *door.credentials, *reads, "--image-opts", overlay)  # -C copies what is read
    client(qemu_img, "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", full, increment)

    compare(door, f"driver=qcow2,file.driver=file,file.filename={increment}", "db@tue")
    assert increment.stat().st_size <= len(touched) * BLOCK + MIB // 2
    assert len(touched) * BLOCK < DISK_BYTES // 6


def test_libnbd_brings_a_backup_up_to_date_day_by_day(door: Door, disk: Lab, tmp_path: Path):
    update = (*python_with_libnbd(), INCREMENT_SCRIPT)
    backup, weekly = tmp_path / "backup", tmp_path / "weekly"
    for path in (backup, weekly):
        client(needs("nbdcopy", package="libnbd-bin"), door.uri("db@mon"), path)
    before, all_touched = "mon", set[int]()
    for number, day in enumerate(["tue", "wed", "thu"], 1):
        touched = change(door, disk.db, number) | (ON_TUESDAY if day == "tue" else set())
        all_touched |= touched
        run("snapshot", disk.container / f"db@{day}")
        assert blocks_of(dirty_rows(door, f"db@{day}", before)) == touched
        copied = client(*update, door.uri(f"db@{day}"), f"qemu:dirty-bitmap:{before}", backup)
        assert int(copied) == len(touched) * BLOCK
        assert digest(backup) == digest(disk.db)
        before = day
    copied = client(*update, door.uri("db@thu"), "qemu:dirty-bitmap:mon", weekly)
    assert int(copied) == len(all_touched) * BLOCK
    assert digest(weekly) == digest(disk.db)
    assert dirty_rows(door, "db", "thu") == []
