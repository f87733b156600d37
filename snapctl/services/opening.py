"""The one place where a container is opened to be read: from its file, or beside the server that holds it.

Without a server the file is locked against writers. With one, the server keeps a state of the container for us, and we
read that from the file ourselves (`snapctl.storage.view`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from snapctl.engine.container import Container
from snapctl.errors import Corruption, Locked
from snapctl.services.control.address import may_be_served
from snapctl.storage.backend import FileBackend
from snapctl.storage.store import open_locked
from snapctl.storage.view import ViewBackend


def open_file(path: str, wait_seconds: float) -> FileBackend:
    """Open a container file to be read, in a state that does not change while it is open.

    Raises:
        Locked: another process holds it, and is no server, for longer than `wait_seconds`.
        SnapctlError: as `FileBackend.open`, or as the server says.
    """
    served = _view(path, wait_seconds)
    if served is not None:
        return served
    try:
        return open_locked(path, writable=False, wait_seconds=wait_seconds)
    except Locked:
        served = _view(path, wait_seconds)  # the server may have come up meanwhile
        if served is None:
            raise
        return served


@contextmanager
def reading(path: str, wait_seconds: float) -> Iterator[Container]:
    """Open a container for reading.

    Raises:
        ViewEnded: its server ended meanwhile.
        SnapctlError: as `open_file` and `Container.adopt`.
    """
    backend = open_file(path, wait_seconds)
    try:
        with believing(backend):
            yield Container.adopt(backend, writable=False)
    finally:
        backend.close()


@contextmanager
def believing(backend: FileBackend) -> Iterator[None]:
    """Around reading: damage that is found on a view was its server's end, if that has ended.

    Raises:
        ViewEnded: so it was.
    """
    try:
        yield
    except Corruption:
        check_lasts(backend)
        raise


def check_lasts(backend: FileBackend) -> None:
    """Refuse to believe in the damage that was found, if it was found on a view whose server has ended.

    Raises:
        ViewEnded: so it was.
    """
    if isinstance(backend, ViewBackend):
        backend.check_lasts()


def _view(path: str, wait_seconds: float) -> ViewBackend | None:
    """Open a view of a container that is served; None if it is not."""
    if not may_be_served(path):
        return None
    from snapctl.services.control.view import take_view

    grant = take_view(path, wait_seconds)
    return None if grant is None else ViewBackend(path, grant, lambda: take_view(path, wait_seconds))
