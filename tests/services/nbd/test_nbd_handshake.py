"""The handshake over a real socket, held to the protocol document."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapctl.engine.container import Container
from snapctl.services.live.container import LiveContainer
from snapctl.services.nbd.exports import Exports
from snapctl.services.nbd.handshake import MAX_OPTION_BYTES, MAX_SKIPPED_BYTES, START_TLS, Agreement, Refused, negotiate
from tests.services.nbd import client as nbd
from tests.services.nbd.client import Client, info_request, query, text
from tests.services.nbd.conftest import SIZE
from tests.services.nbd.serving import Served, serving

WRITABLE_FLAGS = 0b1101_0110_1101
"""HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, CAN_MULTI_CONN, CACHE, FAST_ZERO."""

READ_ONLY_FLAGS = 0b0101_0000_1111
"""HAS_FLAGS, READ_ONLY, FLUSH, FUA, CAN_MULTI_CONN, CACHE."""

DF_FLAG = 1 << 7


def test_greeting_offers_fixed_newstyle_without_zeroes(served: Served):
    with served.client() as client:
        assert client.greeting == b"NBDMAGICIHAVEOPT\x00\x03"


@pytest.mark.parametrize("flags", [4, 7, 1 << 31])
def test_unknown_client_flags_end_the_connection(flags: int, served: Served):
    with Client(served.path, flags=flags) as client:
        assert client.is_closed()


@pytest.mark.parametrize(("flags", "zeroes"), [(0, 124), (1, 124), (2, 0), (3, 0)])
def test_export_name_gives_size_and_flags(flags: int, zeroes: int, served: Served):
    with Client(served.path, flags=flags) as client:
        client.send_option(nbd.EXPORT_NAME, b"db")
        assert client.receive(10 + zeroes) == struct.pack(">QH", SIZE, WRITABLE_FLAGS) + bytes(zeroes)
        assert client.read(4096, 3) == b"new"


@pytest.mark.parametrize("name", [b"nope", b"db@nope", b"\xff", b"d\0b", b"x" * 5000, b"x" * 70_000])
def test_export_name_of_what_there_is_not_ends_the_connection(name: bytes, served: Served):
    with served.client() as client:
        client.send_option(nbd.EXPORT_NAME, name)
        assert client.is_closed()


def test_list_names_all_exports_and_describes_them(served: Served):
    with served.client() as client:
        *servers, (last, _) = client.option(nbd.LIST)
        assert last == nbd.ACK
        assert servers == [
            (nbd.SERVER, text("db") + b"volume of 4M"),
            (nbd.SERVER, text("db@mon") + b"read-only snapshot of 4M"),
        ]


def test_node_made_meanwhile_is_an_export_at_once(served: Served):
    with served.client() as client:
        served.change(lambda container: container.clone("db@mon", "dev"))
        assert [body for _, body in client.option(nbd.LIST)[:-1]][-1].startswith(text("dev"))
        client.go("dev")
        assert client.read(4096, 3) == b"old"


@pytest.mark.parametrize("option", [nbd.LIST, nbd.STRUCTURED, nbd.EXTENDED])
def test_option_without_data_is_invalid_with_data(option: int, served: Served):
    with served.client() as client:
        assert client.final(option, b"x") == nbd.INVALID
        assert client.final(option) == nbd.ACK


@pytest.mark.parametrize("option", [0, 4, 12, 1 << 31, 0xFFFF_FFFF])
def test_unknown_option_is_unsupported_and_the_next_one_works(option: int, served: Served):
    with served.client() as client:
        assert client.final(option, b"something") == nbd.UNSUP
        assert client.final(nbd.LIST) == nbd.ACK


def test_starttls_without_tls_is_unsupported(served: Served):
    with served.client() as client:
        assert client.final(nbd.STARTTLS) == nbd.UNSUP


def test_abort_is_acknowledged_whatever_comes_with_it(served: Served):
    for data in (b"", b"bye"):
        with served.client() as client:
            assert client.option(nbd.ABORT, data) == [(nbd.ACK, b"")]
            assert client.is_closed()


def test_info_tells_what_go_tells(served: Served):
    with served.client() as client:
        asked = info_request("db", 1, 2, 3, 77)
        told = client.option(nbd.OPT_INFO, asked)
        assert told == [
            (nbd.INFO, struct.pack(">HQH", 0, SIZE, WRITABLE_FLAGS)),
            (nbd.INFO, struct.pack(">H", 1) + b"db"),
            (nbd.INFO, struct.pack(">H", 2) + b"volume of 4M"),
            (nbd.INFO, struct.pack(">HLLL", 3, 1, 4096, 32 << 20)),
            (nbd.ACK, b""),
        ]
        assert client.option(nbd.GO, asked) == told
        assert client.read(4096, 3) == b"new"


def test_snapshot_is_read_only(served: Served):
    with served.client() as client:
        infos = client.go("db@mon", form="structured")
        assert infos[0] == struct.pack(">QH", SIZE, READ_ONLY_FLAGS | DF_FLAG)
        assert client.read(4096, 3) == b"old"


def test_everything_is_read_only_if_the_server_is(container: Path):
    with serving(container, read_only=True) as served, served.client() as client:
        assert client.go("db")[0] == struct.pack(">QH", SIZE, READ_ONLY_FLAGS)
        assert client.ask(nbd.WRITE, 0, 1, b"x").error == nbd.EPERM


def test_only_volume_is_the_default_export(served: Served):
    with served.client() as client:
        assert (nbd.INFO, b"\0\1db") in client.option(nbd.OPT_INFO, info_request("", 1))
        served.change(lambda container: container.create_volume("other", 4096))
        assert client.final(nbd.OPT_INFO, info_request("")) == nbd.UNKNOWN


def test_exports_can_be_limited(container: Path):
    with serving(container, only=("db@mon",)) as served, served.client() as client:
        assert len(client.option(nbd.LIST)) == 2
        assert client.final(nbd.GO, info_request("db")) == nbd.UNKNOWN
        assert client.final(nbd.GO, info_request("db@mon")) == nbd.ACK


@pytest.mark.parametrize("name", ["x" * 3 + "é" * 2046, "x" * 2 + "é" * 2047])
def test_sentence_about_a_long_name_is_cut_between_characters(name: str, served: Served):
    with served.client() as client:
        ((kind, sentence),) = client.option(nbd.OPT_INFO, info_request(name))
        assert kind == nbd.UNKNOWN
        assert 4000 < len(sentence) <= 4096
        assert sentence.decode().startswith("no export xx")


@pytest.mark.parametrize("option", [nbd.OPT_INFO, nbd.GO])
@pytest.mark.parametrize("name", ["nope", "db@nope", "/", "db/x", "x" * 4096])
def test_unknown_export_is_an_error_after_which_others_work(name: str, option: int, served: Served):
    with served.client() as client:
        assert client.final(option, info_request(name)) == nbd.UNKNOWN
        client.go("db")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0\2db",
        struct.pack(">L", 100) + b"db\0\0",
        struct.pack(">L", 0xFFFF_FFFF) + b"db\0\0",
        text("db") + struct.pack(">HH", 2, 3),
        text("db") + struct.pack(">H", 0) + b"more",
        text(b"\xff\xfe") + struct.pack(">H", 0),
        text("d\0b") + struct.pack(">H", 0),
        text("x" * 4097) + struct.pack(">H", 0),
    ],
)
def test_malformed_info_request_is_invalid(data: bytes, served: Served):
    with served.client() as client:
        assert client.final(nbd.GO, data) == nbd.INVALID
        client.go("db")


def test_structured_replies_bring_the_flag_that_forbids_fragments(served: Served):
    with served.client() as client:
        assert client.go("db", form="structured")[0] == struct.pack(">QH", SIZE, WRITABLE_FLAGS | DF_FLAG)


def test_extended_headers_take_precedence(served: Served):
    with served.client() as client:
        assert client.final(nbd.STRUCTURED) == nbd.ACK
        assert client.final(nbd.EXTENDED) == nbd.ACK
        assert client.final(nbd.STRUCTURED) == nbd.EXT_REQD
        client.send_option(nbd.EXPORT_NAME, b"db")
        assert client.is_closed()


@pytest.mark.parametrize("option", [nbd.LIST_META, nbd.SET_META])
def test_contexts_need_structured_replies(option: int, served: Served):
    with served.client() as client:
        assert client.final(option, query("db", "base:allocation")) == nbd.INVALID


@pytest.mark.parametrize("option", [nbd.LIST_META, nbd.SET_META])
def test_malformed_context_query_is_invalid(option: int, served: Served):
    with served.client() as client:
        client.final(nbd.STRUCTURED)
        good = query("db", "base:allocation")
        for data in (b"", good[:-1], good + b"x", text("db") + struct.pack(">L", 0xFFFF_FFFF), query("db", "x" * 4097)):
            assert client.final(option, data) == nbd.INVALID
        assert client.final(option, query("nope", "base:allocation")) == nbd.UNKNOWN
        assert client.final(option, good) == nbd.ACK


def contexts_found(client: Client, option: int, *queries: str, name: str = "db") -> list[str]:
    *found, (last, _) = client.option(option, query(name, *queries))
    assert last == nbd.ACK
    assert all(kind == nbd.META for kind, _ in found)
    return [body[4:].decode() for _, body in found]


def test_wildcards_list_contexts_and_select_none(served: Served):
    with served.client() as client:
        client.final(nbd.STRUCTURED)
        depth, dirty = "qemu:allocation-depth", "qemu:dirty-bitmap:mon"
        assert contexts_found(client, nbd.LIST_META, "base:") == ["base:allocation"]
        assert contexts_found(client, nbd.LIST_META, "qemu:") == [depth, dirty]
        assert contexts_found(client, nbd.LIST_META, "qemu:dirty-bitmap:", "base:allocation") == [
            "base:allocation",
            dirty,
        ]
        assert contexts_found(client, nbd.LIST_META) == ["base:allocation", depth, dirty]
        assert contexts_found(client, nbd.LIST_META, name="db@mon") == ["base:allocation", depth]
        assert contexts_found(client, nbd.SET_META, dirty, depth) == [dirty, depth]
        assert contexts_found(client, nbd.LIST_META, "x-unknown:", "base:nope") == []
        assert contexts_found(client, nbd.SET_META, "base:", "qemu:", "x-unknown:thing", "nonsense") == []
        assert contexts_found(client, nbd.SET_META) == []
        assert contexts_found(client, nbd.SET_META, "base:allocation", "base:allocation") == ["base:allocation"]


def test_contexts_of_another_export_count_for_nothing(served: Served):
    with served.client() as client:
        client.final(nbd.STRUCTURED)
        assert contexts_found(client, nbd.SET_META, "base:allocation", name="db@mon") == ["base:allocation"]
        client.form = "structured"
        assert client.final(nbd.GO, info_request("db")) == nbd.ACK
        assert client.ask(nbd.BLOCK_STATUS, 0, 4096).error == nbd.EINVAL


def test_failed_choice_of_contexts_clears_the_one_before(served: Served):
    with served.client() as client:
        client.final(nbd.STRUCTURED)
        assert contexts_found(client, nbd.SET_META, "base:allocation") == ["base:allocation"]
        assert client.final(nbd.SET_META, b"") == nbd.INVALID
        client.form = "structured"
        assert client.final(nbd.GO, info_request("db")) == nbd.ACK
        assert client.ask(nbd.BLOCK_STATUS, 0, 4096).error == nbd.EINVAL


def test_option_that_is_too_long_is_refused_and_the_next_one_works(served: Served):
    with served.client() as client:
        assert client.final(nbd.GO, bytes(MAX_OPTION_BYTES + 1)) == nbd.TOO_BIG
        assert client.final(99, bytes(MAX_SKIPPED_BYTES)) == nbd.UNSUP
        assert client.final(nbd.LIST) == nbd.ACK


@pytest.mark.parametrize("length", [MAX_SKIPPED_BYTES + 1, 0xFFFF_FFFF])
def test_endless_option_ends_the_connection(length: int, served: Served):
    with served.client() as client:
        client.send(struct.pack(">8sLL", b"IHAVEOPT", nbd.LIST, length))
        assert client.is_closed()


def test_option_without_its_magic_ends_the_connection(served: Served):
    with served.client() as client:
        client.send(b"IHAVEOPX" + bytes(8))
        assert client.is_closed()


def test_option_may_arrive_byte_by_byte(served: Served):
    with served.client() as client:
        for byte in struct.pack(">8sLL", b"IHAVEOPT", nbd.GO, 8) + info_request("db"):
            client.send(bytes([byte]))
        kinds = [client.option_reply()[1] for _ in range(3)]
        assert kinds == [nbd.INFO, nbd.INFO, nbd.ACK]


def drive(data: bytes, exports: Exports, *, tls: bool) -> Agreement | str | None:
    """Feed `data` to a handshake until it ends or the data does; returns what it led to."""
    steps: Generator[object, bytes, Agreement | None] = negotiate(exports, tls=tls)
    position = 0
    try:
        step = next(steps)
        while True:
            if isinstance(step, int):
                assert 0 < step <= MAX_OPTION_BYTES
                if position + step > len(data):
                    return "more"
                piece, position = data[position : position + step], position + step
                step = steps.send(piece)
            else:
                assert step is START_TLS or isinstance(step, bytes)
                step = next(steps)
    except StopIteration as result:
        agreement: Agreement | None = result.value
        return agreement
    except Refused as refused:
        return f"refused: {refused}"


options = st.builds(
    lambda option, data, lie: struct.pack(">8sLL", b"IHAVEOPT", option, len(data) + lie) + data,
    st.integers(0, 12),
    st.one_of(
        st.binary(max_size=40),
        st.builds(info_request, st.sampled_from(["", "db", "db@mon", "x"]), st.integers(0, 4)),
        st.builds(query, st.sampled_from(["", "db", "x"]), st.sampled_from(["base:", "base:allocation", "qemu:"])),
    ),
    st.sampled_from([0, 0, 0, 0, 0, 1, 1 << 20]),
)


@pytest.mark.parametrize("tls", [False, True])
@settings(max_examples=400)
@given(data=st.lists(st.one_of(options, options, st.binary(max_size=20)), max_size=8))
def test_whatever_is_sent_leads_to_an_export_or_to_nothing(tls: bool, data: list[bytes]):
    outcome = drive(b"\0\0\0\3" + b"".join(data), EXPORTS, tls=tls)
    assert not isinstance(outcome, Agreement) or outcome.device.name in {"db", "db@mon"}


def in_memory() -> Exports:
    from snapctl.format.geometry import Geometry
    from tests.support.backends import MemoryBackend

    container = Container.format(MemoryBackend(), Geometry(512, 512))
    container.create_volume("db", 1 << 20)
    container.snapshot("db@mon")

    async def live() -> LiveContainer:
        return LiveContainer(container)

    return Exports(asyncio.run(live()))


EXPORTS = in_memory()
