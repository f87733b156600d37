"""The three forms of replies: simple, structured and extended ("Simple reply message" and the sections after it).

A form is chosen by the handshake and used for the whole connection. Once structured replies are negotiated, all replies
are: errors then come with a sentence for people, and there is one form less to read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from struct import Struct
from typing import Protocol

from snapctl.services.nbd import wire

_MAX_MESSAGE_BYTES = 1024
_ALIGNED_MAX = 0xFFFF_0000
"""The longest extent that a descriptor of 32 bits holds and that ends where any block does."""


@cache
def _repeated(form: str, count: int) -> Struct:
    """A form so many times, for one call; no more are ever asked for than requests are taken at a stroke."""
    return Struct(form[0] + form[1:] * count)


class Form(Protocol):
    """How to answer a request, which its cookie and, in extended replies, its offset name."""

    is_chunked: bool
    """A reply to a read may come in chunks, and holes without their zeros."""

    def done(self, cookie: int, at: int) -> bytes:
        """Answer that all went well, or end a reply in chunks."""

    def all_done(self, cookies: Sequence[int], places: Iterable[int]) -> bytes:
        """The same for many requests at a stroke, given by their cookies and their offsets."""

    def error(self, cookie: int, at: int, errno: int, message: str, offset: int | None = None) -> bytes:
        """Answer that it did not.

        Args:
            cookie: the request's.
            at: the request's offset.
            errno: what to tell programs.
            message: what to tell people.
            offset: where in the export it happened, if that is known.
        """

    def whole(self, cookie: int, at: int, length: int) -> bytes:
        """Begin to answer a read by all of its data, in one; `length` bytes follow."""

    def part(self, cookie: int, at: int, offset: int, length: int) -> bytes:
        """Begin a part of the answer to a read, not the last one; `length` bytes from `offset` in the export follow."""

    def hole(self, cookie: int, at: int, offset: int, length: int, *, is_last: bool) -> bytes:
        """Answer a part of a read, which is zeros; not in simple replies."""

    def status(self, cookie: int, at: int, context: int, extents: list[tuple[int, int]], *, is_last: bool) -> bytes:
        """Tell the lengths and the status of the extents of one context; not in simple replies."""


class Simple:
    """For clients that have not negotiated anything."""

    is_chunked = False

    def done(self, cookie: int, at: int) -> bytes:
        """See `Form`."""
        return self.all_done((cookie,), (at,))

    def all_done(self, cookies: Sequence[int], places: Iterable[int]) -> bytes:  # noqa: ARG002 for the extended form
        """See `Form`."""
        fields = [wire.SIMPLE_REPLY_MAGIC, 0, 0] * len(cookies)
        fields[2::3] = cookies
        return _repeated(wire.SIMPLE_REPLY.format, len(cookies)).pack(*fields)

    def error(self, cookie: int, at: int, errno: int, message: str, offset: int | None = None) -> bytes:  # noqa: ARG002
        """See `Form`."""
        return wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, errno, cookie)

    def whole(self, cookie: int, at: int, length: int) -> bytes:  # noqa: ARG002
        """See `Form`."""
        return wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, cookie)

    def part(self, cookie: int, at: int, offset: int, length: int) -> bytes:  # noqa: ARG002
        """See `Form`; there is one part, which is all of it."""
        return self.whole(cookie, at, length)

    def hole(self, cookie: int, at: int, offset: int, length: int, *, is_last: bool) -> bytes:
        """Cannot be told in this form, and is never asked of it."""
        raise NotImplementedError

    def status(self, cookie: int, at: int, context: int, extents: list[tuple[int, int]], *, is_last: bool) -> bytes:
        """Cannot be told in this form, whose clients have no contexts."""
        raise NotImplementedError


class Structured:
    """Chunks with 32-bit lengths."""

    is_chunked = True

    def chunk(self, cookie: int, at: int, kind: int, length: int, *, is_last: bool) -> bytes:  # noqa: ARG002
        """Build the header of a chunk with `length` bytes behind it."""
        return wire.STRUCTURED_REPLY.pack(wire.STRUCTURED_REPLY_MAGIC, is_last, kind, cookie, length)

    def done(self, cookie: int, at: int) -> bytes:
        """See `Form`."""
        return self.all_done((cookie,), (at,))

    def all_done(self, cookies: Sequence[int], places: Iterable[int]) -> bytes:  # noqa: ARG002
        """See `Form`."""
        fields = [wire.STRUCTURED_REPLY_MAGIC, wire.REPLY_FLAG_DONE, wire.REPLY_TYPE_NONE, 0, 0] * len(cookies)
        fields[3::5] = cookies
        return _repeated(wire.STRUCTURED_REPLY.format, len(cookies)).pack(*fields)

    def error(self, cookie: int, at: int, errno: int, message: str, offset: int | None = None) -> bytes:
        """See `Form`."""
        fields = {"error": errno, "message": wire.text(message, _MAX_MESSAGE_BYTES), "offset": offset}
        if offset is None:
            kind, body = wire.REPLY_TYPE_ERROR, wire.ErrorChunk.build(fields)
        else:
            kind, body = wire.REPLY_TYPE_ERROR_OFFSET, wire.ErrorOffsetChunk.build(fields)
        return self.chunk(cookie, at, kind, len(body), is_last=True) + bytes(body)

    def whole(self, cookie: int, at: int, length: int) -> bytes:
        """See `Form`."""
        return wire.STRUCTURED_DATA.pack(
            wire.STRUCTURED_REPLY_MAGIC, wire.REPLY_FLAG_DONE, wire.REPLY_TYPE_OFFSET_DATA, cookie, 8 + length, at
        )

    def part(self, cookie: int, at: int, offset: int, length: int) -> bytes:  # noqa: ARG002
        """See `Form`."""
        return wire.STRUCTURED_DATA.pack(
            wire.STRUCTURED_REPLY_MAGIC, 0, wire.REPLY_TYPE_OFFSET_DATA, cookie, 8 + length, offset
        )

    def hole(self, cookie: int, at: int, offset: int, length: int, *, is_last: bool) -> bytes:
        """See `Form`."""
        header = self.chunk(cookie, at, wire.REPLY_TYPE_OFFSET_HOLE, wire.HOLE_CHUNK.size, is_last=is_last)
        return header + wire.HOLE_CHUNK.pack(offset, length)

    def status(self, cookie: int, at: int, context: int, extents: list[tuple[int, int]], *, is_last: bool) -> bytes:
        """See `Form`; an extent that is too long for this form ends the list, cut short."""
        parts = [wire.STATUS_CHUNK.pack(context)]
        for length, status in extents:
            parts.append(wire.STATUS_EXTENT.pack(min(length, _ALIGNED_MAX), status))
            if length > _ALIGNED_MAX:
                break
        length = wire.STATUS_CHUNK.size + (len(parts) - 1) * wire.STATUS_EXTENT.size
        header = self.chunk(cookie, at, wire.REPLY_TYPE_BLOCK_STATUS, length, is_last=is_last)
        return b"".join([header, *parts])


class Extended(Structured):
    """Chunks with 64-bit lengths, which name the request's offset, too."""

    def chunk(self, cookie: int, at: int, kind: int, length: int, *, is_last: bool) -> bytes:
        """Build the header of a chunk with `length` bytes behind it."""
        return wire.EXTENDED_REPLY.pack(wire.EXTENDED_REPLY_MAGIC, is_last, kind, cookie, at, length)

    def all_done(self, cookies: Sequence[int], places: Iterable[int]) -> bytes:
        """See `Form`."""
        pack, magic, flags = wire.EXTENDED_REPLY.pack, wire.EXTENDED_REPLY_MAGIC, wire.REPLY_FLAG_DONE
        requests = zip(cookies, places, strict=True)
        return b"".join([pack(magic, flags, wire.REPLY_TYPE_NONE, cookie, at, 0) for cookie, at in requests])

    def whole(self, cookie: int, at: int, length: int) -> bytes:
        """See `Form`."""
        return wire.EXTENDED_DATA.pack(
            wire.EXTENDED_REPLY_MAGIC, wire.REPLY_FLAG_DONE, wire.REPLY_TYPE_OFFSET_DATA, cookie, at, 8 + length, at
        )

    def part(self, cookie: int, at: int, offset: int, length: int) -> bytes:
        """See `Form`."""
        return wire.EXTENDED_DATA.pack(
            wire.EXTENDED_REPLY_MAGIC, 0, wire.REPLY_TYPE_OFFSET_DATA, cookie, at, 8 + length, offset
        )

    def status(self, cookie: int, at: int, context: int, extents: list[tuple[int, int]], *, is_last: bool) -> bytes:
        """See `Form`."""
        parts = [wire.STATUS_EXTENT_EXT.pack(*extent) for extent in extents]
        length = wire.STATUS_CHUNK_EXT.size + len(parts) * wire.STATUS_EXTENT_EXT.size
        header = self.chunk(cookie, at, wire.REPLY_TYPE_BLOCK_STATUS_EXT, length, is_last=is_last)
        return b"".join([header, wire.STATUS_CHUNK_EXT.pack(context, len(parts)), *parts])
