"""Every structure of a container by name, where it stands, and ways to damage it.

Damage with a checksum that no longer fits is made with `flip`; damage that hides behind right checksums, as somebody who
means harm would do it, with `forge`, which seals the page and everything above it again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from snapctl.format.checksum import crc32c
from snapctl.format.geometry import INDEX_DEPTH, RECORD_BYTES, VOLUME_DEPTH
from snapctl.format.layout import SUPERBLOCK_BYTES, NodeRecord
from snapctl.format.pointer import PAGE, POINTER_BYTES, Pointer, decode_table
from snapctl.format.record import RawRecord, scan
from snapctl.format.superblock import COPIES, SLOTS, Superblock, build, copy_offset
from snapctl.storage.backend import Backend
from snapctl.storage.pages import PageFile
from snapctl.storage.store import choose_superblocks

SPACE_MAP = "space map"
SNAPSHOT_LIST = "snapshot list"
