"""The client's end of a control socket: plain blocking calls, one at a time."""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from snapctl.errors import Corruption, IoFailure, Locked, SnapctlError, UnsupportedFormat, UsageError
from snapctl.services.control.address import may_be_served, socket_path
from snapctl.services.control.protocol import (
    DESCRIPTOR_ROOM,
    LONGEST_REQUEST,
    VERSION,
    as_error,
    descriptors,
    encode,
    peer,
)
from snapctl.services.unixsocket import reachable

_LONGEST_ANSWER = 64 << 20
_LEAST_PATIENCE_SECONDS = 1.0

Progress = Callable[[int, int | None], None]


class Client:
    """A connection to the server of a container.

    Attributes:
        pid: of the server, as it says.
    """

    def __init__(self, connection: socket.socket, container_path: str) -> None:
        """Take up a connection; callers use `connect`."""
        self._socket = connection
        self._path = container_path
        self._received = bytearray()
        self._descriptors: list[int] = []
        self._last_id = 0
        self._poll: select.poll | None = None
        self.pid = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the server stops whatever transfer is under way."""
        self._socket.close()
        for fd in self._descriptors:
            os.close(fd)
        self._descriptors.clear()

    def call(
        self,
        method: str,
        params: dict[str, Any],
        *,
        source: int | None = None,
        progress: Progress | None = None,
        ready: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Have the server do something, and wait until it has.

        Args:
            method: see docs/control.md.
            params: of the method.
            source: a descriptor to send along.
            progress: called as the server tells how far it has come.
            ready: called before an import that has all its data is finished; until then hanging up undoes it.

        Returns:
            The method's result.

        Raises:
            SnapctlError: as the server says; or it went away.
        """
        self._last_id += 1
        request = encode({"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params})
        if len(request) > LONGEST_REQUEST:
            raise UsageError("the request is too long for the server of the container; name fewer nodes at a time")
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have said why before it hung up
                self._send(request, [] if source is None else [source])
            while True:
                answer = self._receive()
                if answer.get("id") == self._last_id or (answer.get("id") is None and "error" in answer):
                    break
                if progress is not None and answer.get("method") == "progress":
                    progress(answer["params"]["done_bytes"], answer["params"]["total_bytes"])
                if ready is not None and answer.get("method") == "ready":
                    ready()
                    finish = {"jsonrpc": "2.0", "method": "finish", "params": {"id": self._last_id}}
                    self._send(encode(finish), [])
        except OSError as error:
            raise self._lost() from error
        try:
            refusal = as_error(answer["error"]) if "error" in answer else None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._nonsense() from error
        if refusal is not None:
            raise refusal
        result = answer.get("result")
        if not isinstance(result, dict):
            raise self._nonsense()
        return result

    def is_hung_up(self, wait_seconds: float) -> bool:
        """Whether the server has hung up between two calls, or does so within `wait_seconds`."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
        return bool(self._poll.poll(wait_seconds * 1000))

    def take_descriptors(self) -> list[int]:
        """The descriptors that came with the last answer, which are the caller's from now on."""
        taken, self._descriptors = self._descriptors, []
        return taken

    def _send(self, line: bytes, fds: Sequence[int]) -> None:
        sent = socket.send_fds(self._socket, [line], fds) if fds else 0
        self._socket.sendall(memoryview(line)[sent:])

    def _receive(self) -> dict[str, Any]:
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            data, ancillary, _, _ = self._socket.recvmsg(1 << 16, DESCRIPTOR_ROOM, socket.MSG_CMSG_CLOEXEC)
            self._descriptors += descriptors(ancillary)
            if not data or searched > _LONGEST_ANSWER:
                raise self._lost()
            self._received += data
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise self._lost() from error
        if not isinstance(answer, dict):
            raise self._lost()
        return answer

    def _nonsense(self) -> SnapctlError:
        return IoFailure(f"the server of {self._path} (pid {self.pid}) gave an answer that makes no sense")

    def _lost(self) -> SnapctlError:
        return IoFailure(
            f"the server of {self._path} (pid {self.pid}) went away before it answered; "
            "'snapctl list' tells whether the change was made"
        )


def connect(container_path: str, wait_seconds: float) -> Client | None:
    """Connect to the server of a container.

    Args:
        container_path: the container file.
        wait_seconds: how long to wait for a server that is busy.

    Returns:
        None if nobody serves it: nobody answers, or one whom we do not trust or who serves another container.

    Raises:
        Locked: it is served, but the server does not answer.
        UnsupportedFormat: the server speaks another version of the protocol.
    """
    if not may_be_served(container_path):
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client = Client(connection, container_path)
    try:
        connection.settimeout(min(max(wait_seconds, _LEAST_PATIENCE_SECONDS), 1e6))
        with reachable(socket_path(container_path)) as address:
            connection.connect(address)
        is_ours = _is_trusted(connection, container_path) and _greet(client, container_path)
        connection.settimeout(None)
    except TimeoutError as error:
        client.close()
        raise Locked(f"{container_path} is served by a process that does not answer; waited {wait_seconds:g} s") from (
            error
        )
    except OSError:
        is_ours = False
    except BaseException:
        client.close()
        raise
    if is_ours:
        return client
    client.close()
    return None


def _is_trusted(connection: socket.socket, container_path: str) -> bool:
    """Whether the server is ours, root's, or that of the container's owner."""
    server = peer(connection)
    return server is None or server[1] in {os.geteuid(), 0, os.stat(container_path).st_uid}


def _greet(client: Client, container_path: str) -> bool:
    """Introduce ourselves, and tell whether it is this container that is served."""
    try:
        hello = client.call("hello", {"version": VERSION})
    except IoFailure as error:
        if isinstance(error.__cause__, TimeoutError):
            raise error.__cause__ from error
        return False  # it is going away
    if hello.get("version") != VERSION:
        raise UnsupportedFormat(f"the server of {container_path} speaks another version; use the snapctl it is of")
    try:
        client.pid = int(hello["pid"])
        file = int(hello["device"]), int(hello["inode"])
    except (KeyError, TypeError, ValueError) as error:
        raise IoFailure(f"the server of {container_path} introduces itself in a way that makes no sense") from error
    status = os.stat(container_path)
    # A copy of the container in its place has the same uuid, and nobody serves it.
    return file == (status.st_dev, status.st_ino) and hello.get("uuid") in container_uuids(container_path)


def container_uuids(container_path: str) -> set[str]:
    """What a container file says it is, in each of its superblocks that is sound."""
    from snapctl.format import layout, superblock

    found: set[str] = set()
    with open(container_path, "rb", buffering=0) as file:
        for slot in range(superblock.SLOTS):
            for copy in range(superblock.COPIES):
                file.seek(superblock.copy_offset(slot, copy))
                with suppress(Corruption, UnsupportedFormat):
                    found.add(str(superblock.parse(file.read(layout.SUPERBLOCK_BYTES)).uuid))
    return found
