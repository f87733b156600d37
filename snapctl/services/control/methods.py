"""What clients of the control socket may ask for: requests are judged here, and answered."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from snapctl.errors import InUse, SnapctlError, UsageError
from snapctl.services import operations
from snapctl.services.control import status, transfers
from snapctl.services.control.protocol import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    PARSE_ERROR,
    UNKNOWN_METHOD,
    VERSION,
    error_object,
)
from snapctl.services.operations import Parameter
from snapctl.services.source import Abandoned

if TYPE_CHECKING:
    from snapctl.engine.container import Container
    from snapctl.engine.node import Node
    from snapctl.services.control.connection import Connection
    from snapctl.services.live.container import LiveContainer


class Request(NamedTuple):
    """A request that is well-formed.

    Attributes:
        id: what the client knows it by.
        method: its name, one of ours.
        params: as that method takes them.
        descriptors: that came with it, closed by whoever judged the request.
        connection: that it came by.
    """

    id: object
    method: str
    params: dict[str, Any]
    descriptors: Sequence[int]
    connection: Connection


class _Refused(Exception):
    """A request that is none; with its id, an error code and why."""


class Service(NamedTuple):
    """A method that is no operation.

    Attributes:
        answer: gives its result.
        params: what it takes.
    """

    answer: Callable[[Request], Awaitable[dict[str, Any]]]
    params: dict[str, Parameter]


class Methods:
    """Answers the requests of all clients of one container."""

    def __init__(self, live: LiveContainer, tell: Callable[[], dict[str, Any]]) -> None:
        """Take up a live container, and what tells of its server in the result of `status`."""
        self._live = live
        self._tell = tell
        self._started = time.monotonic()
        self.services = {
            "hello": Service(self._hello, {"version": Parameter("int", None)}),
            "status": Service(self._status, {}),
            "view": Service(self._view, {}),
            "write": Service(self._write, transfers.WRITE_PARAMS),
            "import": Service(self._import, transfers.IMPORT_PARAMS),
        }

    async def answer(self, connection: Connection, line: bytes) -> None:
        """Judge one line and answer it; the descriptors that came with it are closed before."""
        fds = connection.take_descriptors()
        try:
            answer = await self._answer(connection, line, fds)
        finally:
            for fd in fds:
                os.close(fd)
        if answer is not None:
            await connection.send_with({"jsonrpc": "2.0", **answer}, connection.take_attached())
            await connection.drained()

    async def _answer(self, connection: Connection, line: bytes, fds: Sequence[int]) -> dict[str, Any] | None:
        request_id: object = None
        try:
            message = _parse(line)
            request_id = message["id"]
            return {"id": request_id, "result": await self._result(self._judged(message, fds, connection))}
        except Abandoned:
            return None
        except _Refused as refused:
            code, why = refused.args
            return {"id": request_id, "error": {"code": code, "message": why}}
        except SnapctlError as error:
            return {"id": request_id, "error": error_object(error)}
        except Exception as error:  # noqa: BLE001 one client's trouble must not become that of the others
            what = {"message": "a request on the control socket failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(what)
            why = f"internal error ({type(error).__name__}: {error})"
            return {"id": request_id, "error": {"code": INTERNAL_ERROR, "message": why}}

    def _judged(self, message: dict[str, Any], fds: Sequence[int], connection: Connection) -> Request:
        method, params = message["method"], message.get("params", {})
        if not isinstance(params, dict):
            raise _Refused(INVALID_PARAMS, "params have to be an object")
        if method in operations.METHODS:
            declared = operations.METHODS[method].params
        elif method in self.services:
            declared = self.services[method].params
        else:
            raise _Refused(UNKNOWN_METHOD, f"no method {method[:80]!r}")
        try:
            operations.check_params(params, declared)
        except UsageError as error:
            raise _Refused(INVALID_PARAMS, f"{method}: {error}") from error
        return Request(message["id"], method, params, fds, connection)

    async def _result(self, request: Request) -> dict[str, Any]:
        if request.method in self.services:
            return await self.services[request.method].answer(request)
        return await self._change(request.method, request.params)

    async def _change(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        dry_run = bool(params.get("dry_run"))

        def claim(nodes: Sequence[Node], force: bool) -> None:  # noqa: FBT001 called by position
            self._claim(nodes, force=force, dry_run=dry_run)

        def change(container: Container) -> dict[str, Any]:
            return operations.run(container, method, params, claim)

        if dry_run:
            return {**await self._live.at_rest(change), "usage": None}
        return {**await self._live.change(change, gives_room=method == "delete"), "usage": self.usage()}

    def _claim(self, nodes: Sequence[Node], *, force: bool, dry_run: bool) -> None:
        """Take nodes from their users, or refuse to."""
        used = [node for node in nodes if self._live.users.get(node.id)]
        users = [user for node in used for user in self._live.users[node.id]]
        if users and not force:
            names = ", ".join(node.name for node in used)
            clients = "a client" if len(users) == 1 else f"{len(users)} clients"
            raise InUse(f"{names}: in use by {clients}; disconnect first, or give --force", len(users))
        for user in users if not dry_run else ():
            user.disconnect("its data is taken away by a command with --force")

    def usage(self) -> dict[str, int]:
        """How full the container is, as `snapctl.engine.model.Usage` has it."""
        usage = self._live.container.usage
        return {name: getattr(usage, name) for name in ("used_bytes", "free_bytes", "reserve_bytes")}

    async def _status(self, _request: Request) -> dict[str, Any]:
        return status.describe(self._live, self._started, self._tell())

    async def _view(self, request: Request) -> dict[str, Any]:
        if request.connection.holdings:
            raise UsageError("this connection has a view already; connect anew for another one")
        view = await request.connection.hold(self._live.view())
        request.connection.attach(view.fd, view.superblocks_fd)
        return {"transaction": view.transaction}

    async def _write(self, request: Request) -> dict[str, Any]:
        return {**await transfers.write(self._live, request), "usage": self.usage()}

    async def _import(self, request: Request) -> dict[str, Any]:
        return {**await transfers.import_volume(self._live, request), "usage": self.usage()}

    async def _hello(self, _request: Request) -> dict[str, Any]:
        device, inode = self._live.container.file_identity
        return {
            "version": VERSION,
            "uuid": str(self._live.container.uuid),
            "pid": os.getpid(),
            "device": device,
            "inode": inode,
        }


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _Refused(PARSE_ERROR, "not JSON") from error
    if isinstance(message, list):
        raise _Refused(INVALID_REQUEST, "a batch is not supported; send one request after the other")
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise _Refused(INVALID_REQUEST, 'not an object with "jsonrpc": "2.0"')
    if not isinstance(message.get("id"), str | int) or not isinstance(message.get("method"), str):
        raise _Refused(INVALID_REQUEST, "a request has an id and a method")
    return message
