"""Requests that are taken by the short way, by the general one, whole or in bits, are answered and counted alike."""

from __future__ import annotations

import random
import struct
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from snapctl.engine.container import Container
from snapctl.services.nbd.transmission import SMALL_PAYLOAD_BYTES, Transmission
from tests.services.nbd import client as nbd
from tests.services.nbd.client import Client
from tests.services.nbd.conftest import SIZE
from tests.services.nbd.serving import Served, until

Asked = tuple[int, int, int, int]
"""A request: flags, command, offset, length."""

Count = dict[int, tuple[int, int, int, int]]
"""Of each command: requests, errors, bytes, and requests in the histogram."""

requests = st.tuples(
    st.sampled_from([0, 0, 0, 0, 0, nbd.DF, nbd.REQ_ONE]),
    st.sampled_from([nbd.READ, nbd.READ, nbd.WRITE, nbd.WRITE, nbd.TRIM, nbd.CACHE, 99]),
    st.one_of(st.integers(0, 16).map(lambda n: n * 4096), st.sampled_from([1, 5000, SIZE - 4096, SIZE - 1, SIZE])),
    st.sampled_from([4096, 4096, 4096, 0, 1, 512, 5000, 16384, SMALL_PAYLOAD_BYTES, SMALL_PAYLOAD_BYTES + 1, 300_000]),
)


def built(form: str, asked: Asked, number: int) -> bytes:
    """A request with its payload, if it has one."""
    flags, command, offset, length = asked
    payload = random.Random(number).randbytes(length) if command == nbd.WRITE else b""
    if form == "extended":
        flags |= nbd.PAYLOAD_LEN if command == nbd.WRITE else 0
        return struct.pack(">LHHQQQ", 0x21E41C71, flags, command, number, offset, length) + payload
    return struct.pack(">LHHQQL", 0x25609513, flags, command, number, offset, length) + payload


def filled(container: Container) -> int:
    """Make a volume like the others that this makes."""
    number = len(container.nodes)
    volume = container.create_volume(f"v{number}", SIZE)
    volume.write(8192, random.Random(1).randbytes(30_000))
    return number


def replies(form: str, asked: list[Asked], answers: bytes) -> list[tuple[int, bytes]]:
    """What came back, by cookie: a server may answer in any order, but the chunks of one answer."""
    found: list[tuple[int, bytes]] = []
    while answers:
        if form == "simple":
            _, error, cookie = struct.unpack_from(">LLQ", answers)
            _, command, _, length = asked[cookie - 1]
            size = 16 + (length if command == nbd.READ and not error else 0)
        else:
            header = struct.Struct(">LHHQQQ" if form == "extended" else ">LHHQL")
            _, _, _, cookie, *_, length = header.unpack_from(answers)
            size = header.size + length
        found.append((cookie, answers[:size]))
        answers = answers[size:]
    return sorted(found, key=lambda reply: reply[0])


def outcome(
    served: Served, form: str, asked: list[Asked], bits: list[bytes]
) -> tuple[list[tuple[int, bytes]], Count, bytes]:
    """Send bits of a stream of requests to a new volume; returns all that came back, the counts and the content."""
    made: list[int] = []
    served.change(lambda container: made.append(filled(container)))
    name = f"v{made[-1]}"

    def send(client: Client) -> None:
        for bit in bits:
            client.send(bit)

    with served.client(name, form=form) as client:
        sending = threading.Thread(target=send, args=[client])
        sending.start()
        answers = bytearray()
        while piece := client.link.recv(1 << 20):
            answers += piece
        sending.join()
    served.wait(lambda: until(served.server.clients))
    node_id = served.call(lambda: served.live.container[name].id)
    counted = served.call(lambda: served.server.statistics()[node_id])
    counts = {
        command: (one.requests, one.errors, one.length_bytes, sum(one.histogram))
        for command, one in counted.operations.items()
    }
    assert counted.in_flight == 0
    with served.client(name) as client:
        content = client.read(0, SIZE)
    served.change(lambda container: container.delete(name))
    return replies(form, asked, bytes(answers)), counts, content


@pytest.mark.parametrize("form", nbd.FORMS)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(asked=st.lists(requests, min_size=1, max_size=40), seed=st.integers(0, 99))
@example(asked=[(0, nbd.READ, 8192, 4096)] * 200 + [(0, nbd.WRITE, 0, 4096), (0, nbd.READ, 0, SIZE)] * 3, seed=1)
def test_answers_and_counts_are_alike_by_every_way(form: str, asked: list[Asked], seed: int, served: Served):
    stream = b"".join(built(form, one, number) for number, one in enumerate(asked, 1))
    stream += built(form, (0, nbd.DISC, 0, 0), 0)
    cuts = sorted(random.Random(seed).sample(range(len(stream)), 8))
    bits = [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole = outcome(served, form, asked, [stream])
    assert outcome(served, form, asked, bits) == whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transmission, "_take_plain", leave_all)
        assert outcome(served, form, asked, [stream]) == whole


def leave_all(_self: Any, _data: Any, position: int, *_: Any) -> int:
    """Stand for the short way, and take nothing."""
    return position


@pytest.mark.parametrize("form", nbd.FORMS)
def test_header_that_comes_byte_by_byte_is_a_request(form: str, served: Served):
    with served.client("db", form=form) as client:
        for byte in built(form, (0, nbd.READ, 4096, 3), client.cookie):
            client.send(bytes([byte]))
        assert client.reply(nbd.READ, 4096, 3).data == b"new"
