"""The results of a run, kept as JSON: what was measured in every round, and on what machine."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.measure import Comparison
from snapctl import __version__


@dataclass(frozen=True)
class Results:
    """A run.

    Attributes:
        environment: what it ran on, in words for people.
        comparisons: what was measured, by name.
    """

    environment: dict[str, str]
    comparisons: dict[str, Comparison]


def environment(*, quick: bool) -> dict[str, str]:
    """What a run that ends now ran on."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "snapctl": __version__,
        "Python": platform.python_version(),
        "compiled core": "yes" if find_spec("snapctl._native") else "no",
        "system": f"{platform.system()} {platform.release()}",
        "processor": f"{os.cpu_count()} x {_processor()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "thoroughness": "quick: the figures mean little" if quick else "full",
    }


def save(path: Path, results: Results) -> None:
    """Write results to a file, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    comparisons = [asdict(comparison) for comparison in results.comparisons.values()]
    path.write_text(json.dumps({"environment": results.environment, "comparisons": comparisons}, indent=1) + "\n")


def load(path: Path) -> Results:
    """Read what `save` wrote."""
    read: dict[str, Any] = json.loads(path.read_text())
    comparisons = [Comparison(**fields) for fields in read["comparisons"]]
    return Results(dict(read["environment"]), {comparison.name: comparison for comparison in comparisons})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
