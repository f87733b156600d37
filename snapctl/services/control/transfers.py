"""`write` and `import` through a server: the client hands over a descriptor, and the server reads it.

The descriptor is read by a thread, a piece at a time, and the pieces are written as those of any other client of the
device are: each becomes visible by itself. A volume that is being imported is hidden until it is whole. A transfer
ends with its client's connection; what it had written stays, of an import nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from snapctl.errors import BadSize, SnapctlError, UsageError
from snapctl.format.record import State
from snapctl.services.control.connection import Overlong
from snapctl.services.operations import Parameter, cow_policy
from snapctl.services.source import Abandoned, Source, adopt_source, cut

if TYPE_CHECKING:
    from snapctl.engine.container import Container
    from snapctl.engine.model import Cow
    from snapctl.engine.node import Node
    from snapctl.services.control.connection import Connection
    from snapctl.services.control.methods import Request
    from snapctl.services.live.container import LiveContainer
    from snapctl.services.live.device import Device

T = TypeVar("T")

_PIECE_BYTES = 1 << 20
"""What becomes visible at once; a transfer holds twice that in memory."""

WRITE_PARAMS = {
    "name": Parameter("str", None),
    "offset_bytes": Parameter("int", 0),
    "source": Parameter("str", "the input"),
}
IMPORT_PARAMS = {
    "name": Parameter("str", None),
    "cow": Parameter("str", "redirect"),
    "source": Parameter("str", "the input"),
}


class _Reader:
    """A thread of its own for each transfer: those that wait for their input must not keep others from a thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "transfer")

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *arguments))

    def close(self) -> None:
        """Let the thread end, as it does soon after the transfer is over."""
        self._pool.shutdown(wait=False)


class _Writer:
    """A transfer as a user of the device that it writes to.

    Attributes:
        description: see `snapctl.services.live.container.User`.
        reason: why it has to stop.
    """

    description = "snapctl write"

    def __init__(self, connection: Connection) -> None:
        self.reason: str | None = None
        self._connection = connection

    def is_over(self) -> bool:
        """Whether it has to stop, or its client is gone."""
        return self.reason is not None or self._connection.is_gone.is_set()

    def disconnect(self, reason: str) -> None:
        """Stop writing."""
        self.reason = reason


async def write(live: LiveContainer, request: Request) -> dict[str, Any]:
    """Write a source into a volume, and return when all of it is durable.

    Raises:
        Abandoned: the client is gone.
        SnapctlError: as `Device.write`, or the source cannot be read.
    """
    writer = _Writer(request.connection)
    source = _source(live, request, writer.is_over)
    device = live.device(request.params["name"])
    offset = request.params.get("offset_bytes", 0)
    device.node.check_writable()
    device.node.check_range(offset, source.size_bytes)
    live.use(device, writer)
    reader = _Reader()
    try:
        position = offset
        while True:
            # The first piece is the longest, so that a short input is one piece wherever it begins.
            length = _PIECE_BYTES - position % _PIECE_BYTES + (_PIECE_BYTES if position == offset else 0)
            piece = memoryview(bytearray(length))
            count = await reader.run(source.fill, piece)
            await _put(live, device, position, piece[:count])
            position += count
            _tell(request, position - offset, source.size_bytes or None)
            if count < len(piece):
                break
    except Abandoned:
        if writer.reason is not None:
            raise SnapctlError(f"{device.name}: {writer.reason}") from None
        raise
    finally:
        reader.close()
        live.release(device, writer)
    await live.flush()
    return {"written_bytes": position - offset}


async def import_volume(live: LiveContainer, request: Request) -> dict[str, Any]:
    """Make a base volume from a source; it is hidden until all of it is durable.

    Raises:
        Abandoned: the client is gone; nothing is left of the volume.
        SnapctlError: as `Container.create_volume` and `Device.write`, or the source cannot be read; likewise.
    """
    source = _source(live, request, request.connection.is_gone.is_set)
    name, cow = request.params["name"], cow_policy(request.params.get("cow", "redirect"))
    reader = _Reader()
    try:
        return await _import(live, request, source, reader, name, cow)
    finally:
        reader.close()


async def _import(
    live: LiveContainer, request: Request, source: Source, reader: _Reader, name: str, cow: Cow
) -> dict[str, Any]:
    first = memoryview(bytearray(0 if source.size_bytes else _PIECE_BYTES))
    count = await reader.run(source.fill, first)
    size_bytes = source.size_bytes or count
    if not size_bytes:
        raise BadSize(f"{source.name} is empty; a volume has at least one byte")

    def begin(container: Container) -> int:
        return container.create_volume(name, size_bytes, cow=cow, state=State.IMPORTING).id

    node_id = await live.change(begin)
    try:
        if source.size_bytes:
            await _copy_file(live, live.container.by_id(node_id), source, reader, request)
        else:
            size_bytes = await _copy_stream(live, live.container.by_id(node_id), source, reader, first[:count], request)

        def finish(container: Container) -> None:
            node = container.by_id(node_id)
            node.resize(size_bytes, shrink=True)
            container.finish(node)

        await _agreed(request)
        await live.change(finish)
    except BaseException:
        # If this fails as well, it stays hidden, and the next to open the container deletes it.
        with suppress(SnapctlError):
            await live.change(lambda container: container.discard(container.by_id(node_id)))
        raise
    return {"name": name, "size_bytes": size_bytes}


async def _copy_file(live: LiveContainer, node: Node, source: Source, reader: _Reader, request: Request) -> None:
    device = live.device_of(node)
    for start, stop in source.data_ranges():
        for begin, end in cut(start, stop, _PIECE_BYTES):
            piece = memoryview(bytearray(end - begin))
            await reader.run(source.read_at, begin, piece)
            await _put(live, device, begin, piece)
            _tell(request, end, source.size_bytes)
    source.check_size()
    _tell(request, source.size_bytes, source.size_bytes)


async def _copy_stream(
    live: LiveContainer, node: Node, source: Source, reader: _Reader, piece: memoryview, request: Request
) -> int:
    """Copy what tells its size only at its end, into a volume that doubles as it fills; returns the bytes copied."""
    device = live.device_of(node)
    done = 0
    while piece:
        if done + len(piece) > node.size_bytes:
            wanted = done + len(piece)
            await live.change(partial(_grow, node_id=node.id, size_bytes=wanted))
        await _put(live, device, done, piece)
        done += len(piece)
        _tell(request, done, None)
        buffer = memoryview(bytearray(_PIECE_BYTES))
        piece = buffer[: await reader.run(source.fill, buffer)] if len(piece) == _PIECE_BYTES else buffer[:0]
    return done


def _grow(container: Container, *, node_id: int, size_bytes: int) -> None:
    """Make room for that many bytes, and for as many again if the format has them."""
    container.by_id(node_id).resize(max(size_bytes, min(2 * size_bytes, container.max_volume_bytes)))


async def _put(live: LiveContainer, device: Device, offset: int, piece: memoryview) -> None:
    while piece and not device.write(offset, piece):
        await live.until_room()


def _source(live: LiveContainer, request: Request, is_over: Callable[[], bool]) -> Source:
    if len(request.descriptors) != 1:
        raise UsageError(f"{request.method} takes one descriptor, to read from; {len(request.descriptors)} came")
    name = request.params.get("source", "the input")[:4096]
    return adopt_source(request.descriptors[0], name, live.container.path, is_over)


async def _agreed(request: Request) -> None:
    """Have the client say that all has come: who is interrupted together with the writer of a pipe means no end.

    Raises:
        Abandoned: the client is gone.
        UsageError: it says something else.
    """
    request.connection.send({"jsonrpc": "2.0", "method": "ready", "params": {"id": request.id}})
    try:
        line = await request.connection.read_line()
    except Overlong:  # as whoever reads on will find, too
        line = b""
    if line is None:
        raise Abandoned
    try:
        is_agreed = json.loads(line) == {"jsonrpc": "2.0", "method": "finish", "params": {"id": request.id}}
    except (ValueError, RecursionError):
        is_agreed = False
    if not is_agreed:
        raise UsageError("an import that is ready waits for 'finish' and nothing else; it was given up")


def _tell(request: Request, done_bytes: int, total_bytes: int | None) -> None:
    """Tell the client how far it has come.

    Raises:
        Abandoned: there is no client any more.
    """
    if request.connection.is_gone.is_set():
        raise Abandoned
    params = {"id": request.id, "done_bytes": done_bytes, "total_bytes": total_bytes}
    request.connection.send_news({"jsonrpc": "2.0", "method": "progress", "params": params})
