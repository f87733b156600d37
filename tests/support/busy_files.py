"""Processes that keep changing the files of a directory and log what they may rely on, and a judge of what is left.

Run as a program, it puts, replaces, deletes and appends to files below a directory until SIGTERM. It logs each change
before it begins, and again once fsync(2) has said of files and directories that it is there for good. A copy of the
file system that was taken in between holds what was logged as done before, and nothing by half.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from random import Random

from tests.support.logged_writers import Change, Logger, run_writer

_SLOTS = 12
"""A writer has so many files, beside its journal."""
_LONGEST_FILE_BYTES = 150_000
_JOURNAL = "journal"


def _content(writer: int, version: int) -> bytes:
    choose = Random(f"{writer}/{version}")
    body = choose.randbytes(choose.randint(1, choose.choice((500, 20_000, _LONGEST_FILE_BYTES))))
    return b"%d %s\n" % (version, hashlib.sha256(body).hexdigest().encode()) + body


def _record(version: int) -> bytes:
    return b"%08d %s\n" % (version, hashlib.sha256(b"%d" % version).hexdigest().encode())


class _Writer:
    """Changes files in ROOT/NUMBER."""

    def __init__(self, root: Path, log: Logger, number: int) -> None:
        self._number = number
        self._folder = root / str(number)
        self._drafts = root / f"{number}.drafts"
        for folder in (self._folder, self._drafts):
            folder.mkdir()
        _sync(root)
        self._log = log
        self._choose = Random(number)
        self._appended = 0

    def change(self, version: int) -> None:
        """Make one change, and have the file system promise that it stays."""
        kind = self._choose.choices(("put", "delete", "append"), (6, 2, 2))[0]
        path = self._folder / (_JOURNAL if kind == "append" else f"f{self._choose.randrange(_SLOTS)}")
        if kind == "delete" and not path.exists():
            kind = "put"
        if kind == "append":
            self._appended += 1
            version = self._appended
        with self._log.around(Change(f"{self._number}/{path.name}", version, kind)):
            if kind == "append":
                self._append(path, _record(version))
            elif kind == "delete":
                path.unlink()
            else:
                draft = self._drafts / path.name
                self._append(draft, _content(self._number, version))
                draft.rename(path)
                _sync(self._drafts)
            _sync(self._folder)

    @staticmethod
    def _append(path: Path, data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def assert_holds(root: Path, done: list[Change], begun: list[Change]) -> None:
    """Judge what a file system holds.

    Args:
        root: what the writers were given, or a copy of it.
        done: the changes that have to be there.
        begun: all that may be, those included.

    Raises:
        AssertionError: a change is missing, or there by half, or something is there that nobody had begun.
    """
    for name in sorted({change.name for change in begun}):
        last = max((change for change in done if change.name == name), default=Change(name, 0, "delete"))
        possible = [change for change in begun if change.name == name and change.version > last.version] + [last]
        path = root / name
        if name.endswith(_JOURNAL):
            records = path.read_bytes() if path.exists() else b""
            wanted = b"".join(map(_record, range(1, last.version + 1)))
            assert records[: len(wanted)] == wanted, f"{name}: {len(records)} bytes, and {len(wanted)} were promised"
            assert len(records) <= len(wanted) + len(_record(0)) * (len(possible) - 1), f"{name} is from the future"
        elif not path.exists():
            assert any(change.kind == "delete" for change in possible), f"{name} is missing: {last}"
        else:
            version = int(path.read_bytes().split(b" ", 1)[0])
            assert path.read_bytes() == _content(int(name.split("/")[0]), version), f"{name} is not whole: {last}"
            assert Change(name, version, "put") in possible, f"{name} is of version {version}: {last}"


if __name__ == "__main__":
    run_writer(lambda root, log, number: _Writer(root, log, number).change)
