"""What it costs to bring a disk image in and out: snapctl beside cp and qemu-img.

One image is full of random data, in the other every second MiB is a hole. Each time includes the sync of the file
written, so that all have done the same work. The image is in the page cache when it is read, for all alike: what is
compared is the work of the programs, and writing.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import _common as common

from snapctl.units import format_size

STRIPE_BYTES = 1024 * 1024
"""Data and holes alternate by this much."""

CP = "cp"
SPARSE = "cp --sparse=always"
QEMU = "qemu-img convert"


def make_image(path: Path, size_bytes: int, *, with_holes: bool) -> None:
    with open(path, "wb") as image:
        image.truncate(size_bytes)
        for offset in range(0, size_bytes, STRIPE_BYTES * (2 if with_holes else 1)):
            image.seek(offset)
            image.write(os.urandom(min(STRIPE_BYTES, size_bytes - offset)))
    common.sync(path)


def writing(command: Sequence[str | Path], target: Path, *, before: Callable[[], object] | None = None) -> common.Cost:
    """Measure a command that writes a file anew, beginning without it."""
    target.unlink(missing_ok=True)
    if before is not None:
        before()
    return common.run(command, synced=target)


def copying(source: Path, target: Path) -> dict[str, Callable[[], common.Cost]]:
    """The copies that snapctl is compared with; ones that only share the blocks would be no copies."""
    if sys.platform != "linux":
        return {CP: lambda: writing(["cp", source, target], target)}
    plain: list[str | Path] = ["cp", "--reflink=never"]
    return {
        CP: lambda: writing([*plain, source, target], target),
        SPARSE: lambda: writing([*plain, "--sparse=always", source, target], target),
    }


def importing(image: Path, folder: Path) -> dict[str, Callable[[], common.Cost]]:
    container, qcow2 = folder / "new.snap", folder / "new.qcow2"

    def init() -> None:
        common.run(common.snapctl("init", container))

    cases = copying(image, folder / "copy.img")
    if shutil.which("qemu-img"):
        convert: list[str | Path] = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, qcow2]
        cases[f"{QEMU}, raw to qcow2"] = lambda: writing(convert, qcow2)
    cases["snapctl import"] = lambda: writing(common.snapctl("import", container / "db", image), container, before=init)
    return cases


def exporting(image: Path, folder: Path) -> dict[str, Callable[[], common.Cost]]:
    container, qcow2, target = folder / "full.snap", folder / "full.qcow2", folder / "out.img"
    common.run(common.snapctl("init", container))
    common.run(common.snapctl("import", container / "db", image), synced=container)
    cases = copying(image, folder / "copy.img")
    if shutil.which("qemu-img"):
        common.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, qcow2], synced=qcow2)
        convert: list[str | Path] = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", qcow2, target]
        cases[f"{QEMU}, qcow2 to raw"] = lambda: writing(convert, target)
    cases["snapctl export"] = lambda: writing(common.snapctl("export", container / "db", target), target)
    return cases


def report(title: str, cases: dict[str, Callable[[], common.Cost]], size_bytes: int, runs: int) -> None:
    costs = common.Costs(cases, runs)
    bases = {f"/ {start}": case for start in (CP, SPARSE, QEMU) for case in cases if case.partition(",")[0] == start}
    rows = []
    for case in costs.cases:
        cost = costs.median(case)
        ratios = [common.times(costs.ratio(case, base))[0] for base in bases.values()]
        rate = f"{size_bytes / cost.wall / 2**20:.0f} MiB/s"
        rows.append((case, f"{cost.wall:.2f} s", f"{cost.cpu:.2f} s", rate, *ratios))
    common.show(title, ("", "time", "CPU", "rate", *bases), rows)


def main() -> None:
    made = common.parser(str(__doc__), runs=5)
    common.add_size(made, "1G", "size of the image")
    options = made.parse_args()
    size = format_size(options.size)
    print(common.heading(options.runs))
    if shutil.which("qemu-img") is None:
        print("without qemu-img, which is not installed (Debian has it in qemu-utils)")
    with common.scratch(options.directory) as folder:
        image = folder / "disk.img"
        for with_holes in (False, True):
            what = f"{size}, every other {format_size(STRIPE_BYTES)} a hole" if with_holes else f"{size} of data"
            make_image(image, options.size, with_holes=with_holes)
            for verb, cases in (("Import", importing), ("Export", exporting)):
                work = folder / verb
                work.mkdir()
                report(f"{verb} of {what}", cases(image, work), options.size, options.runs)
                shutil.rmtree(work)


if __name__ == "__main__":
    main()
