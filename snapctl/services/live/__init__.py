"""A container that stays open and is read, written and changed by many at once: what servers and mounts work on.

Everything here runs on one event loop; only the waiting for the disk is done elsewhere.
"""
