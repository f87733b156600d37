"""The two trees that nodes form, by parent and by origin, and how either is drawn in the width of a terminal.

By parent, the RO snapshots of a volume are a chain: volume, newest, next older, and so on, ten thousand deep if need
be. A chain is drawn straight down, as logs of revisions are, each line hanging from the one above it in its column;
what branches off it, the clones, is indented. By origin, the snapshots of a volume are siblings, newest first. Nothing
here recurses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from snapctl.errors import Corruption

if TYPE_CHECKING:
    from snapctl.engine.node import Node

Relation = Literal["parent", "origin"]

_DEEPEST_COLUMN = 12
"""Nodes nested deeper are drawn in this column, with their depth before them."""


class Guides(NamedTuple):
    """The characters of a drawing: lines to children, and a mark for each kind of node."""

    branch: str
    last: str
    passing: str
    base: str
    ro: str
    rw: str


UNICODE = Guides("├─", "└─", "│ ", "●", "○", "◆")
ASCII = Guides("|-", "`-", "| ", "#", "o", "*")
_NOTHING = "  "


class Ancestry:
    """The forest of a container's nodes under one of the two relations, in which no node hangs from itself.

    Attributes:
        relation: which one.
        roots: nodes that hang from no other, by id.
    """

    def __init__(self, nodes: Sequence[Node], relation: Relation) -> None:
        """Sort the nodes.

        Raises:
            Corruption: some hang from each other in a circle.
        """
        self.relation = relation
        self.roots: list[Node] = []
        self._children: dict[int, list[Node]] = {}
        for node in nodes:
            above = node.parent if relation == "parent" else node.origin
            if above is None:
                self.roots.append(node)
            else:
                self._children.setdefault(above.id, []).append(node)
        for children in self._children.values():
            children.sort(key=lambda node: (node.kind.value != "ro", -node.id if node.kind.value == "ro" else node.id))

        self._check_for_circles(nodes)

    def _check_for_circles(self, nodes: Sequence[Node]) -> None:
        """See that every node hangs from a root; from anywhere in a circle, no way leads to one."""
        reached = {node.id for node in self.below(self.roots)}
        for node in nodes:
            if node.id not in reached:
                raise Corruption(
                    f"{node.name} hangs in a circle of nodes, by {self.relation}; run check", node=node.name
                )

    def children(self, node: Node) -> Sequence[Node]:
        """Return what hangs from a node: RO snapshots, newest before older, then clones in the order of making."""
        return self._children.get(node.id, ())

    def below(self, roots: Sequence[Node]) -> Iterator[Node]:
        """Go through the trees under `roots`, each node before its children."""
        pending = list(reversed(roots))
        while pending:
            node = pending.pop()
            yield node
            pending += reversed(self.children(node))

    def draw(self, roots: Sequence[Node], guides: Guides) -> Iterator[tuple[str, Node]]:
        """Lay the trees under `roots` out in lines.

        Yields:
            For each line what stands before the node's name, and the node.
        """
        pending = [("", "", 0, root) for root in reversed(roots)]
        while pending:
            before, below, depth, node = pending.pop()
            yield f"{before}{getattr(guides, node.kind.value)} ", node
            children = list(self.children(node))
            if self._continues_chain(node, children):
                pending.append((below, below, depth, children.pop(0)))
                last = guides.branch
            else:
                last = guides.last
            for child in reversed(children):
                if depth + 1 > _DEEPEST_COLUMN:
                    pending.append((f"{below}[{depth + 1}] ", below, depth + 1, child))
                else:
                    passing = _NOTHING if last == guides.last else guides.passing
                    pending.append((below + last, below + passing, depth + 1, child))
                last = guides.branch

    def _continues_chain(self, node: Node, children: Sequence[Node]) -> bool:
        """Tell whether the first child is the next older RO snapshot of the same volume (at most one is)."""
        if self.relation == "origin" or not children or children[0].kind.value != "ro":
            return False
        volume = node.origin if node.kind.value == "ro" else node
        origin = children[0].origin
        return volume is not None and origin is not None and origin.id == volume.id


def graphviz(nodes: Iterable[Node], relation: Relation) -> Iterator[str]:
    """Write the nodes as a Graphviz digraph, an arrow leading from each to its parent or origin.

    Args:
        nodes: each after the one it hangs from; an arrow to one that is not among them is left out.
        relation: what the arrows mean.

    Yields:
        Lines without their ends.
    """
    shapes = {"base": "box3d", "ro": "ellipse", "rw": "box"}
    yield "digraph snapctl {"
    yield "  rankdir=BT;"
    drawn = set()
    for node in nodes:
        drawn.add(node.id)
        yield f'  n{node.id} [label="{_quoted(node.name)}", shape={shapes[node.kind.value]}];'
        above = node.parent if relation == "parent" else node.origin
        if above is not None and above.id in drawn:
            yield f"  n{node.id} -> n{above.id};"
    yield "}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
