"""Reads that may not wait for the disk leave nothing half done, and succeed once what they lacked was fetched."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from snapctl.engine.container import Container
from snapctl.engine.node import Node
from snapctl.storage.backend import FileBackend, NotCached
from tests.support.page_cache import ColdCache

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what it has cached")

KIB = 1024
T = TypeVar("T")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A container with a volume, a snapshot that needs the volume for most, and a clone of that."""
    path = str(tmp_path / "lab.snap")
    with Container.create(path) as container:
        volume = container.create_volume("db", 64 << 20)
        for offset in (0, 5 << 20, 33 << 20):
            volume.write(offset, random.Random(offset).randbytes(300 * KIB))
        container.snapshot("db@mon")
        volume.write(20 * KIB, b"new" * 10_000)
        container.clone("db@mon", "dev").write(6 << 20, b"own" * 10_000)
    return path


def cold(backend: FileBackend, use: Callable[[], T]) -> T:
    """Do what a server does: try without waiting, and fetch what is missing, until all was there."""
    while True:
        backend.cached_only = True
        try:
            return use()
        except NotCached as missing:
            backend.cached_only = False
            backend.warm(missing.offset, missing.length)
        finally:
            backend.cached_only = False


def backend_of(container: Container) -> FileBackend:
    backend = container.pages.backend
    assert isinstance(backend, FileBackend)
    return backend


def test_a_node_reads_the_same_from_a_cold_cache_though_every_table_and_page_is_missed_first(path: str):
    with Container.open(path) as container:
        expected = {name: container[name].read(0, 64 << 20) for name in ("db", "db@mon", "dev")}
        holes = {name: list(container[name].extents()) for name in expected}
    with Container.open(path) as container, ColdCache(path) as cache:
        backend = backend_of(container)
        for name, content in expected.items():
            cache.held.clear()
            node = container[name]
            for offset in random.Random(1).sample(range(0, 64 << 20, 4 << 20), 16):
                found = cold(backend, partial(node.read, offset, 4 << 20))
                assert found == content[offset : offset + (4 << 20)], (name, offset)
            assert list(node.extents()) == holes[name]
        assert cache.refusals > 20


def test_what_could_not_be_read_at_once_breaks_no_transaction(path: str):
    with Container.open(path, writable=True) as container:
        volume: Node = container["db"]
        volume.write(0, b"x" * 5000)
        with ColdCache(path) as cache:
            backend = backend_of(container)
            for _ in range(3):
                backend.cached_only = True
                with pytest.raises(NotCached):
                    volume.read(33 << 20, 4 * KIB)
                with pytest.raises(NotCached):
                    container["dev"].read(33 << 20, 4 * KIB)
                backend.cached_only = False
            assert cache.waits == 0
        volume.write(33 << 20, b"y")
        container.commit()
        assert volume.read(0, 5000) == b"x" * 5000
        assert container["dev"].read(33 << 20, 1) == random.Random(33 << 20).randbytes(300 * KIB)[:1]
