"""Writes the tables and plots of docs/performance.md from the results of a run.

The document is written by hand but for what stands between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``. Each
such block begins with the command that measures it, so that no figure stands without one. ``python -m
benchmarks.document RESULTS DOCUMENT`` writes it anew from results that are there already.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean

from benchmarks.aims import AIMS, REACHED, verdicts
from benchmarks.measure import RATES, Comparison
from benchmarks.results import Results, load
from benchmarks.servers import SNAPCTL
from benchmarks.serving import UNAFFECTED
from benchmarks.show import comparison_rows, figure, ratio
from benchmarks.svg import Group, bars

Row = Sequence[str]

_BLOCK = re.compile(r"<!-- bench:([\w-]+) -->\n.*?<!-- /bench:\1 -->", re.DOTALL)


def markdown(headings: Row, rows: Sequence[Row]) -> str:
    """A table: the first column to the left, figures to the right, aligned also for those who read the source."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (headings, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths)]
    lines = [
        f"| {' | '.join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])} |"
        for row in cells
    ]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def contenders_table(found: Sequence[Comparison]) -> str:
    """A row for each work and a column for each contender; beside each figure, how many times as much ours is."""
    contenders = list(dict.fromkeys(name for one in found for name in [*one.contenders, *one.missing]))
    rows = []
    for one in found:
        row = [f"{one.work}, {one.unit}"]
        for contender in contenders:
            if contender in one.missing:
                row.append("not installed" if "not installed" in one.missing[contender] else "failed")
            elif contender not in one.contenders:
                row.append("")
            else:
                row.append(_cell(one, contender))
        rows.append(row)
    return markdown(["", *contenders], rows)


def _cell(one: Comparison, contender: str) -> str:
    median = figure(one.median(contender))
    if contender == one.contenders[0] or not one.related:
        return median
    return f"{median} ({ratio(one.ratio(one.contenders[0], contender))})"


def single_table(found: Sequence[Comparison]) -> str:
    """For each work a table of its own, with a row for each contender."""
    tables = []
    for one in found:
        columns = 4 if one.related else 3
        rows = [row[:columns] for row in comparison_rows(one)]
        headings = ["", one.unit, "from - to", f"{one.contenders[0]} / it"][:columns]
        tables.append(f"{_capital(one.work)}:\n\n{markdown(headings, rows)}")
    return "\n\n".join(tables)


def block_sizes_table(found: Sequence[Comparison]) -> str:
    """As `contenders_table`, and which block size comes out ahead."""
    sizes = found[0].contenders
    mean = {}
    for size in sizes:
        speeds = [one.ratio(size, sizes[0]) if one.unit in RATES else one.ratio(sizes[0], size) for one in found]
        mean[size] = geometric_mean(speeds)
    best = max(sizes, key=lambda size: mean[size])
    means = ", ".join(f"{size} {ratio(mean[size])}" for size in sizes)
    return (
        f"{contenders_table(found)}\n\nGeometric mean of the speeds beside {sizes[0]}: {means}. "
        f"These loads favour blocks of **{best}**."
    )


def aims_table(results: Results) -> str:
    """Every line, what was measured, and whether it is enough."""
    rows = []
    judged = verdicts(results.comparisons)
    for verdict in judged:
        aim = verdict.aim
        one = results.comparisons.get(aim.name)
        if verdict.value is None or one is None:
            value = verdict.why
        else:
            value = ratio(verdict.value) if aim.base else f"{figure(verdict.value)} {one.unit}"
        work = one.work if one and one.rounds else aim.name
        ours = "" if aim.ours == SNAPCTL else f": {aim.ours}"
        rows.append([work + ours, aim.base or "", aim.bound, value, verdict.word])
    reached = sum(verdict.word == REACHED for verdict in judged)
    table = markdown(["work", "against", "aim", "measured", ""], rows)
    return f"{table}\n\n{reached} of {len(AIMS)} lines are reached."


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


@dataclass(frozen=True)
class Block:
    """What stands between two marks of the document.

    Attributes:
        name: in the marks.
        command: that measures it.
        comparisons: names, in order.
        table: makes the table of them.
        plot: title of a plot; empty for none.
    """

    name: str
    command: str
    comparisons: Sequence[str]
    table: Callable[[Sequence[Comparison]], str] = contenders_table
    plot: str = ""


_LOADS = (
    "random-read-4k",
    "random-read-depth-1",
    "random-write-4k",
    "random-write-16k",
    "first-overwrite",
    "mixed",
    "sequential-read",
    "sequential-write",
    "flushed-write",
)
_SERVING = "python -m benchmarks.serving"

BLOCKS = (
    Block("serving", _SERVING, _LOADS, plot="Serving"),
    Block(
        "large",
        f"{_SERVING} --only large",
        ("cold-read", "large-random-read-4k", "large-random-write-4k"),
        plot="Serving a large volume",
    ),
    Block("oldest", f"{_SERVING} --only oldest-snapshot", ("oldest-snapshot",)),
    Block("pause", f"{_SERVING} --only pause", ("pause",), table=single_table),
    Block(
        "blocks",
        f"{_SERVING} --only blocks",
        [f"blocks-{name}" for name in _LOADS if name not in UNAFFECTED],
        table=block_sizes_table,
        plot="Blocks of 4, 16 and 64 KiB",
    ),
    Block("reflink", "python -m benchmarks.reflink", ("reflink-snapshot", "reflink-overwrite"), plot="Reflink copies"),
    Block(
        "growth",
        "python -m benchmarks.growth",
        ("growth-read", "growth-write", "growth-snapshot", "growth-trim"),
        plot="Cost of an operation, much and little mapped",
    ),
    Block("memory", "python -m benchmarks.growth", ("memory", "metadata"), table=single_table),
    Block(
        "bulk",
        "python -m benchmarks.bulk",
        ("import", "export", "import-full", "export-full"),
        plot="Import and export",
    ),
    Block("startup", "python -m benchmarks.startup", ("startup",), table=single_table, plot="Start-up"),
    Block("snapshots", "python -m benchmarks.snapshots", ("snapshot-process", "snapshot-call", "open", "list")),
)


def render_block(block: Block, results: Results, plots: str) -> str | None:
    """What belongs between the marks of a block; None if nothing of it was measured.

    Args:
        block: which.
        results: of a run.
        plots: the folder of the plots, as seen from the document.
    """
    found = [results.comparisons[name] for name in block.comparisons if name in results.comparisons]
    measured = [one for one in found if one.rounds]
    if not measured:
        return None
    parts = [f"    {block.command}", block.table(measured)]
    notes = dict.fromkeys(part for one in measured if one.note for part in one.note.split("; "))
    least = min(len(one.rounds) for one in measured)
    rounds = f"{least} rounds" if least > 1 else "one round"
    parts.append(textwrap.fill(f"{_capital('; '.join([*notes, rounds]))}.", 120))
    missing = {contender: why for one in measured for contender, why in one.missing.items()}
    parts += [f"Without {contender}: {why}." for contender, why in missing.items()]
    if block.plot:
        parts.append(f"![{block.plot}]({plots}/{block.name}.svg)")
    return "\n\n".join(parts)


def plot(block: Block, results: Results) -> str:
    """The chart of a block that has one."""
    found = [results.comparisons[name] for name in block.comparisons if name in results.comparisons]
    groups = []
    for one in found:
        medians = {name: one.median(name) for name in one.contenders}
        lines = [(name, value, f"{figure(value)} {one.unit}") for name, value in medians.items()]
        groups.append(Group(_short(one.work), lines))
    better = {"longer is better" if one.unit in RATES else "shorter is better" for one in found}
    sense = better.pop() if len(better) == 1 else "of rates longer is better, of times shorter"
    return bars(block.plot, f"beside the longest of each group; {sense}", groups)


def _short(words: str) -> str:
    return words if len(words) <= 56 else words[:55].rstrip(" ,") + "…"


def render(text: str, results: Results, *, whole: bool, plots: str = "plots") -> str:
    """Put the figures of a run into the document.

    Args:
        text: of the document.
        results: of the run.
        whole: that everything was to be measured. After a run of some parts a block is left as it is unless all of it
            was measured.
        plots: the folder of the plots, as seen from the document.

    Returns:
        The document with every block of a known name made anew.
    """
    known = {block.name: block for block in BLOCKS}

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name == "environment":
            inner: str | None = "\n".join(f"- {what}: {value}" for what, value in results.environment.items())
        elif name == "aims":
            inner = f"    make bench\n\n{aims_table(results)}" if whole else None
        else:
            block = known[name]
            complete = whole or all(one in results.comparisons for one in block.comparisons)
            inner = render_block(block, results, plots) if complete else None
        if inner is None:
            return match[0]
        return f"<!-- bench:{name} -->\n\n{inner}\n\n<!-- /bench:{name} -->"

    return _BLOCK.sub(fill, text)


def write(path: Path, results: Results, *, whole: bool, source: Path | None = None) -> None:
    """Write the document and its plots.

    Args:
        path: of the document; plots go to ``plots/`` beside it.
        results: of a run.
        whole: see `render`.
        source: a document to begin with; None for `path` itself.
    """
    text = render((source or path).read_text(), results, whole=whole)
    folder = path.parent / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    for block in BLOCKS:
        if block.plot and f"plots/{block.name}.svg" in text and render_block(block, results, "plots") is not None:
            (folder / f"{block.name}.svg").write_text(plot(block, results))
    path.write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[2]), load(Path(sys.argv[1])), whole=True)
