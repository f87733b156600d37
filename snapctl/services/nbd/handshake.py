"""The handshake of one connection, without input or output ("Handshake", fixed newstyle).

`negotiate` is a generator that a connection drives: it yields the number of bytes that it wants next and is sent them,
or yields bytes to send, or `START_TLS`. It returns what was agreed on, or None if the client takes its leave; what the
document answers by disconnecting raises `Refused`. Whatever a client sends, it holds one option at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final

from snapctl.errors import SnapctlError
from snapctl.services.live.device import Device
from snapctl.services.nbd import contexts, wire
from snapctl.services.nbd.contexts import Context
from snapctl.services.nbd.exports import MAX_PAYLOAD_BYTES, Exports, describe

MAX_OPTION_BYTES = 64 << 10
"""Of an option's data; what is longer is not looked at."""

MAX_SKIPPED_BYTES = 1 << 20
"""Of an option's data that is too long or unknown; whoever sends more is disconnected."""

MAX_OPTIONS = 4096
"""In one handshake; a client that lists everything about many exports sends several for each."""

MAX_LISTS = 16
"""NBD_OPT_LIST in one handshake: 16 bytes that make the server name all that it has, and nobody needs more than one."""


class StartTls:
    """The type of `START_TLS`."""


START_TLS: Final = StartTls()
"""Asks the driver to begin TLS; nothing that was received before may be taken for what comes after."""

Steps = Generator[int | bytes | StartTls, bytes, "Agreement | None"]


class Refused(Exception):
    """The client gets no further, and no answer: the connection is to be closed."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a handshake has led to.

    Attributes:
        device: the export.
        size_bytes: the size that the client was told.
        is_read_only: writes are to be refused.
        is_structured: replies to reads are structured.
        is_extended: headers are the extended ones, both ways; replies are structured then, too.
        contexts: what NBD_CMD_BLOCK_STATUS answers.
    """

    device: Device
    size_bytes: int
    is_read_only: bool
    is_structured: bool = False
    is_extended: bool = False
    contexts: tuple[Context, ...] = ()


@dataclass(slots=True)
class _State:
    """What a client has asked for so far; begun anew with TLS."""

    is_structured: bool = False
    is_extended: bool = False
    contexts_of: str | None = None
    contexts: list[Context] = field(default_factory=list)


def negotiate(exports: Exports, *, tls: bool, is_closing: Callable[[], bool] = lambda: False) -> Steps:
    """Lead a client to an export.

    Args:
        exports: what is on offer.
        tls: nothing is to be had without TLS (the document's FORCEDTLS mode); else there is none (NOTLS).
        is_closing: tells whether the server is shutting down.

    Yields:
        How many bytes to send in next; bytes to send out; or `START_TLS`.

    Returns:
        What was agreed on, or None if the client said goodbye.

    Raises:
        Refused: the connection is to be closed at once.
    """
    flags = wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES
    yield wire.Greeting.build({"flags": flags})
    client_flags = wire.parse_client_flags((yield 4))
    if client_flags & ~flags:
        raise Refused(f"unknown client flags {client_flags:#x}")
    haggling = _Haggling(exports, needs_tls=tls, no_zeroes=bool(client_flags & wire.FLAG_NO_ZEROES))
    lists = 0
    for _ in range(MAX_OPTIONS):
        magic, option, length = wire.parse_option((yield 16))
        if magic != wire.OPTION_MAGIC:
            raise Refused("not an option")
        if length > MAX_SKIPPED_BYTES:
            raise Refused(f"an option of {length} bytes")
        if length > MAX_OPTION_BYTES:
            yield from _skip(length)
            if option == wire.OPT_EXPORT_NAME:
                raise Refused("an endless name")
            yield wire.option_reply(option, haggling.objection(option) or wire.REP_ERR_TOO_BIG)
            continue
        data = (yield length) if length else b""
        if option == wire.OPT_ABORT:
            yield wire.option_reply(option, wire.REP_ACK)
            return None
        if option == wire.OPT_EXPORT_NAME:
            agreement, reply = haggling.export_name(data)
            yield reply
            return agreement
        lists += option == wire.OPT_LIST
        if lists > MAX_LISTS:
            raise Refused("too many lists of the exports")
        if is_closing():
            yield wire.option_reply(option, wire.REP_ERR_SHUTDOWN)
            continue
        yield haggling.answer(option, data)
        if haggling.begins_tls:
            yield START_TLS
            haggling = _Haggling(exports, needs_tls=False, no_zeroes=haggling.no_zeroes, has_tls=True)
        if haggling.agreement is not None:
            return haggling.agreement
    raise Refused("too many options")


def _skip(length: int) -> Generator[int, bytes, None]:
    while length:
        step = min(length, MAX_OPTION_BYTES)
        yield step
        length -= step


class _Haggling:
    """The options of a client, answered one by one."""

    def __init__(self, exports: Exports, *, needs_tls: bool, no_zeroes: bool, has_tls: bool = False) -> None:
        self.no_zeroes = no_zeroes
        self.begins_tls = False
        self.agreement: Agreement | None = None
        self._exports = exports
        self._needs_tls = needs_tls
        self._has_tls = has_tls
        self._state = _State()
        self._answers: dict[int, Callable[[int, bytes], bytes]] = {
            wire.OPT_LIST: self._list,
            wire.OPT_STARTTLS: self._start_tls,
            wire.OPT_INFO: self._info,
            wire.OPT_GO: self._info,
            wire.OPT_STRUCTURED_REPLY: self._structured,
            wire.OPT_EXTENDED_HEADERS: self._extended,
            wire.OPT_LIST_META_CONTEXT: self._list_contexts,
            wire.OPT_SET_META_CONTEXT: self._set_contexts,
        }

    def objection(self, option: int) -> int | None:
        """Return the error that an option gets whatever its data; None if it is looked at."""
        if self._needs_tls and option != wire.OPT_STARTTLS:
            return wire.REP_ERR_TLS_REQD
        if option not in self._answers:
            return wire.REP_ERR_UNSUP
        return None

    def answer(self, option: int, data: bytes) -> bytes:
        """Answer an option that can be answered."""
        if error := self.objection(option):
            return wire.option_reply(option, error)
        try:
            return self._answers[option](option, data)
        except wire.BadOption as bad:
            return wire.option_reply(option, wire.REP_ERR_INVALID, wire.text(str(bad)))
        except SnapctlError as error:
            return wire.option_reply(option, wire.REP_ERR_UNKNOWN, wire.text(str(error)))

    def export_name(self, data: bytes) -> tuple[Agreement, bytes]:
        """Answer NBD_OPT_EXPORT_NAME, which knows no errors.

        Raises:
            Refused: there is no such export, or it wants what this option cannot give.
        """
        if self._needs_tls:
            raise Refused("an export asked for without TLS")
        if self._state.is_extended:
            raise Refused("NBD_OPT_EXPORT_NAME after NBD_OPT_EXTENDED_HEADERS")
        try:
            agreement = self._agree(wire.parse_string(data))
        except (wire.BadOption, SnapctlError) as error:
            raise Refused(f"{error}") from error
        reply: bytes = wire.ExportNameReply.build(
            {"size": agreement.size_bytes, "flags": self._flags(agreement.device)}
        )
        return agreement, reply + (b"" if self.no_zeroes else wire.EXPORT_NAME_ZEROES)

    def _agree(self, name: str) -> Agreement:
        device = self._exports.device(name)
        state = self._state
        return Agreement(
            device,
            device.size_bytes,
            self._exports.refuses_writes(device),
            state.is_structured or state.is_extended,
            state.is_extended,
            tuple(state.contexts) if state.contexts_of == name else (),
        )

    def _flags(self, device: Device) -> int:
        return self._exports.flags(device, structured=self._state.is_structured or self._state.is_extended)

    def _start_tls(self, option: int, data: bytes) -> bytes:
        if not self._needs_tls and not self._has_tls:
            return wire.option_reply(option, wire.REP_ERR_UNSUP)
        if data or self._has_tls:
            return wire.option_reply(option, wire.REP_ERR_INVALID)
        self.begins_tls = True
        return wire.option_reply(option, wire.REP_ACK)

    def _list(self, option: int, data: bytes) -> bytes:
        if data:
            raise wire.BadOption("NBD_OPT_LIST takes no data")
        replies = []
        for name in self._exports.names():
            device = self._exports.device(name)
            entry = wire.ServerReply.build({"name": name.encode(), "description": describe(device).encode()})
            replies.append(wire.option_reply(option, wire.REP_SERVER, entry))
        return b"".join([*replies, wire.option_reply(option, wire.REP_ACK)])

    def _info(self, option: int, data: bytes) -> bytes:
        name, asked = wire.parse_info_request(data)
        agreement = self._agree(name)
        device = agreement.device
        infos = [wire.InfoExport.build({"size": agreement.size_bytes, "flags": self._flags(device)})]
        if wire.INFO_NAME in asked:
            infos.append(wire.InfoText.build({"info": wire.INFO_NAME, "text": device.name.encode()}))
        if wire.INFO_DESCRIPTION in asked:
            infos.append(wire.InfoText.build({"info": wire.INFO_DESCRIPTION, "text": describe(device).encode()}))
        # Told in any case, as the document allows, since the largest request is not the default.
        preferred = self._exports.preferred_bytes()
        sizes = {"minimum": 1, "preferred": preferred, "maximum": MAX_PAYLOAD_BYTES}
        infos.append(wire.InfoBlockSize.build(sizes))
        if option == wire.OPT_GO:
            self.agreement = agreement
        replies = [wire.option_reply(option, wire.REP_INFO, info) for info in infos]
        return b"".join([*replies, wire.option_reply(option, wire.REP_ACK)])

    def _structured(self, option: int, data: bytes) -> bytes:
        if data:
            raise wire.BadOption("NBD_OPT_STRUCTURED_REPLY takes no data")
        if self._state.is_extended:
            return wire.option_reply(option, wire.REP_ERR_EXT_HEADER_REQD)
        self._state.is_structured = True
        return wire.option_reply(option, wire.REP_ACK)

    def _extended(self, option: int, data: bytes) -> bytes:
        if data:
            raise wire.BadOption("NBD_OPT_EXTENDED_HEADERS takes no data")
        self._state.is_extended = True
        return wire.option_reply(option, wire.REP_ACK)

    def _list_contexts(self, option: int, data: bytes) -> bytes:
        name, queries = self._context_query(data)
        found = contexts.listed(self._exports.device(name), queries)
        return _context_replies(option, [(0, context) for context in found])

    def _set_contexts(self, option: int, data: bytes) -> bytes:
        self._state.contexts_of, self._state.contexts = None, []  # even if this fails
        name, queries = self._context_query(data)
        chosen = contexts.chosen(self._exports.device(name), queries)
        if len(chosen) > contexts.MAX_CONTEXTS:
            return wire.option_reply(option, wire.REP_ERR_TOO_BIG)
        self._state.contexts_of, self._state.contexts = name, chosen
        return _context_replies(option, [(context.id, context.name) for context in self._state.contexts])

    def _context_query(self, data: bytes) -> tuple[str, list[str]]:
        if not self._state.is_structured and not self._state.is_extended:
            raise wire.BadOption("negotiate structured replies first")
        return wire.parse_context_query(data)


def _context_replies(option: int, found: list[tuple[int, str]]) -> bytes:
    replies = [
        wire.option_reply(option, wire.REP_META_CONTEXT, wire.ContextReply.build({"id": number, "name": name.encode()}))
        for number, name in found
    ]
    return b"".join([*replies, wire.option_reply(option, wire.REP_ACK)])
