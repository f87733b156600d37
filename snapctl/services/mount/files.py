"""The nodes of a live container as files: names, attributes, open files, reading and writing.

A file behaves as a block device does: it has the size of its node, is never truncated, and takes no byte beyond its
end. Everything here runs on the event loop. What cannot be done is an `OSError` with the number that a program on top
expects, or an error of the engine, which `binding` turns into one.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from itertools import count
from typing import TYPE_CHECKING

from snapctl.engine.model import Kind
from snapctl.format.record import NAME_BYTES

if TYPE_CHECKING:
    from snapctl.engine.node import Node
    from snapctl.services.live.container import LiveContainer
    from snapctl.services.live.device import Device

KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10
"""Modes of fallocate(2)."""

DIRECTORY_INODE = 1

_SECTOR_BYTES = 512

_WINDOW_BYTES = 1 << 30
"""How much of a file a search for data or holes looks at in one turn."""


def refusal(number: int) -> OSError:
    """Make the error that a program sees as `number`."""
    return OSError(number, os.strerror(number))


class OpenFile:
    """A file that somebody has open: a user of its device.

    Attributes:
        device: what it reads and writes.
        description: who has it open, for people.
    """

    def __init__(self, device: Device, description: str) -> None:
        """Not for callers; ask `Files` to open one."""
        self.device = device
        self.description = description
        self._is_gone = False

    def disconnect(self, reason: str) -> None:  # noqa: ARG002 a file has no way to tell it
        """Fail everything from now on: the device is about to go away."""
        self._is_gone = True

    def check(self) -> None:
        """Refuse to go on after `disconnect`."""
        if self._is_gone:
            raise refusal(errno.EIO)


class Files:
    """The files of one mount.

    Owner, group and permissions are those of the container file: who may read that may read these.
    """

    def __init__(self, live: LiveContainer) -> None:
        """Show the nodes of `live`."""
        self._live = live
        self._status = os.stat(live.container.path)
        self._open: dict[int, OpenFile] = {}
        self._handles = count(1)
        self._written_ns: dict[int, int] = {}

    def entries(self) -> list[tuple[str, dict[str, int]]]:
        """The names of all files (``db``, ``db@mon``) with what a directory has of their attributes."""
        return [(node.name, {"st_mode": stat.S_IFREG, "st_ino": _inode(node)}) for node in self._live.nodes()]

    def attributes_of_directory(self) -> dict[str, int]:
        """The attributes of the directory itself, which changes when nodes come and go."""
        status = self._status_of_container()
        readable = stat.S_IMODE(status.st_mode) & 0o444
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), status.st_mtime_ns)
        mode = stat.S_IFDIR | readable | readable >> 2
        return {
            "st_mode": mode,
            "st_nlink": 2,
            "st_ino": DIRECTORY_INODE,
            "st_uid": status.st_uid,
            "st_gid": status.st_gid,
            **times,
        }

    def attributes(self, name: str, handle: int | None = None) -> dict[str, int]:
        """The attributes of a file, as stat(2) names them, times in nanoseconds.

        A snapshot is as old as what it holds. When a volume was written last is not recorded, so its file is as new as
        the container's, or newer: a program that goes by times may copy it once too often, never once too seldom.

        Raises:
            NodeNotFound: there is none of that name.
        """
        device = self._live.device(name) if handle is None else self._file(handle).device
        status = self._status_of_container()
        node = device.node
        created_ns = node.record.created_ns
        changed_ns = created_ns
        if node.kind is not Kind.RO:
            changed_ns = max(created_ns, status.st_mtime_ns, self._written_ns.get(node.id, 0))
        mode = stat.S_IMODE(status.st_mode) & (0o444 if device.is_read_only else 0o666)
        return {
            "st_mode": stat.S_IFREG | mode,
            "st_nlink": 1,
            "st_ino": _inode(node),
            "st_uid": status.st_uid,
            "st_gid": status.st_gid,
            "st_size": device.size_bytes,
            # Less than the size makes programs look for holes. None at all would tell tar that there is nothing to
            # read, although what the node does not own may come from its parent.
            "st_blocks": max(node.own_bytes, self._live.container.block_size) // _SECTOR_BYTES,
            "st_blksize": self._live.container.block_size,
            **_times(changed_ns),
        }

    def _status_of_container(self) -> os.stat_result:
        """The container file's attributes; the last ones seen, once it has been moved away."""
        try:
            self._status = os.stat(self._live.container.path)
        except OSError:
            pass
        return self._status

    def statistics(self) -> dict[str, int]:
        """What statvfs(2) tells: the room of the container, in its blocks."""
        usage, block_size = self._live.container.usage, self._live.container.block_size
        free = usage.free_bytes // block_size
        return {
            "f_bsize": block_size,
            "f_frsize": block_size,
            "f_blocks": (usage.used_bytes + usage.reserve_bytes) // block_size + free,
            "f_bfree": free,
            "f_bavail": free,
            "f_files": len(self._live.nodes()),
            "f_namemax": 2 * NAME_BYTES + len("@"),
        }

    def open(self, name: str, flags: int, description: str) -> int:
        """Open a file; O_TRUNC means nothing, as it does for a block device.

        Args:
            name: its name.
            flags: of open(2).
            description: who does, for people.

        Returns:
            The handle for all that follows, until `release`.

        Raises:
            NodeNotFound: there is none of that name.
        """
        device = self._live.device(name)
        if flags & os.O_ACCMODE != os.O_RDONLY and device.is_read_only:
            raise refusal(errno.EROFS)
        handle, file = next(self._handles), OpenFile(device, description)
        self._live.use(device, file)
        self._open[handle] = file
        return handle

    def release(self, handle: int) -> None:
        """Close a file. What was written to it is durable after the next flush, not before."""
        file = self._open.pop(handle, None)
        if file is not None:
            self._live.release(file.device, file)

    def users(self) -> list[str]:
        """Who has which file open, once each."""
        return list(dict.fromkeys(f"{file.device.name}: {file.description}" for file in self._open.values()))

    def release_all(self) -> None:
        """Close what is still open; the system does not say so for each file when a mount ends."""
        for handle in list(self._open):
            self.release(handle)

    def read(self, handle: int, offset: int, length: int) -> bytes:
        """Read up to the end of the file; raises as `Device.read_into`."""
        device = self._file(handle).device
        data = bytearray(max(0, min(length, device.size_bytes - offset)))
        device.read_into(offset, data)
        return bytes(data)

    def write(self, handle: int, offset: int, data: bytes) -> int | None:
        """Write up to the end of the file; raises as `Device.write`.

        Returns:
            How many bytes there was place for; None if the cache has no room just now, and nothing was written.
        """
        device = self._file(handle).device
        place = device.size_bytes - offset
        if place <= 0 < len(data):
            raise refusal(errno.ENOSPC)
        fitting = data[:place]
        if not device.write(offset, fitting):
            return None
        self._written_ns[device.node.id] = time.time_ns()
        return len(fitting)

    def allocate(self, handle: int, mode: int, offset: int, length: int) -> int | None:
        """Make a range read as zeros, as fallocate(2) does in its modes for that; raises as `Device.zero`.

        Room is not set aside: in the other modes the call is not supported.

        Returns:
            Zero; None as `write`.
        """
        device = self._file(handle).device
        if mode & ~KEEP_SIZE not in {PUNCH_HOLE, ZERO_RANGE}:
            raise refusal(errno.EOPNOTSUPP)
        place = device.size_bytes - offset
        if length > place and not mode & KEEP_SIZE:
            raise refusal(errno.EPERM)
        if place > 0 and not device.zero(offset, min(length, place)):
            return None
        self._written_ns[device.node.id] = time.time_ns()
        return 0

    async def until_room(self) -> None:
        """Return when what was not written for want of room in the cache may be tried again."""
        await self._live.until_room()

    def truncate(self, name: str, length: int) -> None:
        """Refuse to change the size, which ``snapctl resize`` does; the present one may be set."""
        device = self._live.device(name)
        if device.is_read_only:
            raise refusal(errno.EROFS)
        if length != device.size_bytes:
            raise refusal(errno.EPERM)

    async def seek(self, handle: int, offset: int, whence: int) -> int:
        """Find the next data or the next hole from `offset`, as lseek(2) does; raises as `Device.extents`.

        Others get their turn while it looks; what they change behind it is as if they had done so afterwards.
        """
        if whence not in {os.SEEK_DATA, os.SEEK_HOLE}:
            raise refusal(errno.EINVAL)
        size = self._file(handle).device.size_bytes
        if not 0 <= offset < size:
            raise refusal(errno.ENXIO)
        while offset < size:
            window = min(_WINDOW_BYTES, size - offset)
            for extent in self._file(handle).device.extents(offset, window):
                if extent.is_zero == (whence == os.SEEK_HOLE):
                    return extent.offset_bytes
            offset += window
            await asyncio.sleep(0)
            size = self._file(handle).device.size_bytes
        if whence == os.SEEK_DATA:
            raise refusal(errno.ENXIO)
        return size

    async def flush(self, handle: int | None = None) -> None:
        """Return when everything written before, to whatever file, is durable; raises as `LiveContainer.flush`."""
        if handle is not None:
            self._file(handle)
        await self._live.flush()

    def _file(self, handle: int) -> OpenFile:
        file = self._open.get(handle)
        if file is None:
            raise refusal(errno.EBADF)
        file.check()
        return file


def _inode(node: Node) -> int:
    return DIRECTORY_INODE + node.id


def _times(changed_ns: int) -> dict[str, int]:
    return dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), changed_ns)
