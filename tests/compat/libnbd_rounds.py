"""Writes in rounds by libnbd, each ended by a flush, until the server is gone; run by Debian's Python.

Arguments: the connection string of an export; how many bytes a request has; how many there are in a round. Every round
fills the same requests with its number; prints that when the flush has been answered. The flush goes by another
connection than the writes, as multi-conn allows.
"""

from __future__ import annotations

import sys

import nbd  # type: ignore[import-not-found]  # Debian's, which no other Python has


def connect(uri: str) -> nbd.NBD:
    """Connect."""
    link = nbd.NBD()
    link.connect_uri(uri)
    assert link.can_multi_conn()
    return link


def main(uri: str, request_bytes: int, requests: int) -> None:
    """Write and flush until an error."""
    writer, flusher = connect(uri), connect(uri)
    for number in range(1, 1 << 40):
        data = nbd.Buffer.from_bytearray(bytearray(number.to_bytes(8, "big") * (request_bytes // 8)))
        try:
            sent = [writer.aio_pwrite(data, at * request_bytes) for at in range(requests)]
            while writer.aio_in_flight():
                writer.poll(-1)
            assert all(writer.aio_command_completed(cookie) for cookie in sent)
            flusher.flush()
        except nbd.Error:
            return
        print(number, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
