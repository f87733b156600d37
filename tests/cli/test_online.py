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
    "write": ["write", "LAB/db", "--offset", "1000"],
    "write a file": ["write", "LAB/db", "--input", "IMAGE"],
    "write beyond the end": ["write", "LAB/db", "--offset", "1048000"],
    "write a file beyond the end": ["write", "LAB/db", "--offset", "1M", "-i", "IMAGE"],
    "write to a snapshot": ["write", "LAB/db@mon"],
    "write the container": ["write", "LAB/db", "--input", "LAB"],
    "import": ["import", "LAB/x", "IMAGE"],
    "import a pipe": ["import", "LAB/x", "-"],
    "import what exists": ["import", "LAB/db", "IMAGE"],
    "import nothing": ["import", "LAB/x", "/dev/null"],
    "import the container": ["import", "LAB/x", "LAB"],
    "import with another policy": ["import", "LAB/x", "-", "--cow", "copy"],
    "import under a bad name": ["import", "LAB/x@y", "-"],
}
PIPED = b"piped" * 3000


def words(arguments: list[str], lab: Path) -> list[str]:
    return [word.replace("LAB", str(lab)).replace("IMAGE", str(lab.parent / "image")) for word in arguments]


def state(lab: Path) -> object:
    """All that can be told of a container but its times; it has to be whole."""
    assert check_container(str(lab), 5.0).exit_code == 0
    with Container.open(str(lab)) as container:
        nodes = [(node.name, node.kind, node.own_bytes, node.read(0, node.size_bytes)) for node in container.nodes]
        return nodes, container.used_bytes


@pytest.mark.parametrize("case", CHANGES)
def test_change_of_a_served_container_is_that_of_the_file(case: str, lab: Path):
    with (lab.parent / "image").open("wb") as image:
        image.write(b"begin" * 1000)
        image.truncate(200_000)
    other = Path(shutil.copy(lab, lab.with_name("twin.snap")))
    offline = snapctl(*words(CHANGES[case], lab), stdin=PIPED)
    expected = state(lab)
    lab.unlink()
    other.rename(lab)
    with served(lab):
        assert snapctl(*words(CHANGES[case], lab), stdin=PIPED) == offline
    assert state(lab) == expected
