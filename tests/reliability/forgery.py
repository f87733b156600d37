"""Hostile images: a small container with named pages, and mutations of it that leave every checksum right.

An `Input` is what is kept of an image and of what is done with it: plain JSON, with pages called by name, so that it
means the same after the engine has learnt to place pages elsewhere. `forge` makes the bytes. Mutations come in any
order; when all but the last sort are applied, the image is sealed: every pointer on the way from a changed page to the
superblocks gets the checksum of what it leads to, also where a page leads to itself by any way, if one of the pages on
that way is bent (see `damage.bend`).

Mutations, by their `op`:

    entry             put one pointer, or `count` alike, into a page: to a page by name (`to`) or number (`page_no`)
    patch             overwrite bytes of a page
    copy, swap        one page's bytes come to stand in another
    record            set a field of the record in a slot of a page of records
    use               set or clear bits of the space map, with all the counts that go with it
    superblock        set a field of the last commit's superblock or of the one before
    superblock_copy   put the bytes of one superblock copy in the place of another
    bend              have a page come to a given checksum
    rot, truncate     after sealing: overwrite bytes anywhere, cut the file off
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.errors import NoSpace
from snapctl.format.checksum import crc32c
from snapctl.format.geometry import POINTER_BYTES, RECORD_BYTES, Geometry
from snapctl.format.layout import SUPERBLOCK_BYTES, NodeRecord
from snapctl.format.layout import Superblock as SuperblockLayout
from snapctl.format.pointer import BIRTH_SHIFT, CHECKSUM_MASK, KIND_SHIFT, PAGE, PAGE_MASK
from snapctl.format.superblock import COPIES, SLOTS, copy_offset, has_magic
from snapctl.storage.superblocks import choose_superblocks
from tests.support import damage
from tests.support.backends import MemoryBackend
from tests.support.containers import fill, small_container
from tests.support.damage import Structure, fields_of

Mutation = dict[str, Any]
Step = list[Any]

RECORD_FIELDS = fields_of(NodeRecord)
SUPERBLOCK_FIELDS = fields_of(SuperblockLayout)
_CHECKSUM_AT = SUPERBLOCK_FIELDS["checksum"][0]
_ROOTS = {"snapshot_list": SUPERBLOCK_FIELDS["snapshot_list"][0], "space_map": SUPERBLOCK_FIELDS["space_map"][0]}
_BIRTH_AT = 12


class NoSuchPage(LookupError):
    """A mutation names a page that its base does not have."""


@dataclass(frozen=True)
class Input:
    """One hostile image and what is to be done with it.

    Attributes:
        base: name of the container it is made from.
        mutations: what is changed in its bytes.
        steps: what is then changed through the engine, see `drive`.
    """

    base: str
    mutations: list[Mutation] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def to_json(self) -> str:
        """A line for each mutation and each step."""

        def lines(items: Iterable[object]) -> str:
            return ",\n".join(f"  {json.dumps(item)}" for item in items)

        return (
            f'{{"base": {json.dumps(self.base)},\n"mutations": [\n{lines(self.mutations)}\n],\n'
            f'"steps": [\n{lines(self.steps)}\n]}}\n'
        )

    @classmethod
    def read(cls, path: Path) -> Input:
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Base:
    """A sound container whose pages have names.

    Attributes:
        image: its bytes.
        geometry: its sizes.
        pages: all pages of the last commit, and those that only the commit before has, by name.
        by_number: the same by page number.
        above: the names of the pages that point to a page.
        slot: of the last commit's superblock.
        node_ids: of its nodes.
    """

    name: str
    image: bytes
    geometry: Geometry
    pages: dict[str, Structure]
    by_number: dict[int, str]
    above: dict[str, tuple[str, ...]]
    slot: int
    node_ids: tuple[int, ...]

    def page(self, name: str) -> Structure:
        try:
            return self.pages[name]
        except KeyError:
            raise NoSuchPage(f"{self.name} has no page {name!r}") from None


def _filled() -> MemoryBackend:
    backend = MemoryBackend()
    fill(small_container(backend))
    return backend


def _small(block_size: int = 512, table_size: int = 512, capacity_bytes: int | None = None) -> MemoryBackend:
    """One volume of each cow policy, two snapshots and two clones, in few pages."""
    backend = MemoryBackend()
    container = Container.format(backend, Geometry(block_size, table_size), capacity_bytes)
    span = table_size // POINTER_BYTES * block_size
    db = container.create_volume("db", span + 3 * block_size + 100)
    db.write(0, b"db1" * (2 * block_size))
    container.snapshot("db@a")
    db.write(block_size, b"db2" * block_size)
    container.create_volume("log", 5 * block_size, cow=Cow.COPY).write(0, b"log" * block_size)
    container.commit()
    container.snapshot("db@b", "log@a")
    container.clone("db@a", "dev").write(span - block_size // 2, b"dev" * block_size)
    container["log"].write(block_size // 2, b"new" * block_size)
    container.commit()
    container.snapshot("dev@a")
    container["dev"].trim(0, block_size + 7)
    container.clone("dev@a", "lab")
    db.trim(0, 2 * block_size)
    container.commit()
    return backend


def _full() -> MemoryBackend:
    """Filled until its capacity refuses more."""
    backend = _small(capacity_bytes=64 * 1024 + 120 * 512)
    container = Container.adopt(backend)
    with suppress(NoSpace):
        while True:
            container.snapshot(f"log@{len(container)}")
            container["log"].write(0, b"fill" * 500)
            container.commit()
    container.close()
    return backend


_BASES: dict[str, Callable[[], MemoryBackend]] = {
    "empty": lambda: _made(small_container()),
    "small": _small,
    "filled": _filled,
    "full": _full,
    "large blocks": lambda: _small(block_size=1024),
    "large tables": lambda: _small(table_size=1024),
    "default": lambda: _small(4096, 16384),
}
BASES = tuple(_BASES)
"""Names of the containers to start from."""


def _made(container: Container) -> MemoryBackend:
    backend = container.pages.backend
    assert isinstance(backend, MemoryBackend)
    return backend


@cache
def base(name: str) -> Base:
    """The container of that name, made on first use."""
    backend = _BASES[name]()
    current, previous = choose_superblocks(backend)
    found = {page.name: page for page in damage.structures(backend) if page.kind != "superblock copy"}
    offsets = {page.offset: page.name for page in found.values()}
    above: dict[str, set[str]] = {name: set() for name in found}
    everything = [*found.values()]
    if previous is not None:
        everything += [page for page in damage.structures(backend, previous) if page.kind != "superblock copy"]
    for page in everything:
        name_here = offsets.get(page.offset)
        if name_here is None:
            name_here = offsets[page.offset] = f"previous {page.name}"
            found[name_here] = page
            above[name_here] = set()
        if page.above is not None:
            above[name_here].add(offsets[page.above.offset])
    return Base(
        name=name,
        image=bytes(backend.data),
        geometry=current.geometry,
        pages=found,
        by_number={offset // current.geometry.unit: page for offset, page in offsets.items()},
        above={page: tuple(sorted(pages)) for page, pages in above.items()},
        slot=current.slot,
        node_ids=tuple(node.id for node in Container.adopt(backend, writable=False).nodes),
    )


def forge(hostile: Input) -> bytes:
    """The image that an input stands for.

    Raises:
        NoSuchPage: its base has changed.
    """
    late = [mutation for mutation in hostile.mutations if mutation["op"] in {"rot", "truncate"}]
    forgery = _Forgery(base(hostile.base))
    for mutation in hostile.mutations:
        if mutation not in late:
            getattr(forgery, mutation["op"])(**{key: value for key, value in mutation.items() if key != "op"})
    forgery.seal()
    for mutation in late:
        if mutation["op"] == "truncate":
            del forgery.data[mutation["length"] :]
        else:
            at, data = mutation["offset"], bytes.fromhex(mutation["data"])
            forgery.data[at : at + len(data)] = data
    return bytes(forgery.data)


class _Forgery:
    """An image that is being changed; each mutation but the late ones is a method."""

    def __init__(self, origin: Base) -> None:
        self.data = bytearray(origin.image)
        self._base = origin
        self._changed: set[str] = set()
        self._pointers: set[int] = set()
        """Offsets of pointers that were put in, whose checksums are to be made right wherever they lead."""
        self._bent: dict[str, tuple[int, int]] = {}
        self._sealed: set[str] = set()

    def entry(
        self,
        page: str,
        entry: int,
        *,
        kind: int = PAGE,
        to: str | None = None,
        page_no: int = 0,
        birth: int = 1,
        checksum: int | None = None,
        reserved: int = 0,
        count: int = 1,
    ) -> None:
        table = self._base.page(page)
        if to is not None:
            page_no = self._base.page(to).offset // self._base.geometry.unit
        word0 = page_no & PAGE_MASK | (kind & 0xFF) << KIND_SHIFT | (reserved & 0xFF) << 56
        word1 = (checksum or 0) & CHECKSUM_MASK | (birth & CHECKSUM_MASK) << BIRTH_SHIFT
        for i in range(entry, min(entry + count, table.length // POINTER_BYTES)):
            at = table.offset + i * POINTER_BYTES
            self._put(at, _number(word0, 8) + _number(word1, 8))
            if kind == PAGE and checksum is None:
                self._pointers.add(at)
        self._changed.add(page)

    def patch(self, page: str, at: int, data: str) -> None:
        found = self._base.page(page)
        self._put(found.offset + at, bytes.fromhex(data)[: found.length - at])
        self._changed.add(page)

    def copy(self, page: str, source: str) -> None:
        target, found = self._base.page(page), self._base.page(source)
        self._put(target.offset, self._bytes(found)[: target.length])
        self._changed.add(page)

    def swap(self, page: str, other: str) -> None:
        first, second = self._base.page(page), self._base.page(other)
        length = min(first.length, second.length)
        one, two = self._bytes(first)[:length], self._bytes(second)[:length]
        self._put(first.offset, two)
        self._put(second.offset, one)
        self._changed |= {page, other}

    def record(self, page: str, slot: int, field: str, value: int | str, *, to: str | None = None) -> None:
        found = self._base.page(page)
        offset, length = RECORD_FIELDS[field]
        at = found.offset + slot * RECORD_BYTES + offset
        if to is not None:
            self._put(at, self._pointer_to(to))
            self._pointers.add(at)
        else:
            self._put(at, _field(value, length))
        self._changed.add(page)

    def use(self, unit: int, *, in_use: bool, count: int = 1) -> None:
        bits = self._base.geometry.units_per_bitmap
        for number in range(unit, unit + count):
            name = f"space map: bitmap {number // bits}"
            bitmap = self._base.page(name)
            byte, bit = divmod(number % bits, 8)
            at = bitmap.offset + byte
            if (self.data[at] >> bit & 1) == in_use:
                continue
            self.data[at] ^= 1 << bit
            self._changed.add(name)
            step = 1 if in_use else -1
            assert bitmap.above is not None
            for entry in (bitmap.entry_offset, bitmap.above.entry_offset):
                self._add(entry + _BIRTH_AT, 4, -step)
            self._changed |= {self._name_of(bitmap.above)}
            for copy in range(COPIES):
                self._add(copy_offset(self._base.slot, copy) + SUPERBLOCK_FIELDS["pages_used"][0], 8, step)

    def superblock(
        self, field: str, value: int | str, *, previous: bool = False, copies: int = 3, to: str | None = None
    ) -> None:
        slot = 1 - self._base.slot if previous else self._base.slot
        offset, length = SUPERBLOCK_FIELDS[field]
        for copy in range(COPIES):
            if copies >> copy & 1:
                at = copy_offset(slot, copy) + offset
                self._put(at, self._pointer_to(to) if to is not None else _field(value, length))
                if to is not None:
                    self._pointers.add(at)

    def superblock_copy(self, source: list[int], target: list[int]) -> None:
        start = copy_offset(source[0] % SLOTS, source[1] % COPIES)
        page = bytes(self.data[start : start + SUPERBLOCK_BYTES])
        self._put(copy_offset(target[0] % SLOTS, target[1] % COPIES), page)

    def bend(self, page: str, at: int, checksum: int) -> None:
        self._bent[page] = (at, checksum & CHECKSUM_MASK)
        self._base.page(page)
        self._changed.add(page)

    def seal(self) -> None:
        """Make all checksums right from the changed pages up."""
        pending = list(self._changed)
        while pending:
            for above in self._base.above[pending.pop()]:
                if above not in self._changed:
                    self._changed.add(above)
                    pending.append(above)
        active: set[str] = set()
        for name in sorted(self._changed):
            self._seal_page(name, active)
        for slot in range(SLOTS):
            for copy in range(COPIES):
                self._seal_superblock(copy_offset(slot, copy))

    def _seal_page(self, name: str, active: set[str]) -> None:
        if name in self._sealed or name in active:
            return
        active.add(name)
        page = self._base.page(name)
        geometry = self._base.geometry
        length = geometry.block_size if page.kind == "third table" else geometry.table_size
        for at in range(page.offset, page.offset + page.length, POINTER_BYTES):
            if self.data[at + 6] == PAGE and not self.data[at + 7]:
                self._seal_pointer(at, length, active)
        if name in self._bent:
            where, checksum = self._bent[name]
            where = max(0, min(where, page.length - 4))
            self._put(page.offset, damage.bend(bytearray(self._bytes(page)), where, checksum))
        active.discard(name)
        self._sealed.add(name)

    def _seal_pointer(self, at: int, length: int, active: set[str]) -> None:
        page_no = int.from_bytes(self.data[at : at + 6], "little")
        target = self._base.by_number.get(page_no)
        if target in self._changed:
            self._seal_page(target, active)
        elif at not in self._pointers:
            return
        if target in self._bent and self._base.page(target).length == length:
            checksum = self._bent[target][1]
        else:
            offset = page_no * self._base.geometry.unit
            checksum = int(crc32c(bytes(self.data[offset : offset + length])))
        self._put(at + 8, _number(checksum, 4))

    def _seal_superblock(self, offset: int) -> None:
        before = bytes(self.data[offset : offset + SUPERBLOCK_BYTES])
        if not has_magic(before):
            return
        for at in _ROOTS.values():
            self._seal_pointer(offset + at, self._base.geometry.table_size, set())
        page = self.data[offset : offset + _CHECKSUM_AT]
        self._put(offset + _CHECKSUM_AT, _number(int(crc32c(bytes(page))), 4))

    def _pointer_to(self, name: str) -> bytes:
        page_no = self._base.page(name).offset // self._base.geometry.unit
        return _number(page_no | PAGE << KIND_SHIFT, 8) + _number(1 << BIRTH_SHIFT, 8)

    def _name_of(self, page: Structure) -> str:
        return self._base.by_number[page.offset // self._base.geometry.unit]

    def _bytes(self, page: Structure) -> bytes:
        return bytes(self.data[page.offset : page.offset + page.length])

    def _put(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data

    def _add(self, offset: int, length: int, amount: int) -> None:
        value = int.from_bytes(self.data[offset : offset + length], "little") + amount
        self._put(offset, _number(value, length))


def _number(value: int, length: int) -> bytes:
    return (value & ((1 << 8 * length) - 1)).to_bytes(length, "little")


def _field(value: int | str, length: int) -> bytes:
    """A number, or bytes in hexadecimal digits, as long as the field is."""
    return _number(value, length) if isinstance(value, int) else bytes.fromhex(value)[:length].ljust(length, b"\0")
