"""Whatever a crash leaves of a live container is a point of what was acknowledged, no older than the last flush.

By search, as in `tests/reliability/test_crash_states.py`; `make crash-search LIVE=1` goes on longer.
"""

from __future__ import annotations

import pytest

from tests.reliability.crash_search import search
from tests.support.histories import Finding
from tests.support.live_bugs import LIVE_BUGS
from tests.support.live_histories import LiveHistory

SEED = 71
STATES = 2_000
STATES_WITH_A_BUG = 25_000
"""Far more than any of them needs."""
FOUND_SOON = {
    "a_flush_returns_early": 0,
    "a_snapshot_takes_the_next_generation_in": 0,
    "a_change_shares_the_transaction_of_the_writes_before_it": 4,
    "a_commit_for_each_volume": 5,
    "zeros_over_what_was_written_after": 7,
    "a_pin_that_keeps_nothing": 7,
    "a_waiter_is_forgotten": 1,
    "a_write_goes_past_a_change": 25,
    "a_write_goes_past_what_waits_in_memory": 11,
    "only_the_first_logged_flush_is_applied": 1,
}
"""Seeds at which the search finds them soon; from others it takes up to some ten histories."""


def test_no_crash_leaves_anything_but_a_point_since_the_last_flush():
    figures = search(STATES, SEED, kind=LiveHistory)
    assert figures["states"] >= STATES
    # The figures say that what was meant to be searched was searched.
    for name in (
        "flushes",
        "writes",
        "writes together",
        "changes",
        "changes refused",
        "views",
        "waits for room",
        "closed in peace",
    ):
        assert figures[name], name


@pytest.mark.parametrize("name", LIVE_BUGS)
def test_a_planted_bug_is_found(name: str):
    what = r"nor the one in flight|a view |does not read as written|waits for ever|Corruption|check: "
    with LIVE_BUGS[name](), pytest.raises(Finding, match=what):
        search(STATES_WITH_A_BUG, FOUND_SOON[name], kind=LiveHistory)
