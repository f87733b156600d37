"""Paths that go on inside a container: ``lab.snap/db@mon``.

A regular file cannot have children, so the longest prefix of a path that is a file is the container, and the rest names
a node in it. When no prefix is one, the same is tried with ``@...`` cut off the last component: ``lab.snap@nightly``
means the snapshots of that name of all volumes. With SNAPCTL_CONTAINER set, ``db@mon`` alone will do; a path that names
an existing container goes before the variable. This module looks at the file system but opens no container, except to
read eight bytes where a bare name could mean either.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from snapctl.errors import BadName, NotAContainer, UsageError

VARIABLE = "SNAPCTL_CONTAINER"


class Location(NamedTuple):
    """A container, or something in it.

    Attributes:
        container: path of the container file.
        node: full name of a volume or snapshot (``db``, ``db@mon``), or ``@mon`` for that snapshot of every volume;
            None for the container itself.
    """

    container: str
    node: str | None

    def __str__(self) -> str:
        if self.node is None:
            return self.container
        return f"{self.container}{'' if self.node.startswith('@') else '/'}{self.node}"

    @property
    def of_every_volume(self) -> bool:
        """True for ``lab.snap@nightly``."""
        return self.node is not None and self.node.startswith("@")

    def one_node(self) -> str:
        """Return the name of the one node this means.

        Raises:
            UsageError: it means a container, or a snapshot of every volume.
        """
        if self.node is None or self.of_every_volume:
            raise UsageError(f"{self}: name a volume or a snapshot in it, as in {self.container}/db@mon")
        return self.node


def locate(text: str | None) -> Location:
    """Resolve a path to something that exists, or to the container of SNAPCTL_CONTAINER.

    Args:
        text: as typed; None when it was left out.

    Raises:
        NotAContainer: no part of the path is a file.
        UsageError: nothing was given, and the variable is not set; or the path is empty.
    """
    variable = os.environ.get(VARIABLE)
    if text is None:
        if not variable:
            raise UsageError(f"name a container, or set {VARIABLE}")
        return Location(variable, None)
    _refuse_empty(text)
    found = _inside_a_file(text)
    if found and not (variable and found.node is None and _is_bare(text) and not starts_like_a_container(text)):
        return found
    if variable and _is_bare(text):
        return Location(variable, text)
    raise NotAContainer(_why_missing(text))


def locate_new(text: str) -> Location:
    """Resolve the path of a volume that is to be made, whose container need not exist yet.

    Raises:
        UsageError: the path does not name a volume.
    """
    _refuse_empty(text)
    found = _inside_a_file(text)
    variable = os.environ.get(VARIABLE)
    if found is None or found.node is None:
        container, _, name = text.rpartition("/")
        if container and found is None:
            found = Location(container, name or None)
        elif variable and _is_bare(text):
            found = Location(variable, text)
    if found is None or found.node is None:
        raise UsageError(f"{text}: name the volume to make, as in {text.rstrip('/')}/db")
    if os.path.isdir(found.container):
        raise NotAContainer(
            f"{found.container} is a directory; name a container in it, as in {found.container}/lab.snap/{found.node}"
        )
    return found


def node_name_in(container: str, text: str) -> str:
    """Read a second argument that names a node of the same container, by name or by whole path.

    Args:
        container: path of the first argument's container.
        text: ``dev`` or ``lab.snap/dev``.

    Raises:
        UsageError: the path leads into another container.
    """
    if _is_bare(text):
        return text
    found = locate(text)
    if found.node is None or not _is_same_file(found.container, container):
        raise UsageError(f"{text}: not a name in {container}; both must be in the same container")
    return found.node


def common_container(locations: Sequence[Location]) -> str:
    """Return the container that all of the locations are in.

    Raises:
        UsageError: there are several.
    """
    first = locations[0].container
    for other in locations[1:]:
        if not _is_same_file(other.container, first):
            raise UsageError(f"{other} is not in {first}; all must be in the same container")
    return first


def starts_like_a_container(path: str) -> bool:
    """Tell whether a file begins as containers do; False if it cannot be read."""
    from snapctl.format.superblock import has_magic

    try:
        with open(path, "rb", buffering=0) as file:
            return has_magic(file.read(16))
    except OSError:
        return False


def split_at_file(text: str) -> tuple[str, str] | None:
    """Split a path after its longest prefix that is a file; None if none is.

    Returns:
        The file's path, and what follows the slash behind it (empty if nothing does).
    """
    end = len(text)
    while end > 0:
        prefix = text[:end]
        if _is_file(prefix):
            return prefix, text[end + 1 :]
        end = text.rfind("/", 0, end)
    return None


def _inside_a_file(text: str) -> Location | None:
    split = split_at_file(text)
    if split is None:
        at = text.rfind("@")
        if at > text.rfind("/") + 1 and _is_file(text[:at]):
            return Location(text[:at], text[at:])
        return None
    container, rest = split
    if "/" in rest:
        raise BadName(f"{text}: {rest!r} is not the name of a volume or snapshot; names have no slash")
    return Location(container, rest or None)


def _refuse_empty(text: str) -> None:
    if not text:
        raise UsageError("the path is empty; name a container, or a volume or snapshot in it")


def _is_bare(text: str) -> bool:
    return "/" not in text


def _is_file(path: str) -> bool:
    """Tell whether something that is no directory stands at `path`; what it is, the engine finds out."""
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise NotAContainer(f"{path}: {(error.strerror or str(error)).lower()}") from error


def _is_same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.abspath(one) == os.path.abspath(other)


def _why_missing(text: str) -> str:
    if os.path.isdir(text):
        return f"{text}: a directory, not a container"
    if _is_bare(text) and "@" in text:
        return f"{text}: no such container; write CONTAINER/{text}, or set {VARIABLE}"
    end = text.find("/", 1)
    while end > 0 and os.path.exists(text[:end]):
        end = text.find("/", end + 1)
    missing = text[:end] if end > 0 else text
    parent = os.path.dirname(missing)
    where = f" ({parent} is a directory)" if os.path.isdir(parent) else ""
    return f"{missing}: no such file{where}; 'snapctl init' makes a container"
