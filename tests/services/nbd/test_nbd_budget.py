"""Where large payloads are received."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapctl.services.nbd.budget import Budget
from tests.services.nbd.client import FLUSH
from tests.services.nbd.conftest import SIZE
from tests.services.nbd.serving import serving


def test_a_payload_takes_the_room_that_one_as_long_has_left():
    budget = Budget()
    first = budget.room(1 << 20)
    assert len(first) == 1 << 20
    assert budget.room(1 << 20) is not first
    budget.leave(first)
    assert budget.room(1 << 20) is first
    budget.leave(first)
    assert len(budget.room(1 << 19)) == 1 << 19
    huge = bytearray(32 << 20)
    budget.leave(huge)
    assert budget.room(32 << 20) is not huge


@pytest.mark.parametrize("length", [68 << 10, 128 << 10, 512 << 10])
def test_payloads_behind_each_other_do_not_meet_in_memory_or_on_the_way_to_the_file(container: Path, length: int):
    """The first ones wait in memory, as a record of the log could hold them."""
    written = []
    with serving(container) as running, running.client("db") as client:
        for number, offset in enumerate(range(0, SIZE - length + 1, length)):
            written.append(bytes([1 + number % 255]) * length)
            client.write(offset, written[-1])
        for number, data in enumerate(written):
            assert client.read(number * length, length) == data
        client.ask(FLUSH)
        for number, data in enumerate(written):
            assert client.read(number * length, length) == data
    assert len(written) >= 2
