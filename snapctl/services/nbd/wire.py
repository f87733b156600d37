"""The numbers and structs of the NBD protocol, named as in its document (doc/proto.md), and nothing else.

Every struct is declared with `construct`. What is read or written for each request stands here a second time as a
`struct.Struct`, since `construct` takes microseconds for each field; a test holds the two equal. All is big-endian.
"""

from __future__ import annotations

from struct import Struct as Packed

from construct import (
    Const,
    ConstructError,
    Int16ub,
    Int32ub,
    Int64ub,
    Prefixed,
    PrefixedArray,
    Struct,
    Terminated,
)
from construct import GreedyBytes as Rest

DEFAULT_PORT = 10809
"""Registered with IANA."""

MAX_STRING_BYTES = 4096
"""Of any string ("Conventions")."""

# Magic numbers.
INIT_MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
EXTENDED_REQUEST_MAGIC = 0x21E41C71
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF
EXTENDED_REPLY_MAGIC = 0x6E8A278C

# Handshake flags, and the client's, which have the same bits.
FLAG_FIXED_NEWSTYLE = 1 << 0
FLAG_NO_ZEROES = 1 << 1

# Transmission flags.
FLAG_HAS_FLAGS = 1 << 0
FLAG_READ_ONLY = 1 << 1
FLAG_SEND_FLUSH = 1 << 2
FLAG_SEND_FUA = 1 << 3
FLAG_SEND_TRIM = 1 << 5
FLAG_SEND_WRITE_ZEROES = 1 << 6
FLAG_SEND_DF = 1 << 7
FLAG_CAN_MULTI_CONN = 1 << 8
FLAG_SEND_CACHE = 1 << 10
FLAG_SEND_FAST_ZERO = 1 << 11

# Options.
OPT_EXPORT_NAME = 1
OPT_ABORT = 2
OPT_LIST = 3
OPT_STARTTLS = 5
OPT_INFO = 6
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_LIST_META_CONTEXT = 9
OPT_SET_META_CONTEXT = 10
OPT_EXTENDED_HEADERS = 11

# Replies to options.
REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_META_CONTEXT = 4
REP_ERR_UNSUP = (1 << 31) + 1
REP_ERR_INVALID = (1 << 31) + 3
REP_ERR_TLS_REQD = (1 << 31) + 5
REP_ERR_UNKNOWN = (1 << 31) + 6
REP_ERR_SHUTDOWN = (1 << 31) + 7
REP_ERR_TOO_BIG = (1 << 31) + 9
REP_ERR_EXT_HEADER_REQD = (1 << 31) + 10

# What REP_INFO tells.
INFO_EXPORT = 0
INFO_NAME = 1
INFO_DESCRIPTION = 2
INFO_BLOCK_SIZE = 3

# Commands.
CMD_READ = 0
CMD_WRITE = 1
CMD_DISC = 2
CMD_FLUSH = 3
CMD_TRIM = 4
CMD_CACHE = 5
CMD_WRITE_ZEROES = 6
CMD_BLOCK_STATUS = 7

COMMAND_NAMES = {
    CMD_READ: "read",
    CMD_WRITE: "write",
    CMD_FLUSH: "flush",
    CMD_TRIM: "trim",
    CMD_CACHE: "cache",
    CMD_WRITE_ZEROES: "write_zeroes",
    CMD_BLOCK_STATUS: "block_status",
}
"""Of the commands that are answered."""

# Command flags.
CMD_FLAG_FUA = 1 << 0
CMD_FLAG_NO_HOLE = 1 << 1
CMD_FLAG_DF = 1 << 2
CMD_FLAG_REQ_ONE = 1 << 3
CMD_FLAG_FAST_ZERO = 1 << 4
CMD_FLAG_PAYLOAD_LEN = 1 << 5

# Structured replies.
REPLY_FLAG_DONE = 1 << 0
REPLY_TYPE_NONE = 0
REPLY_TYPE_OFFSET_DATA = 1
REPLY_TYPE_OFFSET_HOLE = 2
REPLY_TYPE_BLOCK_STATUS = 5
REPLY_TYPE_BLOCK_STATUS_EXT = 6
REPLY_TYPE_ERROR = (1 << 15) + 1
REPLY_TYPE_ERROR_OFFSET = (1 << 15) + 2

# The metadata context base:allocation.
STATE_HOLE = 1 << 0
STATE_ZERO = 1 << 1

# Error values.
EPERM = 1
EIO = 5
EINVAL = 22
ENOSPC = 28
EOVERFLOW = 75
ENOTSUP = 95
ESHUTDOWN = 108

# The handshake.
Greeting = Struct(
    "magic" / Const(INIT_MAGIC, Int64ub), "option_magic" / Const(OPTION_MAGIC, Int64ub), "flags" / Int16ub
)
ClientFlags = Struct("flags" / Int32ub)
Option = Struct("magic" / Int64ub, "option" / Int32ub, "length" / Int32ub)
OptionReply = Struct(
    "magic" / Const(OPTION_REPLY_MAGIC, Int64ub),
    "option" / Int32ub,
    "kind" / Int32ub,
    "data" / Prefixed(Int32ub, Rest),
)
ExportNameReply = Struct("size" / Int64ub, "flags" / Int16ub)
EXPORT_NAME_ZEROES = bytes(124)
InfoRequest = Struct("name" / Prefixed(Int32ub, Rest), "infos" / PrefixedArray(Int16ub, Int16ub), Terminated)
InfoExport = Struct("info" / Const(INFO_EXPORT, Int16ub), "size" / Int64ub, "flags" / Int16ub)
InfoText = Struct("info" / Int16ub, "text" / Rest)
InfoBlockSize = Struct(
    "info" / Const(INFO_BLOCK_SIZE, Int16ub), "minimum" / Int32ub, "preferred" / Int32ub, "maximum" / Int32ub
)
ServerReply = Struct("name" / Prefixed(Int32ub, Rest), "description" / Rest)
ContextQuery = Struct(
    "name" / Prefixed(Int32ub, Rest), "queries" / PrefixedArray(Int32ub, Prefixed(Int32ub, Rest)), Terminated
)
ContextReply = Struct("id" / Int32ub, "name" / Rest)

# Transmission: requests. The payload of a write follows the header.
_COMMAND = ("flags" / Int16ub, "command" / Int16ub, "cookie" / Int64ub, "offset" / Int64ub)
Request = Struct("magic" / Int32ub, *_COMMAND, "length" / Int32ub)
ExtendedRequest = Struct("magic" / Int32ub, *_COMMAND, "length" / Int64ub)

# Transmission: replies. What they carry follows the header.
SimpleReply = Struct("magic" / Int32ub, "error" / Int32ub, "cookie" / Int64ub)
StructuredReply = Struct("magic" / Int32ub, "flags" / Int16ub, "kind" / Int16ub, "cookie" / Int64ub, "length" / Int32ub)
ExtendedReply = Struct(
    "magic" / Int32ub,
    "flags" / Int16ub,
    "kind" / Int16ub,
    "cookie" / Int64ub,
    "offset" / Int64ub,
    "length" / Int64ub,
)
DataChunk = Struct("offset" / Int64ub)
HoleChunk = Struct("offset" / Int64ub, "length" / Int32ub)
StatusChunk = Struct("context" / Int32ub)
StatusChunkExt = Struct("context" / Int32ub, "count" / Int32ub)
StatusExtent = Struct("length" / Int32ub, "status" / Int32ub)
StatusExtentExt = Struct("length" / Int64ub, "status" / Int64ub)
ErrorChunk = Struct("error" / Int32ub, "message" / Prefixed(Int16ub, Rest))
ErrorOffsetChunk = Struct("error" / Int32ub, "message" / Prefixed(Int16ub, Rest), "offset" / Int64ub)

REQUEST = Packed(">LHHQQL")
EXTENDED_REQUEST = Packed(">LHHQQQ")
SIMPLE_REPLY = Packed(">LLQ")
STRUCTURED_REPLY = Packed(">LHHQL")
EXTENDED_REPLY = Packed(">LHHQQQ")
DATA_CHUNK = Packed(">Q")
HOLE_CHUNK = Packed(">QL")
STATUS_CHUNK = Packed(">L")
STATUS_CHUNK_EXT = Packed(">LL")
STATUS_EXTENT = Packed(">LL")
STATUS_EXTENT_EXT = Packed(">QQ")

# Requests once more, with the magic number, the flags and the command as one number.
REQUEST_IN_FOUR = Packed(">QQQL")
EXTENDED_REQUEST_IN_FOUR = Packed(">QQQQ")

# A reply to a read and what begins the chunk in it, in one.
STRUCTURED_DATA = Packed(STRUCTURED_REPLY.format + DATA_CHUNK.format[1:])
EXTENDED_DATA = Packed(EXTENDED_REPLY.format + DATA_CHUNK.format[1:])

HOT_STRUCTS = (
    (Request, REQUEST),
    (ExtendedRequest, EXTENDED_REQUEST),
    (SimpleReply, SIMPLE_REPLY),
    (StructuredReply, STRUCTURED_REPLY),
    (ExtendedReply, EXTENDED_REPLY),
    (DataChunk, DATA_CHUNK),
    (HoleChunk, HOLE_CHUNK),
    (StatusChunk, STATUS_CHUNK),
    (StatusChunkExt, STATUS_CHUNK_EXT),
    (StatusExtent, STATUS_EXTENT),
    (StatusExtentExt, STATUS_EXTENT_EXT),
)
"""What is declared twice, in both forms."""


class BadOption(ValueError):
    """The data of an option is not what the document says."""


def parse_client_flags(data: bytes) -> int:
    """Read the client's flags from 4 bytes."""
    flags: int = ClientFlags.parse(data).flags
    return flags


def parse_option(data: bytes) -> tuple[int, int, int]:
    """Read an option's header from 16 bytes: magic, option, bytes of data."""
    header = Option.parse(data)
    return header.magic, header.option, header.length


def parse_string(data: bytes) -> str:
    """Decode a string ("Conventions").

    Raises:
        BadOption: it is too long, not UTF-8, or holds NUL.
    """
    if len(data) > MAX_STRING_BYTES:
        raise BadOption(f"a string of more than {MAX_STRING_BYTES} bytes")
    if b"\0" in data:
        raise BadOption("a string with NUL in it")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadOption("a string that is not UTF-8") from None


def parse_info_request(data: bytes) -> tuple[str, list[int]]:
    """Read the data of NBD_OPT_INFO and NBD_OPT_GO: the export, and what is asked about it.

    Raises:
        BadOption: lengths that contradict each other, or not a string.
    """
    try:
        request = InfoRequest.parse(data)
    except ConstructError:
        raise BadOption("lengths that contradict each other") from None
    return parse_string(request.name), list(request.infos)


def parse_context_query(data: bytes) -> tuple[str, list[str]]:
    """Read the data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT: the export and the queries.

    Raises:
        BadOption: as `parse_info_request`.
    """
    try:
        request = ContextQuery.parse(data)
    except ConstructError:
        raise BadOption("lengths that contradict each other") from None
    return parse_string(request.name), [parse_string(query) for query in request.queries]


def text(message: str, most_bytes: int = MAX_STRING_BYTES) -> bytes:
    """Encode a sentence for people; one that is too long loses its end, and no character is cut in two."""
    return message.encode(errors="replace")[:most_bytes].decode(errors="ignore").encode()


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    """Build a reply to an option."""
    built: bytes = OptionReply.build({"option": option, "kind": kind, "data": data})
    return built
