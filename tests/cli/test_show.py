"""The tables, the tree and their JSON."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from snapctl import Container
from tests.cli.harness import one_line, run, snapctl

DEEP = 10_000


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """Two bases; db with three snapshots, two clones of the middle one, and a snapshot of the first clone."""
    path = tmp_path / "lab.snap"
    with Container.create(str(path)) as container:
        container.create_volume("db", 10 << 30)
        container.create_volume("log", 1 << 20)
        for name in ("mon", "tue", "wed"):
            container.snapshot(f"db@{name}")
        container.clone("db@tue", "dev")
        container.clone("db@tue", "test")
        container.snapshot("dev@a")
        container.clone("dev@a", "deep")
    return path


def drawn(*arguments: object, encoding: str = "utf-8") -> list[str]:
    """The first column of a tree."""
    lines = run("tree", *arguments, PYTHONIOENCODING=encoding).lines[1:]
    return [re.split(r"  +(?:base|ro|rw) ", line)[0].rstrip() for line in lines]


def test_tree_by_parent_draws_each_chain_straight_down(family: Path):
    assert drawn(family) == [
        "● db",
        "○ db@wed",
        "○ db@tue",
        "├─◆ dev",
        "│ ○ dev@a",
        "│ └─◆ deep",
        "├─◆ test",
        "○ db@mon",
        "● log",
    ]


def test_tree_by_origin_draws_snapshots_as_siblings(family: Path):
    assert drawn(family, "--by", "origin") == [
        "● db",
        "├─○ db@wed",
        "├─○ db@tue",
        "│ ├─◆ dev",
        "│ │ └─○ dev@a",
        "│ │   └─◆ deep",
        "│ └─◆ test",
        "└─○ db@mon",
        "● log",
    ]


def test_tree_below_a_node_begins_with_it(family: Path):
    assert drawn(family / "dev") == ["◆ dev", "○ dev@a", "└─◆ deep"]
    assert drawn(family / "db@mon") == ["○ db@mon"]


def test_tree_is_drawn_in_ascii_where_the_encoding_has_no_more(family: Path):
    assert drawn(family / "dev", encoding="ascii") == ["* dev", "o dev@a", "`-* deep"]


def test_tree_shows_kind_size_own_data_and_age(family: Path):
    lines = run("tree", family).lines
    assert lines[0].split() == ["NAME", "KIND", "SIZE", "OWN", "AGE"]
    assert re.fullmatch(r"● db +base +10G +0 +\d+s", lines[1])
    assert len({len(line) for line in lines}) == 1


def nested_names(nodes: list[dict[str, object]]) -> list[object]:
    return [(node["name"], nested_names(node["children"])) for node in nodes]  # type: ignore[arg-type]


def test_json_tree_nests_by_parent_or_origin(family: Path):
    document = run("tree", "--json", family).json
    assert set(document) == {"version", "container", "nodes"}
    dev: object = ("dev", [("dev@a", [("deep", [])])])
    assert nested_names(document["nodes"]) == [
        ("db", [("db@wed", [("db@tue", [("db@mon", []), dev, ("test", [])])])]),
        ("log", []),
    ]
    by_origin = run("tree", "--json", "--by", "origin", family / "db").json
    assert nested_names(by_origin["nodes"]) == [
        ("db", [("db@wed", []), ("db@tue", [dev, ("test", [])]), ("db@mon", [])]),
    ]


def test_json_list_says_everything_of_a_node(lab: Path):
    document = run("list", "--json", lab).json
    assert document["version"] == 1
    assert document["container"]["path"] == str(lab)
    assert document["container"]["block_size_bytes"] == 4096
    base, snapshot = document["nodes"]
    created = datetime.fromisoformat(snapshot.pop("created"))
    assert created.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - created) < timedelta(hours=1)
    assert snapshot == {
        "name": "db@mon",
        "kind": "ro",
        "parent": "db",
        "origin": "db",
        "size_bytes": 1 << 20,
        "own_bytes": 8192,
    }
    assert (base["name"], base["kind"], base["parent"], base["origin"]) == ("db", "base", None, None)


def test_json_info_says_what_hangs_on_a_node(family: Path):
    volume = run("info", "--json", family / "db").json["node"]
    assert volume["snapshots"] == ["db@wed", "db@tue", "db@mon"]
    assert volume["cow"] == "redirect"
    assert run("info", "--json", family / "db@tue").json["node"]["clones"] == ["dev", "test"]
    assert "node" not in run("info", "--json", family).json


def test_info_tells_the_number_of_the_last_commit(tmp_path: Path):
    path = tmp_path / "x.snap"
    run("init", path)
    with Container.open(str(path)) as container:
        last = container.transaction - 1
    assert run("info", "--json", path).json["container"]["transaction"] == last
    assert f"transaction  {last}\n" in run("info", path).text


def test_info_is_for_people_too(family: Path):
    text = run("info", family).text
    assert "block size   4096 (4K)" in text
    assert "volumes      5\n" in text
    assert "snapshots    4\n" in text
    text = run("info", family / "dev").text
    assert "read-write snapshot" in text
    assert "parent     db@tue" in text


def test_list_is_in_columns_and_keeps_snapshots_with_their_volume(family: Path):
    lines = run("list", family).lines
    assert lines[0].split() == ["NAME", "KIND", "SIZE", "OWN", "CREATED"]
    assert [line.split()[0] for line in lines[1:]] == [
        "db",
        "db@mon",
        "db@tue",
        "db@wed",
        "deep",
        "dev",
        "dev@a",
        "log",
        "test",
    ]
    assert "\x1b" not in "".join(lines)


def test_list_of_a_volume_is_the_volume_and_its_snapshots(family: Path):
    assert [line.split()[0] for line in run("list", family / "db").lines[1:]] == ["db", "db@mon", "db@tue", "db@wed"]
    assert [line.split()[0] for line in run("list", family / "db@tue").lines[1:]] == ["db@tue"]
    assert [line.split()[0] for line in run("list", f"{family}@a").lines[1:]] == ["dev@a"]


def test_list_of_an_empty_container_is_empty(tmp_path: Path):
    run("init", tmp_path / "x.snap")
    assert run("list", tmp_path / "x.snap").lines == ["NAME  KIND  SIZE  OWN  CREATED"]
    assert run("tree", "--json", tmp_path / "x.snap").json["nodes"] == []


def test_dot_is_a_graph_of_all_nodes(family: Path):
    lines = run("tree", "--dot", family).lines
    assert (lines[0], lines[-1]) == ("digraph snapctl {", "}")
    labels = dict(re.findall(r'(n\d+) \[label="([^"]+)", shape=\w+\];', "\n".join(lines)))
    assert len(labels) == 9
    arrows = {(labels[a], labels[b]) for a, b in re.findall(r"(n\d+) -> (n\d+);", "\n".join(lines))}
    assert len(arrows) == 7
    assert {("db@wed", "db"), ("db@tue", "db@wed"), ("dev", "db@tue"), ("dev@a", "dev")} <= arrows
    assert len(run("tree", "--dot", family / "dev").lines) == 3 + 2 + 3


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with a chain of 10,000 snapshots."""
    path = tmp_path_factory.mktemp("deep") / "deep.snap"
    with Container.create(str(path)) as container:
        container.create_volume("db", 1 << 20)
        container.snapshot(*(f"db@{number}" for number in range(DEEP)))
    return path


def test_chain_of_ten_thousand_snapshots_is_drawn_in_80_columns(deep: Path):
    lines = run("tree", deep).lines
    assert len(lines) == DEEP + 2
    assert lines[2].startswith("○ db@9999 ")
    assert lines[-1].startswith("○ db@0 ")
    assert max(map(len, lines)) < 80


def test_chain_of_ten_thousand_snapshots_nests_in_json(deep: Path):
    text = run("tree", "--json", deep).text
    depths = re.findall(r'"children": \[', text)
    assert len(depths) == DEEP + 1
    assert text.count("]}") == DEEP + 2
    # Python's own parser recurses; given the room for it, it agrees that this is JSON.
    script = """
import json, sys, threading
sys.setrecursionlimit(100_000)
threading.stack_size(512 << 20)
def depth():
    node, count = json.load(sys.stdin)["nodes"][0], 1
    while node["children"]:
        [node], count = node["children"], count + 1
    print(count, node["name"])
    sys.stdout.flush()
    __import__("os")._exit(0)
threading.Thread(target=depth).start()
"""
    parsed = subprocess.run([sys.executable, "-c", script], input=text, capture_output=True, text=True, check=True)
    assert parsed.stdout == f"{DEEP + 1} db@0\n"


def test_clones_nested_ever_deeper_stay_in_80_columns(tmp_path: Path):
    path = tmp_path / "x.snap"
    with Container.create(str(path)) as container:
        container.create_volume("v0", 1 << 20)
        for level in range(60):
            container.snapshot(f"v{level}@s")
            container.clone(f"v{level}@s", f"v{level + 1}")
    for relation in ("parent", "origin"):
        lines = run("tree", path, "--by", relation).lines
        assert len(lines) == 122
        assert max(map(len, lines)) < 80
        assert "[60] ◆ v60" in "\n".join(lines) or "[120] ◆ v60" in "\n".join(lines)


def test_check_refuses_a_node(lab: Path):
    result = snapctl("check", lab / "db")
    assert result.code == 2
    assert "whole" in one_line(result)
