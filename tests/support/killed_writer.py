"""A program that changes a container for ever and reports each commit; and what the container has to hold after each.

What commit number n changes is drawn from (seed, n) and from what there is at the time. So whoever knows the seed can
draw the same, on a model in which a volume is a `bytearray` and a snapshot a copy of it::

    python -m tests.support.killed_writer lab.snap 7 31

goes on with commit 31 of seed 7. It writes the number of the last commit, as eight bytes, to standard output when the
container is open, and again after each commit has returned.
"""

from __future__ import annotations

import os
import sys
from copy import deepcopy
from random import Random
from typing import NamedTuple, Protocol

from snapctl.engine.container import Container
from snapctl.engine.model import Cow, Kind

REPORT_BYTES = 8
_MOST_NODES = 12
_SIZES = (5_000, 40_000, 40_000, 600_000, 3_000_000)
"""Sizes of volumes in bytes, at most; a deleted one of the last leaves runs that are punched out."""


class NodeOutline(NamedTuple):
    """What has to be known of a node to draw a change."""

    size: int
    origin: str
    """What it is a copy of; empty for a base volume."""
    is_snapshot: bool


class Lab(Protocol):
    """What changes are made to: a container, or the model of one."""

    def outline(self) -> dict[str, NodeOutline]:
        """All nodes by name."""

    def create(self, name: str, size: int, cow: Cow) -> None: ...
    def write(self, name: str, offset: int, data: bytes) -> None: ...
    def trim(self, name: str, offset: int, length: int) -> None: ...
    def resize(self, name: str, size: int) -> None: ...
    def snapshot(self, *names: str) -> None: ...
    def clone(self, source: str, name: str) -> None: ...
    def delete(self, name: str) -> None:
        """Delete a node and all that descends from it."""


class Model:
    """A container as plain values.

    Attributes:
        nodes: what each node holds, with what it is a copy of.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, tuple[bytearray, str]] = {}

    def outline(self) -> dict[str, NodeOutline]:
        return {name: NodeOutline(len(data), origin, "@" in name) for name, (data, origin) in self.nodes.items()}

    def create(self, name: str, size: int, cow: Cow) -> None:
        self.nodes[name] = (bytearray(size), "")

    def write(self, name: str, offset: int, data: bytes) -> None:
        self.nodes[name][0][offset : offset + len(data)] = data

    def trim(self, name: str, offset: int, length: int) -> None:
        self.write(name, offset, bytes(length))

    def resize(self, name: str, size: int) -> None:
        data = self.nodes[name][0]
        del data[size:]
        data.extend(bytes(size - len(data)))

    def snapshot(self, *names: str) -> None:
        for name in names:
            volume = name.partition("@")[0]
            self.nodes[name] = (bytearray(self.nodes[volume][0]), volume)

    def clone(self, source: str, name: str) -> None:
        self.nodes[name] = (bytearray(self.nodes[source][0]), source)

    def delete(self, name: str) -> None:
        del self.nodes[name]
        for other in [other for other, (_, origin) in self.nodes.items() if origin == name]:
            self.delete(other)

    def copy(self) -> Model:
        return deepcopy(self)


class ContainerLab:
    """A container, changed as the model is."""

    def __init__(self, container: Container) -> None:
        self.container = container

    def outline(self) -> dict[str, NodeOutline]:
        return {
            node.name: NodeOutline(node.size_bytes, node.origin.name if node.origin else "", node.kind is Kind.RO)
            for node in self.container.nodes
        }

    def create(self, name: str, size: int, cow: Cow) -> None:
        self.container.create_volume(name, size, cow=cow)

    def write(self, name: str, offset: int, data: bytes) -> None:
        self.container[name].write(offset, data)

    def trim(self, name: str, offset: int, length: int) -> None:
        self.container[name].trim(offset, length)

    def resize(self, name: str, size: int) -> None:
        self.container[name].resize(size, shrink=True)

    def snapshot(self, *names: str) -> None:
        self.container.snapshot(*names)

    def clone(self, source: str, name: str) -> None:
        self.container.clone(source, name)

    def delete(self, name: str) -> None:
        self.container.delete(name, cascade=True)


def change(lab: Lab, seed: int, number: int) -> None:
    """Make the changes that belong into commit `number`."""
    choose = Random(f"{seed}/{number}")
    for part in range(choose.randint(1, 6)):
        _change_once(lab, choose, f"n{number}.{part}")


def _change_once(lab: Lab, choose: Random, new_name: str) -> None:
    outline = lab.outline()
    names = sorted(outline)
    volumes = [name for name in names if not outline[name].is_snapshot]
    snapshots = [name for name in names if outline[name].is_snapshot]
    what = choose.choices(
        ("write", "trim", "snapshot", "clone", "delete", "resize", "create"), (40, 10, 14, 8, 12, 8, 8)
    )[0]
    if what in {"snapshot", "clone", "create"} and len(names) >= _MOST_NODES:
        what = "delete"
    if what == "delete" and names:
        _delete(lab, choose, outline)
    elif what == "create" or not volumes:
        lab.create(new_name, choose.randint(1, choose.choice(_SIZES)), choose.choice(list(Cow)))
    elif what == "snapshot":
        some = volumes if choose.random() < 0.3 else [choose.choice(volumes)]
        lab.snapshot(*(f"{name}@{new_name}" for name in some))
    elif what == "clone" and snapshots:
        lab.clone(choose.choice(snapshots), new_name)
    else:
        name = choose.choice(volumes)
        size = outline[name].size
        offset = choose.randrange(size)
        length = min(size - offset, choose.randint(1, size if choose.random() < 0.15 else 20_000))
        if what == "trim":
            lab.trim(name, offset, length)
        elif what == "resize":
            lab.resize(name, choose.randint(1, size * 2 if size < 1_000_000 else size))
        else:
            lab.write(name, offset, choose.randbytes(length))


def _delete(lab: Lab, choose: Random, outline: dict[str, NodeOutline]) -> None:
    """Mostly what nothing descends from, and snapshots before all, so that there is something to merge."""
    needed = {node.origin for node in outline.values()}
    free = sorted(name for name in outline if name not in needed)
    free_snapshots = [name for name in free if outline[name].is_snapshot]
    if choose.random() < 0.1:
        lab.delete(choose.choice(sorted(outline)))
    elif free_snapshots and choose.random() < 0.7:
        lab.delete(choose.choice(free_snapshots))
    else:
        lab.delete(choose.choice(free))


def main() -> None:
    """Change, commit and report until killed; every tenth transaction is given up once and done again."""
    path, seed, first = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with Container.open(path, writable=True) as container:
        _report(first - 1)
        lab = ContainerLab(container)
        number = first
        while True:
            if number % 10 == 0:
                change(lab, seed, number)
                container.abort()
            change(lab, seed, number)
            container.commit()
            _report(number)
            number += 1


def _report(number: int) -> None:
    os.write(sys.stdout.fileno(), number.to_bytes(REPORT_BYTES, "little"))


if __name__ == "__main__":
    main()
