"""The arguments and options that several commands share, each declared and described once."""

from __future__ import annotations

from math import isnan
from typing import Annotated, Literal

import typer
from typer.models import OptionInfo

from snapctl.cli import complete
from snapctl.errors import BadSize
from snapctl.units import parse_size


def _size(value: str | int) -> int:
    if isinstance(value, int):  # a default, which passes through here too
        return value
    try:
        return parse_size(value)
    except BadSize as error:
        raise typer.BadParameter(str(error)) from error


def size_option(name: str, description: str) -> OptionInfo:
    """Declare an option that takes a size.

    Args:
        name: with its dashes.
        description: for the help; the grammar of sizes is in the program's own help.
    """
    option: OptionInfo = typer.Option(name, parser=_size, metavar="SIZE", help=description, show_default=False)
    return option


def _refuse_nan(seconds: float) -> float:
    if isnan(seconds):
        raise typer.BadParameter("'nan' is not a number of seconds; 'inf' waits for ever")
    return seconds


_IN_CONTAINER = "or the name alone with SNAPCTL_CONTAINER set"

AnyPath = Annotated[
    str | None,
    typer.Argument(
        metavar="[CONTAINER[/NODE]]",
        help="A container (lab.snap), a volume (lab.snap/db) or a snapshot (lab.snap/db@mon); "
        "may be left out with SNAPCTL_CONTAINER set.",
        autocompletion=complete.any_node,
        show_default=False,
    ),
]
ContainerPath = Annotated[
    str | None,
    typer.Argument(
        metavar="[CONTAINER]",
        help="The container file; may be left out with SNAPCTL_CONTAINER set.",
        autocompletion=complete.container,
        show_default=False,
    ),
]
MountedPath = Annotated[
    str,
    typer.Argument(
        metavar="CONTAINER",
        help="The container file.",
        autocompletion=complete.container,
        show_default=False,
    ),
]
NewContainerPath = Annotated[
    str,
    typer.Argument(
        metavar="CONTAINER",
        help="The container file to make; must not exist.",
        autocompletion=complete.container,
        show_default=False,
    ),
]
NewVolumePath = Annotated[
    str,
    typer.Argument(
        metavar="CONTAINER/VOLUME",
        help=f"The volume to make (lab.snap/db, {_IN_CONTAINER}).",
        autocompletion=complete.new_node,
        show_default=False,
    ),
]
VolumePath = Annotated[
    str,
    typer.Argument(
        metavar="CONTAINER/VOLUME",
        help=f"A volume (lab.snap/db, {_IN_CONTAINER}).",
        autocompletion=complete.volume,
        show_default=False,
    ),
]
NodePath = Annotated[
    str,
    typer.Argument(
        metavar="CONTAINER/NODE",
        help=f"A volume or a snapshot (lab.snap/db, lab.snap/db@mon, {_IN_CONTAINER}).",
        autocompletion=complete.any_node,
        show_default=False,
    ),
]
NodePaths = Annotated[
    list[str],
    typer.Argument(
        metavar="CONTAINER/NODE...",
        help="Volumes or snapshots of one container (lab.snap/db, lab.snap/db@mon); "
        "lab.snap@mon means that snapshot of every volume that has it.",
        autocompletion=complete.any_node,
        show_default=False,
    ),
]
NewSnapshotPaths = Annotated[
    list[str],
    typer.Argument(
        metavar="CONTAINER/VOLUME@SNAPSHOT...",
        help="The snapshots to take, all in one container (lab.snap/db@mon lab.snap/log@mon); "
        "lab.snap@mon means one of every volume.",
        autocompletion=complete.new_snapshot,
        show_default=False,
    ),
]
NewName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="The new name, or a whole path in the same container. Letters, digits, '.', '_' and '-', at most 63.",
        show_default=False,
    ),
]
Wait = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0,
        callback=_refuse_nan,
        help="How long to wait for a container that another process holds; 'inf' is for ever.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", "-n", help="Change nothing; say what would be done, and what room that would free."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask. The question is asked on a terminal only.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Disconnect the clients of a server whose data this takes away."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
CowPolicy = Annotated[
    Literal["redirect", "copy"],
    typer.Option(
        "--cow",
        help="What the first write to a block after a snapshot does: 'redirect' writes the new data elsewhere, "
        "'copy' copies the old data to a block of the snapshot.",
    ),
]
