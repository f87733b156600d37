"""Small disks that can be full: real file systems that only the test sees, and one in memory that needs no privileges.

A real one lives in a mount namespace of its own and vanishes with the process that holds it, so nothing is left behind
when a test dies. It is reached through that process's root directory in /proc.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapctl.errors import NoSpace
from snapctl.storage.backend import Buffer
from tests.support.backends import MemoryBackend
from tests.support.requires import needs

FILE_SYSTEMS = ["tmpfs", "ext4"] if os.geteuid() == 0 else ["tmpfs"]
"""What can be mounted: nobody but root may mount a disk image, whatever is installed."""

WITHOUT_RESERVATIONS = ["ext2"] if os.geteuid() == 0 else []
"""Of those, what cannot keep room for a file."""

_MOUNT = {
    "tmpfs": 'mount -t tmpfs -o "size=$3" none "$1"',
    "ext2": 'mount -o loop "$2" "$1"',
    "ext4": 'mount -o loop "$2" "$1"',
}
_BLOCK = 4096


@contextmanager
def small_disk(file_system: str, folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount an empty file system of about `size_bytes` on a new directory in `folder`; yields the way to it."""
    unshare = needs("unshare", package="util-linux")
    mount_point, image = folder / "disk", folder / "disk.img"
    mount_point.mkdir()
    if file_system != "tmpfs":
        mke2fs = needs("mke2fs", package="e2fsprogs")
        journal = ["-J", "size=4"] if file_system == "ext4" else []
        command = [mke2fs, "-q", "-t", file_system, "-b", str(_BLOCK), "-m", "0", *journal, str(image)]
        subprocess.run([*command, f"{size_bytes // 1024}k"], check=True, stdin=subprocess.DEVNULL, capture_output=True)
    script = f"{_MOUNT[file_system]} && echo mounted && exec cat"
    holder = subprocess.Popen(
        # A user namespace is how those who are not root may mount a tmpfs.
        [
            unshare,
            "-rm" if file_system == "tmpfs" else "-m",
            "sh",
            "-c",
            script,
            "sh",
            mount_point,
            image,
            str(size_bytes),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != b"mounted\n":
            pytest.skip(f"{file_system} cannot be mounted here: {holder.stderr.read().decode()}")
        yield Path(f"/proc/{holder.pid}/root{mount_point}")
        holder.stdin.close()


def fill_up(file: Path) -> None:
    """Have a file take all that is free on its file system."""
    with file.open("ab", buffering=0) as ballast:
        for size in (1 << 20, _BLOCK, 512):
            try:
                while ballast.write(b"\xff" * size):
                    pass
            except OSError:
                pass
        try:
            os.fsync(ballast.fileno())
        except OSError:
            pass


class SmallDisk(MemoryBackend):
    """A file in memory on a file system of its own, which allocates blocks of 4 KiB as a real one does.

    Attributes:
        blocks: numbers of the blocks allocated to the file, those beyond its end among them.
        size_blocks: how many there are.
        taken: how many of them other files have.
        keeps_room: it can keep room for a file, as some file systems cannot.
    """

    def __init__(self, size_bytes: int, path: str = "memory.snap", *, keeps_room: bool = True) -> None:
        super().__init__(path=path)
        self.keeps_room = keeps_room
        self.blocks: set[int] = set()
        self.size_blocks = size_bytes // _BLOCK
        self.taken = 0

    def copy(self) -> SmallDisk:
        """Another disk just like it."""
        other = SmallDisk(self.size_blocks * _BLOCK, keeps_room=self.keeps_room)
        other.data, other.blocks, other.taken = bytearray(self.data), set(self.blocks), self.taken
        return other

    @property
    def free_blocks(self) -> int:
        return self.size_blocks - self.taken - len(self.blocks)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        kept = len(data)
        for block in range(offset // _BLOCK, -(-(offset + len(data)) // _BLOCK)):
            if not self._take(block):
                kept = max(0, block * _BLOCK - offset)
                break
        super().write(offset, [data[:kept]])
        if kept < len(data):
            raise NoSpace("the disk is full")

    def truncate(self, size: int) -> None:
        if self.size() > size:
            super().truncate(size)
            self.release()

    def punch(self, offset: int, length: int) -> None:
        super().punch(offset, length)
        self.blocks -= set(range(-(-offset // _BLOCK), (offset + length) // _BLOCK))

    def reserve(self, offset: int, length: int) -> bool:
        if not self.keeps_room:
            return False
        super().reserve(offset, length)
        for block in range(offset // _BLOCK, -(-(offset + length) // _BLOCK)):
            if not self._take(block):
                raise NoSpace("the disk is full")
        return True

    def release(self) -> None:
        super().release()
        end = -(-self.size() // _BLOCK)
        self.blocks = {block for block in self.blocks if block < end}

    def room(self, used_bytes: int) -> int:
        return max(used_bytes, len(self.blocks) * _BLOCK) + self.free()

    def free(self) -> int:
        return self.free_blocks * _BLOCK

    def _take(self, block: int) -> bool:
        if block not in self.blocks:
            if not self.free_blocks:
                return False
            self.blocks.add(block)
        return True
