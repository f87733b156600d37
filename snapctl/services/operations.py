"""Every change of a container that takes parameters and no stream of data: the one place that says how each is made.

An operation is a function of an open container and of named parameters, all of them plain values; it changes the
open transaction and returns plain values. Whoever calls it commits, or gives the transaction up (a dry run). The
command line calls it on a container that it has opened itself, or has the container's server call it: `METHODS` is
the schema of both, taken from the functions' own annotations (docs/control.md).

What a parameter means that depends on the container, such as ``@nightly`` for that snapshot of every volume, is
resolved here, in the same transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from snapctl.engine import deletion
from snapctl.engine.model import Cow
from snapctl.errors import NodeNotFound, SnapctlError, UsageError

if TYPE_CHECKING:
    from snapctl.engine.container import Container
    from snapctl.engine.node import Node

Claim = Callable[[Sequence["Node"], bool], None]
"""Told of nodes whose data is about to go, and whether by force; refuses if they are in use by others."""


class Named(TypedDict):
    """One node's full name."""

    name: str


class AllNamed(TypedDict):
    """Full names of nodes."""

    names: list[str]


class Freed(TypedDict):
    """What it frees of the container, tables included; exact; negative if it takes room."""

    freed_bytes: int


class Deleted(Freed):
    """Full names of what was deleted, in that order."""

    names: list[str]


class Resized(Freed):
    """The sizes before and after."""

    old_size_bytes: int
    size_bytes: int


def unused(_nodes: Sequence[Node], _force: bool) -> None:  # noqa: FBT001 called by position
    """Refuse nothing: the container is nobody else's."""


def create(container: Container, _claim: Claim, *, name: str, size_bytes: int, cow: str = "redirect") -> Named:
    """Make an empty base volume."""
    return {"name": container.create_volume(name, size_bytes, cow=cow_policy(cow)).name}


def snapshot(container: Container, _claim: Claim, *, names: list[str]) -> AllNamed:
    """Take RO snapshots, all of the same instant; ``@mon`` means one of every volume."""
    wanted: list[str] = []
    for name in names:
        every_volume = name.startswith("@")
        wanted += [f"{volume.name}{name}" for volume in container.volumes] if every_volume else [name]
    if not wanted:
        raise UsageError(f"{container.path} has no volumes; 'snapctl create' makes one")
    return {"names": [node.name for node in container.snapshot(*wanted)]}


def clone(container: Container, _claim: Claim, *, source: str, name: str) -> AllNamed:
    """Make an RW snapshot, of a volume by way of an RO snapshot; names what was made, the clone first."""
    before = set(container.node_ids)
    made = container.clone(source, name)
    others = [container.by_id(node_id).name for node_id in container.node_ids if node_id not in {*before, made.id}]
    return {"names": [made.name, *others]}


def rename(container: Container, _claim: Claim, *, name: str, new_name: str) -> Named:
    """Rename a volume, or with a short name a snapshot."""
    return {"name": container.rename(name, new_name).name}


def resize(
    container: Container, claim: Claim, *, name: str, size_bytes: int, shrink: bool = False, force: bool = False
) -> Resized:
    """Change the size of a volume."""
    used_bytes = container.preview_used_bytes()
    volume = container.node(name)
    old_size_bytes = volume.size_bytes
    if shrink and size_bytes < old_size_bytes:
        claim([volume], force)
    volume.resize(size_bytes, shrink=shrink)
    freed_bytes = used_bytes - container.preview_used_bytes()
    return {"freed_bytes": freed_bytes, "old_size_bytes": old_size_bytes, "size_bytes": size_bytes}


def delete(
    container: Container, claim: Claim, *, names: list[str], cascade: bool = False, force: bool = False
) -> Deleted:
    """Delete nodes together; ``@mon`` means that snapshot of every volume that has it."""
    used_bytes = container.preview_used_bytes()
    wanted: list[str] = []
    for name in names:
        wanted += [node.name for node in snapshots_called(container, name)] if name.startswith("@") else [name]
    nodes = [container.node(name) for name in dict.fromkeys(wanted)]
    claim(deletion.plan(nodes, cascade=cascade), force)
    deleted = container.delete(*(node.name for node in nodes), cascade=cascade)
    return {"freed_bytes": used_bytes - container.preview_used_bytes(), "names": deleted}


def trim(container: Container, _claim: Claim, *, name: str, offset_bytes: int, length_bytes: int) -> Freed:
    """Make a range of a volume read as zeros, and free its room."""
    used_bytes = container.preview_used_bytes()
    container.node(name).trim(offset_bytes, length_bytes)
    return {"freed_bytes": used_bytes - container.preview_used_bytes()}


def snapshots_called(container: Container, name: str) -> list[Node]:
    """The snapshots that ``@nightly`` stands for.

    Raises:
        BadName: no snapshot can be called that.
        NodeNotFound: no volume has one.
    """
    from snapctl.format.record import check_name

    short_name = name.removeprefix("@")
    check_name(short_name)
    found = [node for node in container.nodes if node.kind.value == "ro" and node.short_name == short_name]
    if not found:
        raise NodeNotFound(f"{container.path}{name}: no volume has such a snapshot")
    return found


def cow_policy(text: str) -> Cow:
    """Read the name of a copy-on-write policy.

    Raises:
        UsageError: there is none of that name.
    """
    try:
        return Cow(text)
    except ValueError as error:
        raise UsageError(f"cow is {' or '.join(Cow)}, not {text[:80]!r}") from error


class Parameter(NamedTuple):
    """What an operation takes under a name.

    Attributes:
        kind: of value, as Python writes it: ``str``, ``int``, ``bool`` or ``list[str]``.
        default: None if it has to be given.
    """

    kind: str
    default: str | int | None


class Method(NamedTuple):
    """An operation, with its schema.

    Attributes:
        function: what makes the change.
        params: what it takes, by name; `dry_run` too if it destroys data.
        result: the kinds of what it returns, by name.
    """

    function: Callable[..., Any]
    params: dict[str, Parameter]
    result: dict[str, str]


_DRY_RUN = {"dry_run": Parameter("bool", default=False)}
"""Measure only; the caller of the operation sees to it."""


def _method(function: Callable[..., Any]) -> Method:
    defaults = function.__kwdefaults__ or {}
    kinds = {name: kind for name, kind in function.__annotations__.items() if name in _keywords(function)}
    params = {name: Parameter(kind, defaults.get(name)) for name, kind in kinds.items()}
    returned = globals()[function.__annotations__["return"]].__annotations__
    result = {name: kind.__forward_arg__ for name, kind in returned.items()}
    return Method(function, params | (_DRY_RUN if "freed_bytes" in result else {}), result)


def _keywords(function: Callable[..., Any]) -> Sequence[str]:
    code = function.__code__
    return code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]


METHODS = {function.__name__: _method(function) for function in (create, snapshot, clone, rename, resize, delete, trim)}
"""Every operation by its name."""

_KINDS: dict[str, Callable[[object], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "list[str]": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
}


def check_params(params: dict[str, Any], declared: dict[str, Parameter]) -> None:
    """Refuse parameters other than those that are declared.

    Raises:
        UsageError: one is unknown, missing, or of another kind.
    """
    for name, value in params.items():
        if name not in declared:
            raise UsageError(f"unknown parameter {name[:80]!r}")
        if not _KINDS[declared[name].kind](value):
            raise UsageError(f"parameter {name} has to be {declared[name].kind}")
    missing = [name for name, parameter in declared.items() if parameter.default is None and name not in params]
    if missing:
        raise UsageError(f"parameter {missing[0]} is missing")


def run(container: Container, name: str, params: dict[str, Any], claim: Claim = unused) -> dict[str, Any]:
    """Run one operation in the open transaction, which the caller commits or, after a dry run, aborts.

    Args:
        container: open for writing.
        name: of a method.
        params: as `check_params` accepts them.
        claim: refuses to take the data from under those who use it.

    Raises:
        SnapctlError: as the engine says; the transaction has to be aborted.
    """
    if name not in METHODS:
        raise SnapctlError(f"there is no operation {name[:80]!r}")
    result: dict[str, Any] = METHODS[name].function(
        container, claim, **{key: value for key, value in params.items() if key != "dry_run"}
    )
    return result
