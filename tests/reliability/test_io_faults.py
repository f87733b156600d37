"""A call on the container file goes wrong: one clear error, and nothing that was committed is lost.

Every call of a workload fails here; of the ways in which it can be carried out in part, or fail from then on, a share
is tried. ``make fault-search`` tries all, and more workloads (`tests.reliability.fault_search`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from snapctl.engine.container import Container
from tests.reliability import fault_search
from tests.support.faults import EFFECTS, EFFECTS_OF, Fault, System

SMALL, LARGE = fault_search.core_tasks()[:-1], fault_search.core_tasks()[-1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lab.snap"


@pytest.mark.parametrize("task", SMALL, ids=lambda task: task.name)
def test_any_call_that_fails_costs_at_most_what_was_not_committed(task: fault_search.Task, path: Path):
    tried = fault_search.try_task(path, task, stride=8)
    assert tried["pwritev EIO"] == tried["pwritev ENOSPC"] > 10
    assert tried["preadv EIO"] > 10
    assert tried["fdatasync EIO"] == 5


def test_any_sync_truncate_or_punch_that_fails_in_a_large_change_costs_at_most_what_was_not_committed(path: Path):
    tried = fault_search.try_task(path, LARGE, calls={"fdatasync", "ftruncate", "fallocate"})
    assert tried["ftruncate EIO"]
    assert tried["fallocate EINTR"]


def test_a_read_that_fails_gives_an_error_and_never_wrong_bytes_and_can_be_tried_again(path: Path):
    assert fault_search.try_reading(path, stride=8)["preadv EIO"] > 30


def test_a_container_whose_making_fails_leaves_no_file(path: Path):
    tried = fault_search.try_creating(path)
    assert {kind.split()[0] for kind in tried} == {"pwritev", "fdatasync", "ftruncate", "fallocate", "fsync"}


@pytest.mark.parametrize("name", ["write", "snapshot", "read"])
def test_a_command_during_which_a_call_fails_ends_with_one_line_and_all_or_nothing(name: str, path: Path):
    assert fault_search.try_command(path, name, every=12).total() > 3


# The system itself


def test_a_fault_happens_at_the_call_that_it_names_and_at_no_other_file(path: Path):
    Container.create(str(path)).close()
    elsewhere = path.with_name("elsewhere")
    elsewhere.mkdir()
    with System(str(path), Fault("preadv", 3, "EIO")) as system:
        Container.create(str(elsewhere / "lab.snap")).close()
        assert not system.calls
        assert not system.was_struck
        Container.open(str(path)).close()
        assert system.was_struck
        assert len(system.struck) == 1


def test_every_effect_is_used_and_known():
    assert {effect for effects in EFFECTS_OF.values() for effect in effects} == set(EFFECTS)
