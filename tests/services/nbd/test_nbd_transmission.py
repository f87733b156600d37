"""The transmission phase over a real socket, each command with each form of reply, held to the protocol document."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapctl.services.nbd.answers import PIECE_BYTES
from snapctl.services.nbd.exports import MAX_PAYLOAD_BYTES
from snapctl.services.nbd.transmission import SMALL_PAYLOAD_BYTES
from tests.services.nbd import client as nbd
from tests.services.nbd.client import Client
from tests.services.nbd.conftest import SIZE
from tests.services.nbd.serving import Served

CHANGES = [nbd.WRITE, nbd.TRIM, nbd.WRITE_ZEROES]
OTHERS = [nbd.READ, nbd.CACHE, nbd.BLOCK_STATUS]
STORED = b"new" * 3000

every_form = pytest.mark.parametrize("form", nbd.FORMS)
chunked_forms = pytest.mark.parametrize("form", nbd.FORMS[1:])


@pytest.fixture
def client(served: Served, form: str):
    contexts = () if form == "simple" else ("base:allocation",)
    with served.client("db", form=form, contexts=contexts) as connected:
        yield connected


@every_form
@pytest.mark.parametrize("length", [1, 4095, 4096, 5000, PIECE_BYTES, PIECE_BYTES + 1, SIZE])
def test_read_gives_what_is_stored(length: int, client: Client):
    model = bytes(4096) + STORED + bytes(SIZE)
    assert client.read(0, length) == model[:length]
    assert client.read(4097, min(length, SIZE - 4097)) == model[4097 : 4097 + min(length, SIZE - 4097)]


@every_form
@pytest.mark.parametrize("length", [1, 512, SMALL_PAYLOAD_BYTES, SMALL_PAYLOAD_BYTES + 1, 1 << 20, SIZE - 7])
def test_write_is_read_at_once_by_another_connection(length: int, served: Served, client: Client):
    data = random.Random(length).randbytes(length)
    client.write(7, data)
    with served.client("db") as other:
        assert other.read(7, length) == data


@every_form
def test_largest_payload_is_taken(served: Served, form: str):
    served.change(lambda container: container.create_volume("big", MAX_PAYLOAD_BYTES + 5))
    data = random.Random(1).randbytes(1 << 20) * 32
    with served.client("big", form=form) as client:
        client.write(5, data)
        assert client.read(5, MAX_PAYLOAD_BYTES) == data
        assert client.ask(nbd.READ, 0, MAX_PAYLOAD_BYTES + 1).error == nbd.EINVAL


@every_form
@pytest.mark.parametrize("command", [nbd.TRIM, nbd.WRITE_ZEROES])
@pytest.mark.parametrize("flags", [0, nbd.FUA])
def test_trimmed_and_zeroed_ranges_read_as_zeros(command: int, flags: int, client: Client):
    assert client.ask(command, 4100, 4096, flags=flags).error == 0
    assert client.read(4096, 9000) == STORED[:4] + bytes(4096) + STORED[4100:]


@every_form
@pytest.mark.parametrize("flags", [nbd.NO_HOLE, nbd.FAST_ZERO, nbd.NO_HOLE | nbd.FAST_ZERO | nbd.FUA])
def test_zeroes_are_fast_whether_holes_are_wanted_or_not(flags: int, client: Client):
    assert client.ask(nbd.WRITE_ZEROES, 0, SIZE, flags=flags).error == 0
    assert client.read(4096, 9000) == bytes(9000)


@every_form
@pytest.mark.parametrize("how", ["flush", "fua"])
def test_flush_of_one_connection_commits_what_all_were_told_is_written(how: str, served: Served, client: Client):
    with served.client("db") as other:
        other.write(0, b"other")
    before = served.call(lambda: served.live.container.transaction)
    if how == "flush":
        assert client.ask(nbd.FLUSH).error == 0
    else:
        client.write(100, b"mine", nbd.FUA)
    assert served.call(lambda: served.live.container.transaction) > before


@every_form
def test_cache_and_empty_requests_succeed(client: Client):
    assert client.ask(nbd.CACHE, 0, SIZE).error == 0
    for command in (nbd.READ, nbd.WRITE, nbd.TRIM, nbd.WRITE_ZEROES, nbd.CACHE):
        assert client.ask(command, 0, 0).error == 0
    assert client.ask(nbd.BLOCK_STATUS, 0, 0).error == nbd.EINVAL


@every_form
@pytest.mark.parametrize("command", [*CHANGES, *OTHERS])
@pytest.mark.parametrize(
    ("offset", "length"), [(SIZE, 1), (SIZE - 1, 2), ((1 << 64) - 1, 1), (1 << 63, 4096), (0, SIZE + 1)]
)
def test_range_beyond_the_end_is_refused(command: int, offset: int, length: int, client: Client):
    expected = nbd.ENOSPC if command in {nbd.WRITE, nbd.WRITE_ZEROES} else nbd.EINVAL
    data = bytes(length) if command == nbd.WRITE else b""
    assert client.ask(command, offset, length, data).error == expected
    assert client.read(4096, 3) == b"new"


@every_form
@pytest.mark.parametrize("command", CHANGES)
def test_snapshot_takes_no_changes(command: int, form: str, served: Served):
    with served.client("db@mon", form=form) as client:
        data = b"x" * 100_000 if command == nbd.WRITE else b""
        reply = client.ask(command, 0, 100_000, data)
        assert reply.error == nbd.EPERM
        assert form == "simple" or "read-only" in reply.message
        assert client.read(4096, 3) == b"old"


@every_form
@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (nbd.READ, nbd.REQ_ONE),
        (nbd.WRITE, nbd.NO_HOLE),
        (nbd.WRITE, nbd.DF),
        (nbd.FLUSH, nbd.DF),
        (nbd.TRIM, nbd.FAST_ZERO),
        (nbd.CACHE, nbd.NO_HOLE),
        (nbd.WRITE_ZEROES, 1 << 9),
        (nbd.BLOCK_STATUS, nbd.DF),
        (8, 0),
        (0xFFFF, 0),
    ],
)
def test_flag_or_command_that_does_not_fit_is_invalid(command: int, flags: int, client: Client):
    data = b"x" * 4096 if command == nbd.WRITE else b""
    length = 0 if command == nbd.FLUSH else 4096
    assert client.ask(command, 0, length, data, flags).error == nbd.EINVAL
    assert client.read(0, 4096) == bytes(4096)


@every_form
@pytest.mark.parametrize("command", [nbd.READ, nbd.CACHE, nbd.FLUSH])
def test_fua_goes_with_every_command(command: int, client: Client):
    assert client.ask(command, 0, 0, flags=nbd.FUA).error == 0


@every_form
def test_flush_of_a_range_is_invalid(client: Client):
    assert client.ask(nbd.FLUSH, 0, 4096).error == nbd.EINVAL


@every_form
def test_disconnect_is_answered_by_closing_after_what_came_before(client: Client):
    client.send_request(nbd.WRITE, 0, 3, b"abc", nbd.FUA)
    client.send(struct.pack(">LHHQQQ", 0x21E41C71, 0, 2, 1, 0, 0)[: 32 if client.form == "extended" else 0])
    if client.form != "extended":
        client.send(struct.pack(">LHHQQL", 0x25609513, 0, 2, 1, 0, 0))
    assert client.reply(nbd.WRITE, 0, 3).error == 0
    assert client.is_closed()


@every_form
def test_requests_sent_together_are_all_answered(client: Client):
    cookies = [client.send_request(nbd.READ, 4096 + n, 1) for n in range(1000)]
    found = {}
    for _ in cookies:
        chunk = client.chunk(1)
        found[chunk.cookie] = chunk.body[-1:]
    assert b"".join(found[cookie] for cookie in cookies) == STORED[:1000]


@every_form
def test_reads_go_on_while_a_flush_is_under_way(client: Client):
    client.write(0, b"x" * 4096)
    flush = client.send_request(nbd.FLUSH)
    read = client.send_request(nbd.READ, 4096, 3)
    answered = {client.chunk(0 if n else 3).cookie for n in range(2)} if client.form != "simple" else {flush, read}
    assert answered == {flush, read}


@chunked_forms
def test_hole_is_sent_without_its_zeros(client: Client):
    for offset, length in ((1 << 20, 4096), (1 << 20, PIECE_BYTES), (1 << 20, 2 << 20)):
        reply = client.ask(nbd.READ, offset, length)
        assert reply.holes == length
    reply = client.ask(nbd.READ, 0, SIZE)
    assert reply.holes == SIZE - 16384
    assert reply.data == bytes(4096) + STORED + bytes(SIZE - 4096 - len(STORED))


@chunked_forms
@pytest.mark.parametrize("length", [4096, PIECE_BYTES, SIZE])
def test_unfragmented_read_is_one_chunk_of_data(length: int, client: Client):
    client.send_request(nbd.READ, 0, length, flags=nbd.DF)
    chunk = client.chunk(at=0)
    assert chunk.kind == 1
    assert len(chunk.body) == length + 8
    assert chunk.is_last or client.chunk(at=0)[1:] == (True, 0, b"")


def test_unfragmented_read_needs_structured_replies(served: Served):
    with served.client("db") as client:
        assert client.ask(nbd.READ, 0, 1, flags=nbd.DF).error == nbd.EINVAL


@chunked_forms
def test_allocation_tells_data_from_holes(client: Client):
    (found,) = client.statuses(0, SIZE).values()
    assert found == [(4096, 3), (12288, 0), (SIZE - 16384, 3)]
    (found,) = client.ask(nbd.BLOCK_STATUS, 5000, SIZE - 5000, flags=nbd.REQ_ONE).extents.values()
    assert found == [(16384 - 5000, 0)]
    client.ask(nbd.TRIM, 8192, 4096)
    (found,) = client.statuses(0, 16384).values()
    assert found == [(4096, 3), (4096, 0), (4096, 3), (4096, 0)]


@chunked_forms
def test_depth_and_changes_are_told_with_the_allocation(served: Served, form: str):
    contexts = ("qemu:dirty-bitmap:mon", "base:allocation", "qemu:allocation-depth")
    served.change(lambda container: container.snapshot("db@tue"))
    served.change(lambda container: container.clone("db@mon", "dev"))
    with served.client("db", form=form, contexts=(*contexts, "qemu:dirty-bitmap:tue")) as client:
        client.write(1 << 20, b"x" * 4096)
        found = client.statuses(0, SIZE)
        rest = SIZE - (1 << 20) - 4096
        gap = (1 << 20) - 16384
        assert found[1] == [(4096, 0), (12288, 1), (gap, 0), (4096, 1), (rest, 0)]
        assert found[2] == [(4096, 3), (12288, 0), (gap, 3), (4096, 0), (rest, 3)]
        assert found[3] == [(4096, 0), (12288, 1), (gap, 0), (4096, 1), (rest, 0)]
        assert found[4] == [(1 << 20, 0), (4096, 1), (rest, 0)]
        served.change(lambda container: container.delete("db@tue"))
        assert client.ask(nbd.BLOCK_STATUS, 0, SIZE).error == nbd.EIO
        assert client.read(1 << 20, 4) == b"xxxx"
    with served.client("dev", form=form, contexts=contexts[2:]) as client:
        client.write(0, b"own")
        (depths,) = client.statuses(0, 16384).values()
        assert depths[0] == (4096, 1)
        assert depths[1][1] > 1


def test_context_means_the_snapshot_that_was_chosen_and_none_that_takes_its_name(served: Served):
    with served.client("db", form="structured", contexts=("qemu:dirty-bitmap:mon",)) as client:
        assert client.ask(nbd.BLOCK_STATUS, 4096, 4096).extents == {1: [(4096, 1)]}
        served.change(lambda container: container.delete("db@mon"))
        served.change(lambda container: container.snapshot("db@mon"))
        assert client.ask(nbd.BLOCK_STATUS, 4096, 4096).error == nbd.EIO
        client.write(4096, b"x" * 4096)  # which is in the cache, so that no table of the snapshot is asked
        assert client.ask(nbd.BLOCK_STATUS, 4096, 4096).error == nbd.EIO
    with served.client("db", form="structured", contexts=("qemu:dirty-bitmap:mon",)) as client:
        assert client.statuses(0, 8192) == {1: [(4096, 0), (4096, 1)]}


def test_context_stays_with_a_snapshot_that_is_renamed(served: Served):
    with served.client("db", form="structured", contexts=("qemu:dirty-bitmap:mon",)) as client:
        served.change(lambda container: container.rename("db@mon", "old"))
        served.change(lambda container: container.snapshot("db@mon"))
        assert client.ask(nbd.BLOCK_STATUS, 4096, 4096).extents == {1: [(4096, 1)]}


@chunked_forms
def test_status_of_terabytes_is_answered_at_once_and_bounded(served: Served, form: str):
    size = 3 << 40
    served.change(lambda container: container.create_volume("huge", size))
    with served.client("huge", form=form, contexts=("base:allocation",)) as client:
        for batch in range(0, 6000 * 8192, 500 * 8192):
            for start in range(batch, batch + 500 * 8192, 8192):
                client.send_request(nbd.WRITE, start, 1, b"x")
            assert all(client.chunk().kind == 0 for _ in range(500))
        asked = size if form == "extended" else 0xFFFF_FFFF
        (found,) = client.ask(nbd.BLOCK_STATUS, 0, asked).extents.values()
        assert 3 <= len(found) <= 4096  # as many as there was time for
        assert found[:3] == [(4096, 0), (4096, 3), (4096, 0)]
        (found,) = client.ask(nbd.BLOCK_STATUS, 1 << 30, min(asked, size - (1 << 30))).extents.values()
        assert len(found) == 1
        assert found[0][0] >= 64 << 20
        assert found[0][1] == 3


def test_extended_request_carries_64_bit_lengths(served: Served):
    size = 1 << 40
    served.change(lambda container: container.create_volume("huge", size))
    with served.client("huge", form="extended", contexts=("base:allocation",)) as client:
        client.write(size - 4, b"last")
        assert client.ask(nbd.WRITE_ZEROES, 0, size).error == 0
        assert client.read(size - 4, 4) == bytes(4)
        assert client.ask(nbd.TRIM, 0, size).error == 0
        assert client.ask(nbd.CACHE, 0, (1 << 64) - 1).error == nbd.EINVAL


def test_payload_where_none_belongs_is_consumed_and_refused(served: Served):
    with served.client("db", form="extended", contexts=("base:allocation",)) as client:
        for command in (nbd.READ, nbd.FLUSH, nbd.TRIM, nbd.BLOCK_STATUS, 99):
            assert client.ask(command, 0, 70_000, bytes(70_000), nbd.PAYLOAD_LEN).error == nbd.EINVAL
        client.send(struct.pack(">LHHQQQ", 0x21E41C71, 0, nbd.WRITE, client.cookie, 0, 4096))  # without PAYLOAD_LEN
        assert client.reply(nbd.WRITE, 0, 4096).error == nbd.EINVAL
        assert client.read(4096, 3) == b"new"


@every_form
@pytest.mark.parametrize("length", [MAX_PAYLOAD_BYTES + 1, 0xFFFF_FFFF])
def test_payload_beyond_all_measure_ends_the_connection(length: int, client: Client):
    client.send_request(nbd.WRITE, 0, length)
    assert client.is_closed()


def test_what_follows_a_payload_beyond_all_measure_is_no_request(served: Served):
    with served.client("db") as client:
        client.send_request(
            nbd.WRITE, 0, MAX_PAYLOAD_BYTES + 1, struct.pack(">LHHQQL", 0x25609513, 0, nbd.WRITE, 0, 0, 3) + b"bad"
        )
        assert client.is_closed()
    with served.client("db") as client:
        assert client.read(0, 3) != b"bad"


@every_form
def test_request_without_its_magic_ends_the_connection(client: Client):
    client.send(b"\x25\x60\x95\x14" + bytes(28))
    assert client.is_closed()


@every_form
def test_shrunk_volume_refuses_what_is_beyond_its_end(served: Served, client: Client):
    served.change(lambda container: container["db"].resize(1 << 20, shrink=True))
    assert client.ask(nbd.READ, 2 << 20, 4096).error == nbd.EINVAL
    assert client.ask(nbd.WRITE, 2 << 20, 1, b"x").error == nbd.ENOSPC
    assert client.ask(nbd.READ, 0, 2 << 20).error == nbd.EINVAL
    assert client.read(0, 1 << 20)[4096:4099] == b"new"


@every_form
def test_client_of_a_deleted_volume_is_told_to_go(served: Served, client: Client):
    served.change(lambda container: container.delete("db", cascade=True))
    assert client.ask(nbd.READ, 0, 1).error == 108


@every_form
def test_client_is_a_user_of_its_device_until_it_leaves(served: Served, form: str):
    with served.client("db", form=form) as client:
        client.read(0, 1)
        (users,) = served.call(lambda: list(served.live.users.values()))
        (user,) = users
        assert "pid" in user.description
        served.call(lambda: user.disconnect("for the test"))
        assert client.is_closed()
    assert served.call(lambda: served.live.users) == {}


@st.composite
def histories(draw: st.DrawFn):
    """Operations: which connection, command, offset, length, a seed of the data."""
    steps = st.tuples(
        st.integers(0, 2),
        st.sampled_from([nbd.READ, nbd.WRITE, nbd.WRITE, nbd.TRIM, nbd.WRITE_ZEROES, nbd.FLUSH]),
        st.integers(0, SIZE - 1),
        st.one_of(st.integers(0, 9000), st.integers(0, 600_000)),
        st.integers(0, 255),
    )
    return draw(st.lists(steps, min_size=1, max_size=25))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(history=histories())
def test_any_history_over_any_connections_equals_a_model(history: list[tuple[int, int, int, int, int]], served: Served):
    clients = [served.client("db", form=form) for form in nbd.FORMS]
    model = bytearray(clients[0].read(0, SIZE))
    try:
        for who, command, offset, length, seed in history:
            length = min(length, SIZE - offset)
            client = clients[who]
            if command == nbd.READ:
                assert client.read(offset, length) == model[offset : offset + length]
            elif command == nbd.FLUSH:
                assert client.ask(command).error == 0
            else:
                data = random.Random(seed).randbytes(length) if command == nbd.WRITE else bytes(length)
                payload = data if command == nbd.WRITE else b""
                assert client.ask(command, offset, length, payload, seed & nbd.FUA).error == 0
                model[offset : offset + length] = data
        assert all(client.read(0, SIZE) == model for client in clients)
    finally:
        for client in clients:
            client.link.close()
