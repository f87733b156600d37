"""Every error that snapctl raises on purpose, and the exit code each one owns.

The tree (exit code in brackets)::

    SnapctlError [1]                what went wrong, to what, and what to do now
    |-- UsageError [2]              an argument that is wrong as it stands
    |   |-- BadName [2]
    |   |-- BadSize [2]
    |   `-- OutOfRange [2]          offset or length outside the volume
    |-- NotAContainer [1]           no snapctl superblock, or not a regular file
    |-- UnsupportedFormat [1]       newer version or unknown feature
    |-- NodeNotFound [1]
    |-- NameTaken [1]
    |-- ReadOnlyNode [1]            a write to an RO snapshot
    |-- HasDependents [1]           delete refused; lists what descends from the node
    |-- Unrelated [1]               a comparison with what is no older snapshot of the same volume
    |-- InUse [1]                   clients of a server have the node open
    |-- IoFailure [1]               a system call on the container failed; poisons it
    |   `-- Poisoned [1]            used after such a failure
    |-- Corruption [4]              bytes that contradict their checksum or each other
    |   |-- Truncated [4]           the file is shorter than its superblock says
    |   |-- DamagedTable [4]        a table that cannot be used; nothing beneath it can be reached
    |   `-- DataLost [4]            a block marked as damaged beyond repair
    |-- Locked [5]                  held by another process
    |-- NoSpace [6]                 the disk or the container's capacity is full
    `-- ViewEnded [1]               the server that kept a state for us to read is gone

Exit codes 3 (leaks only) and 7 (differs) are results of commands, not errors.
"""

from __future__ import annotations

from collections.abc import Sequence


class SnapctlError(Exception):
    """Base of the tree; `str()` of it is one line fit for standard error."""

    exit_code = 1


class UsageError(SnapctlError):
    """An argument that is wrong whatever the container holds."""

    exit_code = 2


class BadName(UsageError):
    """A node name outside the alphabet or the length limit."""


class BadSize(UsageError):
    """A size that cannot be parsed or that the format cannot hold."""


class OutOfRange(UsageError):
    """An offset or a length that does not lie inside the volume."""


class NotAContainer(SnapctlError):
    """The path is not a snapctl container."""


class UnsupportedFormat(SnapctlError):
    """The container was made by a newer snapctl, or uses a feature unknown here."""


class NodeNotFound(SnapctlError):
    """No volume or snapshot of that name."""


class NameTaken(SnapctlError):
    """A file, volume or snapshot of that name exists already."""


class ReadOnlyNode(SnapctlError):
    """The operation would change an RO snapshot, or a container opened for reading."""


class HasDependents(SnapctlError):
    """A node cannot be deleted while others descend from it.

    Attributes:
        dependents: full names of the nodes in the way, nearest first.
    """

    def __init__(self, message: str, dependents: Sequence[str]) -> None:
        super().__init__(message)
        self.dependents = tuple(dependents)


class Unrelated(SnapctlError):
    """A node is to be compared with one that is no older RO snapshot of the same volume."""


class InUse(SnapctlError):
    """The data of a node cannot be taken away while clients of a server have it open.

    Attributes:
        clients: how many have.
    """

    def __init__(self, message: str, clients: int = 0) -> None:
        super().__init__(message)
        self.clients = clients


class IoFailure(SnapctlError):
    """The system refused a read, write or sync of the container."""


class Poisoned(IoFailure):
    """An earlier failure left the open container unusable; reopen it."""


class Corruption(SnapctlError):
    """Bytes on disk that contradict their checksum, their bounds or each other.

    Attributes:
        node: full name of the node whose data is affected, if known.
        bytes_affected: where in that node, as (offset of the first byte, offset after the last), if known.
        page_no: the page at fault, if one is.
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        node: str | None = None,
        bytes_affected: tuple[int, int] | None = None,
        page_no: int | None = None,
    ) -> None:
        super().__init__(message)
        self.node = node
        self.bytes_affected = bytes_affected
        self.page_no = page_no


class Truncated(Corruption):
    """The container file is shorter than its superblock says."""


class DamagedTable(Corruption):
    """A table that fails its checksum or its bounds, so that nothing beneath it can be reached.

    Attributes:
        start: first index that it covers; of a volume, a block number.
        stop: index after the last.
    """

    def __init__(self, message: str, *, start: int = 0, stop: int = 0, page_no: int | None = None) -> None:
        super().__init__(message, page_no=page_no)
        self.start = start
        self.stop = stop


class DataLost(Corruption):
    """The block was damaged beyond repair; writing it anew heals it."""


class Locked(SnapctlError):
    """Another process holds the container.

    Attributes:
        holders: "pid 123 (command line)" for each holder that could be found.
    """

    exit_code = 5

    def __init__(self, message: str, holders: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.holders = tuple(holders)


class NoSpace(SnapctlError):
    """The file system or the container's capacity has no room left."""

    exit_code = 6


class ViewEnded(SnapctlError):
    """The server that kept a state of its container whole, for another process to read, went away."""
