"""Choosing at random what to do to a container: mutations of its bytes, and steps to take through the engine."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from snapctl.format.geometry import POINTER_BYTES
from snapctl.format.superblock import COPIES, SLOTS
from tests.reliability.forgery import BASES, RECORD_FIELDS, SUPERBLOCK_FIELDS, Base, Input, Mutation, Step, base
from tests.support.damage import Structure

_ABSENT, _PAGE, _ZERO, _PASS, _LOST = range(5)
_NUMBERS = (0, 1, 2, 3, 7, 255, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 48) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_NAMES = (
    b"\x1b[2J\x07",
    b"\x1b]0;owned\x07",
    b"a\nb",
    b"../../etc/passwd",
    b"a/b",
    b"db@mon",
    b"",
    b"\0hidden",
    b"db\0hidden",
    b"-rf",
    b"a" * 64,
    b"x" * 63,
    b"\xff\xfe\x80",
    "\u202egnp.exe".encode(),
    "\u2028".encode(),
    b"db",
    b"dev",
    b"a",
    b"mon",
)
_BASE_WEIGHTS = {"small": 8, "filled": 3, "large blocks": 2, "large tables": 2, "full": 2, "default": 1, "empty": 1}


def random_input(random: Random) -> Input:
    """A new input: mostly few mutations, and some steps."""
    name = random.choices(list(_BASE_WEIGHTS), weights=list(_BASE_WEIGHTS.values()))[0]
    origin = base(name)
    count = random.choice((0, 1, 1, 1, 2, 2, 3, 5))
    return Input(
        name,
        [found for _ in range(count) for found in _mutations(random, origin)],
        [_step(random, origin) for _ in range(random.choice((0, 1, 3, 6, 12)))],
    )


def variation(random: Random, known: Input) -> Input:
    """An input that differs a little from a known one."""
    origin = base(known.base)
    mutations, steps = list(known.mutations), list(known.steps)
    for _ in range(random.choice((1, 1, 2, 3))):
        match random.randrange(6):
            case 0 | 1:
                mutations[(at := random.randint(0, len(mutations))) : at] = _mutations(random, origin)
            case 2 if mutations:
                mutations.pop(random.randrange(len(mutations)))
            case 3 if steps:
                steps.pop(random.randrange(len(steps)))
            case 4 if mutations and random.random() < 0.3:
                other = random.choice([name for name in BASES if name != "empty"])
                if all(name in base(other).pages for name in _named(mutations)):
                    return Input(other, mutations, steps)
            case _:
                steps.insert(random.randint(0, len(steps)), _step(random, origin))
    return Input(known.base, mutations, steps)


def _named(mutations: list[Mutation]) -> list[str]:
    keys = ("page", "to", "source", "other")
    return [mutation[key] for mutation in mutations for key in keys if isinstance(mutation.get(key), str)]


def _mutations(random: Random, origin: Base) -> list[Mutation]:
    makers, weights = zip(*_MAKERS.items(), strict=True)
    for _ in range(10):
        found: list[Mutation] = random.choices(makers, weights=weights)[0](random, origin)
        if found:
            return found
    return []


def _page(random: Random, origin: Base, *kinds: str) -> Structure | None:
    """A page of one of some kinds; those of nodes and of the other trees alike often."""
    found: dict[str, list[Structure]] = {}
    for page in origin.pages.values():
        if not kinds or page.kind in kinds:
            found.setdefault(f"{page.kind} {page.owner in ('space map', 'snapshot list')}", []).append(page)
    return random.choice(random.choice(list(found.values()))) if found else None


_TABLES = ("first table", "second table", "third table")


def _name(origin: Base, page: Structure) -> str:
    return origin.by_number[page.offset // origin.geometry.unit]


def _entry_index(random: Random, origin: Base, page: Structure) -> int:
    """An entry of a table: one in use, one beside it, the first, the last, or any."""
    count = page.length // POINTER_BYTES
    data = origin.image[page.offset : page.offset + page.length]
    used = [i for i in range(count) if data[i * POINTER_BYTES + 6]]
    choices = [0, count - 1, random.randrange(count)]
    if used:
        choices += [*random.choices(used, k=4), min(count - 1, used[-1] + 1)]
    return random.choice(choices)


def _entry_of_a_kind(random: Random, origin: Base) -> list[Mutation]:
    page = _page(random, origin, *_TABLES)
    if page is None:
        return []
    kind = random.choice((_ABSENT, _ZERO, _ZERO, _PASS, _PASS, _LOST, _LOST, 5, 9, 255))
    found: Mutation = {"op": "entry", "page": _name(origin, page), "entry": _entry_index(random, origin, page)}
    found |= {"kind": kind, "birth": 0}
    if random.random() < 0.15:
        found |= {"page_no": random.choice((5, 200)), "birth": random.choice((0, 1)), "checksum": random.choice((0, 7))}
    if random.random() < 0.3:
        found["count"] = random.choice((2, 8, 32))
    return [found]


def _entry_in_a_gap(random: Random, origin: Base) -> list[Mutation]:
    """What may stand there in an honest container, too, but for reasons of its own."""
    page = _page(random, origin, *_TABLES)
    if page is None or page.owner in {"space map", "snapshot list"}:
        return []
    data = origin.image[page.offset : page.offset + page.length]
    gaps = [at // POINTER_BYTES for at in range(0, page.length, POINTER_BYTES) if not data[at + 6]]
    if not gaps:
        return []
    kind = random.choice((_ZERO, _LOST, _LOST, _PASS if "@" in page.owner else _ZERO))
    entry = random.choice((gaps[0], gaps[-1], random.choice(gaps)))
    return [{"op": "entry", "page": _name(origin, page), "entry": entry, "kind": kind, "birth": 0}]


def _entry_to_anywhere(random: Random, origin: Base) -> list[Mutation]:
    page = _page(random, origin, *_TABLES)
    if page is None:
        return []
    first, total = origin.geometry.first_page, len(origin.image) // origin.geometry.unit
    page_no = random.choice((0, 8, first - 1, first, total - 1, total, random.randrange(total), (1 << 48) - 1, 1 << 47))
    found: Mutation = {"op": "entry", "page": _name(origin, page), "entry": _entry_index(random, origin, page)}
    found |= {"page_no": page_no, "birth": random.choice((0, 1, 3, (1 << 32) - 1))}
    if random.random() < 0.1:
        found["reserved"] = random.choice((1, 255))
    return [found]


def _entry_to_a_page(random: Random, origin: Base) -> list[Mutation]:
    """Two owners for a page, or a page taken for one of another sort."""
    page, other = _page(random, origin, *_TABLES, "records", "data"), _page(random, origin)
    if page is None or other is None:
        return []
    found: Mutation = {"op": "entry", "page": _name(origin, page), "entry": _entry_index(random, origin, page)}
    found |= {"to": _name(origin, other), "birth": random.choice((1, 1, 1, 0, 99, (1 << 32) - 1))}
    if random.random() < 0.25:
        found["count"] = random.choice((2, 8, 1024))
    return [found]


def _loop(random: Random, origin: Base) -> list[Mutation]:
    """A page that leads to itself, at once or by way of what is beneath it."""
    page = _page(random, origin, *_TABLES, "records")
    if page is None or page.length < 4 * POINTER_BYTES:
        return []
    name, checksum = _name(origin, page), random.getrandbits(32)
    below = [other for other, above in origin.above.items() if name in above and origin.pages[other].kind in _TABLES]
    start = random.choice([name, *below])
    count = origin.pages[start].length // POINTER_BYTES
    if page.kind == "records":
        slot = random.randrange(page.length // 512)
        if start == name:
            put: Mutation = {"op": "record", "page": name, "slot": slot, "field": "first_table", "value": 0, "to": name}
        else:
            put = {"op": "entry", "page": start, "entry": _entry_index(random, origin, origin.pages[start]), "to": name}
        where = slot * 512 + RECORD_FIELDS["created_ns"][0]
    else:
        put = {"op": "entry", "page": start, "entry": _entry_index(random, origin, origin.pages[start]), "to": name}
        if random.random() < 0.5:
            put["count"] = random.choice((2, count))
        # The checksum of an ABSENT pointer says nothing, so that is where the page can be bent unseen.
        where = random.randrange(page.length // POINTER_BYTES) * POINTER_BYTES + 8
    return [put, {"op": "bend", "page": name, "at": where, "checksum": checksum}]


def _random_bytes(random: Random, origin: Base) -> list[Mutation]:
    page = _page(random, origin)
    if page is None:
        return []
    at = random.randrange(page.length)
    data = random.randbytes(random.choice((1, 1, 2, 8, 64)))
    if random.random() < 0.2:
        data = random.choice((b"\0", b"\xff")) * len(data)
    return [{"op": "patch", "page": _name(origin, page), "at": at, "data": data[: page.length - at].hex()}]


def _whole_page(random: Random, origin: Base) -> list[Mutation]:
    page, other = _page(random, origin), _page(random, origin)
    if page is None or other is None or page == other:
        return []
    if random.random() < 0.5:
        return [{"op": "copy", "page": _name(origin, page), "source": _name(origin, other)}]
    return [{"op": "swap", "page": _name(origin, page), "other": _name(origin, other)}]


def _blank_page(random: Random, origin: Base) -> list[Mutation]:
    page = _page(random, origin)
    if page is None or page.length > 4096:
        return []
    data = random.choice((b"\0", b"\xff")) * page.length
    return [{"op": "patch", "page": _name(origin, page), "at": 0, "data": data.hex()}]


def _record(random: Random, origin: Base) -> list[Mutation]:
    page = _page(random, origin, "records")
    if page is None:
        return []
    slot = random.randrange(page.length // 512)
    field = random.choice((*RECORD_FIELDS, "parent", "parent", "origin", "origin", "kind", "cow", "size_bytes", "name"))
    found: Mutation = {"op": "record", "page": _name(origin, page), "slot": slot, "field": field}
    ids = [*origin.node_ids, 0, max(origin.node_ids, default=0) + 1]
    match field:
        case "parent" | "origin" | "id":
            return [found | {"value": random.choice([*ids, *ids, *_NUMBERS])}]
        case "kind" | "cow" | "state" | "flags":
            return [found | {"value": random.choice((0, 1, 2, 3, 4, 255))}]
        case "name":
            return [found | {"value": random.choice(_NAMES).hex()}]
        case "size_bytes":
            return [found | {"value": _size(random, origin)}]
        case "own_blocks":
            most = origin.geometry.max_blocks
            return [found | {"value": random.choice([*_NUMBERS, most, most + 1])}]
        case "first_table":
            other = _page(random, origin)
            return [found | {"value": 0, "to": _name(origin, other)}] if other else []
        case _:
            length = RECORD_FIELDS[field][1]
            number = random.choice([*_NUMBERS, random.getrandbits(64)])
            return [found | {"value": number if length <= 8 else random.randbytes(min(length, 16)).hex()}]


def _size(random: Random, origin: Base) -> int:
    block, most = origin.geometry.block_size, origin.geometry.max_volume_bytes
    span = block * origin.geometry.fanout
    return random.choice(
        (0, 1, block - 1, block, block + 1, span, span + 1, 100, most, most + 1, 1 << 63, (1 << 64) - 1)
    )


def _relation(random: Random, origin: Base) -> list[Mutation]:
    """Two fields of one record at once: what kind of node it is and where it hangs."""
    page = _page(random, origin, "records")
    if page is None or not origin.node_ids:
        return []
    at = {"op": "record", "page": _name(origin, page), "slot": random.randrange(page.length // 512)}
    parent = {"field": "parent", "value": random.choice(origin.node_ids)}
    other = random.choice(({"field": "kind", "value": random.choice((1, 2, 3))}, parent | {"field": "origin"}))
    return [at | parent, at | other]


def _use(random: Random, origin: Base) -> list[Mutation]:
    total = len(origin.image) // origin.geometry.unit
    unit = random.choice(
        (0, origin.geometry.first_page, random.randrange(origin.geometry.first_page, total), total - 1)
    )
    count = min(random.choice((1, 1, 2, 16, 400)), origin.geometry.units_per_bitmap - unit)
    return [{"op": "use", "unit": unit, "count": count, "in_use": random.random() < 0.5}]


def _superblock(random: Random, origin: Base) -> list[Mutation]:
    numbers = ("transaction", "pages_used", "pages_total", "pages_limit", "next_node_id", "node_count")
    field = random.choice((*numbers, *numbers, *SUPERBLOCK_FIELDS))
    offset, length = SUPERBLOCK_FIELDS[field]
    found: Mutation = {"op": "superblock", "field": field, "value": 0}
    if random.random() < 0.4:
        found["previous"] = True
    if random.random() < 0.4:
        found["copies"] = random.choice((1, 2))
    if field in {"snapshot_list", "space_map"}:
        other = _page(random, origin)
        return [found | {"to": _name(origin, other)}] if other else []
    total = len(origin.image) // origin.geometry.unit
    present = int.from_bytes(origin.image[origin.slot * 4096 + offset :][: min(length, 8)], "little")
    nearby = (present - 1, present + 1, present + 2, present + 5, total, origin.geometry.first_page)
    if length <= 8:
        found["value"] = max(0, random.choice([*_NUMBERS, *nearby, *nearby, 512, 1024, 4096, 65536, 1 << 17]))
    else:
        found["value"] = random.randbytes(16).hex()
    return [found]


def _superblock_copy(random: Random, origin: Base) -> list[Mutation]:
    del origin
    places = [[slot, copy] for slot in range(SLOTS) for copy in range(COPIES)]
    return [{"op": "superblock_copy", "source": random.choice(places), "target": random.choice(places)}]


def _rot(random: Random, origin: Base) -> list[Mutation]:
    page = _page(random, origin)
    offset = random.choice((0, 4096, 32768, 36864)) + random.randrange(4096)
    if page is not None and random.random() < 0.8:
        offset = page.offset + random.randrange(page.length)
    return [{"op": "rot", "offset": offset, "data": random.randbytes(random.choice((1, 4, 600))).hex()}]


def _truncate(random: Random, origin: Base) -> list[Mutation]:
    unit = origin.geometry.unit
    length = random.choice((random.randrange(len(origin.image)), len(origin.image) - unit, 65536, 40000, 4096, 0))
    return [{"op": "truncate", "length": length}]


_MAKERS: dict[Callable[[Random, Base], list[Mutation]], int] = {
    _entry_of_a_kind: 10,
    _entry_in_a_gap: 12,
    _entry_to_anywhere: 6,
    _entry_to_a_page: 10,
    _loop: 6,
    _random_bytes: 6,
    _whole_page: 4,
    _blank_page: 1,
    _record: 12,
    _relation: 5,
    _use: 4,
    _superblock: 6,
    _superblock_copy: 1,
    _rot: 3,
    _truncate: 1,
}


def _step(random: Random, origin: Base) -> Step:
    node = random.randrange(12)
    block = origin.geometry.block_size
    offset = random.choice((0, 0, 1, block, 3 * block, block * origin.geometry.fanout, random.randrange(40 * block)))
    length = random.choice((1, block, 2 * block, 5 * block + 7, 40 * block, 80 * block))
    name = random.choice(("n1", "n2", "n3", "a", "db", "x" * 63))
    match random.randrange(16):
        case 0 | 1 | 2:
            return ["write", node, offset, length, random.randrange(100)]
        case 3 | 4:
            return ["trim", node, offset, random.choice((length, length, 200 * block))]
        case 5 | 6:
            return ["snapshot", node, name]
        case 7:
            return ["clone", node, name]
        case 8:
            return ["rename", node, name]
        case 9:
            return ["resize", node, _size(random, origin)]
        case 10 | 11 | 12:
            return ["delete", node, random.randrange(2)]
        case 13:
            return random.choice((["abort"], ["preview"], ["bound", random.choice((1, 3, 8))]))
        case 14:
            return ["create", name, _size(random, origin), random.randrange(2)]
        case _:
            return random.choice((["commit"], ["reopen"]))
