"""Candidates for the shells' completion: files, then volumes, then ``@snapshots`` inside a container.

Whatever goes wrong while completing (a locked or damaged container, a directory that cannot be read) ends in fewer
candidates, never in a message between the user's keystrokes. A candidate ending in ``/`` or ``@`` wants more behind it;
the scripts in completions/ add no space after such a one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from snapctl.cli.path import VARIABLE, split_at_file, starts_like_a_container
from snapctl.errors import SnapctlError

if TYPE_CHECKING:
    from snapctl.engine.container import Container

Candidate = tuple[str, str]
"""What may be typed, and a few words about it."""


def container(incomplete: str) -> list[Candidate]:
    """Complete the path of a container."""
    return list(_files(incomplete, behind_container=""))


def directory(incomplete: str) -> list[Candidate]:
    """Complete the path of a directory."""
    return [candidate for candidate in _files(incomplete, behind_container="") if candidate[1] == "directory"]


def any_node(incomplete: str) -> list[Candidate]:
    """Complete the path of a volume or a snapshot."""
    return _complete(incomplete, _volumes_and_snapshots)


def volume(incomplete: str) -> list[Candidate]:
    """Complete the path of a volume."""
    return _complete(incomplete, _volumes)


def new_node(incomplete: str) -> list[Candidate]:
    """Complete the path of a container in which a new name will stand."""
    return list(_files(incomplete, behind_container="/"))


def new_snapshot(incomplete: str) -> list[Candidate]:
    """Complete the volume of a snapshot to be taken."""
    return _complete(incomplete, _volumes_to_snapshot)


def _complete(incomplete: str, names: Callable[[Container], Iterator[Candidate]]) -> list[Candidate]:
    split = split_at_file(os.path.expanduser(incomplete))
    if split is not None and incomplete.endswith("/" + split[1]):
        typed = incomplete[: len(incomplete) - len(split[1])]
        return [(typed + name, about) for name, about in _names(split[0], names) if _goes_on(name, split[1])]
    found = list(_files(incomplete, behind_container="/"))
    default = os.environ.get(VARIABLE)
    if default and "/" not in incomplete:
        found += [candidate for candidate in _names(default, names) if _goes_on(candidate[0], incomplete)]
    return found


def _goes_on(name: str, incomplete: str) -> bool:
    """Tell whether a name begins as typed; ``db@`` itself is no candidate once it is there."""
    return name.startswith(incomplete) and not (name == incomplete and name.endswith("@"))


def _files(incomplete: str, *, behind_container: str) -> Iterator[Candidate]:
    directory, slash, beginning = incomplete.rpartition("/")
    try:
        entries = sorted(os.scandir(os.path.expanduser(directory + slash) or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if not entry.name.startswith(beginning) or (entry.name.startswith(".") and not beginning):
            continue
        if entry.is_dir():
            yield f"{directory}{slash}{entry.name}/", "directory"
        elif entry.is_file() and starts_like_a_container(entry.path):
            yield f"{directory}{slash}{entry.name}{behind_container}", "container"


def _names(path: str, names: Callable[[Container], Iterator[Candidate]]) -> list[Candidate]:
    from snapctl.services import opening

    try:
        with opening.reading(path, wait_seconds=0) as opened:
            return list(names(opened))
    except SnapctlError:
        return []


def _volumes(opened: Container) -> Iterator[Candidate]:
    from snapctl.units import format_size

    for node in opened.volumes:
        yield node.name, f"{node.kind.value}, {format_size(node.size_bytes)}"


def _volumes_and_snapshots(opened: Container) -> Iterator[Candidate]:
    yield from _volumes(opened)
    volumes_seen = set()
    for node in opened.nodes:
        name, at, _ = node.name.partition("@")
        if not at:
            continue
        if name not in volumes_seen:
            volumes_seen.add(name)
            yield f"{name}@", "its snapshots"
        yield node.name, f"snapshot of {node.created:%Y-%m-%d %H:%M} UTC"


def _volumes_to_snapshot(opened: Container) -> Iterator[Candidate]:
    for name, about in _volumes(opened):
        yield f"{name}@", about
