"""A program that keeps a file system busy until its standard input ends, and tells on standard output what is durable.

Usage: ``python fs_writer.py DIRECTORY``. Each line that it prints is one thing that the system has acknowledged as
durable: ``file NAME SHA256`` of a file that was written, synced and renamed in a synced directory, ``wal N`` and
``delete N`` of N transfers that SQLite has committed in a database of that journal mode.
"""

from __future__ import annotations

import hashlib
import os
import select
import sqlite3
import sys
from pathlib import Path
from random import Random

ACCOUNTS = 50
OPENING_BALANCE = 1000
MODES = ("wal", "delete")


def open_database(root: Path, mode: str) -> sqlite3.Connection:
    """Open the database of a journal mode as a careful program does."""
    database = sqlite3.connect(root / f"{mode}.db", isolation_level=None)
    database.execute(f"PRAGMA journal_mode = {mode}")
    database.execute("PRAGMA synchronous = FULL")
    return database


def _create(root: Path, mode: str) -> sqlite3.Connection:
    database = open_database(root, mode)
    database.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)")
    database.execute("CREATE TABLE transfer (number INTEGER PRIMARY KEY, payload BLOB NOT NULL)")
    rows = [(number, OPENING_BALANCE) for number in range(ACCOUNTS)]
    database.executemany("INSERT INTO account VALUES (?, ?)", rows)
    return database


def _transfer(database: sqlite3.Connection, number: int, chance: Random) -> None:
    amount, (giver, taker) = chance.randrange(1, 100), chance.sample(range(ACCOUNTS), 2)
    database.execute("BEGIN")
    database.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, giver))
    database.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, taker))
    database.execute("INSERT INTO transfer VALUES (?, ?)", (number, chance.randbytes(chance.randrange(1, 5000))))
    database.execute("COMMIT")


def _write_file(directory: Path, number: int, chance: Random) -> str:
    data = chance.randbytes(chance.randrange(1, 60_000))
    name = f"f{number % 40}-{number}"
    with open(directory / f".{name}", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(directory / f".{name}", directory / name)
    for old in directory.glob(f"f{number % 40}-*"):
        if old.name != name:
            old.unlink()
    fd = os.open(directory, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    return f"file {name} {hashlib.sha256(data).hexdigest()}"


def main(root: Path) -> None:
    """Write until standard input ends."""
    chance = Random(7)
    files = root / "files"
    files.mkdir()
    databases = {mode: _create(root, mode) for mode in MODES}
    number = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        number += 1
        print(_write_file(files, number, chance), flush=True)
        for mode, database in databases.items():
            _transfer(database, number, chance)
            print(mode, number, flush=True)
    for database in databases.values():
        database.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
