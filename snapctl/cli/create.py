"""Making containers and volumes: `init` and `create`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from snapctl.cli import session
from snapctl.cli.options import CowPolicy, NewContainerPath, NewVolumePath, Wait, size_option
from snapctl.cli.path import locate_new
from snapctl.errors import BadSize, UsageError
from snapctl.units import format_size

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

    if not path:
        raise UsageError("the path of the container is empty")
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
    from snapctl.format.record import check_name

    location = locate_new(path)
    name = location.one_node()
    check_name(name)
    if not os.path.lexists(location.container):
        _check_size_in_new_container(size)
    session.apply(location.container, wait, "create", {"name": name, "size_bytes": size, "cow": cow}, make=True)


def _check_size_in_new_container(size_bytes: int) -> None:
    """Refuse a size before a container is made for nothing."""
    from snapctl.format.geometry import DEFAULT_BLOCK_SIZE, DEFAULT_TABLE_SIZE, Geometry

    Geometry(DEFAULT_BLOCK_SIZE, DEFAULT_TABLE_SIZE).check_volume_size(size_bytes)
