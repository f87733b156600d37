"""Snapshots beside reflink copies: what people with btrfs or XFS do instead, on file systems mounted from a file.

The image on such a file system is served by nbdkit, so that the load comes the same way, and a snapshot of it is
``cp --reflink=always``, made durable. Its file system lies in a file on the same disk as everything else, which costs
it something. Needs root and loop devices.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

from benchmarks.measure import MILLISECONDS, OPERATIONS, Comparison, Failed, Part, Setting, compare
from benchmarks.processes import find, random_image, run, sync, timed, why_missing
from benchmarks.servers import QEMU, SNAPCTL, Nbdkit, Qemu, Server, Snapctl
from benchmarks.show import main
from snapctl.units import format_size

FILE_SYSTEMS = {"btrfs": "mkfs.btrfs", "XFS": "mkfs.xfs"}
OVERWRITES = ("--rw=randwrite", "--bs=4k", "--iodepth=32", "--fsync=256")


class Reflink(Nbdkit):
    """nbdkit on a raw file of a file system that can share blocks between files."""

    def adopt(self, image: Path) -> None:
        self.fill(image, self.file)

    def snapshot(self) -> None:
        self._snapshots += 1
        copied = self.file.with_name(f"s{self._snapshots}.img")
        run("cp", "--reflink=always", self.file, copied)
        sync(copied)


@contextmanager
def mounted(program: str, folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a new file system from a file for as long as the context lasts.

    Raises:
        Failed: that cannot be done here.
    """
    for needed in (program, "nbdkit"):
        if find(needed) is None:
            raise Failed(why_missing(needed))
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        raise Failed("mounting takes root and loop devices")
    device, where = folder / f"{program}.img", folder / program
    where.mkdir()
    with device.open("wb") as made:
        made.truncate(size_bytes)
    run(find(program), "-q", device)
    run("mount", "-o", "loop", device, where)
    try:
        yield where
    finally:
        run("umount", where)
        device.unlink()


def reflink(where: Setting) -> Iterator[Comparison]:
    """Compare taking a snapshot of a volume, and the first overwrites after it."""
    folder = where.folder / "reflink"
    folder.mkdir()
    image = random_image(folder / "disk.img", 2 * where.size)
    missing = {}
    with ExitStack() as stack:
        servers: list[Server] = [Snapctl(SNAPCTL, folder)]
        if why := Qemu.missing():
            missing[QEMU] = why
        else:
            servers.append(Qemu(QEMU, folder))
        for name, program in FILE_SYSTEMS.items():
            contender = f"{name} reflink, nbdkit"
            try:
                directory = stack.enter_context(mounted(program, folder, 10 * where.size + (1 << 30)))
                servers.append(Reflink(contender, directory))
            except Failed as error:
                missing[contender] = str(error)
        for server in servers:
            server.adopt(image)
            sync(server.file)
        note = f"a volume of {format_size(2 * where.size)}, full and not in use when the snapshot is taken"
        rounds = where.rounds(3)
        yield compare(
            "reflink-snapshot",
            "a snapshot, taken by a process and made durable",
            MILLISECONDS,
            {server.name: partial(_taking, server) for server in servers},
            2 * rounds + 1,
            warm_up=True,
            missing=missing,
            note=note,
        )
        for server in servers:
            stack.enter_context(server.running())
        yield compare(
            "reflink-overwrite",
            "first overwrites after it, random 4 KiB, a flush after each 256",
            OPERATIONS,
            {server.name: partial(_overwriting, server, where, count(1)) for server in servers},
            rounds,
            missing=missing,
            note=f"{note}; each piece overwrites a sixteenth of it, no block twice",
        )
    shutil.rmtree(folder)


def _taking(server: Server) -> float:
    return timed(server.snapshot) * 1000


def _overwriting(server: Server, where: Setting, seeds: Iterator[int]) -> float:
    server.snapshot()
    return server.load(*OVERWRITES, f"--io_size={where.size // 8}", seed=next(seeds)).operations


PARTS = [Part("reflink", reflink)]

if __name__ == "__main__":
    main(str(__doc__), PARTS)
