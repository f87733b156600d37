"""The tree of tables against a plain dictionary, and what it writes, frees and refuses."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapctl.errors import Corruption, NoSpace
from snapctl.format.geometry import Geometry
from snapctl.format.pointer import (
    NOWHERE,
    PAGE,
    PASS_WORD,
    ZERO,
    ZERO_WORD,
    Pointer,
    decode_table,
    encode_table,
    filled_table,
    page_pointer,
    table_checksum,
)
from snapctl.storage.pages import PageFile
from snapctl.storage.tabletree import Table, TableTree
from tests.support.backends import FailingBackend, RecordingBackend

GEOMETRY = Geometry(512, 512)
FANOUT = 32
DEPTHS = (2, 3)


class Shelf:
    """Hands out pages one after the other and keeps account of them."""

    def __init__(self) -> None:
        self.next_page = GEOMETRY.first_page
        self.in_use: set[int] = set()
        self.calls: Counter[str] = Counter()

    def allocate(self, units: int, count: int) -> list[int]:
        self.calls["allocate"] += 1
        found = list(range(self.next_page, self.next_page + units * count, units))
        self.next_page += units * count
        self.in_use.update(found)
        return found

    def free(self, page_no: int, units: int) -> None:
        assert units == GEOMETRY.table_units
        self.in_use.remove(page_no)


class Forest:
    """A tree, the file it stands in and the account of its pages."""

    def __init__(self, depth: int, backend: Any = None) -> None:
        self.backend = backend or RecordingBackend()
        self.pages = PageFile(self.backend, GEOMETRY, 1 << 40, None)
        self.shelf = Shelf()
        self.depth = depth
        self.tree = TableTree(self.pages, self.shelf, depth, None, 1, "db")

    def save(self) -> Pointer:
        self.tree.place()
        return self.tree.write()

    def reopen(self, pointer: Pointer | None = None) -> TableTree:
        self.tree = TableTree(self.pages, self.shelf, self.depth, pointer or self.save(), 2, "db")
        return self.tree

    def content(self) -> dict[int, Pointer]:
        return content(self.tree)


def content(tree: TableTree) -> dict[int, Pointer]:
    found = {}
    for start, stop, leaf, word0 in tree.spans(0, tree.capacity):
        for index in range(start, stop) if leaf else ():
            pointer = entry(leaf, index % FANOUT)
            if pointer != NOWHERE:
                found[index] = pointer
        if leaf is None and word0:
            found |= dict.fromkeys(range(start, stop), Pointer(word0, 0))
    return found


def entry(table: Table | None, index: int) -> Pointer:
    assert table is not None
    return Pointer(table.words[2 * index], table.words[2 * index + 1])


data = st.builds(page_pointer, st.integers(1 << 20, 1 << 24), st.integers(0, 1 << 31), st.integers(0, 9))
pointers = st.one_of(data, st.just(NOWHERE), st.just(Pointer(ZERO_WORD, 0)), st.just(Pointer(PASS_WORD, 0)))
edges = [0, 1, 31, 32, 1023, 1024, 1025, 32767]


def indexes(depth: int) -> st.SearchStrategy[int]:
    capacity = FANOUT**depth
    return st.one_of(st.sampled_from([index for index in edges if index < capacity]), st.integers(0, capacity - 1))


@pytest.mark.parametrize("depth", DEPTHS)
@given(what=st.data())
@settings(max_examples=60)
def test_a_tree_is_a_map_from_indexes_to_pointers_before_and_after_it_is_written(depth: int, what: st.DataObject):
    forest = Forest(depth)
    model: dict[int, Pointer] = {}
    for step in what.draw(st.lists(st.one_of(st.tuples(indexes(depth), pointers), st.none()), max_size=25)):
        if step is None:
            forest.reopen()
        else:
            index, pointer = step
            forest.tree.put(index, pointer)
            model[index] = pointer
        for index, pointer in model.items():
            assert forest.tree.get(index) == pointer
    wanted = {index: pointer for index, pointer in model.items() if pointer != NOWHERE}
    assert forest.content() == wanted
    forest.reopen()
    assert forest.content() == wanted
    assert forest.shelf.in_use == reachable(forest.tree), "one owner for each page, and none leaked"


def reachable(tree: TableTree) -> set[int]:
    found: set[int] = set()

    def walk(table: Table, depth: int) -> None:
        assert table.page_no not in found
        found.add(table.page_no)
        for index in range(FANOUT) if depth > 1 else ():
            if entry(table, index).kind == PAGE:
                child = tree.child(table, index)
                assert child is not None
                walk(child, depth - 1)

    walk(tree.root, tree.depth)
    return found


@pytest.mark.parametrize("depth", DEPTHS)
@given(what=st.data())
@settings(max_examples=50)
def test_spans_cover_a_range_in_order_without_gaps(depth: int, what: st.DataObject):
    forest = Forest(depth)
    for index in what.draw(st.lists(indexes(depth), max_size=6)):
        forest.tree.put(index, page_pointer(1 << 20, index, 0))
    start = what.draw(st.integers(0, FANOUT**depth))
    stop = what.draw(st.integers(start, FANOUT**depth))
    position = start
    for first, end, leaf, word0 in forest.tree.spans(start, stop):
        assert first == position < end
        position = end
        if leaf is None:
            assert word0 == 0
            assert first == start or first % FANOUT == 0
        else:
            assert first // FANOUT == (end - 1) // FANOUT
    assert position == stop


def test_a_gap_is_skipped_as_a_whole():
    forest = Forest(3)
    forest.tree.put(0, page_pointer(1 << 20, 1, 1))
    forest.tree.put(FANOUT**3 - 1, page_pointer(1 << 20, 2, 1))
    # One leaf, the rest of its second-level table, 30 empty entries of the first table, and the same backwards.
    edges = [FANOUT, FANOUT**2, FANOUT**3 - FANOUT**2, FANOUT**3 - FANOUT, FANOUT**3]
    assert [end for _, end, _, _ in forest.tree.spans(0, FANOUT**3)] == edges


@pytest.mark.parametrize("level", [1, 2])
def test_a_write_below_a_covering_entry_splits_it_into_tables_filled_with_its_kind(level: int):
    forest = Forest(3)
    tree = forest.tree
    table = tree.root
    if level == 2:
        tree.touch(table)
        table = tree.child_for_writing(table, 4)
    table.words[2 * 4] = ZERO_WORD
    forest.reopen()
    start = 4 * FANOUT**2 if level == 1 else 4 * FANOUT**2 + 4 * FANOUT
    length = FANOUT**2 if level == 1 else FANOUT
    assert forest.content() == dict.fromkeys(range(start, start + length), Pointer(ZERO_WORD, 0))
    assert forest.tree.get(start + 9) == Pointer(ZERO_WORD, 0)

    new = page_pointer(1 << 20, 5, 2)
    forest.tree.put(start + 9, new)
    for _ in range(2):
        found = forest.content()
        assert found.pop(start + 9) == new
        assert set(found) == set(range(start, start + length)) - {start + 9}
        assert {pointer.kind for pointer in found.values()} == {ZERO}
        forest.reopen()


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_new_tree_is_one_table(depth: int):
    forest = Forest(depth)
    assert forest.tree.is_empty
    pointer = forest.save()
    assert pointer.kind == PAGE
    assert forest.shelf.in_use == {pointer.page_no}
    assert forest.backend.data[pointer.page_no * 512 :][:512] == bytes(512)
    assert pointer.birth == 1


@pytest.mark.parametrize("depth", DEPTHS)
def test_tables_come_into_being_only_when_an_entry_in_them_is_needed(depth: int):
    forest = Forest(depth)
    forest.tree.put(5, page_pointer(1 << 20, 1, 1))
    forest.save()
    assert len(forest.shelf.in_use) == depth
    forest.tree.put(6, page_pointer(1 << 20, 1, 1))
    forest.save()
    assert len(forest.shelf.in_use) == depth
    forest.tree.put(5 + FANOUT, page_pointer(1 << 20, 1, 1))
    forest.save()
    assert len(forest.shelf.in_use) == depth + 1


@pytest.mark.parametrize("depth", DEPTHS)
def test_tables_that_became_empty_are_dropped_except_the_first(depth: int):
    forest = Forest(depth)
    for index in (5, 6, 5 + FANOUT):
        forest.tree.put(index, page_pointer(1 << 20, 1, 1))
    forest.reopen()
    for index in (5, 6, 5 + FANOUT):
        forest.tree.put(index, NOWHERE)
    pointer = forest.save()
    assert forest.shelf.in_use == {pointer.page_no}
    assert forest.tree.is_empty


def test_a_written_table_is_never_written_again():
    forest = Forest(3)
    forest.tree.put(5, page_pointer(1 << 20, 1, 1))
    forest.tree.put(5000, page_pointer(1 << 20, 1, 1))
    first = forest.save()
    before = bytes(forest.backend.data)
    forest.tree.put(5, page_pointer(1 << 20, 2, 1))
    second = forest.save()
    assert forest.backend.data[: len(before)] == before
    assert second.page_no != first.page_no
    # The three tables on the way to block 5 were replaced; those of block 5000 are as they were.
    assert len(forest.shelf.in_use) == 5


def test_saving_twice_writes_once():
    forest = Forest(3)
    forest.tree.put(5, page_pointer(1 << 20, 1, 1))
    pointer = forest.save()
    forest.backend.forget()
    assert forest.tree.place() is False
    assert forest.save() == pointer
    assert not forest.tree.changed
    assert forest.backend.log == []


def test_reading_changes_nothing():
    forest = Forest(3)
    forest.tree.put(5, page_pointer(1 << 20, 1, 1))
    forest.reopen()
    forest.backend.forget()
    assert forest.tree.get(5).checksum == 1
    assert forest.tree.get(6000) == NOWHERE
    assert not forest.tree.changed
    assert forest.backend.log == []


def test_neighbouring_tables_are_written_in_one_call():
    forest = Forest(3)
    for index in range(0, FANOUT**2, FANOUT):
        forest.tree.put(index, page_pointer(1 << 20, 1, 1))
    forest.tree.place()
    forest.backend.forget()
    forest.tree.write()
    assert [(method, length) for method, _, length in forest.backend.log] == [("write", 34 * 512)]


def test_pointers_carry_the_checksum_of_what_they_point_at_from_the_bottom_up():
    forest = Forest(3)
    leaf_entry = page_pointer(1 << 20, 0x12345678, 1)
    forest.tree.put(5, leaf_entry)
    pointer = forest.save()
    for depth in (3, 2, 1):
        page = bytes(forest.backend.data[pointer.page_no * 512 :][:512])
        assert pointer.checksum == table_checksum(page)
        words = decode_table(page)
        index = 5 if depth == 1 else 0
        pointer = Pointer(words[2 * index], words[2 * index + 1])
    assert pointer == leaf_entry


@pytest.mark.parametrize("victim", [1, 2, 3])
def test_a_damaged_table_is_corruption_that_names_owner_and_page(victim: int):
    forest = Forest(3)
    forest.tree.put(5, page_pointer(1 << 20, 1, 1))
    pointer = forest.save()
    pages = [pointer.page_no]
    table = forest.tree.root
    for _ in range(2):
        child = forest.tree.child(table, 0)
        assert child is not None
        table = child
        pages.append(table.page_no)
    forest.backend.data[pages[victim - 1] * 512 + 300] ^= 4
    with pytest.raises(Corruption, match=rf"^db: table at page {pages[victim - 1]} fails its checksum") as caught:
        forest.reopen(pointer).get(5)
    assert caught.value.page_no == pages[victim - 1]


def crafted(entry_word0: int, entry_word1: int = 0) -> tuple[Forest, Pointer]:
    """A sound first table whose entry 0 is as given."""
    forest = Forest(3)
    words = filled_table(FANOUT)
    words[0], words[1] = entry_word0, entry_word1
    page = encode_table(words)
    forest.backend.write(200 * 512, [page])
    forest.shelf.in_use.add(200)
    return forest, page_pointer(200, table_checksum(page), 1)


@pytest.mark.parametrize(
    "word0",
    [
        5 << 48,
        255 << 48,
        1 << 56,
        1 << 56 | 1 << 48 | 300,
        ZERO_WORD | 7,
        7,
        1 << 48,  # a page in the superblocks
        1 << 48 | 127,
        1 << 48 | (1 << 48) - 1,  # a page far beyond the end
    ],
    ids=hex,
)
def test_a_pointer_that_cannot_be_is_corruption_before_it_is_followed(word0: int):
    forest, pointer = crafted(word0)
    tree = forest.reopen(pointer)
    with pytest.raises(Corruption):
        tree.get(0)
    with pytest.raises(Corruption):
        list(tree.spans(0, FANOUT**3))
    with pytest.raises(Corruption):
        tree.put(0, NOWHERE)
    assert tree.get(FANOUT**2) == NOWHERE


def test_a_write_that_finds_no_room_can_be_tried_again():
    for first in range(3):
        backend = FailingBackend(error=NoSpace, methods=("write",))
        forest = Forest(3, backend)
        wanted = {}
        for index in (0, 5000, 20000, 32767):
            wanted[index] = page_pointer(1 << 20, index, 1)
            forest.tree.put(index, wanted[index])
        forest.tree.place()
        forest.shelf.in_use.update(forest.shelf.allocate(1, 1))
        backend.begun, backend.fail_at = 0, range(first, first + 1)
        try:
            forest.tree.write()
        except NoSpace:
            forest.tree.write()
        assert content(forest.reopen(forest.tree.pointer)) == wanted


@pytest.mark.parametrize("keep_going", [False, True])
def test_spilling_writes_all_but_the_first_table_and_loses_nothing(keep_going: bool):
    forest = Forest(3)
    wanted = {}
    for index in (0, 5000, 20000):
        wanted[index] = page_pointer(1 << 20, index, 1)
        forest.tree.put(index, wanted[index])
    forest.tree.spill()
    assert not forest.tree.root.children
    assert forest.content() == wanted
    if keep_going:
        wanted[5001] = page_pointer(1 << 20, 9, 1)
        forest.tree.put(5001, wanted[5001])
        forest.tree.put(0, NOWHERE)
        del wanted[0]
        forest.tree.spill()
    assert forest.content() == wanted
    forest.reopen()
    assert forest.content() == wanted
    assert forest.shelf.in_use == reachable(forest.tree)


def test_spilling_a_tree_that_is_not_changed_only_forgets():
    forest = Forest(3)
    forest.tree.put(5000, page_pointer(1 << 20, 1, 1))
    forest.reopen().get(5000)
    forest.backend.forget()
    forest.tree.spill()
    assert forest.backend.log == []
    assert not forest.tree.root.children
    assert forest.tree.get(5000).checksum == 1


def test_empty_tables_in_memory_share_no_words_that_are_written():
    """Reading gives all empty tables one array of words; the first change has to take a copy."""
    forest, other = Forest(3), Forest(3)
    forest.reopen()
    other.reopen()
    forest.tree.put(0, page_pointer(1 << 20, 1, 1))
    assert other.tree.is_empty
    assert other.tree.get(0) == NOWHERE
