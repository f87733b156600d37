"""An NBD server: every volume and snapshot of a live container as a block device for other programs.

The law is the protocol document (NetworkBlockDevice/nbd, doc/proto.md), whose sections the docstrings name. From the
bottom up: `wire` (numbers and structs), `replies` (their forms), `errnos`, `statistics`, `exports` and `contexts` (what
is on offer), `handshake` (no input or output), `transmission` (requests), `connection` (bytes) and `server` (sockets).
"""
