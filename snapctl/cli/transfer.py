"""Whole volumes in and out: `import` and `export`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snapctl.cli import files, interrupt, progress, session
from snapctl.cli.options import CowPolicy, NewVolumePath, NodePath, Wait
from snapctl.cli.path import locate, locate_new

if TYPE_CHECKING:
    from snapctl.services.control.client import Client

commands = typer.Typer()


@commands.command("import")
def import_(
    path: NewVolumePath,
    source: Annotated[
        str,
        typer.Argument(metavar="FILE", help="An image, a block device, or '-' for standard input.", show_default=False),
    ],
    cow: CowPolicy = "redirect",
    wait: Wait = 5.0,
) -> None:
    """Create a volume from a file, of the file's size.

    Holes stay holes, and blocks of zeros take no room.

    \b
    Example:
      snapctl import lab.snap/db disk.img
    """
    location = locate_new(path)
    name = location.one_node()
    files.require_standard(source, sys.stdin, "standard input")
    label = f"importing {name}"

    def here() -> dict[str, Any]:
        from snapctl.engine.model import Cow
        from snapctl.services.transfer import import_volume

        with session.changing(location.container, wait) as container, progress.reporting(label) as report:
            import_volume(container, name, source, cow=Cow(cow), progress=report)
        return {}

    def there(server: Client) -> dict[str, Any]:
        from snapctl.services.source import open_source

        with (
            open_source(source, location.container) as opened,
            files.handed_over(opened.fd) as fd,
            progress.reporting(label) as report,
            interrupt.until_committing() as begin_commit,
        ):
            params = {"name": name, "cow": cow, "source": opened.name}
            return server.call("import", params, source=fd, progress=report, ready=begin_commit)

    session.here_or_there(location.container, wait, here, there)


@commands.command("export")
def export(
    path: NodePath,
    target: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A file, a block device, or '-' for standard output.", show_default=False),
    ],
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over a file that exists.")] = False,
    wait: Wait = 5.0,
) -> None:
    """Write a volume or a snapshot to a sparse file.

    There are holes where the node has no data.

    \b
    Example:
      snapctl export lab.snap/db@mon disk.img
    """
    from snapctl.services.transfer import export_node

    location = locate(path)
    name = location.one_node()
    files.require_standard(target, sys.stdout, "standard output")
    session.check_path(location.container)
    with progress.reporting(f"exporting {name}") as report:
        export_node(location.container, name, target, force=force, wait_seconds=wait, progress=report)
