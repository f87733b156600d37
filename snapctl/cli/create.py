"""Making containers and volumes: `init` and `create`."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import typer

from snapctl.cli import session
from snapctl.cli.options import CowPolicy, NewContainerPath, NewVolumePath, Wait, size_option
from snapctl.cli.path import locate_new
from snapctl.errors import BadSize
from snapctl.units import format_size

if TYPE_CHECKING:
    from snapctl.engine.container import Container

commands = typer.Typer()


@commands.command("init")
def init(
    path: NewContainerPath,
    block_size: Annotated[
        int | None, size_option("--block-size", "Size of a data block: 4K (the default), 16K or 64K.")
    ] = None,
    capacity: Annotated[
        int | None, size_option("--capacity", "The most that the container may hold; unlimited if not given.")
    ] = None,
) -> None:
    """Make an empty container.

    Larger blocks suit large volumes: a volume may have 4T with blocks of 4K, 16T with 16K and 64T with 64K.

    \b
    Example:
      snapctl init lab.snap --block-size 16K --capacity 200G
    """
    from snapctl.format.geometry import BLOCK_SIZES

    if block_size is not None and block_size not in BLOCK_SIZES:
        sizes = ", ".join(format_size(size) for size in BLOCK_SIZES)
        raise BadSize(f"--block-size {format_size(block_size)} is not one of {sizes}")
    with session.making(path, block_size_bytes=block_size, capacity_bytes=capacity):
        pass


@commands.command("create")
def create(
    path: NewVolumePath,
    size: Annotated[int, size_option("--size", "Size of the volume; it takes no room until it is written.")],
    cow: CowPolicy = "redirect",
    wait: Wait = 5.0,
) -> None:
    """Create an empty volume.

    The container is made too if it does not exist.

    \b
    Example:
      snapctl create lab.snap/db --size 10G
    """
    from snapctl.engine.model import Cow

    location = locate_new(path)
    opened: AbstractContextManager[Container] = (
        session.changing(location.container, wait)
        if os.path.lexists(location.container)
        else session.making(location.container)
    )
    with opened as container:
        container.create_volume(location.one_node(), size, cow=Cow(cow))
