"""Measure everything, or what --only names; keep the results as JSON, and write the tables and plots of the document.

Only a run of everything, not a quick one, writes docs/performance.md; others write their document beside the results,
unless --document says otherwise.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import bulk, document, growth, reflink, results, serving, snapshots, startup
from benchmarks.measure import parser
from benchmarks.show import run

PARTS = [*serving.PARTS, *reflink.PARTS, *bulk.PARTS, *startup.PARTS, *snapshots.PARTS, *growth.PARTS]
ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "performance.md"


def main() -> None:
    made = parser(str(__doc__), PARTS)
    made.add_argument(
        "--results", type=Path, metavar="FILE", default=ROOT / "build" / "bench" / "results.json", help="(%(default)s)"
    )
    made.add_argument("--document", type=Path, metavar="FILE", help="to write; plots go beside it")
    options = made.parse_args()
    found = results.Results({}, run(PARTS, options))
    found.environment.update(results.environment(quick=options.quick))
    results.save(options.results, found)
    whole = not options.only
    target = options.document or (DOCUMENT if whole and not options.quick else options.results.with_suffix(".md"))
    document.write(target, found, whole=whole, source=target if target.exists() and target == DOCUMENT else DOCUMENT)
    print(f"\nwritten: {options.results}, {target}")


if __name__ == "__main__":
    main()
