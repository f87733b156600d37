"""A client that writes what can be foretold and logs what is durable, by libnbd; run by Debian's Python.

Arguments: the connection string of an export, a log to append to, the seed, the number of the first request. It goes on
until the server is gone. The log has a line ``begun N`` for each request before it is sent, ``answered N`` once the
server has said that it is done, and ``durable N N N`` for those that were answered before a flush was sent that has
been answered as well, or that were answered with FUA. The flush goes over another connection than half of them.
Requests for the same block are never under way at once.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

BLOCK_BYTES = 4096
BLOCKS = 4096
_MOST_BLOCKS = 64
_DEPTH = 16
_FLUSH_EVERY = 24
_NUMBER_BYTES = 8


class Request(NamedTuple):
    """What one request does to which blocks: ``write``, ``zero`` or ``trim``."""

    kind: str
    blocks: range
    fua: bool


def request(seed: int, number: int) -> Request:
    """Foretell a request."""
    choose = Random(f"{seed}/{number}")
    kind = choose.choices(("write", "zero", "trim"), (8, 1, 1))[0]
    count = choose.randint(1, choose.choice((1, 8, _MOST_BLOCKS)))
    first = choose.randrange(BLOCKS - count + 1)
    return Request(kind, range(first, first + count), choose.random() < 0.05)


def content(seed: int, number: int, block: int) -> bytes:
    """Foretell what a write makes of a block; its number stands in front."""
    noise = hashlib.shake_128(f"{seed}/{number}/{block}".encode()).digest(BLOCK_BYTES - _NUMBER_BYTES)
    return number.to_bytes(_NUMBER_BYTES, "little") + noise


def number_in(data: bytes) -> int:
    """Tell which write a block claims to be of; 0 for zeros."""
    return int.from_bytes(data[:_NUMBER_BYTES], "little")


class Client:
    """Two connections to one export."""

    def __init__(self, uri: str, log: str, seed: int) -> None:
        import nbd  # type: ignore[import-not-found]  # Debian's, which no other Python has

        self._nbd: Any = nbd
        self._links = [nbd.NBD(), nbd.NBD()]
        for link in self._links:
            link.connect_uri(uri)
        assert all(link.can_multi_conn() for link in self._links)
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._seed = seed
        self._under_way: dict[int, Request] = {}
        self._answered: list[int] = []
        self._turn = 0

    def go_on(self, first: int) -> None:
        """Send requests until the server is gone."""
        number = first
        while True:
            asked = request(self._seed, number)
            while len(self._under_way) >= _DEPTH or any(
                set(asked.blocks) & set(other.blocks) for other in self._under_way.values()
            ):
                self._wait()
            self._send(number, asked)
            if number % _FLUSH_EVERY == 0:
                self._flush()
            number += 1

    def _wait(self) -> None:
        """Have either connection take in what has come, in turn; end when one has failed."""
        if any(link.aio_is_dead() or link.aio_is_closed() for link in self._links):
            raise self._nbd.Error("the server is gone", None)
        self._turn += 1
        for link in (self._links[self._turn % 2], self._links[(self._turn + 1) % 2]):
            if link.aio_in_flight():
                link.poll(1)

    def _send(self, number: int, asked: Request) -> None:
        self._say(f"begun {number}")
        self._under_way[number] = asked
        link, offset = self._links[number % 2], asked.blocks[0] * BLOCK_BYTES
        flags = self._nbd.CMD_FLAG_FUA if asked.fua else 0
        done = self._when_done(lambda: self._take(number, asked))
        if asked.kind == "write":
            data = bytearray(b"".join(content(self._seed, number, block) for block in asked.blocks))
            link.aio_pwrite(self._nbd.Buffer.from_bytearray(data), offset, done, flags)
        elif asked.kind == "zero":
            link.aio_zero(len(asked.blocks) * BLOCK_BYTES, offset, done, flags)
        else:
            link.aio_trim(len(asked.blocks) * BLOCK_BYTES, offset, done, flags)

    def _take(self, number: int, asked: Request) -> None:
        del self._under_way[number]
        self._say(f"answered {number}")
        if asked.fua:
            self._say(f"durable {number}")
        else:
            self._answered.append(number)

    def _flush(self) -> None:
        covered, self._answered = self._answered, []
        done = self._when_done(lambda: self._say(f"durable {' '.join(map(str, covered))}"))
        self._links[self._turn % 2].aio_flush(done)

    @staticmethod
    def _when_done(act: Callable[[], None]) -> Callable[[Any], int]:
        def done(error: Any) -> int:
            if not getattr(error, "value", error):
                act()
            return 1

        return done

    def _say(self, line: str) -> None:
        os.write(self._log, f"{line}\n".encode())


def main(uri: str, log: str, seed: str, first: str) -> None:
    """Write until the server is gone, which is how this always ends."""
    client = Client(uri, log, int(seed))
    try:
        client.go_on(int(first))
    except client._nbd.Error as error:
        print(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
