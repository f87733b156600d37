"""`python -m snapctl`, and the entry point of the installed command.

`--version` alone is answered here, before anything is imported that it does not need.
"""

from __future__ import annotations

import os
import sys

from snapctl import __version__

_STANDARD_INPUT, _STANDARD_OUTPUT, _STANDARD_ERROR = range(3)


def main() -> None:
    """Run the command line of this process and exit with its code."""
    _occupy_standard_descriptors()
    if sys.argv[1:] == ["--version"] and _print_version():
        return
    try:
        from snapctl.cli.run import run
    except KeyboardInterrupt:  # too early for the handlers that `run` installs
        sys.exit(130)
    sys.exit(run(sys.argv[1:]))


def _occupy_standard_descriptors() -> None:
    """Keep the container and other files from getting the descriptor of a standard stream that is closed.

    What takes its place fails when it is used: input that can only be written to, output that can only be read.
    """
    for descriptor in (_STANDARD_INPUT, _STANDARD_OUTPUT, _STANDARD_ERROR):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free is the one that is taken.
            os.open(os.devnull, os.O_WRONLY if descriptor == _STANDARD_INPUT else os.O_RDONLY)


def _print_version() -> bool:
    """Print the version past Python's buffers; False if that fails, which `run` knows how to tell."""
    try:
        os.write(_STANDARD_OUTPUT, f"snapctl {__version__}\n".encode("ascii"))
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
