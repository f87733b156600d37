"""A container that is being served, for most tests of the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapctl.engine.container import Container
from tests.services.nbd.serving import Served, serving

SIZE = 4 << 20


@pytest.fixture
def container(tmp_path: Path) -> Path:
    """A container with a volume `db` of 4 MiB, empty but for 10000 bytes at 4096, and its snapshot `db@mon`."""
    path = tmp_path / "lab.snap"
    with Container.create(str(path)) as made:
        volume = made.create_volume("db", SIZE)
        volume.write(4096, b"old" * 3000)
        made.snapshot("db@mon")
        volume.write(4096, b"new" * 3000)
    return path


@pytest.fixture
def served(container: Path) -> Iterator[Served]:
    with serving(container) as running:
        yield running
