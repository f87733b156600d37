"""`python -m snapctl`, and the entry point of the installed command.

`--version` alone is answered here, before anything is imported that it does not need.
"""

from __future__ import annotations

import sys

from snapctl import __version__


def main() -> None:
    """Run the command line of this process and exit with its code."""
    if sys.argv[1:] == ["--version"]:
        print(f"snapctl {__version__}")
        return
    try:
        from snapctl.cli.run import run
    except KeyboardInterrupt:  # too early for the handlers that `run` installs
        sys.exit(130)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
