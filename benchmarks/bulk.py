"""Bulk: what it takes to bring a disk image in and out, beside cp, dd and qemu-img.

Each time includes the sync of the file written, so that all have done the same work. The image is in the page cache
when it is read, for all alike: what is compared is the work of the programs, and writing.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.aims import SPARSE_COPY
from benchmarks.measure import MIB, THROUGHPUT, Comparison, Part, Setting, compare
from benchmarks.processes import find, random_image, run, snapctl, why_missing
from benchmarks.servers import SNAPCTL
from benchmarks.show import main
from snapctl.units import format_size

QEMU_IMG = "qemu-img convert"

Cases = dict[str, Callable[[], float]]


def writing(target: Path, *command: object, before: Callable[[], object] | None = None) -> float:
    """Measure a command that writes a file anew, beginning without it; returns seconds."""
    target.unlink(missing_ok=True)
    if before is not None:
        before()
    return run(*command, synced=target)


def copying(image: Path, folder: Path) -> Cases:
    """Plain copies; ones that only share the blocks would be none."""
    target = folder / "copy.img"
    if sys.platform != "linux":
        return {"cp": partial(writing, target, "cp", image, target)}
    plain = ("cp", "--reflink=never")
    return {
        SPARSE_COPY: partial(writing, target, *plain, "--sparse=always", image, target),
        "cp": partial(writing, target, *plain, image, target),
        "dd conv=sparse": partial(writing, target, "dd", f"if={image}", f"of={target}", "bs=1M", "conv=sparse"),
    }


def importing(image: Path, folder: Path) -> Cases:
    """What brings an image in; qemu-img makes a qcow2 file of it."""
    container, qcow2 = folder / "new.snap", folder / "new.qcow2"
    init = partial(run, *snapctl("init", container))
    cases: Cases = {SNAPCTL: partial(writing, container, *snapctl("import", container / "db", image), before=init)}
    cases |= copying(image, folder)
    if find("qemu-img"):
        cases[QEMU_IMG] = partial(writing, qcow2, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, qcow2)
    return cases


def exporting(image: Path, folder: Path) -> Cases:
    """What brings an image out; qemu-img makes it of a qcow2 file."""
    container, qcow2, target = folder / "full.snap", folder / "full.qcow2", folder / "out.img"
    run(*snapctl("init", container))
    run(*snapctl("import", container / "db", image), synced=container)
    cases: Cases = {SNAPCTL: partial(writing, target, *snapctl("export", container / "db", target))}
    cases |= copying(image, folder)
    if find("qemu-img"):
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, qcow2, synced=qcow2)
        cases[QEMU_IMG] = partial(writing, target, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", qcow2, target)
    return cases


def bulk(name: str, where: Setting, *, into: bool, every: int) -> Iterator[Comparison]:
    """Compare one direction, of an image of which every so manieth MiB is data."""
    size_bytes = where.bulk if every > 1 else where.size
    image = random_image(where.folder / f"bulk-{every}.img", size_bytes, every=every)
    folder = where.folder / name
    folder.mkdir()
    cases = (importing if into else exporting)(image, folder)
    rates = {case: partial(_rate, measure, size_bytes) for case, measure in cases.items()}
    missing = {} if find("qemu-img") else {QEMU_IMG: why_missing("qemu-img")}
    what = "half of it holes of 1 MiB" if every > 1 else "full"
    work = f"{'import' if into else 'export'} of {format_size(size_bytes)}, {what}"
    yield compare(name, work, THROUGHPUT, rates, where.rounds(3), missing=missing)
    shutil.rmtree(folder)


def _rate(measure: Callable[[], float], size_bytes: int) -> float:
    return size_bytes / MIB / measure()


PARTS = [
    Part("import", partial(bulk, "import", into=True, every=2)),
    Part("export", partial(bulk, "export", into=False, every=2)),
    Part("import-full", partial(bulk, "import-full", into=True, every=1)),
    Part("export-full", partial(bulk, "export-full", into=False, every=1)),
]

if __name__ == "__main__":
    main(str(__doc__), PARTS)
