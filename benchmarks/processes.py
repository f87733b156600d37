"""Programs that are run and timed, the files that they work on, and the page cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.measure import MIB, Failed

TIMEOUT_SECONDS = 1200
"""No command takes longer; one that does is killed."""

PACKAGES = {
    "fio": "fio",
    "nbdkit": "nbdkit",
    "qemu-img": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.xfs": "xfsprogs",
}
"""Programs that need not be there, and the Debian packages that have them."""

_ADMIN_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def find(program: str) -> str | None:
    """The path of a program; None if it is not installed."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_ADMIN_DIRECTORIES]))


def why_missing(program: str) -> str:
    """What to say of a program that is not installed."""
    return f"{program} is not installed (Debian has it in {PACKAGES[program]})"


def python(code: str) -> list[str]:
    """The command that runs a line of Python."""
    return [sys.executable, "-c", code]


def snapctl(*arguments: object) -> list[str]:
    """The command that runs snapctl: the installed program of this Python, else its module."""
    program = shutil.which("snapctl", path=sysconfig.get_path("scripts"))
    start = [program] if program else [sys.executable, "-m", "snapctl"]
    return [*start, *map(str, arguments)]


def run(*command: object, synced: Path | None = None) -> float:
    """Run a command to its end; its output counts for nothing unless it fails.

    Args:
        command: its words.
        synced: a file that it writes; the time until that is durable counts too.

    Returns:
        The seconds it took.

    Raises:
        Failed: it did, or did not end.
    """
    words = [str(word) for word in command]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{' '.join(words)}: did not end") from error
    if synced is not None:
        sync(synced)
    took = time.perf_counter() - start
    if done.returncode:
        raise Failed(f"{' '.join(words)}: ended with {done.returncode}: {done.stderr.strip()}")
    return took


def timed(action: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def sync(path: Path) -> None:
    """Wait until a file is durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def copy(source: Path, target: Path) -> None:
    """Copy a file for good: its own blocks, on the disk."""
    plain = ["--reflink=never"] if sys.platform == "linux" else []
    run("cp", *plain, source, target, synced=target)


def random_image(path: Path, size_bytes: int, *, every: int = 1) -> Path:
    """Make an image of random data, once; a later call finds it.

    Args:
        path: of the image.
        size_bytes: its size.
        every: write only every so manieth MiB and leave holes between them.

    Returns:
        The path.
    """
    if path.exists():
        return path
    data = os.urandom(16 * MIB)
    with path.open("wb") as image:
        image.truncate(size_bytes)
        for offset in range(0, size_bytes, every * MIB):
            begin = (offset // MIB * 4099) % (15 * MIB)  # no two MiB of an image alike, and no block of zeros
            image.seek(offset)
            image.write(data[begin : begin + min(MIB, size_bytes - offset)])
    sync(path)
    return path


def drop_page_cache(files: Iterable[Path]) -> str:
    """Make the system forget what it has of files in memory.

    Returns:
        How that was done.
    """
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return "posix_fadvise(POSIX_FADV_DONTNEED) on the files"
    return "/proc/sys/vm/drop_caches"
