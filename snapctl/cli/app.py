"""The Typer application: its commands, imported one by one as they are called, and the options of the program itself.

`COMMANDS` is the table of contents. A command's module is imported when the command runs (or when help or completion
lists them all), and builds its parameters then; `snapctl list` does not pay for all the others.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import Annotated

import typer
from click import Command, Context, Option, Parameter, UsageError
from typer.core import TyperCommand, TyperGroup, TyperOption

from snapctl import __version__
from snapctl.cli import output
from snapctl.cli.settings import Settings

COMMANDS = {
    "init": "create",
    "create": "create",
    "write": "data",
    "read": "data",
    "trim": "data",
    "import": "transfer",
    "export": "transfer",
    "snapshot": "snapshots",
    "clone": "snapshots",
    "rename": "volumes",
    "resize": "volumes",
    "delete": "volumes",
    "list": "show",
    "tree": "show",
    "info": "show",
    "status": "status",
    "check": "check",
    "scrub": "scrub",
    "serve": "serve",
    "mount": "mount",
}
"""Every command and the module of this package whose `commands` defines it, in the order of the help."""


def _print_help(ctx: Context, _param: Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        output.emit(ctx.get_help() + "\n")
        ctx.exit()


def _with_checked_output(option: Option | None) -> Option | None:
    """Have ``--help`` print as commands do: it is an error if that fails."""
    if option is not None:
        option.callback = _print_help
    return option


class LazyCommand(TyperCommand):
    """A command of `LazyGroup`."""

    def get_help_option(self, ctx: Context) -> Option | None:
        """Return the option ``--help``."""
        return _with_checked_output(super().get_help_option(ctx))


class LazyGroup(TyperGroup):
    """The commands of `COMMANDS`, each made when it is asked for."""

    def get_help_option(self, ctx: Context) -> Option | None:
        """Return the option ``--help``."""
        return _with_checked_output(super().get_help_option(ctx))

    def list_commands(self, ctx: Context) -> list[str]:  # noqa: ARG002 click's signature
        """Return all command names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:  # noqa: ARG002 click's signature
        """Import and build one command; None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"snapctl.cli.{COMMANDS[cmd_name]}")
        chosen = typer.Typer(rich_markup_mode=None, add_completion=False)
        chosen.registered_commands = [c for c in module.commands.registered_commands if c.name == cmd_name]
        chosen.registered_commands[0].cls = LazyCommand
        command = typer.main.get_command(chosen)
        command.params.append(_debug_option())
        return command

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """Find the command that the arguments begin with.

        Raises:
            UsageError: there is none; with a guess at what was meant.
        """
        try:
            return super().resolve_command(ctx, args)
        except UsageError as error:
            guesses = get_close_matches(args[0], COMMANDS)
            if not guesses:
                raise
            raise UsageError(f"No such command {args[0]!r}. Did you mean {' or '.join(guesses)}?", ctx) from error


def _enable_debug(ctx: Context, _param: Parameter, value: bool) -> None:
    settings = ctx.find_object(Settings)
    if value and settings is not None:
        settings.debug = True


def _debug_option() -> TyperOption:
    return TyperOption(
        param_decls=["--debug"],
        is_flag=True,
        expose_value=False,
        callback=_enable_debug,
        help="Print a traceback with an error.",
    )


def _print_version(value: bool) -> None:
    if value:
        output.emit(f"snapctl {__version__}\n")
        raise typer.Exit


_EPILOG = """
\b
Paths go on inside the container:
  lab.snap          the container
  lab.snap/db       a volume
  lab.snap/db@mon   its snapshot "mon"
  lab.snap@mon      the snapshot "mon" of every volume
With SNAPCTL_CONTAINER set to a container, db or db@mon alone will do.

\b
Sizes and offsets are bytes, or powers of 1024 with a letter:
  512, 4K, 16KiB, 1.5G, 2T

\b
Exit codes:
  0 done                     4 corruption found
  1 failed                   5 locked by another process
  2 wrong usage              6 no space left
  3 leaked space only (check)
"""

app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def snapctl(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", callback=_enable_debug, help="Print a traceback with an error.")
    ] = False,
) -> None:
    """Manage thin volumes and their snapshot trees in one container file."""
