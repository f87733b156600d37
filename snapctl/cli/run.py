"""From an argument vector to an exit code: the one place where errors and signals become a line and a number.

An error of the `snapctl.errors` tree brings its own exit code; usage errors found by the parser are 2; a signal is
128 and its number, as a shell reports it, and so is a closed pipe on standard output (SIGPIPE, without a message).
Anything else is a defect of snapctl and says so.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from snapctl.cli import interrupt, output
from snapctl.cli.settings import Settings
from snapctl.errors import SnapctlError, UsageError

if TYPE_CHECKING:
    from click import ClickException

PROGRAM = "snapctl"
COMPLETION_VARIABLE = "_SNAPCTL_COMPLETE"
"""Set by the shells' completion functions; typer then answers with candidates instead of running a command."""

_COMPLETION_OPTIONS = ("--install-completion", "--show-completion")
_FAILED = 1
_CLOSED_PIPE = 128 + signal.SIGPIPE


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: what follows the program's name.

    Returns:
        The exit code.
    """
    try:
        interrupt.install()
        output.make_encodable()
        return _guarded(arguments, Settings())
    except interrupt.Interrupted as interrupted:
        output.complain(str(interrupted), after_echo=True)
        output.discard()  # whoever reads it may not, and the signals that end this are over
        return 128 + interrupted.signal_no
    finally:
        interrupt.ignore()
        # The interpreter flushes once more when it ends; what fails to be has been told.
        with suppress(BrokenPipeError, SnapctlError):
            output.flush()


def _guarded(arguments: Sequence[str], settings: Settings) -> int:
    import click

    try:
        code = _dispatch(arguments, settings)
        output.flush()
    except BrokenPipeError:
        output.discard()
        return _CLOSED_PIPE
    except SnapctlError as error:
        output.complain(str(error), traceback=settings.debug)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        output.show_to_stderr(error.show)
        return UsageError.exit_code
    except click.ClickException as error:
        output.complain(_usage_line(error), traceback=settings.debug)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 the last resort
        advice = "" if settings.debug else " and rerun with --debug for a traceback"
        output.complain(
            f"internal error ({type(error).__name__}: {error}); please report it{advice}", traceback=settings.debug
        )
        return _FAILED
    return code


def _dispatch(arguments: Sequence[str], settings: Settings) -> int:
    import typer

    from snapctl.cli.app import app

    command = typer.main.get_command(app)
    if any(argument.startswith(_COMPLETION_OPTIONS) for argument in arguments):
        from snapctl.cli import shells

        shells.prefer_own_scripts()
    if COMPLETION_VARIABLE in os.environ:
        from snapctl.cli import shells

        shells.register()
        with _printing():
            command.main(list(arguments), prog_name=PROGRAM)
    try:
        with _printing():
            context = command.make_context(PROGRAM, list(arguments), obj=settings)
        with context:
            command.invoke(context)
    except typer.Exit as finished:
        return finished.exit_code
    except SystemExit as finished:
        return finished.code if isinstance(finished.code, int) else 0
    return 0


@contextmanager
def _printing() -> Iterator[None]:
    """Around what typer does by itself, which is to print candidates and completions, or to install the latter."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise output.os_error(str(error.filename or "standard output"), error) from error


def _usage_line(error: ClickException) -> str:
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message} (see '{context.command_path} --help')" if context else message
