"""Commands on a container that a server holds: the same words, output and exit codes as without one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from snapctl import Container
from snapctl.services.check import check_container
from tests.cli.harness import snapctl
from tests.support.servers import served

CHANGES = {
    "create": ["create", "LAB/x", "--size", "1M"],
    "create what exists": ["create", "LAB/db", "--size", "1M"],
    "create too large": ["create", "LAB/x", "--size", "5T"],
    "snapshot": ["snapshot", "LAB/db@tue"],
    "snapshot of every volume": ["snapshot", "LAB@nightly"],
    "snapshot that exists": ["snapshot", "LAB/db@mon"],
    "snapshot of nothing": ["snapshot", "LAB/nosuch@mon"],
    "clone": ["clone", "LAB/db@mon", "dev"],
    "rename": ["rename", "LAB/db@mon", "tue"],
    "resize": ["resize", "LAB/db", "--size", "2M"],
    "resize to less": ["resize", "LAB/db", "--size", "4K"],
    "shrink": ["resize", "LAB/db", "--size", "4K", "--shrink"],
    "shrink on trial": ["resize", "LAB/db", "--size", "4K", "--shrink", "-n"],
    "delete": ["delete", "LAB/db@mon"],
    "delete on trial": ["delete", "LAB/db@mon", "-n"],
    "delete of every volume": ["delete", "LAB@mon"],
    "delete with dependents": ["delete", "LAB/db"],
    "delete all": ["delete", "LAB/db", "--cascade", "-y"],
    "trim": ["trim", "LAB/db", "--offset", "0", "--length", "4K"],
    "trim on trial": ["trim", "LAB/db", "--offset", "0", "--length", "4K", "--dry-run"],
    "trim beyond the end": ["trim", "LAB/db", "--offset", "2M", "--length", "4K"],
}


def words(arguments: list[str], lab: Path) -> list[str]:
    return [word.replace("LAB", str(lab)) for word in arguments]


def state(lab: Path) -> object:
    """All that can be told of a container but its times; it has to be whole."""
    assert check_container(str(lab), 5.0).exit_code == 0
    with Container.open(str(lab)) as container:
        nodes = [(node.name, node.kind, node.own_bytes, node.read(0, node.size_bytes)) for node in container.nodes]
        return nodes, container.used_bytes


@pytest.mark.parametrize("case", CHANGES)
def test_change_of_a_served_container_is_that_of_the_file(case: str, lab: Path):
    other = Path(shutil.copy(lab, lab.with_name("twin.snap")))
    offline = snapctl(*words(CHANGES[case], lab))
    expected = state(lab)
    lab.unlink()
    other.rename(lab)
    with served(lab):
        assert snapctl(*words(CHANGES[case], lab)) == offline
    assert state(lab) == expected
