"""The golden containers open, read as recorded, can be worked on, and are what the present code makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from snapctl.engine.container import Container
from snapctl.engine.model import Kind
from snapctl.format.pointer import ABSENT, LOST, PAGE, PASS, ZERO
from snapctl.services.check import Finding, Report, Severity, check_backend, check_container
from tests.golden.make import DIRECTORY, GOLDEN, LONG_NAME, Golden, describe, describe_node, made
from tests.support import damage
from tests.support.backends import MemoryBackend


@pytest.fixture(params=GOLDEN, ids=[golden.file for golden in GOLDEN])
def golden(request: pytest.FixtureRequest) -> Golden:
    found: Golden = request.param
    return found


def faults(report: Report) -> list[Finding]:
    """What a check finds, but for what is marked as lost, which is no fault."""
    return [finding for finding in report.findings if finding.severity is not Severity.LOST]


def test_it_opens_checks_clean_and_reads_as_recorded(golden: Golden, tmp_path: Path):
    path = tmp_path / "golden.snap"
    path.write_bytes(golden.image())
    assert faults(check_container(str(path), 0)) == []
    with Container.open(str(path)) as container:
        assert describe(container) == json.loads(golden.description_path.read_text())
    assert path.read_bytes() == golden.image()


def test_it_can_be_worked_on(golden: Golden):
    recorded = {node["name"]: node for node in json.loads(golden.description_path.read_text())["nodes"]}
    backend = MemoryBackend(golden.image())
    container = Container.adopt(backend)
    volume = container.volumes[0].name
    container.snapshot(f"{volume}@new")
    container[volume].write(0, b"written today" * 1000)
    container.clone(f"{volume}@new", "fresh").write(1, b"in a clone")
    container.commit()
    assert faults(check_backend(backend)) == []
    reopened = Container.adopt(backend)
    assert reopened[volume].read(0, 13) == b"written today"
    assert reopened["fresh"].read(1, 10) == b"in a clone"
    for name in recorded.keys() - {volume}:
        now = describe_node(reopened[name])
        assert {key: now[key] for key in ("sha256", "lost", "size_bytes")} == {
            key: recorded[name][key] for key in ("sha256", "lost", "size_bytes")
        }
    reopened.delete(*(node.name for node in reopened.volumes), cascade=True)
    reopened.commit()
    assert faults(check_backend(backend)) == []


def test_it_is_what_the_present_code_makes(golden: Golden):
    assert made(golden) == golden.image(), (
        f"what is made anew differs from {golden.file}: if the format was changed on purpose, run `make golden` and "
        "say so in CHANGELOG.md; tests/golden/README.md has the rule"
    )


def test_the_files_in_the_directory_are_those_that_are_made():
    expected = {path.name for golden in GOLDEN for path in (golden.path, golden.description_path)}
    found = {path.name for path in DIRECTORY.iterdir() if path.suffix in {".snap", ".gz", ".json"}}
    assert found == expected


class TestEveryFeatureIsInThem:
    def test_every_kind_of_pointer_stands_on_every_level_where_it_can(self):
        backend = MemoryBackend(GOLDEN[0].image())
        kinds_of = {node.name: node.kind for node in Container.adopt(backend, writable=False).nodes}
        found = {
            (kinds_of[table.owner] is Kind.RO, table.kind, pointer.kind)
            for table in damage.structures(backend)
            if table.owner in kinds_of and table.kind in damage.LEVELS
            for pointer in damage.pointers(backend, table)
        }
        everywhere = (ABSENT, PAGE, ZERO, LOST)
        expected = {(is_ro, level, kind) for is_ro in (False, True) for level in damage.LEVELS for kind in everywhere}
        assert found >= expected | {(True, level, PASS) for level in damage.LEVELS}

    def test_nodes_of_every_kind_size_and_relation(self):
        with Container.adopt(MemoryBackend(GOLDEN[0].image()), writable=False) as lab:
            nodes = {node.name: node for node in lab.nodes}
            assert lab.capacity_bytes is not None
            assert {(node.kind, node.cow.value) for node in lab.nodes} >= {
                (kind, cow) for kind in (Kind.BASE, Kind.RO) for cow in ("redirect", "copy")
            }
            depths = {name: name for name in ("dev4", "dev3", "dev2", "dev1")}
            assert [nodes[f"{name}@s"].kind for name in depths] == [Kind.RO] * 4
            assert [nodes[name].origin for name in ("dev4", "dev3", "dev2")] == [
                nodes[f"{name}@s"] for name in ("dev3", "dev2", "dev1")
            ]
            assert nodes["heir"].parent is nodes["base@new"]
            assert nodes["heir"].origin is nodes["base"]
            assert {LONG_NAME, f"log@{LONG_NAME}"} <= nodes.keys()
            ids = [node.id for node in lab.nodes]
            assert ids != list(range(1, len(ids) + 1))
            beyond = {
                node.name
                for node in lab.nodes
                for start, stop, leaf, word0 in node.tree.spans(-(-node.size_bytes // 512), node.tree.capacity)
                if (any(leaf.words[2 * (i % 32)] for i in range(start, stop)) if leaf else word0)
            }
            assert {kind for kind in Kind if any(nodes[name].kind is kind for name in beyond)} >= {Kind.RO, Kind.RW}

    def test_several_bitmaps(self):
        found = damage.structures(MemoryBackend(GOLDEN[1].image()))
        assert len([page for page in found if page.kind == "bitmap"]) > 1

    def test_free_slots_between_records_of_one_page(self):
        backend = MemoryBackend(GOLDEN[2].image())
        page = damage.read(backend, damage.find(backend, "snapshot list", "records"))
        slots = "".join("x" if any(page[at : at + 512]) else "." for at in range(0, len(page), 512))
        assert "x.x" in slots
