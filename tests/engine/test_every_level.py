"""ZERO and PASS as single entries and as entries that cover whole tables, on every level, at every depth of clones."""

from __future__ import annotations

import pytest

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.engine.node import Node
from snapctl.format.pointer import KIND_SHIFT, PASS, ZERO
from snapctl.services.check import check_backend
from tests.support.backends import MemoryBackend
from tests.support.containers import BLOCK, LEAF_BYTES, SECOND_BYTES, small_container

SIZE = 4 * SECOND_BYTES
COVERED = (
    (0, SECOND_BYTES),
    (SECOND_BYTES, LEAF_BYTES),
    (2 * SECOND_BYTES, BLOCK),
)
"""Ranges that one entry of the first, the second and the third level covers."""


def level_of(node: Node, kind: int, offset: int) -> int:
    """The level, 1 to 3, of the entry of a kind that covers a block; 0 if the entry there is of another kind."""
    block_no = offset // BLOCK
    table, level = node.tree.root, 1
    for span in (1024, 32, 1):
        entry = block_no // span % 32
        if table.words[2 * entry] >> KIND_SHIFT == kind:
            return level
        child = node.tree.child(table, entry) if level < 3 else None
        if child is None:
            return 0
        table, level = child, level + 1
    return 0


@pytest.mark.parametrize("cow", list(Cow))
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_covering_entries_are_made_split_and_inherited(depth: int, cow: Cow):
    backend = MemoryBackend()
    container = small_container(backend)
    models: dict[str, bytearray] = {"v0": bytearray(b"\xa5" * SIZE)}
    container.create_volume("v0", SIZE, cow=cow).write(0, bytes(models["v0"]))
    for number in range(1, depth + 1):
        container.snapshot(f"v{number - 1}@s")
        container.clone(f"v{number - 1}@s", f"v{number}")
        models[f"v{number - 1}@s"] = bytearray(models[f"v{number - 1}"])
        models[f"v{number}"] = bytearray(models[f"v{number - 1}"])
        container[f"v{number}"].write(3 * SECOND_BYTES, bytes([number]) * 700)
        models[f"v{number}"][3 * SECOND_BYTES : 3 * SECOND_BYTES + 700] = bytes([number]) * 700
    name = f"v{depth}"
    volume = container[name]

    def verify() -> None:
        container.commit()
        assert check_backend(backend).findings == []
        reopened = Container.adopt(backend, writable=False)
        assert {node.name for node in reopened.nodes} == models.keys()
        for node in reopened.nodes:
            assert node.read(0, SIZE) == models[node.name], node.name

    older, newer = container.snapshot(f"{name}@old")[0], None
    models[f"{name}@old"] = bytearray(models[name])
    for level, (offset, length) in enumerate(COVERED, 1):
        volume.trim(offset, length)
        models[name][offset : offset + length] = bytes(length)
        assert level_of(volume, ZERO, offset) == level
        assert level_of(older, PASS, offset) == level
    verify()

    newer = container.snapshot(f"{name}@new")[0]
    models[f"{name}@new"] = bytearray(models[name])
    for offset, length in COVERED:  # writes below covering entries split them, and preserve what they stood for
        at = offset + length - 100
        volume.write(at, b"split" * 10)
        models[name][at : at + 50] = b"split" * 10
        assert level_of(newer, ZERO, at) == 3
    verify()

    container.delete(f"{name}@new")
    del models[f"{name}@new"]
    verify()
    assert [level_of(older, PASS, offset) for offset, _ in COVERED] == [1, 2, 3]
    container.delete(f"{name}@old")
    del models[f"{name}@old"]
    verify()
