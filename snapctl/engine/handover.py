"""One primitive for trim, delete and take-over: a tree gives up a range of entries, an heir inherits what it lacks.

Whole subtrees change hands by one pointer where the heir has nothing in their place and their entries need no
translation. What the heir has no use for is freed. Every page keeps exactly one owner throughout (invariant 1).

A table that cannot be read stops it between two steps, each of which is whole: what lies before is handed over, what
lies behind is not, and what the heir shows is the same in either case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from snapctl.format.pointer import ABSENT, KIND_SHIFT, PAGE, PAGE_MASK, PASS, PASS_WORD
from snapctl.storage.tabletree import Table, TableTree

if TYPE_CHECKING:
    from snapctl.engine.session import Session


@dataclass(slots=True)
class Handover:
    """Takes ranges out of `giver`'s tree.

    Attributes:
        session: of the container that both belong to.
        giver: the tree that loses its entries.
        heir: the tree that inherits where its own entry is ABSENT; None to free everything.
        absent_word: what the heir gets for an entry that the giver did not have; 0 to leave it ABSENT.
        pass_word: what the heir gets for PASS.
        rest_word: what the giver is left with.
        freed: data blocks freed so far.
        inherited: data blocks inherited so far, except those in subtrees that were grafted by one pointer.
    """

    session: Session
    giver: TableTree
    heir: TableTree | None
    absent_word: int = 0
    pass_word: int = PASS_WORD
    rest_word: int = 0
    freed: int = 0
    inherited: int = 0

    def run(self, start: int, stop: int) -> None:
        """Hand over the entries from `start` to `stop`.

        Raises:
            Corruption: a table cannot be read, or a page has two owners.
            NoSpace: tables had to be written out and there is no room.
        """
        if start >= stop:
            return
        self.giver.touch(self.giver.root)
        heir_root = None
        if self.heir is not None:
            self.heir.touch(self.heir.root)
            heir_root = self.heir.root
        self._walk(self.giver.root, heir_root, self.giver.capacity, start, stop)

    def _walk(self, table: Table, heir_table: Table | None, span: int, start: int, stop: int) -> None:
        """Hand over a range, relative to the table, of a table that covers `span` blocks."""
        fanout = len(table.words) // 2
        step = span // fanout
        if step == 1:
            self._hand_over_leaf(table, heir_table, start, stop)
            return
        idle_word = self._idle_word(heir_table)
        is_first = True
        for entry in range(start // step, -(-stop // step)):
            if table.words[2 * entry] == idle_word:
                continue
            if table is self.giver.root and not is_first:
                self.session.relieve(may_write=True)
            is_first = False
            low, high = max(0, start - entry * step), min(step, stop - entry * step)
            self._hand_over_entry(table, heir_table, entry, step, low, high)

    def _hand_over_entry(
        self, table: Table, heir_table: Table | None, entry: int, step: int, low: int, high: int
    ) -> None:
        word0 = table.words[2 * entry]
        is_whole, is_table = high - low == step, word0 >> KIND_SHIFT == PAGE
        lacking = None  # the heir and its table, unless a covering entry says that it has all it needs below here
        if self.heir is not None and heir_table is not None:
            heir_word = heir_table.words[2 * entry]
            if heir_word >> KIND_SHIFT in (ABSENT, PAGE):
                lacking = self.heir, heir_table
            if is_table and is_whole and heir_word == 0:
                self._graft(self.heir, table, heir_table, entry, step)
                return
        if not is_table and lacking:
            lacking[0].fill_entry(lacking[1], entry, step, low, high, self._translate(word0))
            lacking = None
        if is_table or not is_whole:
            if word0 == self.rest_word:
                return
            child = self.giver.child_for_writing(table, entry)
            self._walk(child, lacking[0].child_for_writing(lacking[1], entry) if lacking else None, step, low, high)
            if not is_whole:
                return
            self.giver.discard(child)
            self.giver.release(table, entry)
        table.words[2 * entry], table.words[2 * entry + 1] = self.rest_word, 0

    def _hand_over_leaf(self, table: Table, heir_table: Table | None, start: int, stop: int) -> None:
        words = table.words
        inherits = heir_table.words if heir_table is not None else None
        freed: list[int] = []
        idle_word = self._idle_word(heir_table)
        for i in range(2 * start, 2 * stop, 2):
            word0 = words[i]
            if word0 == idle_word:
                continue
            kind = word0 >> KIND_SHIFT
            if inherits is not None and inherits[i] == 0:
                if kind == PAGE:
                    inherits[i], inherits[i + 1] = word0, words[i + 1]
                    self.inherited += 1
                else:
                    inherits[i] = self._translate(word0)
            elif kind == PAGE:
                freed.append(word0 & PAGE_MASK)
            words[i], words[i + 1] = self.rest_word, 0
        self.freed += len(freed)
        with self.session.changing(moves_pages=False):
            self.session.space.free_pages(freed, self.session.geometry.block_units)

    def _graft(self, heir: TableTree, table: Table, heir_table: Table, entry: int, step: int) -> None:
        """Move a whole subtree to the heir by its pointer, and translate what has to be."""
        is_adapted = self.absent_word != 0 or self.pass_word != PASS_WORD
        if is_adapted:
            self._load(table, entry, step)
        with self.session.changing(moves_pages=False):
            words = slice(2 * entry, 2 * entry + 2)
            child = self.giver.release(table, entry)
            heir_table.words[words] = table.words[words]
            table.words[2 * entry], table.words[2 * entry + 1] = self.rest_word, 0
            if child is not None:
                heir_table.children[entry] = child
                if child.changed:
                    heir_table.changed_children.add(entry)
            if is_adapted:
                self._adapt(heir, heir_table, entry, step)

    def _load(self, table: Table, entry: int, step: int) -> None:
        """Read all tables beneath an entry, so that damage is found while nothing is changed."""
        child = self.giver.child(table, entry)
        if child is not None and step > len(child.words) // 2:
            for i in range(len(child.words) // 2):
                self._load(child, i, step // (len(child.words) // 2))

    def _adapt(self, heir: TableTree, heir_table: Table, entry: int, step: int) -> None:
        """Translate the entries of a grafted subtree, counting its data blocks."""
        table = heir.child_for_writing(heir_table, entry)
        is_leaf = step == len(table.words) // 2
        for i in range(0, len(table.words), 2):
            kind = table.words[i] >> KIND_SHIFT
            if kind != PAGE:
                table.words[i] = self._translate(table.words[i])
            elif is_leaf:
                self.inherited += 1
            else:
                self._adapt(heir, table, i // 2, step // (len(table.words) // 2))

    def _idle_word(self, heir_table: Table | None) -> int | None:
        """The entry of the giver for which there is nothing to do: it stays as it is, and the heir gains nothing."""
        return self.rest_word if heir_table is None or not self._translate(self.rest_word) else None

    def _translate(self, word0: int) -> int:
        kind = word0 >> KIND_SHIFT
        if kind == ABSENT:
            return self.absent_word
        return self.pass_word if kind == PASS else word0
