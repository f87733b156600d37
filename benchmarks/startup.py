"""What it costs to start: snapctl's shortest commands beside Python itself and beside the libraries they rest on.

`snapshot` and `list` work on containers of one small volume, so that next to nothing is done but starting; `snapshot`
has to sync its commit, which takes time but no processor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import _common as common

BARE = 'python -c "pass"'
LIBRARIES = 'python -c "import typer, construct"'


def cases(folder: Path) -> dict[str, Callable[[], common.Cost]]:
    listed, grown = folder / "listed.snap", folder / "grown.snap"
    for container in (listed, grown):
        common.run(common.snapctl("create", container / "db", "--size", "1M"))
        common.run(common.snapctl("snapshot", f"{container}/db@first"))
    numbers = count(1)
    return {
        BARE: partial(common.run, common.python("pass")),
        LIBRARIES: partial(common.run, common.python("import typer, construct")),
        "snapctl --version": partial(common.run, common.snapctl("--version")),
        "snapctl snapshot": lambda: common.run(common.snapctl("snapshot", f"{grown}/db@s{next(numbers)}")),
        "snapctl list": partial(common.run, common.snapctl("list", listed)),
    }


def main() -> None:
    options = common.parser(str(__doc__), runs=31).parse_args()
    with common.scratch(options.directory) as folder:
        print(common.heading(options.runs))
        costs = common.Costs(cases(folder), options.runs)
    rows = [
        (
            case,
            *common.milliseconds(costs.median(case)),
            *common.times(costs.ratio(case, BARE)),
            *common.times(costs.ratio(case, LIBRARIES)),
        )
        for case in costs.cases
    ]
    headings = ("", "time", "CPU", "/ python", "CPU", "/ imports", "CPU")
    common.show("Start-up, beside bare Python and beside its imports", headings, rows)


if __name__ == "__main__":
    main()
