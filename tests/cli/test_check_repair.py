"""`check --repair` and `check --undo-repair` as people and scripts use them."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from tests.cli.harness import digest, on_terminal, one_line, run, snapctl
from tests.support import damage
from tests.support.backends import MemoryBackend
from tests.support.repairs import family

BLOCK = 512


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A container with one damaged block, number 3 of db."""
    backend = MemoryBackend(family())
    damage.flip(backend, damage.find(backend, "db", "data", 3).offset)
    path = tmp_path / "lab.snap"
    path.write_bytes(backend.data)
    return path


LOST = f"db: bytes {3 * BLOCK} to {4 * BLOCK} are marked as lost"


def test_a_dry_run_tells_what_a_repair_would_do_and_does_nothing(lab: Path):
    lab.chmod(0o444)
    before = digest(lab)
    result = snapctl("check", "--repair", "-n", lab)
    assert (result.code, result.err, digest(lab)) == (4, "", before)
    assert f"repair: {LOST}" in result.lines
    assert result.lines[-1] == f"{lab}: this is what a repair would do; nothing was changed"


def test_a_repair_marks_what_is_lost_and_the_rest_can_be_read(lab: Path):
    told = snapctl("check", "--repair", "-n", lab).lines[:-1]
    result = run("check", "--repair", "-y", lab)
    assert result.lines[:-1] == told
    assert "undo-repair" in result.lines[-1]
    check = run("check", lab)
    assert check.lines[0] == f"lost: {LOST}"
    assert "no errors" in check.lines[1]
    refused = snapctl("read", f"{lab}/db", "--length", 5 * BLOCK)
    assert refused.code == 4
    assert f"db bytes {3 * BLOCK} to {4 * BLOCK}: damaged beyond repair" in refused.err
    assert len(run("read", f"{lab}/db", "--length", 3 * BLOCK).out) == 3 * BLOCK
    run("write", f"{lab}/db", "--offset", 3 * BLOCK, stdin=b"n" * BLOCK)
    assert run("read", f"{lab}/db", "--offset", 3 * BLOCK, "--length", BLOCK).out == b"n" * BLOCK


def test_a_sound_container_needs_no_repair(tmp_path: Path):
    path = tmp_path / "lab.snap"
    path.write_bytes(family())
    before = digest(path)
    assert "no errors" in run("check", "--repair", "-y", path).text
    assert digest(path) == before


def test_programs_are_told_in_json(lab: Path):
    told = snapctl("check", "--repair", "-n", "--json", lab)
    assert (told.code, told.json["exit_code"], told.json["applied"]) == (4, 4, False)
    done = run("check", "--repair", "-y", "--json", lab).json
    assert (done["version"], done["exit_code"], done["applied"]) == (1, 0, True)
    assert done["actions"] == told.json["actions"]
    assert done["findings"] == told.json["findings"]
    assert {"severity": "repair", "where": "db", "message": LOST.removeprefix("db: ")} in done["actions"]
    found = run("check", "--json", lab).json
    assert [finding["severity"] for finding in found["findings"]] == ["lost"]
    undone = run("check", "--undo-repair", "--json", lab).json
    assert undone["container"] == {"path": str(lab)}
    assert undone["state_of_transaction"] > 1


def test_a_repair_can_be_undone_until_something_is_written(lab: Path):
    before = snapctl("check", lab)
    run("check", "--repair", "-y", lab)
    run("check", "--undo-repair", lab)
    after = snapctl("check", lab)
    assert (after.code, after.out) == (before.code, before.out)
    run("check", "--repair", "-y", lab)
    run("write", f"{lab}/dev", stdin=b"new")
    result = snapctl("check", "--undo-repair", lab)
    assert result.code == 1
    assert "not a repair" in one_line(result)


@pytest.mark.parametrize(
    "options",
    [("--repair", "--undo-repair"), ("-n",), ("-y",)],
)
def test_options_that_do_not_go_together_are_refused(lab: Path, options: tuple[str, ...]):
    before = digest(lab)
    assert snapctl("check", *options, lab).code == 2
    assert digest(lab) == before


def test_on_a_terminal_it_asks_and_takes_no_for_an_answer(lab: Path):
    before = digest(lab)
    code, seen = on_terminal("check", "--repair", lab, typed="n\n", columns=200)
    assert code == 1
    assert LOST in seen
    assert "not confirmed" in seen
    assert digest(lab) == before
    code, seen = on_terminal("check", "--repair", lab, typed="y\n", columns=200)
    assert code == 0
    assert run("check", lab).lines[0] == f"lost: {LOST}"


def test_a_container_in_use_is_not_repaired(lab: Path):
    before = digest(lab)
    with lab.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        for option in ("--repair", "--undo-repair"):
            assert snapctl("check", option, "--wait", "0", lab).code == 5
        assert snapctl("check", "--repair", "-n", "--wait", "0", lab).code == 4
    assert digest(lab) == before
