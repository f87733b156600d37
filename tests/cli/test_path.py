from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from snapctl.cli.path import Location, common_container, locate, locate_new, node_name_in, starts_like_a_container
from snapctl.errors import BadName, NotAContainer, UsageError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with an empty file for a container in it, and one in a folder below."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SNAPCTL_CONTAINER", raising=False)
    (tmp_path / "lab.snap").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.snap").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "container", "node"),
    [
        ("lab.snap", "lab.snap", None),
        ("lab.snap/", "lab.snap", None),
        ("lab.snap/db", "lab.snap", "db"),
        ("lab.snap/db@mon", "lab.snap", "db@mon"),
        ("./lab.snap/db", "./lab.snap", "db"),
        ("sub/x.snap/db@mon", "sub/x.snap", "db@mon"),
        ("sub/../lab.snap/db", "sub/../lab.snap", "db"),
        ("lab.snap@nightly", "lab.snap", "@nightly"),
        ("sub/x.snap@nightly", "sub/x.snap", "@nightly"),
    ],
)
def test_longest_prefix_that_is_a_file_is_the_container(text: str, container: str, node: str | None):
    assert locate(text) == Location(container, node)


def test_absolute_path_leads_into_a_container(folder: Path):
    assert locate(f"{folder}/lab.snap/db") == Location(f"{folder}/lab.snap", "db")


def test_file_whose_name_has_an_at_sign_is_a_container(folder: Path):
    (folder / "lab.snap@old").touch()
    assert locate("lab.snap@old") == Location("lab.snap@old", None)
    assert locate("lab.snap@old/db") == Location("lab.snap@old", "db")


def test_symbolic_link_to_a_container_is_one(folder: Path):
    (folder / "link").symlink_to("sub/x.snap")
    assert locate("link/db") == Location("link", "db")


@pytest.mark.parametrize("text", ["db", "db@mon", "@mon"])
def test_variable_gives_bare_names_their_container(text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SNAPCTL_CONTAINER", "sub/x.snap")
    assert locate(text) == Location("sub/x.snap", text)


def test_variable_stands_for_a_path_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SNAPCTL_CONTAINER", "sub/x.snap")
    assert locate(None) == Location("sub/x.snap", None)


def test_path_into_an_existing_container_goes_before_the_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SNAPCTL_CONTAINER", "sub/x.snap")
    assert locate("lab.snap/db") == Location("lab.snap", "db")
    assert locate("lab.snap@mon") == Location("lab.snap", "@mon")


def test_bare_name_of_a_real_container_goes_before_the_variable(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SNAPCTL_CONTAINER", "sub/x.snap")
    (folder / "db").write_bytes(b"SNAPCTL\0" + bytes(4088))
    assert locate("db") == Location("db", None)


def test_bare_name_of_another_file_does_not_go_before_the_variable(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SNAPCTL_CONTAINER", "sub/x.snap")
    (folder / "db").write_bytes(b"notes")
    (folder / "log").mkdir()
    assert locate("db") == Location("sub/x.snap", "db")
    assert locate("log") == Location("sub/x.snap", "log")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("other.snap", "other.snap: no such file; 'snapctl init' makes a container"),
        ("other.snap/db", "other.snap: no such file; 'snapctl init' makes a container"),
        ("sub/other.snap/db@mon", "sub/other.snap: no such file"),
        ("/nowhere/other.snap/db", "/nowhere: no such file"),
        ("db@mon", "write CONTAINER/db@mon, or set SNAPCTL_CONTAINER"),
        ("sub", "a directory, not a container"),
        ("sub/", "a directory, not a container"),
    ],
)
def test_path_without_a_file_in_it_says_what_is_missing(text: str, says: str):
    with pytest.raises(NotAContainer, match=re.escape(says)):
        locate(text)


def test_path_with_two_names_in_a_container_is_refused():
    with pytest.raises(BadName, match="names have no slash"):
        locate("lab.snap/db/x")


def test_nothing_at_all_needs_the_variable():
    with pytest.raises(UsageError, match="SNAPCTL_CONTAINER"):
        locate(None)


@pytest.mark.parametrize("look", [locate, locate_new])
def test_empty_path_is_not_a_path_left_out(look: Callable[[str], Location], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SNAPCTL_CONTAINER", "sub/x.snap")
    with pytest.raises(UsageError, match="the path is empty"):
        look("")


def test_path_that_the_system_refuses_is_an_error():
    with pytest.raises(NotAContainer, match="too long"):
        locate("x" * 5000)


@pytest.mark.parametrize(
    ("text", "container", "node"),
    [
        ("new.snap/db", "new.snap", "db"),
        ("lab.snap/db", "lab.snap", "db"),
        ("sub/new.snap/db", "sub/new.snap", "db"),
        ("nowhere/new.snap/db", "nowhere/new.snap", "db"),
    ],
)
def test_container_of_a_new_volume_is_all_but_the_last_component(text: str, container: str, node: str):
    assert locate_new(text) == Location(container, node)


def test_new_volume_may_be_bare_with_the_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SNAPCTL_CONTAINER", "new.snap")
    assert locate_new("db") == Location("new.snap", "db")
    assert locate_new("lab.snap/db") == Location("lab.snap", "db")


@pytest.mark.parametrize("text", ["db", "lab.snap", "lab.snap/", "new.snap/"])
def test_new_volume_without_a_name_or_a_container_is_refused(text: str):
    with pytest.raises(UsageError, match="name the volume to make"):
        locate_new(text)


def test_new_volume_directly_in_a_directory_is_refused():
    with pytest.raises(NotAContainer, match="sub is a directory"):
        locate_new("sub/db")


def test_second_name_may_be_bare_or_a_path_in_the_same_container(folder: Path):
    assert node_name_in("lab.snap", "dev") == "dev"
    assert node_name_in("lab.snap", "lab.snap/dev") == "dev"
    assert node_name_in("lab.snap", f"{folder}/lab.snap/dev") == "dev"


def test_second_name_is_a_name_even_where_a_file_has_it(folder: Path):
    (folder / "dev").touch()
    assert node_name_in("lab.snap", "dev") == "dev"


@pytest.mark.parametrize("text", ["sub/x.snap/dev", "lab.snap/"])
def test_second_name_elsewhere_is_refused(text: str):
    with pytest.raises(UsageError, match="same container"):
        node_name_in("lab.snap", text)


def test_locations_of_one_container_agree_however_they_are_written(folder: Path):
    assert common_container([Location("lab.snap", "a"), Location(f"{folder}/lab.snap", "b")]) == "lab.snap"
    with pytest.raises(UsageError, match="same container"):
        common_container([Location("lab.snap", "a"), Location("sub/x.snap", "b")])


def test_location_reads_as_it_is_typed():
    assert [str(locate(text)) for text in ("lab.snap", "lab.snap/db@mon", "lab.snap@mon")] == [
        "lab.snap",
        "lab.snap/db@mon",
        "lab.snap@mon",
    ]


@pytest.mark.parametrize("text", ["lab.snap", "lab.snap@mon"])
def test_one_node_is_not_a_container_nor_several(text: str):
    with pytest.raises(UsageError, match="name a volume or a snapshot"):
        locate(text).one_node()


def test_only_a_readable_file_with_the_magic_starts_like_a_container(folder: Path):
    (folder / "real").write_bytes(b"SNAPCTL\0" + bytes(100))
    assert starts_like_a_container("real")
    assert not starts_like_a_container("lab.snap")
    assert not starts_like_a_container("sub")
    assert not starts_like_a_container(os.devnull)
