"""Start-up: snapctl's shortest commands beside Python itself and beside the libraries they rest on.

`snapshot` and `list` work on containers of one small volume, so that next to nothing is done but starting; `snapshot`
has to sync its commit, which takes time but no processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

from benchmarks.aims import IMPORTS, SNAPSHOT_COMMAND
from benchmarks.measure import MILLISECONDS, Comparison, Part, Setting, compare
from benchmarks.processes import python, run, snapctl
from benchmarks.show import main

BARE = 'python -c "pass"'


def startup(where: Setting) -> Iterator[Comparison]:
    """Compare short commands, as processes."""
    listed, grown = where.folder / "listed.snap", where.folder / "grown.snap"
    for container in (listed, grown):
        run(*snapctl("create", container / "db", "--size", "1M"))
        run(*snapctl("snapshot", f"{container}/db@first"))
    numbers = count(1)

    def process(*command: object) -> float:
        return run(*command) * 1000

    cases: dict[str, Callable[[], float]] = {
        SNAPSHOT_COMMAND: lambda: process(*snapctl("snapshot", f"{grown}/db@s{next(numbers)}")),
        IMPORTS: partial(process, *python("import typer, construct")),
        BARE: partial(process, *python("pass")),
        "snapctl list": partial(process, *snapctl("list", listed)),
        "snapctl --version": partial(process, *snapctl("--version")),
    }
    yield compare("startup", "short commands", MILLISECONDS, cases, where.rounds(31, quick=7), warm_up=True)


PARTS = [Part("startup", startup)]

if __name__ == "__main__":
    main(str(__doc__), PARTS)
