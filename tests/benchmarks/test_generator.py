"""Containers whose tables were made up are as sound as any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.generator import generate
from snapctl import Container
from snapctl.services.check import check_container


@pytest.mark.parametrize(
    ("size_bytes", "block_size", "table_size"),
    [
        (512, 512, 512),
        (40 * 512, 512, 512),
        (16 << 20, 512, 512),  # all 32 * 32 * 32 blocks, and several bitmaps
        (1 << 20, 4096, 512),
        (3 << 20, 512, 4096),
        (64 << 20, 4096, 16384),
        (100_000_001, 16384, 16384),
        (64 << 20, 65536, 16384),
    ],
)
def test_generated_container_is_sound_and_full(size_bytes: int, block_size: int, table_size: int, tmp_path: Path):
    path = tmp_path / "lab.snap"

    generate(path, size_bytes, block_size=block_size, table_size=table_size)

    report = check_container(str(path), 0)
    blocks = -(-size_bytes // block_size)
    assert (report.findings, report.data_bytes) == ([], blocks * block_size)
    with Container.open(str(path), writable=True) as container:
        volume = container["db"]
        assert container.data_bytes == blocks * block_size
        assert volume.read(size_bytes - 512, 512) == bytes(512)
        container.snapshot("db@mon")
        volume.write(0, b"x" * 512)
    with Container.open(str(path)) as container:
        assert container["db@mon"].read(0, 512) == bytes(512)
        assert container["db"].read(0, 512) == b"x" * 512
    assert check_container(str(path), 0).findings == []


def test_a_generated_volume_takes_the_room_of_its_tables_only(tmp_path: Path):
    path = tmp_path / "lab.snap"

    generate(path, 1 << 30)

    assert path.stat().st_size > 1 << 30
    assert path.stat().st_blocks * 512 < (1 << 30) * 0.005
