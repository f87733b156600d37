"""Commands on a container that a server holds: JSON-RPC over a Unix socket beside the file (docs/control.md)."""
