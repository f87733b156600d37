"""Bytes to values and back, no I/O: what stands in a container and how it is laid out."""
