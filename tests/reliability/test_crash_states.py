"""Whatever a crash leaves is a whole commit, by search (design invariants 2 and 4); `make crash-search` goes on longer.

The search is worth what it finds. So bugs are planted on purpose, each taking away one of the things that make a commit
safe, and the same search has to find each of them.
"""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from snapctl.errors import IoFailure
from tests.reliability.crash_search import search
from tests.support.backends import SECTOR
from tests.support.bugs import BUGS
from tests.support.crashes import Fate, Machine
from tests.support.histories import Finding, History, LogHistory
from tests.support.log_bugs import LOG_BUGS

SEED = 625
STATES = 4_000
STATES_WITH_A_BUG = 20_000
"""Far more than any of them needs: hundreds as a rule, some 5,000 on the average for the rarest."""

LOG_STATES = 1_500
FOUND_SOON = {"any_key_will_do": 18}
"""Seeds at which a search of logs finds them soon; the others are found at once from anywhere."""


def test_no_crash_leaves_anything_but_the_last_commit_or_the_one_in_flight():
    figures = search(STATES, SEED)
    assert figures["states"] >= STATES
    # The figures say that what was meant to be searched was searched.
    for name in (
        "windows searched in full",
        "states gone on with",
        "power cuts in mid-history",
        "sessions that adopted a commit in flight",
        "death",
        "failed sync",
    ):
        assert figures[name], name


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str):
    with BUGS[name](), pytest.raises(Finding, match=r"check: |nor the one in flight|Corruption|Truncated"):
        search(STATES_WITH_A_BUG, SEED)


def test_no_crash_leaves_anything_but_the_last_flush_or_the_one_in_flight():
    figures = search(LOG_STATES, SEED, kind=LogHistory)
    assert figures["states"] >= LOG_STATES
    for name in ("flushes", "replays", "commits", "death", "failed sync"):
        assert figures[name], name


@pytest.mark.parametrize("name", LOG_BUGS)
def test_a_bug_planted_in_the_log_is_found(name: str):
    what = "check: |nor the one in flight|Corruption"
    with LOG_BUGS[name](), pytest.raises(Finding, match=what):
        search(STATES_WITH_A_BUG, FOUND_SOON.get(name, 0), kind=LogHistory)


def test_a_finding_comes_again_with_its_seed():
    said = []
    for _ in range(2):
        with BUGS["superblock_before_its_pages"](), pytest.raises(Finding) as caught:
            History(SEED).run()
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert f"--seed {SEED}" in said[0]


def test_the_command_tells_its_figures_and_its_seed():
    command = [sys.executable, "-m", "tests.reliability.crash_search", "100", "--seed", "5", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "states, nothing lost" in done.stdout.splitlines()[-1]
    assert done.stdout.splitlines()[-1].endswith("seed 5")


def test_what_is_not_synced_may_be_there_or_not_each_sector_for_itself():
    machine = Machine(random.Random(0), lambda _method: None)
    machine.write(0, [b"a" * SECTOR, b"b" * SECTOR])
    machine.sync()
    machine.write(0, [b"c" * SECTOR, b"d" * SECTOR])
    machine.write(0, [b"e" * SECTOR])
    machine.extend(3 * SECTOR)
    images = machine.every_image()
    assert images is not None
    found = {"".join(map(chr, image[::SECTOR])) for image in images}
    assert found == {first + second + end for first in "ace" for second in "bd" for end in ("", "\0")}


def test_what_a_failed_sync_dropped_is_read_from_the_cache_and_not_made_durable_by_the_next():
    lost = 0
    for seed in range(50):
        machine = Machine(random.Random(seed), lambda _method: None)
        machine.write(0, [b"a" * SECTOR])
        machine.sync()
        machine.write(0, [b"b" * SECTOR])
        machine.meet(Fate.FAILED_SYNC)
        with pytest.raises(IoFailure):
            machine.sync()
        machine.sync()
        lost += (machine.data[0], machine.disk[0]) == (ord("b"), ord("a"))
        machine.write(0, [b"b" * SECTOR])
        machine.sync()
        assert machine.disk == b"b" * SECTOR
    assert 0 < lost < 50
