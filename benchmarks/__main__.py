"""Measure everything, or what --only names; keep the results as JSON, and write the tables and plots of the document.

A quick run, or one of some parts, writes no document unless --document asks for it.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import bulk, serving, snapshots, startup
from benchmarks.measure import parser
from benchmarks.show import run

PARTS = [*serving.PARTS, *bulk.PARTS, *startup.PARTS, *snapshots.PARTS]
ROOT = Path(__file__).resolve().parent.parent


if __name__ == "__main__":
    run(PARTS, parser(str(__doc__), PARTS).parse_args())
