"""The servers that are compared: each with its own file of the same data, on a Unix socket."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import ClassVar
from urllib.parse import quote
from weakref import finalize

from benchmarks.fio import Load, load
from benchmarks.measure import Failed
from benchmarks.processes import copy, find, run, snapctl, why_missing

SNAPCTL = "snapctl"
QEMU = "qemu-nbd, qcow2"
NBDKIT = "nbdkit, raw file"

_START_SECONDS = 20
_STOP_SECONDS = 120


class Server(ABC):
    """A server over one file; started and stopped at will.

    Attributes:
        name: of the contender.
        file: that it serves.
    """

    programs: ClassVar[Sequence[str]] = ()
    """What has to be installed."""
    export: ClassVar[str] = "db"
    suffix: ClassVar[str]

    def __init__(self, name: str, folder: Path) -> None:
        """Make a folder of its own in `folder`."""
        self.name = name
        folder = folder / name.replace(" ", "-").replace(",", "")
        folder.mkdir(parents=True, exist_ok=True)
        self._master = folder / f"master{self.suffix}"
        self.file = folder / f"work{self.suffix}"
        # In the temporary directory wherever the files are, since a socket's path must not be long.
        self._socket = Path(mkdtemp(prefix="snapctl-bench-"), "socket")
        finalize(self, shutil.rmtree, self._socket.parent)
        self._report = folder / "fio.json"
        self._process: subprocess.Popen[bytes] | None = None
        self._snapshots = 0

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot take part; None if it can."""
        return next((why_missing(program) for program in cls.programs if find(program) is None), None)

    @abstractmethod
    def fill(self, image: Path, target: Path) -> None:
        """Make the file `target` with the data of an image."""

    @abstractmethod
    def command(self, socket_path: Path) -> list[object]:
        """The words that start it."""

    @abstractmethod
    def snapshot(self) -> None:
        """Take a snapshot of the volume, the way its users do."""

    def prepare(self, image: Path) -> None:
        """Have a file of its own with the data of an image, as if never written since."""
        if not self._master.exists():
            self.fill(image, self._master)
        self.renew()

    def renew(self) -> None:
        """Go back to what `fill` made."""
        self.file.unlink(missing_ok=True)
        copy(self._master, self.file)

    def adopt(self, image: Path) -> None:
        """Have a file of its own, without a copy to go back to: where files are large."""
        self.file.unlink(missing_ok=True)
        self.fill(image, self.file)

    @property
    def pid(self) -> int:
        """Of the process that serves."""
        assert self._process is not None
        return self._process.pid

    def uri(self, export: str | None = None) -> str:
        """Where an export is."""
        return f"nbd+unix:///{quote(export or self.export)}?socket={self._socket}"

    def start(self) -> None:
        """Start, and wait until it answers.

        Raises:
            Failed: it does not.
        """
        self._socket.unlink(missing_ok=True)
        words = [str(word) for word in self.command(self._socket)]
        log = self._report.with_name("log")
        with log.open("wb") as said:
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise Failed(f"{' '.join(words)}: does not serve: {log.read_text(errors='replace').strip()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Have it end, by force if need be."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Failed(f"{self.name} did not end within {_STOP_SECONDS} s and was killed") from None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve for as long as the context lasts."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def load(
        self,
        *words: str,
        export: str | None = None,
        seconds: float | None = None,
        ramp: float | None = None,
        seed: int = 1,
    ) -> Load:
        """Put it under load; see `fio.load`."""
        return load(self.uri(export), self._report, *words, seconds=seconds, ramp=ramp, seed=seed)

    def warm(self, export: str | None = None, *, most_seconds: int = 30) -> None:
        """Read everything once, or as much as the time allows."""
        self.load("--rw=read", "--bs=1M", "--iodepth=8", f"--runtime={most_seconds}", export=export)

    def settle(self) -> None:
        """Have it write out what it was given, so that it does not do so while the next is measured."""
        self.load("--rw=write", "--bs=4k", "--number_ios=1", "--end_fsync=1")

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as door, contextlib.suppress(OSError):
            door.connect(str(self._socket))
            return True
        return False


class Snapctl(Server):
    """snapctl itself, with blocks of some size."""

    suffix = ".snap"

    def __init__(self, name: str, folder: Path, *, block_size: int | None = None) -> None:
        """As `Server`; `block_size` in bytes, None for the default."""
        super().__init__(name, folder)
        self._block_size = block_size

    def fill(self, image: Path, target: Path) -> None:
        run(*snapctl("init", target, *(["--block-size", self._block_size] if self._block_size else [])))
        run(*snapctl("import", target / self.export, image))

    def command(self, socket_path: Path) -> list[object]:
        return [*snapctl("serve", self.file, "--unix", socket_path)]

    def snapshot(self) -> None:
        self._snapshots += 1
        run(*snapctl("snapshot", f"{self.file}/{self.export}@s{self._snapshots}"))


class Qemu(Server):
    """qemu-nbd on a qcow2 file with clusters of its default size, 64 KiB."""

    suffix = ".qcow2"
    programs = ("qemu-nbd", "qemu-img")

    def fill(self, image: Path, target: Path) -> None:
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, target, synced=target)

    def command(self, socket_path: Path) -> list[object]:
        served = ["-f", "qcow2", "--cache=writeback", "-x", self.export]
        return [find("qemu-nbd"), "--persistent", *served, "-k", socket_path, self.file]

    def snapshot(self) -> None:
        """Take an internal snapshot, and stop meanwhile: of a file that is served none can be taken."""
        self._snapshots += 1
        serving = self._process is not None
        self.stop()
        run("qemu-img", "snapshot", "-c", f"s{self._snapshots}", self.file, synced=self.file)
        if serving:
            self.start()


class Nbdkit(Server):
    """nbdkit's file plugin on a raw file: no snapshots at all, the limit of the transport."""

    suffix = ".img"
    programs = ("nbdkit",)

    def fill(self, image: Path, target: Path) -> None:
        copy(image, target)

    def adopt(self, image: Path) -> None:
        """Serve the image itself, which nobody else needs by then."""
        self.file.unlink(missing_ok=True)
        os.link(image, self.file)

    def command(self, socket_path: Path) -> list[object]:
        return [find("nbdkit"), "--foreground", "--unix", socket_path, "file", self.file]

    def snapshot(self) -> None:
        raise Failed("a raw file has no snapshots")
