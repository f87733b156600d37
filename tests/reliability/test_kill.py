"""Processes killed with SIGKILL in the middle of their work: what they had reported is there, and nothing by half.

A few kills; ``make kill-loop`` makes hundreds (`tests.reliability.kill_loop`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.format.geometry import Geometry
from tests.reliability.kill_loop import GEOMETRIES, Commands, Writers, assert_holds_one_of
from tests.support.killed_writer import ContainerLab, Model, change


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: f"{geometry.block_size}")
def test_what_a_killed_writer_had_reported_is_there_and_the_next_one_goes_on(geometry: Geometry, tmp_path: Path):
    writers = Writers(tmp_path / "lab.snap", geometry, seed=3)
    for _ in range(15):
        writers.kill_one()
    assert writers.number > 30


def test_what_a_command_did_before_it_ended_is_there_and_a_killed_one_did_all_or_nothing(tmp_path: Path):
    commands = Commands(tmp_path / "lab.snap", seed=3)
    for _ in range(8):
        commands.kill_one()
    assert commands.outcomes["kills"]


# The search itself


def test_model_and_container_are_changed_alike(tmp_path: Path):
    path, model = tmp_path / "lab.snap", Model()
    with Container.create(str(path), block_size=512, table_size=512) as container:
        for number in range(1, 40):
            change(ContainerLab(container), 5, number)
            change(model, 5, number)
    assert len(model.nodes) > 3
    assert assert_holds_one_of(path, Model(), model) == 1


def test_a_commit_that_is_missing_and_one_that_is_there_by_half_are_both_noticed(tmp_path: Path):
    path, before, after = tmp_path / "lab.snap", Model(), Model()
    after.create("db", 5000, Cow.REDIRECT)
    after.write("db", 100, b"reported")
    with Container.create(str(path)) as container:
        container.create_volume("db", 5000)
    for models in ([before, after], [after]):
        with pytest.raises(AssertionError, match="lost or mixed"):
            assert_holds_one_of(path, *models)
