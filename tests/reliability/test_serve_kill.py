"""Servers killed with SIGKILL while clients write: what a flush had acknowledged is there, and snapshots are whole.

A few kills; ``make serve-kill-loop`` makes more (`tests.reliability.serve_kill_loop`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.libnbd_writer import BLOCK_BYTES, BLOCKS, content, request
from tests.reliability.serve_kill_loop import ZEROS, Servers, judge


def test_what_was_flushed_before_the_server_was_killed_is_there_and_the_next_one_goes_on(tmp_path: Path):
    servers = Servers(tmp_path / "lab.snap", seed=3)
    for _ in range(3):
        servers.kill_one()
    assert servers.outcomes["durable"] > 100


# The search itself


def image_after(*numbers: int) -> bytearray:
    image = bytearray(BLOCKS * BLOCK_BYTES)
    for number in numbers:
        asked = request(1, number)
        for block in asked.blocks:
            data = content(1, number, block) if asked.kind == "write" else bytes(BLOCK_BYTES)
            image[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = data
    return image


EMPTY = [ZEROS] * BLOCKS


def test_what_is_durable_has_to_be_there_and_what_was_begun_may():
    held = judge(bytes(image_after(*range(1, 20))), 1, EMPTY, list(range(1, 10)), list(range(1, 30)))
    assert judge(bytes(image_after()), 1, EMPTY, [], list(range(1, 30))) == EMPTY
    assert {*held} >= {number for number in range(15, 20) if request(1, number).kind == "write"}


def test_what_is_missing_or_torn_or_was_never_written_is_noticed():
    lost = next(number for number in range(1, 10) if request(1, number).kind == "write")
    with pytest.raises(AssertionError, match="is of request 0, not of"):
        judge(bytes(image_after()), 1, EMPTY, [lost], [lost])
    with pytest.raises(AssertionError, match=f"is of request {lost}, not of"):
        judge(bytes(image_after(lost)), 1, EMPTY, [], [])
    torn = image_after(lost)
    torn[request(1, lost).blocks[0] * BLOCK_BYTES + 512] ^= 1
    with pytest.raises(AssertionError, match="is not whole"):
        judge(bytes(torn), 1, EMPTY, [lost], [lost])
