"""Deleting nodes: what stands in the way, in which order, and who inherits.

An RO snapshot's entries go to the next older RO snapshot of the same origin where that has none, since it looked them
up here; the rest is freed. A volume's tables are freed with it. An RO snapshot of a base with a single clone can be
taken over by it (claim 4 to the letter): the clone inherits the entries that it lacks and hangs from the next newer
RO snapshot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapctl.engine.handover import Handover
from snapctl.engine.model import Kind
from snapctl.errors import Corruption, HasDependents
from snapctl.format.pointer import PASS_WORD, ZERO_WORD

if TYPE_CHECKING:
    from snapctl.engine.node import Node


def dependents(node: Node) -> list[Node]:
    """The nodes that cannot be without `node`: a volume's RO snapshots, oldest first, or an RO snapshot's clones."""
    if node.kind is Kind.RO:
        return [child for child in node.children if child.kind is Kind.RW]
    return node.snapshots[::-1]


def plan(nodes: list[Node], *, cascade: bool) -> list[Node]:
    """The order in which nodes can be deleted, each after all that descends from it.

    Args:
        nodes: the nodes to delete.
        cascade: delete their dependents, too.

    Raises:
        Corruption: a node descends from itself.
        HasDependents: something descends from them that is not to be deleted.
    """
    wanted = {node.id for node in nodes}
    order: dict[int, Node] = {}
    begun: set[int] = set()
    pending = [(node, False) for node in sorted(nodes, key=lambda node: node.id, reverse=True)]
    while pending:
        node, is_ready = pending.pop()
        if is_ready:
            order[node.id] = node
        if node.id in order:
            continue
        if node.id in begun:
            raise Corruption(f"{node.name} descends from itself; run check", node=node.name)
        begun.add(node.id)
        below = dependents(node)
        in_the_way = [child for child in below if child.id not in wanted]
        if in_the_way and not cascade:
            # Only a snapshot deleted by itself: what goes with it may be what the clone would hang from.
            if len(wanted) > 1 or heir_by_take_over(node) is None:
                raise _refusal(node, in_the_way)
            below = []
        pending.append((node, True))
        pending.extend((child, False) for child in reversed(below))
    return list(order.values())


def heir_by_take_over(snapshot: Node) -> Node | None:
    """The clone that can take over an RO snapshot so that it can be deleted, if there is one.

    It can if the snapshot is one of a base, has exactly one clone, itself without snapshots, has no older RO
    snapshot, and has a newer one above it.
    """
    if snapshot.kind is not Kind.RO:
        return None
    origin, parent, children = snapshot.origin, snapshot.parent, snapshot.children
    fits = (
        origin is not None
        and origin.kind is Kind.BASE
        and parent is not None
        and parent.kind is Kind.RO
        and len(children) == 1
        and children[0].kind is Kind.RW
        and children[0].newest_snapshot is None
    )
    return children[0] if fits else None


def delete(node: Node) -> None:
    """Delete one node in the order of `plan`.

    Raises:
        Corruption: its tables cannot be read.
        NoSpace: tables had to be written out and there is no room.
    """
    container = node.container
    container.pages.reserve.may_be_used = True
    heir, pass_word = None, PASS_WORD
    if node.kind is Kind.RO:
        heir = container.older_snapshot(node)
        if heir is None:
            heir, pass_word = heir_by_take_over(node), ZERO_WORD
    owned = node.own_blocks
    handover = Handover(container, node.tree, heir.tree if heir else None, pass_word=pass_word)
    handover.run(0, node.tree.capacity)
    node.tree.discard(node.tree.root)
    if heir is not None:
        heir.own_blocks += owned - handover.freed
        fields = {"parent": node.record.parent}
        if heir.kind is Kind.RW:
            fields["origin"] = node.record.origin
        heir.update(**fields)
    container.remove(node)


def _refusal(node: Node, in_the_way: list[Node]) -> HasDependents:
    names = [child.name for child in in_the_way]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return HasDependents(
        f"{node.name} has dependents: {shown}; delete them first, or give --cascade to delete them too", names
    )
