"""Processes that move money about in an SQLite database and log what was committed, and a judge of what is left.

Run as a program, it makes one transaction after the other until SIGTERM: some money goes from one account to another,
and the transfer into a ledger. A copy of the database that was taken in between recovers to a state in which no money
was lost or made, all transfers logged as done before are in the ledger, and the ledger accounts for all balances.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

from tests.support.logged_writers import Change, Logger, run_writer

_ACCOUNTS = 200
_BALANCE = 1000
_TIMEOUT_SECONDS = 60


def found(path: Path, *, journal_mode: str) -> None:
    """Make a database in which every account has the same."""
    with closing(_connect(path)) as bank:
        assert bank.execute(f"PRAGMA journal_mode = {journal_mode}").fetchone() == (journal_mode,)
        bank.execute("BEGIN")
        bank.execute("CREATE TABLE accounts (number INTEGER PRIMARY KEY, balance INTEGER NOT NULL, note TEXT)")
        bank.executemany(
            "INSERT INTO accounts VALUES (?, ?, ?)", [(number, _BALANCE, "x" * 200) for number in range(_ACCOUNTS)]
        )
        bank.execute("CREATE TABLE ledger (teller, number, source, target, amount, PRIMARY KEY (teller, number))")
        bank.execute("COMMIT")


def _connect(path: Path) -> sqlite3.Connection:
    bank = sqlite3.connect(path, timeout=_TIMEOUT_SECONDS, isolation_level=None)
    bank.execute("PRAGMA synchronous = EXTRA")  # of the modes the one in which a commit survives in every journal mode
    return bank


def _teller(root: Path, log: Logger, teller: int) -> Callable[[int], None]:
    bank, choose = _connect(root), Random(teller)

    def transfer(number: int) -> None:
        source, target = choose.sample(range(_ACCOUNTS), 2)
        amount = choose.randrange(_BALANCE)
        with log.around(Change(str(teller), number, "transfer")):
            bank.execute("BEGIN IMMEDIATE")
            bank.execute("UPDATE accounts SET balance = balance - ? WHERE number = ?", (amount, source))
            bank.execute("UPDATE accounts SET balance = balance + ? WHERE number = ?", (amount, target))
            bank.execute("INSERT INTO ledger VALUES (?, ?, ?, ?, ?)", (teller, number, source, target, amount))
            bank.execute("COMMIT")

    return transfer


def assert_holds(path: Path, done: list[Change], begun: list[Change]) -> None:
    """Let a database recover, and judge it.

    Args:
        path: of the database.
        done: the transfers that have to be in it.
        begun: all that may be, those included.

    Raises:
        AssertionError: a transfer is missing, or there by half, or one is there that nobody had begun.
    """
    with closing(_connect(path)) as bank:
        assert bank.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        balances = dict(bank.execute("SELECT number, balance FROM accounts"))
        ledger = bank.execute("SELECT teller, number, source, target, amount FROM ledger").fetchall()
    entered = {(str(teller), number) for teller, number, *_ in ledger}
    missing = {(name, version) for name, version, _ in done} - entered
    assert not missing, f"{len(missing)} transfers are missing, such as {min(missing)}"
    assert entered <= {(name, version) for name, version, _ in begun}, "transfers from the future"
    expected = dict.fromkeys(range(_ACCOUNTS), _BALANCE)
    for _, _, source, target, amount in ledger:
        expected[source] -= amount
        expected[target] += amount
    assert balances == expected
    assert sum(balances.values()) == _ACCOUNTS * _BALANCE


if __name__ == "__main__":
    run_writer(_teller)
