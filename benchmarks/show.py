"""Figures as text: in aligned columns on a terminal, and the words that tables elsewhere are made of."""

from __future__ import annotations

import os
import platform
import signal
import sys
import textwrap
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.aims import AIMS, Verdict, judge, verdicts
from benchmarks.measure import RATES, Comparison, Part, chosen, measured, parser, setting
from snapctl import __version__


def machine() -> str:
    """One line on what is measured, and where."""
    return f"snapctl {__version__}, Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores"


def figure(value: float) -> str:
    """A number with three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def verdict_words(verdict: Verdict) -> str:
    """An aim and what came of it: ``at least 3: reached``; nothing if that is not known."""
    return "" if verdict.value is None else f"{verdict.aim.bound}: {verdict.word}"


def ratio(value: float) -> str:
    """A ratio with two digits that count: ``x 1.42``."""
    return f"x {value:.2f}" if value >= 0.1 else f"x {value:#.2g}"


def comparison_rows(comparison: Comparison) -> Iterator[tuple[str, str, str, str, str]]:
    """A row for each contender: its name, its figure, the range of it, ours beside it, and the aim."""
    contenders = comparison.contenders
    for contender in contenders:
        least, most = comparison.spread(contender)
        ours = contenders[0]
        beside = comparison.related and contender != ours
        aims = (aim for aim in AIMS if aim.name == comparison.name and (aim.base or aim.ours) == contender)
        yield (
            contender,
            figure(comparison.median(contender)),
            f"{figure(least)} - {figure(most)}",
            ratio(comparison.ratio(ours, contender)) if beside else "",
            "; ".join(verdict_words(judge(aim, comparison)) for aim in aims),
        )


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns: the first to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
        print("  ".join(["", row[0].ljust(widths[0]), *cells[1:]]).rstrip(), flush=True)


def print_comparison(comparison: Comparison) -> None:
    """Print what contenders made of one piece of work."""
    print(f"\n{comparison.name}: {comparison.work}")
    if comparison.note:
        print(textwrap.fill(comparison.note, 118, initial_indent="  ", subsequent_indent="  "))
    if comparison.rounds:
        better = "more is better" if comparison.unit in RATES else "less is better"
        ours = f"{comparison.contenders[0]} / it" if comparison.related else ""
        headings = (f"{len(comparison.rounds)} rounds; {better}", comparison.unit, "from - to", ours, "aim")
        print_table(headings, list(comparison_rows(comparison)))
    for contender, why in comparison.missing.items():
        print(f"  without {contender}: {why}", flush=True)


def print_verdicts(found: Iterable[Verdict]) -> None:
    """Print all lines with what came of them."""
    print("\nThe aims")
    rows = []
    for verdict in found:
        aim = verdict.aim
        value = "" if verdict.value is None else (ratio if aim.base else figure)(verdict.value)
        rows.append((aim.name, f"{aim.ours} / {aim.base}" if aim.base else aim.ours, aim.bound, value, verdict.word))
    print_table(("", "", "aim", "measured", ""), rows)


def main(description: str, parts: Sequence[Part]) -> dict[str, Comparison]:
    """Measure some parts as the command line says, and print each as soon as it is known.

    Returns:
        What was measured, by name.
    """
    return run(parts, parser(description, parts).parse_args())


def run(parts: Sequence[Part], options: Namespace) -> dict[str, Comparison]:
    """As `main`, with options that were read already."""
    print(machine() + (", quick" if options.quick else ""), flush=True)
    found: dict[str, Comparison] = {}
    # So that servers are stopped and file systems unmounted.
    signal.signal(signal.SIGTERM, lambda signal_no, _frame: sys.exit(128 + signal_no))
    with setting(options) as where:
        for comparison in measured(chosen(parts, options), where):
            found[comparison.name] = comparison
            print_comparison(comparison)
    print_verdicts([verdict for verdict in verdicts(found) if verdict.aim.name in found])
    return found
