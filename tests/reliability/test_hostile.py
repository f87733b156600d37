"""Hostile containers: the corpus that fuzzing has built up, a short search, and proof that the search would notice.

What must hold of every image is in `tests.reliability.drive`; ``make fuzz SECONDS=3600`` searches for longer.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from snapctl.cli.run import _guarded
from snapctl.cli.settings import Settings
from snapctl.engine.container import Container
from snapctl.engine.node import Node
from snapctl.engine.snapshot_list import SnapshotList
from snapctl.format import record
from snapctl.services.check import check_backend
from snapctl.storage import pages
from snapctl.storage.spacemap import SpaceMap
from tests.reliability import drive, fuzz
from tests.reliability.forgery import BASES, Input, Mutation, Step, base, forge
from tests.reliability.mutations import random_input, variation
from tests.reliability.oracle import BAD, ZEROS, Oracle
from tests.support import damage
from tests.support.backends import MemoryBackend

CORPUS = fuzz.corpus()
_INPUTS = 150
_PARTS = 4


@pytest.mark.parametrize("path", CORPUS, ids=[path.stem for path in CORPUS])
def test_nothing_but_clean_errors_comes_of_what_fuzzing_has_found(path: Path):
    fuzz.run(Input.read(path))


@pytest.mark.parametrize("part", range(_PARTS))
def test_nothing_but_clean_errors_comes_of_random_forgery(part: int):
    chance = Random(20_250 + part)
    known = [Input.read(path) for path in CORPUS]
    for number in range(_INPUTS // _PARTS):
        hostile = variation(chance, chance.choice(known)) if number % 2 else random_input(chance)
        try:
            fuzz.run(hostile)
        except fuzz.Failure as failure:
            pytest.fail(f"{hostile.to_json()}{failure}")


def test_the_corpus_is_small_and_reads_as_it_is_written():
    assert sum(path.stat().st_size for path in CORPUS) < 300_000
    for path in CORPUS:
        assert Input(**json.loads(path.read_text())).to_json() == path.read_text()


def test_no_input_of_the_corpus_is_known_to_fail():
    assert [path.name for path in CORPUS if path.name.startswith(fuzz.FAILED)] == []


@pytest.mark.parametrize("path", CORPUS[::8], ids=[path.stem for path in CORPUS[::8]])
def test_the_command_line_stands_what_fuzzing_has_found(path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    image = forge(Input.read(path))
    container, target = tmp_path / "lab.snap", tmp_path / "db.img"
    container.write_bytes(image)

    def command(*words: str) -> None:
        code = _guarded(words, Settings())
        out, error = capfd.readouterr()
        assert code in {0, 1, 3, 4, 6}, error
        said = error.removeprefix("snapctl: warning:")  # that it is nearly full
        assert (said == error and bool(error)) == (code != 0) or words[0] == "check"
        assert "internal error" not in error
        drive.require_printable((out + error).replace("\n", ""))

    command("list", f"{container}")
    command("tree", f"{container}")
    command("tree", "--json", "--by", "origin", f"{container}")
    command("info", f"{container}/db")
    command("check", f"{container}")
    command("export", f"{container}/db", f"{target}")
    assert container.read_bytes() == image
    command("delete", "--dry-run", "--cascade", f"{container}/db")
    command("snapshot", f"{container}@new")
    command("delete", "--yes", "--cascade", f"{container}/db")


class TestForgery:
    @pytest.mark.parametrize("name", BASES)
    def test_sealing_leaves_a_sound_container_as_it_is(self, name: str):
        untouched = [
            {"op": "patch", "page": page, "at": 0, "data": _bytes_of(name, page)[:4].hex()} for page in base(name).pages
        ]
        assert forge(Input(name, untouched)) == base(name).image

    def test_checksums_are_right_all_the_way_up(self):
        page = next(name for name, found in base("filled").pages.items() if found.kind == "data")
        owner = base("filled").pages[page].owner
        backend = MemoryBackend(forge(Input("filled", [{"op": "patch", "page": page, "at": 0, "data": "ff" * 8}])))
        assert check_backend(backend).findings == []
        assert b"\xff" * 8 in Container.adopt(backend)[owner].read(0, 512 * 1024)

    def test_bits_of_the_space_map_come_with_their_counts(self):
        last = len(base("filled").image) // 512 - 1
        mutations = [{"op": "use", "unit": last, "count": 1, "in_use": in_use} for in_use in (False, True)]
        assert forge(Input("filled", mutations)) == base("filled").image
        report = check_backend(MemoryBackend(forge(Input("filled", mutations[:1]))))
        assert [finding.where for finding in report.findings] == ["space map"]

    def test_a_table_that_leads_to_itself_has_the_right_checksum(self):
        table = "db: second table 0"
        hostile = Input(
            "filled",
            [
                {"op": "entry", "page": table, "entry": 9, "to": table},
                {"op": "bend", "page": table, "at": 20 * 16 + 8, "checksum": 0x1234_5678},
            ],
        )
        report = check_backend(MemoryBackend(forge(hostile)))
        damage.assert_found(report, "db", "another owner")
        assert not [finding for finding in report.findings if "checksum" in finding.message]


class TestOracle:
    @pytest.mark.parametrize("name", BASES)
    def test_it_reads_what_the_engine_reads(self, name: str):
        oracle = Oracle(base(name).image)
        container = Container.adopt(MemoryBackend(base(name).image), writable=False)
        for node in container.nodes:
            content = node.read(0, node.size_bytes)
            assert oracle.differs(node.id, 0, content) is None
            middle = len(content) // 2
            assert oracle.differs(node.id, middle, content[middle : middle + 700]) is None
            wrong = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            assert oracle.differs(node.id, 0, wrong) is not None

    def test_it_tells_zeros_from_what_cannot_be_relied_on(self):
        hostile = Input("small", [{"op": "entry", "page": "log: third table 0", "entry": 0, "kind": 4, "birth": 0}])
        oracle = Oracle(forge(hostile))
        log = next(node.id for node in Container.adopt(MemoryBackend(base("small").image)).nodes if node.name == "log")
        assert oracle.read(log, 0, 1)[0].content is BAD
        assert oracle.read(log, 31, 32)[0].content is ZEROS
        assert oracle.read(99, 0, 1)[0].content is BAD


class TestTheDriverNotices:
    """Each weakness is put into the program on purpose."""

    def found(self, *mutations: Mutation, steps: list[Step] | None = None) -> str:
        """What is wrong with an input that is stood otherwise."""
        hostile = Input("small", list(mutations), steps or [])
        with pytest.raises(fuzz.Failure) as caught:
            fuzz.run(hostile)
        return str(caught.value)

    def test_reads_without_checksums(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("snapctl.engine.reading.checksums", lambda data, size: [_Equal()] * -(-len(data) // size))
        offset = base("small").pages["log: data 3"].offset
        assert "cannot be relied on" in self.found({"op": "rot", "offset": offset, "data": "00"})

    def test_pointers_that_are_not_bounded(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(pages.PageFile, "locate", lambda _self, word0, _length: word0 % (1 << 48) * 512)
        entry = {"op": "entry", "page": "log: third table 0", "entry": 2, "page_no": 30}
        assert "cannot be relied on" in self.found(entry)

    def test_names_that_are_not_judged(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(record, "check_name", lambda _name: None)
        name = {"op": "record", "page": "snapshot list: records 0", "slot": 0, "field": "name", "value": "1b5b324a"}
        assert "does not print" in self.found(name)

    def test_ancestors_that_are_not_counted(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(Container, "__len__", lambda _self: 1 << 60)
        monkeypatch.setattr(drive, "MOST_SECONDS", 0.2)
        newest, oldest = (node.id for node in _nodes("small") if node.name in {"db@a", "db@b"})
        cycle = {
            "op": "record",
            "page": _records_of("db@b"),
            "slot": 0,
            "field": "parent",
            "value": min(newest, oldest),
        }
        assert "Endless" in self.found(cycle)

    def test_memory_without_bounds(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(SnapshotList, "new_id", lambda _self: len(bytearray(1 << 29)))
        assert "MemoryError" in self.found(steps=[["create", "n1", 5000, 0]])

    def test_reads_without_end(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(drive, "MOST_READS", 20)
        assert "Endless" in self.found()

    def test_pages_in_use_that_are_written_over(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(SpaceMap, "are_fresh", lambda _self, _page_nos, _units: True)
        assert "in use" in self.found(steps=[["write", 0, 5000, 700, 1], ["commit"], ["write", 0, 5000, 700, 2]])

    def test_a_change_that_leaves_a_clean_container_unclean(self, monkeypatch: pytest.MonkeyPatch):
        trim = Node.trim

        def miscounting(self: Node, offset: int, length: int) -> None:
            trim(self, offset, length)
            self.own_blocks += 1

        monkeypatch.setattr(Node, "trim", miscounting)
        assert "check found the container clean before" in self.found(steps=[["trim", 0, 0, 5000]])

    def test_a_change_of_a_node_that_nothing_was_done_to(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(Container, "newest_snapshot", lambda _self, _node: None)
        assert "reads differently" in self.found(steps=[["write", 0, 2000, 3000, 1]])

    def test_an_exception_that_is_none_of_ours(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(Container, "commit", lambda self: vars(self)["missing"])
        assert "KeyError" in self.found()


def _nodes(name: str) -> list[Node]:
    return Container.adopt(MemoryBackend(base(name).image), writable=False).nodes


def _records_of(node: str) -> str:
    """The page of the record of a node of the small container."""
    above = base("small").pages[f"{node}: first table 0"].above
    assert above is not None
    return above.name


class _Equal(int):
    """Equal to any number."""

    def __eq__(self, _other: object) -> bool:
        return True

    def __ne__(self, _other: object) -> bool:
        return False

    __hash__ = int.__hash__


def _bytes_of(name: str, page: str) -> bytes:
    found = base(name).pages[page]
    return base(name).image[found.offset : found.offset + found.length]
