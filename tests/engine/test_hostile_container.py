"""Containers whose checksums are right and whose contents are not: a clean error, never a traceback."""

from __future__ import annotations

import pytest

from snapctl.engine.container import Container
from snapctl.errors import Corruption
from tests.support import damage
from tests.support.backends import MemoryBackend
from tests.support.containers import small_container


def test_a_record_that_owns_too_few_blocks_is_corruption_when_they_are_given_up():
    backend = MemoryBackend()
    container = small_container(backend)
    container.create_volume("db", 5000).write(0, b"x" * 5000)
    container.commit()
    damage.forge_record(backend, "db", "own_blocks", 0)
    container = Container.adopt(backend)
    container["db"].trim(0, 5000)
    with pytest.raises(Corruption, match="db"):
        container.commit()
