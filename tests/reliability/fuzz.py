"""Search for containers that the program does not stand: ``python -m tests.reliability.fuzz SECONDS``.

The mutator is our own, for two reasons. Inputs that brought about something new (a message, a place that raises or,
where it is looked at, a line that runs for the first time) are kept and varied, which Hypothesis does not do. And to
draw an input takes 0.15 ms, where Hypothesis took 4 for the same choices; to forge the image takes 0.5 ms, to drive it
some 30. Everything follows from the seed and the corpus, but for the order in which several jobs share what they find.

An input that fails is made smaller and written to the corpus as ``failed-*.json``, to be renamed to ``fixed-*.json``
when it is; one that brought about something new as ``*.json``. ``tests/reliability/test_hostile.py`` runs them all.
``--prune`` makes the corpus anew from itself: it drops what no longer brings about anything that others do not, and
shortens the rest; what once failed stays.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

from snapctl.format.superblock import parse
from snapctl.services.check import superblocks
from snapctl.storage import store
from tests.reliability.drive import Notes, drive, shape
from tests.reliability.forgery import Input, forge
from tests.reliability.mutations import random_input, variation

CORPUS = Path(__file__).parent / "corpus"
FAILED, FIXED = "failed-", "fixed-"
_LINE = "line "
_TRACED = ("snapctl/engine/", "snapctl/storage/", "snapctl/services/check/")
_TRACED_SHARE = 0.1
"""Of the new inputs."""
_LARGEST_ENTRY = 4000
"""Characters of an input above which it is not worth keeping."""


class Failure(Exception):
    """An input that the program did not stand."""

    def __init__(self, error: BaseException) -> None:
        super().__init__("".join(traceback.format_exception(error)))
        frames = traceback.extract_tb(error.__traceback__)
        last = next((frame for frame in reversed(frames) if "/snapctl/" in frame.filename), frames[-1])
        self.kind = f"{type(error).__name__} {Path(last.filename).name}:{last.name}:{last.lineno} {shape(str(error))}"


def run(hostile: Input, *, is_traced: bool = False) -> Notes:
    """Forge an image and drive it; if traced, which takes five times as long, each line that was run is a note, too.

    Raises:
        Failure: it did what it must not.
    """
    image = forge(hostile)
    lines: Notes = set()
    try:
        with _traced(lines) if is_traced else nullcontext():
            return drive(image, hostile.steps) | lines
    except Exception as error:
        raise Failure(error) from error
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            raise
        raise Failure(error) from error


@contextmanager
def _traced(lines: Notes) -> Iterator[None]:
    """Note each line of the engine, the storage and the checks that is run in the block."""

    def trace(frame: FrameType, event: str, _argument: object) -> Callable[..., Any] | None:
        path = frame.f_code.co_filename
        if event == "call" and not any(part in path for part in _TRACED):
            return None
        lines.add(f"{_LINE}{path.rpartition('snapctl/')[2]}:{frame.f_lineno}")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def corpus(directory: Path = CORPUS) -> list[Path]:
    """The files of the corpus, in order."""
    return sorted(directory.glob("*.json"))


def shortened(hostile: Input, is_as_good: Callable[[Input], bool]) -> Input:
    """Drop mutations and steps one by one as long as the rest is as good."""
    again = True
    while again:
        again = False
        for field in ("steps", "mutations"):
            items = getattr(hostile, field)
            for i in reversed(range(len(items))):
                shorter = replace(hostile, **{field: items[:i] + items[i + 1 :]})
                if is_as_good(shorter):
                    hostile, again = shorter, True
                    items = getattr(hostile, field)
    return hostile


def keep(hostile: Input, prefix: str = "", directory: Path = CORPUS) -> Path:
    """Write an input to the corpus, under a name that follows from it."""
    text = hostile.to_json()
    path = directory / f"{prefix}{hashlib.sha256(text.encode()).hexdigest()[:10]}.json"
    path.write_text(text)
    return path


def fuzz(seconds: float, seed: int, directory: Path = CORPUS) -> int:
    """Search for so long; prints what it finds.

    Returns:
        How many inputs failed, those alike counted once.
    """
    print(f"seed {seed}", flush=True)
    chance = random.Random(seed)
    seen: Notes = set()
    kept: list[Input] = []
    failures: set[str] = set()
    tried = 0
    end = time.monotonic() + seconds
    known = [Input.read(path) for path in corpus(directory)]
    for hostile in _inputs(chance, kept, known):
        if time.monotonic() > end:
            break
        tried += 1
        is_traced = tried <= len(known) or chance.random() < _TRACED_SHARE
        try:
            notes = run(hostile, is_traced=is_traced)
        except Failure as failure:
            if failure.kind not in failures:
                failures.add(failure.kind)
                small = _shortened_to(hostile, failure.kind)
                print(f"FAILED {keep(small, FAILED, directory)}: {failure.kind}\n{failure}", flush=True)
            continue
        if new := notes - seen:
            seen |= notes
            small = hostile if tried <= len(known) else _shortened_to(hostile, new)
            kept.append(small)
            if tried > len(known) and len(small.to_json()) < _LARGEST_ENTRY:
                path = keep(small, directory=directory)
                print(f"{tried} {path.name}: {min(new)}", flush=True)
    print(f"{tried} inputs in {seconds:g} s, {len(seen)} notes, {len(kept)} kept, {len(failures)} sorts of failure")
    return len(failures)


def prune(directory: Path = CORPUS) -> None:
    """Keep the fewest of the corpus that bring about all that it does, the shortest first, and those that fail."""
    inputs: list[tuple[Input, Notes]] = []
    for path in corpus(directory):
        hostile = Input.read(path)
        try:
            notes = run(hostile, is_traced=True)
        except (Failure, LookupError) as error:
            print(f"{path.name}: {error}")
            continue
        if path.name.startswith(FIXED):
            continue
        inputs.append((hostile, notes))
        path.unlink()
    missing: Notes = set().union(*(notes for _, notes in inputs))
    while missing:
        best = max(inputs, key=lambda pair: (len(pair[1] & missing), -len(pair[0].to_json())))
        wanted = best[1] & missing
        small = _shortened_to(best[0], wanted)
        if len(small.to_json()) < _LARGEST_ENTRY:
            keep(small, directory=directory)
        missing -= best[1]
    sizes = [path.stat().st_size for path in corpus(directory)]
    print(f"{len(sizes)} inputs, {sum(sizes)} bytes")


def _inputs(chance: random.Random, kept: list[Input], known: list[Input]) -> Iterator[Input]:
    yield from known
    while True:
        yield variation(chance, chance.choice(kept)) if kept and chance.random() < 0.5 else random_input(chance)


def _shortened_to(hostile: Input, wanted: Notes | str) -> Input:
    """The shortest part of an input that still brings about some notes, or fails in the same way."""
    if isinstance(wanted, str):
        return shortened(hostile, lambda shorter: _failure_of(shorter) == wanted)
    is_traced = any(note.startswith(_LINE) for note in wanted)
    return shortened(hostile, lambda shorter: wanted <= _notes_of(shorter, is_traced=is_traced))


def _failure_of(hostile: Input) -> str | None:
    try:
        run(hostile)
    except Failure as failure:
        return failure.kind
    return None


def _notes_of(hostile: Input, *, is_traced: bool) -> Notes:
    try:
        return run(hostile, is_traced=is_traced)
    except Failure:
        return set()


def _remember_superblocks() -> None:
    """Judge each superblock once: an image is opened many times over, and half of the time went into that."""
    for module in (store, superblocks):
        setattr(module, "parse", lru_cache(maxsize=64)(parse))  # noqa: B010 neither exports it


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.fuzz", description=__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="what all choices follow from")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with a seed of its own")
    parser.add_argument("--prune", action="store_true", help="make the corpus smaller, and end")
    options = parser.parse_args()
    _remember_superblocks()
    if options.prune:
        prune()
        return 0
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    if options.jobs == 1:
        return min(1, fuzz(options.seconds, seed))
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        found = pool.starmap(fuzz, [(options.seconds, seed + i) for i in range(options.jobs)])
    return min(1, sum(found))


if __name__ == "__main__":
    sys.exit(main())
