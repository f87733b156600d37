"""Claims 3 and 7: both snapshots are read-only; they refuse writes, with a clear error."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from snapctl.engine.model import Cow
from snapctl.engine.node import Node
from snapctl.errors import ReadOnlyNode
from tests.support.claims import BLOCK, MIDDLE, NEW, ORIGINAL, SIZE, Pair

CHANGES: dict[str, Callable[[Node], None]] = {
    "write": lambda node: node.write(BLOCK * SIZE, NEW),
    "write of a part": lambda node: node.write(BLOCK * SIZE + 3, b"x"),
    "write of nothing": lambda node: node.write(0, b""),
    "trim": lambda node: node.trim(0, node.size_bytes),
    "grow": lambda node: node.resize(node.size_bytes + SIZE),
    "shrink": lambda node: node.resize(SIZE, shrink=True),
}


@pytest.fixture(params=list(Cow), ids=lambda cow: cow.value)
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair.make(request.param)


def assert_refused(pair: Pair, node: Node, change: Callable[[Node], None]) -> None:
    before = bytes(pair.backend.data)
    with pytest.raises(ReadOnlyNode, match=rf"^{node.name} is a read-only snapshot; clone it") as caught:
        change(node)
    assert caught.value.exit_code == 1
    pair.container.commit()
    assert pair.backend.data == before
    assert [pair.read(n) for n in (pair.older, pair.newer, pair.base)] == [ORIGINAL, MIDDLE, NEW]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_newer_snapshot_is_read_only(pair: Pair, change: Callable[[Node], None]):
    assert_refused(pair, pair.newer, change)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_older_snapshot_is_read_only(pair: Pair, change: Callable[[Node], None]):
    assert_refused(pair, pair.older, change)


def test_a_refused_write_leaves_the_container_usable(pair: Pair):
    with pytest.raises(ReadOnlyNode):
        pair.newer.write(0, b"x")
    pair.write(ORIGINAL)
    assert pair.read(pair.base) == ORIGINAL
