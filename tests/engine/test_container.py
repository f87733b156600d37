"""The Python API as a caller sees it: transactions, names, sizes, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from snapctl import Container, Cow, Extent, Kind
from snapctl.errors import (
    BadName,
    BadSize,
    HasDependents,
    NameTaken,
    NodeNotFound,
    NoSpace,
    OutOfRange,
    ReadOnlyNode,
)

GIB = 1 << 30


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "lab.snap")


@pytest.fixture
def container(path: str):
    with Container.create(path) as container:
        yield container


def test_leaving_the_context_commits(path: str) -> None:
    with Container.create(path) as container:
        container.create_volume("db", GIB).write(5, b"hello")
    with Container.open(path) as container:
        assert container["db"].read(0, 12) == b"\0\0\0\0\0hello\0\0"


def test_an_exception_in_the_context_leaves_the_last_commit(path: str) -> None:
    with Container.create(path) as container:
        container.create_volume("db", GIB)
    before = Path(path).read_bytes()
    with pytest.raises(OutOfRange), Container.open(path, writable=True) as container:
        container["db"].write(0, b"lost" + bytes(GIB))
    with pytest.raises(ReadOnlyNode), Container.open(path, writable=True) as container:
        container.snapshot("db@mon")[0].write(0, b"lost")
    with Container.open(path) as container:
        assert container["db"].read(0, 4) == bytes(4)
    assert Path(path).read_bytes()[: len(before)] == before


def test_abort_takes_back_everything_and_handles_follow(container: Container) -> None:
    volume = container.create_volume("db", GIB)
    volume.write(0, b"kept")
    container.commit()
    volume.write(0, b"gone")
    snapshot = container.snapshot("db@mon")[0]
    container.abort()
    assert volume.read(0, 4) == b"kept"
    with pytest.raises(NodeNotFound):
        snapshot.read(0, 4)
    assert [node.name for node in container.nodes] == ["db"]


def test_a_preview_changes_nothing(container: Container) -> None:
    container.create_volume("db", GIB).write(0, b"x" * 100_000)
    container.commit()
    used = container.used_bytes
    container.delete("db")
    assert container.preview_used_bytes() < used
    container.abort()
    assert container.used_bytes == container.preview_used_bytes() == used


def test_snapshots_of_several_volumes_are_of_one_transaction(path: str) -> None:
    with Container.create(path) as container:
        container.create_volume("db", GIB)
        container.create_volume("log", GIB)
    with Container.open(path, writable=True) as container:
        number = container.transaction
        made = container.snapshot("db@mon", "log@mon")
        container.commit()
        assert container.transaction == number + 1
        assert [node.name for node in made] == ["db@mon", "log@mon"]


def test_one_bad_name_among_several_snapshots_takes_none(container: Container) -> None:
    container.create_volume("db", GIB)
    with pytest.raises(NodeNotFound):
        container.snapshot("db@mon", "log@mon")
    assert container["db"].snapshots == []


def test_cloning_a_volume_takes_a_dated_snapshot_once(container: Container) -> None:
    volume = container.create_volume("db", GIB)
    first = container.clone("db", "one")
    second = container.clone("db", "two")
    assert first.parent is not None
    assert first.parent == second.parent
    assert first.parent.short_name.startswith(f"{datetime.now(UTC):%Y-}")
    volume.write(0, b"changed")
    third = container.clone("db", "three")
    assert third.parent not in (None, first.parent)
    assert third.read(0, 7) == b"changed"
    assert first.read(0, 7) == bytes(7)


def test_layers_alternate_to_any_depth(container: Container) -> None:
    container.create_volume("v0", GIB).write(0, b"0")
    for depth in range(1, 8):
        clone = container.clone(f"v{depth - 1}", f"v{depth}")
        clone.write(depth, str(depth).encode())
    container.commit()
    assert container["v7"].read(0, 8) == b"01234567"
    assert container["v0"].read(0, 8) == b"0" + bytes(7)
    assert container["v7"].kind is Kind.RW


def test_a_deleted_name_can_be_used_again_and_its_number_cannot(container: Container) -> None:
    first = container.create_volume("db", GIB)
    first_id = first.id
    container.commit()
    container.delete("db")
    container.commit()
    assert container.create_volume("db", GIB).id > first_id
    with pytest.raises(NodeNotFound):
        first.read(0, 1)


def test_rename_carries_the_snapshots_along(container: Container) -> None:
    container.create_volume("db", GIB)
    container.snapshot("db@mon")
    container.rename("db", "data")
    container.rename("data@mon", "tue")
    container.commit()
    assert [node.name for node in container.nodes] == ["data", "data@tue"]
    with pytest.raises(NodeNotFound):
        container.node("db")


def test_created_is_the_present_in_utc(container: Container) -> None:
    created = container.create_volume("db", GIB).created
    assert abs(datetime.now(UTC) - created) < timedelta(minutes=1)
    assert created.tzinfo is UTC


def test_extents_tell_data_from_holes(container: Container) -> None:
    volume = container.create_volume("db", 40960)
    volume.write(4096, b"x" * 8192)
    assert list(volume.extents()) == [
        Extent(0, 4096, is_zero=True),
        Extent(4096, 8192, is_zero=False),
        Extent(12288, 28672, is_zero=True),
    ]
    assert list(volume.extents(5000, 10)) == [Extent(5000, 10, is_zero=False)]
    assert list(volume.extents(0, 0)) == []


@pytest.mark.parametrize("cow", list(Cow))
def test_a_snapshot_keeps_size_and_data_when_its_volume_shrinks_and_grows(container: Container, cow: Cow) -> None:
    volume = container.create_volume("db", 100_001, cow=cow)
    volume.write(0, b"a" * 100_001)
    snapshot = container.snapshot("db@mon")[0]
    volume.resize(50_003, shrink=True)
    volume.resize(200_000)
    assert volume.read(0, 200_000) == b"a" * 50_003 + bytes(149_997)
    assert snapshot.read(0, 100_001) == b"a" * 100_001
    with pytest.raises(OutOfRange):
        snapshot.read(100_001, 1)


@pytest.mark.parametrize("cow", list(Cow))
def test_a_write_over_blocks_of_which_some_are_preserved_preserves_only_the_others(
    container: Container, cow: Cow
) -> None:
    volume = container.create_volume("db", 8 * 4096, cow=cow)
    volume.write(0, b"a" * 4 * 4096)
    snapshot = container.snapshot("db@mon")[0]
    volume.write(4096, b"b" * 4096)
    volume.write(6 * 4096, b"b" * 4096)
    volume.write(0, b"c" * 8 * 4096)
    assert volume.read(0, 8 * 4096) == b"c" * 8 * 4096
    assert snapshot.read(0, 8 * 4096) == b"a" * 4 * 4096 + bytes(4 * 4096)


def test_a_clone_takes_over_the_snapshot_that_is_deleted_under_it(container: Container) -> None:
    volume = container.create_volume("db", GIB)
    volume.write(0, b"old")
    container.snapshot("db@mon")
    clone = container.clone("db@mon", "dev")
    container.snapshot("db@tue")
    volume.write(0, b"new")
    assert container.delete("db@mon") == ["db@mon"]
    container.commit()
    assert clone.read(0, 3) == b"old"
    assert clone.parent is not None
    assert clone.parent.name == "db@tue"
    assert clone.origin == volume


def test_dependents_are_named_and_nothing_is_changed(container: Container) -> None:
    container.create_volume("db", GIB)
    container.snapshot("db@mon")
    container.clone("db@mon", "dev")
    with pytest.raises(HasDependents) as caught:
        container.delete("db@mon")
    assert caught.value.dependents == ("dev",)
    with pytest.raises(HasDependents, match="db@mon"):
        container.delete("db")
    assert container.delete("db", cascade=True) == ["dev", "db@mon", "db"]


@pytest.mark.parametrize("name", ["", "-x", ".x", "a..b", "a/b", "a b", "ä", "x" * 64, "a\n", "db@mon"])
def test_bad_names_are_refused(container: Container, name: str) -> None:
    with pytest.raises(BadName):
        container.create_volume(name, GIB)


def test_a_name_in_use_is_refused(container: Container) -> None:
    container.create_volume("db", GIB)
    container.snapshot("db@mon")
    for attempt in (
        lambda: container.create_volume("db", GIB),
        lambda: container.snapshot("db@mon"),
        lambda: container.clone("db@mon", "db"),
    ):
        with pytest.raises(NameTaken):
            attempt()


def test_a_size_that_the_format_cannot_hold_says_which_block_size_would_do(container: Container) -> None:
    with pytest.raises(BadSize, match="--block-size 16K"):
        container.create_volume("db", container.max_volume_bytes + 1)
    with pytest.raises(BadSize):
        container.create_volume("db", 0)


def test_ranges_outside_a_node_are_refused_and_nothing_is_written(container: Container) -> None:
    volume = container.create_volume("db", 1000)
    for offset, data in ((-1, b"x"), (1000, b"x"), (0, bytes(1001)), (1 << 70, b"x")):
        with pytest.raises(OutOfRange):
            volume.write(offset, data)
    assert volume.read(0, 1000) == bytes(1000)


def test_a_container_opened_for_reading_refuses_changes(path: str) -> None:
    with Container.create(path) as container:
        container.create_volume("db", GIB)
    with Container.open(path) as container:
        with pytest.raises(ReadOnlyNode):
            container["db"].write(0, b"x")
        with pytest.raises(ReadOnlyNode):
            container.snapshot("db@mon")


def test_a_full_container_fails_the_write_keeps_the_snapshots_and_lets_delete_through(path: str) -> None:
    with Container.create(path, capacity_bytes=16 << 20) as container:
        container.create_volume("db", GIB).write(0, b"a" * (6 << 20))
        container.snapshot("db@mon")
    with pytest.raises(NoSpace), Container.open(path, writable=True) as container:
        container["db"].write(0, b"b" * (12 << 20))
    with Container.open(path, writable=True) as container:
        assert container["db"].read(0, 6 << 20) == b"a" * (6 << 20)
        container["db"].write(0, b"c" * (5 << 20))
        with pytest.raises(NoSpace):
            container["db"].write(20 << 20, b"d" * (8 << 20))
        assert container["db"].read(0, 6 << 20) == b"c" * (5 << 20) + b"a" * (1 << 20)
        assert not any(container["db"].read(20 << 20, 8 << 20))
        container.abort()
    with Container.open(path, writable=True) as container:
        container.delete("db@mon")
        container["db"].trim(0, 3 << 20)
    with Container.open(path) as container:
        assert container["db"].read(3 << 20, 3 << 20) == b"a" * (3 << 20)
        assert container.used_bytes < 5 << 20


def test_what_changes_nothing_commits_nothing(container: Container):
    volume = container.create_volume("db", GIB)
    container.commit()
    number = container.transaction
    volume.trim(5, 0)
    volume.write(5, b"")
    volume.resize(GIB)
    container.commit()
    assert container.transaction == number
