"""A machine that may lose its power: what a file's disk, the page cache over it and a power cut may make of it.

`Machine` is a backend with a *cache* (`data`: what every process reads and writes) and a *disk* (what a power cut
leaves), and for each sector the contents that the cache has held since the disk was last known to hold it. What is
assumed of file system and disk, and it is little:

- A sector of 512 bytes is written whole or not at all, and holds one of the contents that it was given.
- A sync that succeeds makes all that was written, cut, extended or punched before durable. Nothing else orders
  anything: until then each sector for itself may have any of its contents, and the file any length it had. That is
  every subset of the operations, in every order, each torn anywhere, and every prefix of the log among them: to get
  such a state, let each sector name the operation that comes last there. A write beyond the end of the disk's file is
  lost if the new length is.
- Bytes that the file got by becoming longer are zeros; what was punched out is junk.
- The death of a process, even in the middle of a write, leaves the cache and everything that is still unsynced.
- A sync that fails leaves on the disk what a power cut would. Of the rest each sector is either still dirty, and goes
  with the next sync, or was dropped. A dropped one is read from the cache as it was written, or anew from the disk,
  and the one may turn into the other whenever the cache is short of room. It may reach the disk later (because a
  neighbour is written), or never, until it is written again. So does Linux, to the worse side of any of its file
  systems. After the death of a process the same may happen without anybody being told.

Not assumed, and not modelled: disks that lie about a sync, sectors that decay or are written to the wrong place, and
file systems that lose what was durable.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from math import prod

from snapctl.errors import IoFailure, NoSpace
from snapctl.format.geometry import SUPERBLOCK_AREA
from snapctl.storage.backend import Buffer
from tests.support.backends import SECTOR, MemoryBackend, Stopped

_HOLE = bytes(SECTOR)
_MOST_EXHAUSTIVE = 256
"""What lies between two syncs is searched in full if it can leave at most so many states."""


class Fate(Enum):
    """What may happen to the process that uses a machine."""

    DEATH = "death"
    FAILED_WRITE = "failed write"
    FAILED_SYNC = "failed sync"
    FULL = "full disk"


_CAN_MEET = {
    Fate.DEATH: {"write", "sync", "extend", "truncate", "punch"},
    Fate.FAILED_WRITE: {"write", "extend"},
    Fate.FAILED_SYNC: {"sync"},
    Fate.FULL: {"write", "extend"},
}


@dataclass(frozen=True, slots=True)
class Version:
    """A content that a sector was given, and the number of the operation that gave it."""

    number: int
    content: bytes


class Machine(MemoryBackend):
    """See the module.

    Attributes:
        disk: what is certainly durable.
        number: operations begun so far.
        last: the latest of them, in words.
    """

    def __init__(self, chance: random.Random, watch: Callable[[str], None]) -> None:
        """Begin with an empty file.

        Args:
            chance: decides what is left to chance when something fails.
            watch: called after each operation, with its name, and before a sync with "sync" and after it with "synced".
        """
        super().__init__()
        self.disk = bytearray()
        self.number = 0
        self.last = ""
        self._chance = chance
        self._watch = watch
        self._fate: Fate | None = None
        self._fate_at = 0
        self._fate_in_superblock = False
        self._versions: dict[int, list[Version]] = {}
        self._dropped: set[int] = set()
        self._sizes: list[tuple[int, int]] = []

    def meet(self, fate: Fate | None, after: int = 0, *, in_superblock: bool = False) -> None:
        """Let `fate` befall the first operation that it can befall after so many others.

        With `in_superblock`, only one that writes a superblock, or comes before that is durable.
        """
        self._fate, self._fate_at, self._fate_in_superblock = fate, self.number + after, in_superblock

    @property
    def has_met(self) -> bool:
        """Whether the last fate that was set has come."""
        return self._fate is None

    # The backend

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        assert offset % SECTOR == len(data) % SECTOR == 0, "writes are of whole sectors"
        end = self._begin("write", f"{len(data)} bytes at {offset}", offset)
        if end:
            data = data[: self._chance.randrange(len(data) // SECTOR + 1) * SECTOR]
        for at in range(0, len(data), SECTOR):
            self._note((offset + at) // SECTOR, data[at : at + SECTOR])
        if data:
            super().write(offset, [data])
        self._end("write", end)

    def extend(self, size: int) -> None:
        if size > len(self.data):
            end = self._begin("extend", f"to {size}")
            if not end or self._chance.random() < 0.5:
                super().extend(size)
            self._end("extend", end)

    def truncate(self, size: int) -> None:
        if size < len(self.data):
            end = self._begin("truncate", f"to {size}")
            if not end or self._chance.random() < 0.5:
                for sector in range(size // SECTOR, len(self.data) // SECTOR):
                    self._note(sector, _HOLE)
                super().truncate(size)
            self._end("truncate", end)

    def punch(self, offset: int, length: int) -> None:
        end = self._begin("punch", f"{length} bytes at {offset}")
        if not end or self._chance.random() < 0.5:
            super().punch(offset, length)
            for sector in range(offset // SECTOR, (offset + length) // SECTOR):
                self._note(sector, self._cached(sector))
        self._end("punch", end)

    def sync(self) -> None:
        end = self._begin("sync", "")
        self._watch("sync")
        if isinstance(end, IoFailure):
            self.lose_writes()
        elif end is None:
            self._make_durable()
            self._watch("synced")
        if end is not None:
            raise end

    def _begin(self, method: str, what: str, offset: int = SUPERBLOCK_AREA) -> BaseException | None:
        """Number an operation; gives what it is to end with."""
        self.number += 1
        self.last = f"{method} {what}".rstrip()
        fate = self._fate
        if fate is None or self.number < self._fate_at or method not in _CAN_MEET[fate]:
            return None
        first = min(offset // SECTOR, *self._versions, SUPERBLOCK_AREA // SECTOR)
        if self._fate_in_superblock and first * SECTOR >= SUPERBLOCK_AREA:
            return None
        self._fate = None
        if fate is Fate.DEATH:
            return Stopped(self.last)
        return (NoSpace if fate is Fate.FULL else IoFailure)(f"{self.last} was refused")

    def _end(self, method: str, end: BaseException | None) -> None:
        if len(self.data) != (self._sizes[-1][1] if self._sizes else len(self.disk)):
            self._sizes.append((self.number, len(self.data)))
        self._watch(method)
        if end is not None:
            raise end

    def _note(self, sector: int, content: bytes) -> None:
        self._versions.setdefault(sector, []).append(Version(self.number, content))
        self._dropped.discard(sector)

    def _cached(self, sector: int) -> bytes:
        return bytes(self.data[sector * SECTOR : (sector + 1) * SECTOR]).ljust(SECTOR, b"\0")

    def _durable(self, sector: int) -> bytes:
        return bytes(self.disk[sector * SECTOR : (sector + 1) * SECTOR]).ljust(SECTOR, b"\0")

    def _make_durable(self) -> None:
        dropped = {sector: self._durable(sector) for sector in self._dropped}
        self.disk = bytearray(self.data)
        for sector, content in dropped.items():
            if sector * SECTOR < len(self.disk):
                self.disk[sector * SECTOR : (sector + 1) * SECTOR] = content
        self._versions = {sector: self._versions[sector] for sector in self._dropped}
        self._sizes = []

    # Crashes

    def cut_power(self, image: bytes | bytearray) -> None:
        """Go on after a power cut that left `image`."""
        self.disk, self.data = bytearray(image), bytearray(image)
        self._versions, self._dropped, self._sizes = {}, set(), []

    def lose_writes(self) -> None:
        """Some of what is unsynced reaches the disk, some is dropped, some stays dirty: a sync that fails does that."""
        self.disk = self._any_image()
        keeps_dirty, reads_again = self._chance.choice(((0, 0), (0, 0), (0, 0.5), (0, 1), (0.5, 0.5), (1, 0)))
        for sector in sorted(self._versions):
            self._versions[sector] = [Version(self.number, self._cached(sector))]
            if self._chance.random() < keeps_dirty:
                continue
            if self._chance.random() < reads_again:
                self._read_again(sector)
            else:
                self._dropped.add(sector)
        self._sizes = [(self.number, len(self.data))]

    def forget_dropped(self) -> None:
        """The cache may be short of room: some of what a failed sync dropped is then read from the disk again."""
        if self._chance.random() < 0.8:
            return
        for sector in sorted(self._dropped):
            if self._chance.random() < 0.5:
                self._read_again(sector)

    def _read_again(self, sector: int) -> None:
        self._dropped.discard(sector)
        del self._versions[sector]
        if sector * SECTOR < len(self.data):
            self.data[sector * SECTOR : (sector + 1) * SECTOR] = self._durable(sector)

    def _any_image(self) -> bytearray:
        how = self._chance.random()
        if how < 0.3:
            return self._image(len(self.disk), {})
        contents = {
            sector: self._chance.choice(versions).content
            for sector, versions in self._versions.items()
            if how < 0.5 or self._chance.random() < 0.5
        }
        return self._image(self._chance.choice(self._lengths()), contents)

    # What a power cut may leave

    def every_image(self) -> list[bytearray] | None:
        """All states that a power cut may leave now; None if they are too many to try."""
        choices = self._choices()
        lengths = self._lengths()
        if len(lengths) * prod(map(len, choices.values())) > _MOST_EXHAUSTIVE:
            return None
        return [
            self._image(length, dict(zip(choices, contents, strict=True)))
            for length in lengths
            for contents in itertools.product(*choices.values())
        ]

    def whole_subsets(self) -> Iterator[bytearray]:
        """Every subset of the operations, in their order and each whole; none if they are too many to try."""
        numbers = self._numbers()
        if 1 << len(numbers) <= _MOST_EXHAUSTIVE:
            for kept in itertools.product((False, True), repeat=len(numbers)):
                yield self._kept(set(itertools.compress(numbers, kept)))

    def newest_image(self) -> bytearray:
        """The state in which nothing is lost."""
        return bytearray(self.data)

    def some_images(self, chance: random.Random, rounds: int) -> Iterator[bytearray]:
        """Draw states: operations kept or lost whole, one alone lost or kept, and sectors each for itself."""
        numbers = self._numbers()
        if not numbers:
            return
        lengths = self._lengths()
        for _ in range(rounds):
            one = {chance.choice(numbers)}
            yield self._kept(one)
            yield self._kept(set(numbers) - one)
            share = chance.choice((0.2, 0.5, 0.8))
            kept = {number for number in numbers if chance.random() < share}
            yield self._kept(kept)
            yield self._shuffled(chance, kept, lengths, torn=False)
            yield self._shuffled(chance, set(numbers), lengths, torn=True)

    def _numbers(self) -> list[int]:
        """The operations that are not durable."""
        return sorted({v.number for vs in self._versions.values() for v in vs} | {number for number, _ in self._sizes})

    def _choices(self) -> dict[int, list[bytes]]:
        """The distinct contents that each sector may have, where there is a choice."""
        choices = {}
        for sector, versions in self._versions.items():
            contents = list(dict.fromkeys([self._durable(sector), *(version.content for version in versions)]))
            if len(contents) > 1:
                choices[sector] = contents
        return choices

    def _lengths(self) -> list[int]:
        return list(dict.fromkeys([len(self.disk), *(size for _, size in self._sizes)]))

    def _image(self, length: int, contents: dict[int, bytes]) -> bytearray:
        image = self.disk[:length]
        image.extend(bytes(length - len(image)))
        for sector, content in contents.items():
            at = sector * SECTOR
            if at < length:
                image[at : at + SECTOR] = content
        return image

    def _kept(self, kept: set[int]) -> bytearray:
        """Some operations durable in full and in their order, the others not at all."""
        length = next((size for number, size in reversed(self._sizes) if number in kept), len(self.disk))
        contents = {}
        for sector, versions in self._versions.items():
            for version in reversed(versions):
                if version.number in kept:
                    contents[sector] = version.content
                    break
        return self._image(length, contents)

    def _shuffled(self, chance: random.Random, kept: set[int], lengths: list[int], *, torn: bool) -> bytearray:
        """Some operations durable, in any order; or each sector as it comes, new or old."""
        contents = {}
        order = {number: chance.random() for number in kept}
        for sector, versions in self._versions.items():
            if torn and chance.random() < 0.4:
                continue
            found = [version for version in versions if version.number in kept]
            if found:
                last = chance.choice(found) if torn else max(found, key=lambda version: order[version.number])
                contents[sector] = last.content
        return self._image(chance.choice(lengths), contents)
