"""The container's lock: `flock`, exclusive to write, shared to read.

A reader must keep writers out since the pages of an old commit are reused by later ones. The kernel drops the lock
when the file is closed or the process dies, so there is nothing to clean up.
"""

from __future__ import annotations

import fcntl
import os
import time

from snapctl.errors import Locked

_POLL_SECONDS = 0.01
_LONGEST_COMMAND = 160


def acquire(fd: int, path: str, *, exclusive: bool, wait_seconds: float) -> None:
    """Take the lock, waiting for other holders.

    Raises:
        Locked: still held after `wait_seconds` (0 or more); names the holders where the system tells.
    """
    operation = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(fd, operation)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise _locked(fd, path, wait_seconds) from None
            time.sleep(_POLL_SECONDS)
        else:
            return


def pause(fd: int, path: str, *, wait_seconds: float) -> None:
    """Let waiting writers have their turn in the middle of a long read, then take the shared lock again.

    Raises:
        Locked: as `acquire`.
    """
    fcntl.flock(fd, fcntl.LOCK_UN)
    time.sleep(2 * _POLL_SECONDS)
    acquire(fd, path, exclusive=False, wait_seconds=wait_seconds)


def _locked(fd: int, path: str, wait_seconds: float) -> Locked:
    holders = _holders(fd)
    by = ", ".join(holders) or "another process"
    return Locked(f"{path} is locked by {by}; waited {wait_seconds:g} s; try again or give --wait more", holders)


def _holders(fd: int) -> list[str]:
    """Who holds a `flock` on the file, read from /proc/locks where there is one."""
    status = os.fstat(fd)
    try:
        with open("/proc/locks", encoding="ascii") as table:
            rows = [line.split() for line in table]
    except OSError:
        return []
    locks = [(row[4], row[5]) for row in rows if len(row) > 5 and row[1] == "FLOCK"]
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    # On btrfs and the like the table shows another device than stat, so the inode has to do if nothing else matches.
    pids = {pid for pid, where in locks if where == file} or {
        pid for pid, where in locks if where.endswith(f":{status.st_ino}")
    }
    return [f"pid {pid} ({_command(pid)})" for pid in sorted(pids, key=int)]


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).rstrip(b"\0").split(b"\0")
    except OSError:
        return "unknown command"
    command = b" ".join(words).decode("utf-8", "replace")
    # Another user chose these bytes; they must not break the line nor reach the terminal as an escape sequence.
    return "".join(char if char.isprintable() else "?" for char in command[:_LONGEST_COMMAND])
