"""The lines on which most depends, each broken on purpose, to show that tests notice.

`python -m tests.reliability.mutation_check [NAME...]` copies the package and its tests, sees that the tests named below
pass there, then breaks one line at a time. Every test named for it must fail by what it asserts, or by an error of
snapctl's own; one that cannot even be run has noticed nothing. Prints a table; ends with 1 if a mutation survives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("snapctl", "tests", "pyproject.toml")
NOTICED = ("assert ", "AssertionError", "Failed: DID NOT RAISE", "snapctl.errors.")
"""How the message of a failure begins that says something of what the program did."""
RUN = """
import pathlib, sys
import pytest, snapctl
assert pathlib.Path(snapctl.__file__).is_relative_to(pathlib.Path.cwd()), "this is not the copy that was mutated"
sys.exit(pytest.main(sys.argv[1:]))
"""
_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Mutation:
    """One line broken.

    Attributes:
        name: to call it by.
        file: that it stands in.
        line: as it is, with as much around it as makes it the only one.
        instead: what it is replaced with.
        loss: what users would lose by it.
        noticed_by: tests, each of which must fail.
    """

    name: str
    file: str
    line: str
    instead: str
    loss: str
    noticed_by: tuple[str, ...]

    def apply(self, source: str) -> str:
        """The source of the file with the line broken."""
        if source.count(self.line) != 1:
            raise ValueError(f"{self.name}: the line stands {source.count(self.line)} times in {self.file}")
        return source.replace(self.line, self.instead)


CLAIM_4 = "tests/claims/test_claim_4.py::test_"
COMMIT = "tests/storage/test_commit.py::test_"
CONTAINER = "tests/engine/test_container.py::test_"
REPAIR = "tests/services/test_repair"
PAGES = "tests/storage/test_pages.py::test_"
SPACE_MAP = "tests/storage/test_spacemap.py::test_"
TABLE_TREE = "tests/storage/test_tabletree.py::test_"
READING = "tests/engine/test_reading.py::test_"
LOG = "tests/storage/test_log.py::test_"
LIVE = "tests/services/live/test_live_container.py::test_"

MUTATIONS = (
    Mutation(
        "superblock-before-its-pages",
        "snapctl/storage/store.py",
        "        self.pages.sync()\n        with self.pages.poisoned_by_failure():\n            # From",
        "        with self.pages.poisoned_by_failure():\n            # From",
        "After a power cut the newest superblock may stand for pages that never reached the disk.",
        (COMMIT + "a_commit_syncs_the_pages_before_the_superblock_and_the_superblock_before_it_returns",),
    ),
    Mutation(
        "commit-returns-before-it-is-durable",
        "snapctl/storage/store.py",
        "one_by_one=bool(self._repairs))\n            self.pages.sync()\n",
        "one_by_one=bool(self._repairs))\n",
        "What was reported as done is gone after a power cut, and pages are reused that the disk still stands for.",
        (COMMIT + "a_commit_syncs_the_pages_before_the_superblock_and_the_superblock_before_it_returns",),
    ),
    Mutation(
        "adopted-superblock-not-made-durable",
        "snapctl/storage/pages.py",
        "        if self._adopted is not None:\n",
        "        if False:\n",
        "A commit that was only in the page cache is built upon; a power cut leaves an older one, partly overwritten.",
        (COMMIT + "opening_for_writing_makes_the_adopted_superblock_durable_before_anything_else",),
    ),
    Mutation(
        "any-sound-superblock-will-do",
        "snapctl/storage/superblocks.py",
        "    current = max(copies, key=lambda found: found.transaction)\n",
        "    current = copies[0]\n",
        "Every other commit is lost as soon as the container is opened again.",
        (COMMIT + "the_higher_transaction_wins_whichever_copy_holds_it",),
    ),
    Mutation(
        "superblock-believed-unverified",
        "snapctl/format/superblock.py",
        '    if crc32c(memoryview(page)[:_CHECKSUM_AT]) != int.from_bytes(page[_CHECKSUM_AT:], "little"):\n',
        "    if False:\n",
        "A torn or damaged copy is taken for a commit, with whatever root its bytes name.",
        (COMMIT + "a_checksum_is_verified_before_a_transaction_number_is_believed",),
    ),
    Mutation(
        "table-believed-unverified",
        "snapctl/storage/pages.py",
        "        if crc32c(page) != word1 & CHECKSUM_MASK:\n",
        "        if False:\n",
        "A damaged table leads to wrong data, and its pages are freed for others to overwrite.",
        (TABLE_TREE + "a_damaged_table_is_corruption_that_names_owner_and_page",),
    ),
    Mutation(
        "data-believed-unverified",
        "snapctl/engine/reading.py",
        "        if found != expected:\n",
        "        if False:\n",
        "A read returns bytes that nobody wrote.",
        ("tests/cli/test_bad_input.py::test_damaged_data_is_never_output",),
    ),
    Mutation(
        "block-believed-unverified",
        "snapctl/engine/reading.py",
        "    if blocks is None or checksums_of(blocks, geometry.block_size) != sums:\n",
        "    if blocks is None:\n",
        "A read of a block returns bytes that nobody wrote.",
        (READING + "of_ranges_in_a_file_the_damaged_one_alone_is_not_read",),
    ),
    Mutation(
        "blocks-believed-unverified",
        "snapctl/engine/reading.py",
        "    return checksums(view, geometry.block_size) == pointer_checksums(words, first, first + count)\n",
        "    return True\n",
        "A read of several blocks returns bytes that nobody wrote.",
        (READING + "a_damaged_block_is_never_read_whatever_is_in_memory",),
    ),
    Mutation(
        "page-out-of-bounds-read",
        "snapctl/engine/reading.py",
        "    bounds = geometry.first_page, pages.end_page\n",
        "    bounds = 0, 1 << 47\n",
        "A forged pointer shows a superblock as data, or tries to read before the file.",
        (READING + "a_pointer_that_leads_nowhere_in_a_file_is_not_followed",),
    ),
    Mutation(
        "view-kept-while-pages-move",
        "snapctl/engine/session.py",
        "        if moves_pages:\n            self.views.forget()\n",
        "",
        "A snapshot is looked for where its data was before it was copied; with luck that is nothing but slow.",
        (READING + "a_view_of_what_was_copied_away_is_forgotten",),
    ),
    Mutation(
        "view-kept-over-an-abort",
        "snapctl/engine/session.py",
        "        self.pages = self._store.pages\n        self.views.forget()\n",
        "        self.pages = self._store.pages\n",
        "A snapshot is looked for in pages that were given up.",
        (READING + "a_view_kept_of_what_was_given_up_is_forgotten",),
    ),
    Mutation(
        "view-beyond-the-end-of-a-parent",
        "snapctl/engine/views.py",
        "    key = parent.id, min(limit, parent.size_bytes)\n",
        "    key = parent.id, limit\n",
        "A damaged or forged size shows through others what it has no right to.",
        ("tests/engine/test_hostile_container.py::test_nothing_is_seen_through_a_parent_beyond_its_end",),
    ),
    Mutation(
        "pointer-out-of-bounds-followed",
        "snapctl/storage/pages.py",
        "        if not self.geometry.first_page <= page_no <= self.end_page - length // unit:\n",
        "        if False:\n",
        "A forged pointer leads into the superblocks, or beyond the end of the container.",
        (
            PAGES + "what_lies_outside_the_container_is_no_page_even_if_its_checksum_is_right",
            PAGES + "a_page_that_reaches_over_the_end_is_no_page_even_if_its_checksum_is_right",
        ),
    ),
    Mutation(
        "page-reused-before-its-release-is-durable",
        "snapctl/storage/spacemap.py",
        "        for state in (bitmap.current, bitmap.committed, bitmap.previous):\n",
        "        for state in (bitmap.current, bitmap.previous):\n",
        "A crash before the commit leaves the last one with overwritten pages.",
        (
            SPACE_MAP + "a_page_freed_by_a_commit_is_not_handed_out_before_the_next_is_durable",
            COMMIT + "nothing_is_written_to_what_the_last_commit_holds_until_the_next_is_durable",
        ),
    ),
    Mutation(
        "page-reused-that-the-other-slot-stands-for",
        "snapctl/storage/spacemap.py",
        "        for state in (bitmap.current, bitmap.committed, bitmap.previous):\n",
        "        for state in (bitmap.current, bitmap.committed):\n",
        "If the newest slot is torn or damaged, the commit before is not whole any more.",
        (
            SPACE_MAP + "a_page_freed_by_a_commit_is_not_handed_out_before_the_next_is_durable",
            COMMIT + "a_page_freed_by_a_commit_is_not_written_by_the_next",
        ),
    ),
    Mutation(
        "commit-before-forgotten-at-the-next",
        "snapctl/storage/spacemap.py",
        "                bitmap.previous = bitmap.committed\n",
        "                bitmap.previous = bytes(bitmap.current)\n",
        "In a container that stays open, what one commit frees is overwritten before the next is durable.",
        (SPACE_MAP + "a_page_freed_by_a_commit_is_not_handed_out_before_the_next_is_durable",),
    ),
    Mutation(
        "commit-before-forgotten-on-opening",
        "snapctl/storage/store.py",
        "        return cls(pages, SpaceMap(pages, current, previous), current, writable=writable)\n",
        "        return cls(pages, SpaceMap(pages, current, None), current, writable=writable)\n",
        "Commands, each of which opens the container, overwrite what the other slot stands for.",
        (COMMIT + "opening_anew_writes_nothing_that_the_commit_before_the_last_holds",),
    ),
    Mutation(
        "committed-block-overwritten-in-place",
        "snapctl/engine/writing.py",
        "        if len(pages) == count and space.are_fresh(pages, units):\n",
        "        if len(pages) == count:\n",
        "A crash leaves new data behind an old checksum: the block cannot be read any more.",
        (COMMIT + "nothing_is_written_to_what_the_last_commit_holds_until_the_next_is_durable",),
    ),
    Mutation(
        "committed-table-overwritten-in-place",
        "snapctl/storage/tabletree.py",
        "            self._space.free(table.page_no, self._units)\n            table.page_no = 0\n",
        "",
        "A crash leaves a table that its pointer's checksum does not fit; all beneath it is lost.",
        (
            TABLE_TREE + "a_written_table_is_never_written_again",
            COMMIT + "nothing_is_written_to_what_the_last_commit_holds_until_the_next_is_durable",
        ),
    ),
    Mutation(
        "holes-punched-into-a-commit",
        "snapctl/storage/spacemap.py",
        "            free = idle[index] & ~self._busy(index, self._bitmap(index))\n",
        "            free = idle[index]\n",
        "Room is given back to the file system that has been allocated again since it was free.",
        (SPACE_MAP + "of_what_retires_some_is_kept_while_it_is_not_allocated_again",),
    ),
    Mutation(
        "preserved-more-than-once",
        "snapctl/engine/writing.py",
        "            missing = [entry for entry in kept if not inherits[2 * entry]]\n",
        "            missing = list(kept)\n",
        "A snapshot shows what its volume came to hold later.",
        (CONTAINER + "a_write_over_blocks_of_which_some_are_preserved_preserves_only_the_others",),
    ),
    Mutation(
        "nothing-preserved-where-there-was-nothing",
        "snapctl/engine/writing.py",
        "            inherits[i] = PASS_WORD\n",
        "            pass\n",
        "A snapshot shows data in blocks that its volume did not have when it was taken.",
        (
            CONTAINER + "a_write_over_blocks_of_which_some_are_preserved_preserves_only_the_others",
            CLAIM_4 + "by_take_over_what_the_base_did_not_have_reads_as_zeros_and_what_it_kept_as_the_base_has_it",
        ),
    ),
    Mutation(
        "heir-gets-what-it-does-not-lack",
        "snapctl/engine/handover.py",
        "            if inherits is not None and inherits[i] == 0:\n",
        "            if inherits is not None:\n",
        "Deleting a snapshot, or trimming its volume, changes an older snapshot.",
        ("tests/engine/test_every_level.py::test_covering_entries_are_made_split_and_inherited",),
    ),
    Mutation(
        "seen-beyond-the-end-of-a-parent",
        "snapctl/engine/reading.py",
        "    limit = min(piece.limit_bytes, parent.size_bytes)\n",
        "    limit = piece.limit_bytes\n",
        "A damaged or forged size shows through others what it has no right to.",
        ("tests/engine/test_hostile_container.py::test_nothing_is_seen_through_a_parent_beyond_its_end",),
    ),
    Mutation(
        "going-on-after-a-failed-write",
        "snapctl/storage/pages.py",
        "        except IoFailure as error:\n            self._failure = str(error)\n            raise\n",
        "        except IoFailure:\n            raise\n",
        "A commit is made of pages of which one did not reach the file.",
        (COMMIT + "a_failed_write_of_data_poisons_before_any_commit",),
    ),
    Mutation(
        "going-on-after-a-failed-sync",
        "snapctl/storage/pages.py",
        "yield\n        except BaseException as error:\n            self._failure = str(error) or type(error).__name__",
        "yield\n        except BaseException as error:",
        "The system tells of a failed write once; the next sync succeeds although the disk lacks it.",
        (COMMIT + "a_failed_write_or_sync_in_a_commit_poisons_until_reopened",),
    ),
    Mutation(
        "writers-share-the-lock",
        "snapctl/storage/lock.py",
        "    operation = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB\n",
        "    operation = fcntl.LOCK_SH | fcntl.LOCK_NB\n",
        "Two writers allocate the same pages, and readers lose theirs.",
        ("tests/storage/test_lock.py::test_a_writer_keeps_readers_and_writers_out",),
    ),
    Mutation(
        "repair-overwrites-what-it-could-not-read",
        "snapctl/storage/spacemap.py",
        "        space._first_unit = pages.end_page\n",
        "",
        "What a repair gave up is gone for good: it cannot be undone, nor tried again with a better disk.",
        (SPACE_MAP + "a_map_made_anew_gives_room_beyond_the_end_only",),
    ),
    Mutation(
        "undo-offered-after-a-write",
        "snapctl/storage/store.py",
        "    if current.repaired_from:\n        return Adopted(",
        "    if False:\n        return Adopted(",
        "A repair is undone to a state whose pages a transaction, given up since, has overwritten.",
        (REPAIR + "_safety.py::test_an_undo_is_refused_as_soon_as_anything_was_written_even_if_that_was_given_up",),
    ),
    Mutation(
        "repair-drops-what-the-commit-before-has",
        "snapctl/services/repair/plan.py",
        "    return (previous, earlier) if is_better else (current, raws)\n",
        "    return (current, raws)\n",
        "One damaged page of the snapshot list costs the volumes in it, although the commit before has them whole.",
        (REPAIR + ".py::test_of_two_lists_the_one_that_is_whole_is_gone_back_to",),
    ),
    Mutation(
        "log-record-believed-unverified",
        "snapctl/format/logrecord.py",
        "    if crc32c(body, crc32c(log[offset : offset + _HEADER.size])) != checksum:\n",
        "    if False:\n",
        "What a crash left of a flush in flight is taken for the whole of it.",
        (LOG + "a_last_record_that_is_not_whole_never_happened",),
    ),
    Mutation(
        "log-record-of-another-commit",
        "snapctl/format/logrecord.py",
        "    if (magic, found_key, found_index) != (LOG_MAGIC, key, index) or",
        "    if (magic, found_index) != (LOG_MAGIC, index) or",
        "What commits have replaced since comes back from the log after a crash.",
        (LOG + "a_commit_empties_the_log",),
    ),
    Mutation(
        "flush-to-the-log-without-a-sync",
        "snapctl/storage/log.py",
        "        self._pages.sync()\n        self.is_synced = True\n",
        "        self.is_synced = True\n",
        "What a client was told is flushed is gone after a power cut.",
        (LOG + "a_flush_is_one_write_and_one_sync",),
    ),
    Mutation(
        "damaged-log-taken-for-a-torn-one",
        "snapctl/storage/log.py",
        "    if any(is_later(",
        "    if None and any(is_later(",
        "A damaged record and all flushes after it are dropped without a word, and older data is shown for theirs.",
        (LOG + "a_damaged_record_with_others_behind_it_is_no_torn_one",),
    ),
    Mutation(
        "flush-that-does-not-wait",
        "snapctl/services/live/cache.py",
        "        durable = generation.durable()\n",
        "        durable = nothing\n        durable.set_result(None)\n",
        "What a client was told is flushed is gone when the server is killed.",
        (LIVE + "a_full_disk_keeps_what_was_acknowledged_for_the_next_flush",),
    ),
    Mutation(
        "acknowledged-writes-given-up-with-a-failed-change",
        "snapctl/services/live/cache.py",
        "                    await self._commit()  # so that what the operation leaves halfway can be taken back\n",
        "",
        "A change that is refused takes others' writes with it.",
        (LIVE + "an_operation_that_fails_halfway_leaves_nothing_and_no_write_is_lost",),
    ),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutation.

    Attributes:
        mutation: that was tried.
        unnoticed: tests that did not notice it, with what became of them instead.
        seconds: that it took.
    """

    mutation: Mutation
    unnoticed: dict[str, str]
    seconds: float

    def __str__(self) -> str:
        verdict = "SURVIVED" if self.unnoticed else "killed"
        tests = len(self.mutation.noticed_by)
        noticed = f"{tests - len(self.unnoticed)}/{tests}"
        lines = [f"{self.mutation.name:<50} {verdict:<8} {noticed:>5} {self.seconds:6.1f} s"]
        return "\n".join([*lines, *(f"    {test}: {outcome}" for test, outcome in self.unnoticed.items())])


def make_copy(folder: Path) -> Path:
    """Copy what is mutated and what tests it."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def outcomes(copy: Path, tests: Sequence[str]) -> dict[str, str]:
    """Run tests in the copy.

    Returns:
        By test: "passed", or what became of the first of its cases that did not pass.

    Raises:
        RuntimeError: they could not be run.
    """
    report = copy / "report.xml"
    # Nothing is cached: a file that is changed twice in a second with the same length looks the same to Python.
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--timeout={_SECONDS}", f"--junitxml={report}"]
    command = [sys.executable, "-c", RUN, *options, *tests]
    run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if run.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"tests could not be run:\n{run.stdout}{run.stderr}")
    found = dict.fromkeys(tests, "passed")
    for case in ET.parse(report).iter("testcase"):
        module, name = case.get("classname", ""), case.get("name", "")
        test = f"{module.replace('.', '/')}.py::{name.partition('[')[0]}"
        for element in case:
            if element.tag in {"failure", "error", "skipped"} and found[test] == "passed":
                what = "" if element.tag == "failure" else f"{element.tag}: "
                found[test] = what + element.get("message", "")
    return found


def attempt(mutation: Mutation, copy: Path) -> Verdict:
    """Break the line in the copy, run the tests, and put it right again."""
    begin = time.monotonic()
    file = copy / mutation.file
    sound = file.read_text(encoding="utf-8")
    file.write_text(mutation.apply(sound), encoding="utf-8")
    try:
        found = outcomes(copy, mutation.noticed_by)
    finally:
        file.write_text(sound, encoding="utf-8")
    unnoticed = {test: outcome for test, outcome in found.items() if not outcome.startswith(NOTICED)}
    return Verdict(mutation, unnoticed, time.monotonic() - begin)


def check(mutations: Iterable[Mutation]) -> int:
    """Try mutations one after the other and print what becomes of each; returns how many survived."""
    mutations = list(mutations)
    with tempfile.TemporaryDirectory() as folder:
        copy = make_copy(Path(folder).resolve())
        tests = sorted({test for mutation in mutations for test in mutation.noticed_by})
        failed = {test: what for test, what in outcomes(copy, tests).items() if what != "passed"}
        if failed:
            raise SystemExit("without any mutation:\n" + "\n".join(f"{test}: {what}" for test, what in failed.items()))
        print(f"{len(tests)} tests pass without a mutation", flush=True)
        survivors = 0
        for mutation in mutations:
            verdict = attempt(mutation, copy)
            survivors += bool(verdict.unnoticed)
            print(verdict, flush=True)
        print(f"{len(mutations) - survivors} of {len(mutations)} mutations killed")
    return survivors


def main(names: Sequence[str]) -> int:
    """Try the mutations that are named, or all; returns the exit code."""
    known = {mutation.name: mutation for mutation in MUTATIONS}
    if unknown := set(names) - known.keys():
        raise SystemExit(f"no such mutation: {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    return 1 if check(known[name] for name in names or known) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
