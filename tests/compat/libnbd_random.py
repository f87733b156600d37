"""Random requests by libnbd, many at a time, each compared with a file as the model; run by Debian's Python.

Arguments: the connection string of an export; the file, which has the export's content and gets what is done to it.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable

import nbd  # type: ignore[import-not-found]  # Debian's, which no other Python has

REQUESTS = 600
MOST_BYTES = 200_000
CONTEXTS = ("base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:mon")


def connect(uri: str) -> nbd.NBD:
    """Connect, with all contexts."""
    handle = nbd.NBD()
    handle.set_uri_allow_local_file(True)
    for context in CONTEXTS:
        handle.add_meta_context(context)
    handle.connect_uri(uri)
    assert all(handle.can_meta_context(context) for context in CONTEXTS)
    return handle


def main(uri: str, path: str) -> None:
    """Send requests by two connections, disjoint ones at a time; the other connection then reads what one wrote."""
    with open(path, "rb") as file:
        model = bytearray(file.read())
    links = [connect(uri), connect(uri)]
    dice = random.Random(1)
    assert links[0].get_size() == len(model)
    for number in range(REQUESTS // 8):
        link, other = links if number % 2 else reversed(links)
        begins = sorted(dice.sample(range(len(model) - 1), 9))
        sent = [request(link, model, dice, *pair) for pair in itertools.pairwise(begins)]
        while link.aio_in_flight():
            link.poll(-1)
        for cookie, check in sent:
            assert link.aio_command_completed(cookie)
            check()
        offset, length = begins[0], begins[-1] - begins[0]
        length = min(length, 4 * MOST_BYTES)
        assert other.pread(length, offset) == model[offset : offset + length]
        check_extents(other, model, offset, length)
    links[0].flush()
    for handle in links:
        handle.shutdown()
    with open(path, "wb") as file:
        file.write(model)


def request(
    link: nbd.NBD, model: bytearray, dice: random.Random, begin: int, end: int
) -> tuple[int, Callable[[], None]]:
    """Begin one request between two offsets, and do the same to the model; returns what checks its result."""
    length = min(end - begin, dice.choice([1, 511, 4096, MOST_BYTES]))
    kind = dice.choice(["read", "read", "write", "write", "zero", "trim", "cache"])
    fua = dice.choice([0, 0, 0, nbd.CMD_FLAG_FUA])
    if kind == "read":
        buffer = nbd.Buffer(length)
        expected = bytes(model[begin : begin + length])
        flags = dice.choice([0, nbd.CMD_FLAG_DF])
        cookie = link.aio_pread_structured(buffer, begin, lambda *_: 0, flags=flags)
        return cookie, lambda: same(buffer.to_bytearray(), expected)
    if kind == "write":
        data = dice.randbytes(length)
        model[begin : begin + length] = data
        return link.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), begin, flags=fua), nothing
    if kind == "cache":
        return link.aio_cache(length, begin), nothing
    model[begin : begin + length] = bytes(length)
    if kind == "trim":  # which reads as zeros here
        return link.aio_trim(length, begin, flags=fua), nothing
    flags = fua | dice.choice([0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO])
    return link.aio_zero(length, begin, flags=flags), nothing


def same(found: bytearray, expected: bytes) -> None:
    """See that a read has returned what the model held when it was sent."""
    assert found == expected


def nothing() -> None:
    """Do nothing: that the request has succeeded is all there is to see."""


def check_extents(link: nbd.NBD, model: bytearray, offset: int, length: int) -> None:
    """See that what is told to be zeros is, and that every context tells something; a reply may be short."""
    end = offset + length
    while offset < end:
        covered = dict.fromkeys(CONTEXTS, 0)

        def take(
            context: str, begin: int, entries: list[int], _error: object, covered: dict[str, int] = covered
        ) -> int:
            covered[context] = sum(entries[::2])
            for size, flags in zip(entries[::2], entries[1::2], strict=True):
                if context == CONTEXTS[0] and flags & nbd.STATE_ZERO:
                    assert not any(model[begin : begin + size])
                begin += size
            return 0

        link.block_status(end - offset, offset, take)
        assert all(covered.values()), covered
        offset += min(covered.values())


if __name__ == "__main__":
    main(*sys.argv[1:])
