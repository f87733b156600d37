"""Bit rot: damage of every kind in every structure, and for each the truth found by reading every block of every node.

What has to hold, whatever rots:

- a read gives the right bytes or raises `Corruption` that names the node and only bytes that cannot be had;
- a scrub notices every change of live bytes, names the structure, and the nodes and bytes that are affected, exactly;
- nothing else is raised, and what is read stays in proportion to the file.

``python -m tests.reliability.bit_rot N [--seed S]`` tries N flips, a third of them in each of three containers, spread
evenly over the live bytes or in every one if there are enough, and a tenth as many damages of other kinds.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property

from snapctl.engine.container import Container
from snapctl.errors import Corruption
from snapctl.format.geometry import SUPERBLOCK_AREA, Geometry
from snapctl.format.superblock import COPIES, copy_offset
from snapctl.services.scrub import Report, Severity, scrub_backend
from snapctl.storage.superblocks import choose_superblocks
from tests.support import damage
from tests.support.backends import MemoryBackend, RecordingBackend
from tests.support.containers import BLOCK, FANOUT, filled_image
from tests.support.damage import SNAPSHOT_LIST, Structure
from tests.support.states import Step, images_of, pattern, state_in, workload
from tests.support.truth import Ranges, assert_unreadable, reported, unreadable

SUPERBLOCK = "superblock copy"
TRUNCATED = "end of the file"
_MOST_READ = 8
"""How many times the file may be read by a scrub, impact included."""


class Subject:
    """A sound container that is going to be damaged, and what is known of it.

    Attributes:
        image: the bytes of the file.
        older: the bytes after earlier commits, the oldest first.
        structures: all of them.
    """

    def __init__(self, images: list[bytes]) -> None:
        *self.older, self.image = images
        self.structures = damage.structures(MemoryBackend(self.image))
        self._known: dict[str, dict[str, Ranges]] = {}

    @cached_property
    def contents(self) -> dict[str, bytes]:
        """What every node reads as."""
        return {name: state.content for name, state in state_in(self.image).items()}

    @cached_property
    def unit(self) -> int:
        """Bytes of a page."""
        return choose_superblocks(MemoryBackend(self.image))[0].geometry.unit

    @cached_property
    def owners(self) -> dict[int, Structure]:
        """The structure that each live unit belongs to, superblock copies apart."""
        return {
            unit: found
            for found in self.structures
            if found.kind != SUPERBLOCK
            for unit in range(found.offset // self.unit, (found.offset + found.length) // self.unit)
        }

    def assert_unreadable(self, backend: MemoryBackend, hit: list[Structure], claimed: dict[str, Ranges]) -> None:
        """Hold that just these ranges cannot be read; block by block when the same structures are hit first."""
        key = ", ".join(found.name for found in hit)
        if self._known.get(key) == claimed:
            assert_unreadable(backend, self.contents, claimed)
            return
        assert unreadable(backend, self.contents) == claimed
        if len(hit) < 2:
            self._known[key] = claimed

    def at(self, offset: int) -> Structure | None:
        """The structure that a byte belongs to; None if it is not live."""
        if offset < SUPERBLOCK_AREA:
            copies = (found for found in self.structures if found.kind == SUPERBLOCK)
            return next((found for found in copies if found.offset <= offset < found.offset + found.length), None)
        return self.owners.get(offset // self.unit)

    def hit_by(self, data: bytes | bytearray) -> list[Structure]:
        """The structures whose bytes differ."""
        spans = ((found, slice(found.offset, found.offset + found.length)) for found in self.structures)
        return [found for found, span in spans if data[span] != self.image[span]]


@cache
def subjects() -> tuple[Subject, ...]:
    """A tiny container, one with a history, and one with every kind of pointer on every level."""
    geometry = Geometry(BLOCK, BLOCK)
    histories = [images_of(geometry, steps) for steps in (_tiny_steps(), workload(geometry)[:8])]
    return *map(Subject, histories), Subject([filled_image()])


def _tiny_steps() -> list[Step]:
    """So few blocks that every byte of the container can be damaged, in more than one third table all the same."""

    def create(c: Container) -> None:
        c.create_volume("db", (FANOUT + 3) * BLOCK + 1)
        c["db"].write((FANOUT - 2) * BLOCK, pattern(1, 4 * BLOCK))

    def take_snapshot(c: Container) -> None:
        c.snapshot("db@a")
        c["db"].write(FANOUT * BLOCK - 1, pattern(2, BLOCK))

    def clone(c: Container) -> None:
        c.clone("db@a", "dev")
        c["dev"].write(0, pattern(3, 2 * BLOCK))
        c.snapshot("dev@a")
        c["dev"].write(BLOCK, pattern(4, BLOCK))

    def write_again(c: Container) -> None:
        c["db"].write(FANOUT * BLOCK, pattern(5, 3 * BLOCK + 1))

    return [Step(change.__name__, change) for change in (create, take_snapshot, clone, write_again)]


@dataclass(frozen=True)
class Rot:
    """One damage.

    Attributes:
        kind: "flip", "swap", "zero", "duplicate", "burst", "old version" or "cut".
        target: the kind of structure that it is aimed at.
        what: for messages.
        apply: does it.
    """

    kind: str
    target: str
    what: str
    apply: Callable[[MemoryBackend], None]


def flip(subject: Subject, offset: int, bit: int) -> Rot:
    """Turn one bit over."""
    found = subject.at(offset)
    target = found.kind if found else "nothing"
    return Rot("flip", target, f"bit {bit} of byte {offset}", lambda backend: damage.flip(backend, offset, bit))


def zero(found: Structure) -> Rot:
    """Fill a page with zeros, as a disk that lost it may."""
    return Rot("zero", found.kind, found.name, lambda backend: backend.write(found.offset, [bytes(found.length)]))


def duplicate(found: Structure, other: Structure) -> Rot:
    """Write one page over another of the same kind, as a misdirected write does."""

    def apply(backend: MemoryBackend) -> None:
        backend.write(other.offset, [damage.read(backend, found)])

    return Rot("duplicate", other.kind, f"{found.name} over {other.name}", apply)


def swap(found: Structure, other: Structure) -> Rot:
    """Let two pages of a kind change places."""

    def apply(backend: MemoryBackend) -> None:
        one, two = damage.read(backend, found), damage.read(backend, other)
        backend.write(other.offset, [one])
        backend.write(found.offset, [two])

    return Rot("swap", found.kind, f"{found.name} and {other.name}", apply)


def old_version(subject: Subject, found: Structure, older: bytes) -> Rot | None:
    """Put back what stood in a page's place after an earlier commit; None if that is the same."""
    span = slice(found.offset, found.offset + found.length)
    if older[span] == subject.image[span] or len(older[span]) < found.length:
        return None
    return Rot("old version", found.kind, found.name, lambda backend: backend.write(found.offset, [older[span]]))


def burst(subject: Subject, offset: int, junk: bytes) -> Rot:
    """Write junk over anything, without regard to pages."""
    junk = junk[: len(subject.image) - offset]
    return Rot("burst", "several", f"{len(junk)} bytes at {offset}", lambda backend: backend.write(offset, [junk]))


def cut(length: int) -> Rot:
    """Cut the file short."""
    return Rot("cut", TRUNCATED, f"at {length}", lambda backend: backend.truncate(length))


def assert_known(subject: Subject, rot: Rot) -> bool:
    """Damage a container and hold all that has to hold.

    Returns:
        Whether the damage was noticed; if not, it changed no live byte.
    """
    backend = RecordingBackend(subject.image)
    rot.apply(backend)
    hit = subject.hit_by(backend.data)
    try:
        return _assert_known(subject, backend, hit)
    except (Exception, AssertionError) as error:
        error.add_note(f"{rot.kind} of {rot.what} in {[found.name for found in hit]}")
        raise


def _assert_known(subject: Subject, backend: RecordingBackend, hit: list[Structure]) -> bool:
    backend.forget()
    report = scrub_backend(backend)
    assert backend.read_bytes <= _MOST_READ * len(subject.image)
    assert not backend.log, "a scrub that may not heal has written"
    in_superblocks = [found for found in hit if found.kind == SUPERBLOCK]
    is_shut = len(backend.data) < len(subject.image) or any(found.owner == SNAPSHOT_LIST for found in hit)
    if _is_without(in_superblocks, subject) or is_shut:
        _assert_shut(subject, backend, report)
        return True
    if {found.offset for found in in_superblocks} >= _newest(subject):
        return True  # the commit before stands; see the tests of superblocks
    subject.assert_unreadable(backend, hit, reported(report))
    named = {(found.owner, found.what, found.page_no) for found in report.damages if found.page_no is not None}
    pages = {(found.owner, found.kind, found.offset // subject.unit) for found in hit if found.kind != SUPERBLOCK}
    if len(pages) < 2:
        assert named == pages
    assert report.exit_code == (4 if hit else 0), report
    if in_superblocks:
        _assert_healed(subject, backend, in_superblocks)
    return bool(hit)


def _newest(subject: Subject) -> set[int]:
    slot = choose_superblocks(MemoryBackend(subject.image))[0].slot
    return {copy_offset(slot, copy) for copy in range(COPIES)}


def _is_without(hit: list[Structure], subject: Subject) -> bool:
    """Whether no superblock copy is left."""
    return len(hit) == sum(found.kind == SUPERBLOCK for found in subject.structures)


def _assert_shut(subject: Subject, backend: MemoryBackend, report: Report) -> None:
    """The container cannot be opened, and the scrub says why."""
    assert report.exit_code == 4
    assert any(found.owner == "container" for found in report.damages)
    try:
        unreadable(backend, subject.contents)
    except Corruption:
        return
    raise AssertionError("it could be opened")


def _assert_healed(subject: Subject, backend: MemoryBackend, hit: list[Structure]) -> None:
    """Copies of a slot whose other copy is sound are as they were after a scrub that may heal."""
    other = MemoryBackend(backend.data)
    report = scrub_backend(other, heal=True)
    slots = Counter(found.index for found in hit)
    healed = [found for found in hit if slots[found.index] < COPIES]
    for found in healed:
        span = slice(found.offset, found.offset + found.length)
        assert other.data[span] == subject.image[span]
    assert sum(found.severity is Severity.REPAIRED for found in report.damages) == len(healed)


def flips(subject: Subject, count: int, noise: random.Random) -> Iterator[Rot]:
    """Flips spread evenly over all live bytes, each of a random bit, and a few in what is not live."""
    live = [found.offset + i for found in subject.structures for i in range(found.length)]
    for i in range(min(count, len(live))):
        yield flip(subject, live[i * len(live) // min(count, len(live))], noise.randrange(8))
    for _ in range(count // 20):
        yield flip(subject, noise.randrange(len(subject.image)), noise.randrange(8))


def other_rot(subject: Subject, noise: random.Random) -> Iterator[Rot]:
    """Damages of all kinds but flips, without end."""
    kinds: dict[str, list[Structure]] = {}
    for found in subject.structures:
        kinds.setdefault(found.kind, []).append(found)
    while True:
        same = kinds[noise.choice(sorted(kinds))]
        found, other = noise.choice(same), noise.choice(same)
        yield zero(found)
        yield duplicate(found, other)
        yield swap(found, other)
        yield burst(subject, noise.randrange(len(subject.image)), noise.randbytes(noise.randrange(1, 20 * BLOCK)))
        if found.kind != SUPERBLOCK and subject.older:
            rot = old_version(subject, found, noise.choice(subject.older))
            if rot is not None:
                yield rot
        if noise.random() < 0.1:
            yield cut(noise.randrange(SUPERBLOCK_AREA, len(subject.image)))


def search(count: int, seed: int) -> str:
    """Try `count` flips and a tenth as many other damages; gives the figures in one line."""
    noise = random.Random(seed)
    tried: Counter[str] = Counter()
    noticed = 0
    began = time.monotonic()
    share = -(-count // len(subjects()))
    for subject in subjects():
        for rot in flips(subject, share, noise):
            noticed += assert_known(subject, rot)
            tried[rot.target] += 1
        for rot, _ in zip(other_rot(subject, noise), range(share // 10), strict=False):
            noticed += assert_known(subject, rot)
            tried[rot.kind] += 1
    figures = ", ".join(f"{kind} {number}" for kind, number in sorted(tried.items()))
    return (
        f"bit rot, seed {seed}: {tried.total()} damages tried ({figures}); {noticed} noticed, the others in no live "
        f"byte; {time.monotonic() - began:.0f} s"
    )


def main() -> None:
    """Run the search from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, metavar="N", help="flips to try")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(search(arguments.count, arguments.seed))


if __name__ == "__main__":
    main()
