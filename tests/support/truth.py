"""What can be read of a damaged container, found by reading it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest

from snapctl.engine.container import Container
from snapctl.engine.node import Node
from snapctl.errors import Corruption
from snapctl.services.scrub import Report, Severity
from snapctl.storage.backend import Backend

Ranges = list[tuple[int, int]]
"""(offset, end) in bytes, in order and as long as they can be."""


def unreadable(backend: Backend, expected: Mapping[str, bytes]) -> dict[str, Ranges]:
    """Read every block of every node of a container.

    Holds that each read gives the right bytes or raises `Corruption`, which names the node and nothing but bytes that
    cannot be read.

    Args:
        backend: what the container stands in.
        expected: the content of every node, undamaged.

    Returns:
        The ranges that cannot be read, by node; nodes without any are left out.
    """
    container = Container.adopt(backend, writable=False)
    assert {node.name for node in container.nodes} == expected.keys()
    return {node.name: found for node in container.nodes if (found := _unreadable(node, expected[node.name]))}


def assert_unreadable(backend: Backend, expected: Mapping[str, bytes], claimed: Mapping[str, Ranges]) -> None:
    """Hold that just some ranges cannot be read, from reading all the others whole and the ends of these.

    Enough where `unreadable` has found the same ranges before, and much faster.
    """
    container = Container.adopt(backend, writable=False)
    assert {node.name for node in container.nodes} == expected.keys()
    size = container.block_size
    for node in container.nodes:
        position = 0
        for start, end in [*claimed.get(node.name, ()), (node.size_bytes, node.size_bytes)]:
            assert node.read(position, start - position) == expected[node.name][position:start], node.name
            for block in {start, (start + end) // 2 // size * size, (end - 1) // size * size} if start < end else ():
                with pytest.raises(Corruption) as caught:
                    node.read(block, min(block + size, end) - block)
                assert caught.value.node == node.name
                assert caught.value.bytes_affected == (block, min(block + size, end))
            position = end


def _unreadable(node: Node, expected: bytes) -> Ranges:
    found: list[tuple[int, int]] = []
    claimed: set[tuple[int, int]] = set()
    size = node.container.block_size
    pending = [(0, node.size_bytes)]
    while pending:
        start, end = pending.pop()
        try:
            read = node.read(start, end - start)
        except Corruption as error:
            assert error.node == node.name, error  # noqa: PT017 what it says is what is looked at
            assert error.bytes_affected is not None, error  # noqa: PT017
            claimed.add(error.bytes_affected)
            if end - start <= size:
                found.append((start, end))
                continue
            middle = start + -(-(end - start) // size) // 2 * size
            pending += [(middle, end), (start, middle)]
        else:
            assert read == expected[start:end], f"{node.name}: wrong bytes in {start} to {end}"
    joined = merged(found)
    for start, end in claimed:
        assert start < end <= node.size_bytes
        assert any(low <= start and end <= high for low, high in joined), (node.name, start, end, joined)
    return joined


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The union of ranges."""
    joined: Ranges = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def reported(report: Report, severity: Severity = Severity.CORRUPTION) -> dict[str, Ranges]:
    """What a scrub says cannot be read, by node."""
    found: dict[str, Ranges] = {}
    for damage in report.damages:
        if damage.severity is severity:
            for hit in damage.affected:
                found.setdefault(hit.node, []).append((hit.offset_bytes, hit.offset_bytes + hit.length_bytes))
    return {name: merged(ranges) for name, ranges in found.items()}
