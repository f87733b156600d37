"""The load: fio's NBD engine, one connection over a Unix socket."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import MIB, Failed
from benchmarks.processes import find, why_missing

_PATIENCE_SECONDS = 120
"""Beyond the time that a load is to take. fio 3.33 spins for ever when its server hangs up."""


class Load(NamedTuple):
    """What a load came to.

    Attributes:
        operations: reads, writes and trims per second.
        mib: of data, per second.
        written: bytes, in all.
        longest_seconds: that a request took.
    """

    operations: float
    mib: float
    written: int
    longest_seconds: float


def load(
    uri: str, report: Path, *words: str, seconds: float | None = None, ramp: float | None = None, seed: int = 1
) -> Load:
    """Run fio to its end.

    Args:
        uri: of the export.
        report: where fio may write what it has to say.
        words: the job, such as ``--rw=randread``.
        seconds: how long to measure; None if the job says itself how much it does.
        ramp: seconds of load before that, which are not counted; None for a quarter of what is.
        seed: of what is random.

    Raises:
        Failed: it did, did not end, or had errors.
    """
    program = find("fio")
    if program is None:
        raise Failed(why_missing("fio"))
    command = [program, "--name=load", "--thread", "--ioengine=nbd", f"--uri={uri}", f"--randseed={seed}", *words]
    ramp = (seconds or 0) / 4 if ramp is None else ramp
    if seconds is not None:
        command += ["--time_based", f"--runtime={seconds * 1000:.0f}ms", f"--ramp_time={ramp * 1000:.0f}ms"]
        command += ["--norandommap"]
    command += ["--output-format=json", f"--output={report}"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=(seconds or 0) + ramp + _PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"fio did not end: {' '.join(command)}") from error
    try:
        # What it has to remark comes before the object.
        job = json.loads("{" + report.read_text().partition("{")[2])["jobs"][0]
    except (OSError, ValueError, LookupError) as error:
        raise Failed(f"fio ended with {done.returncode} and no report: {done.stderr.strip()}") from error
    if done.returncode or job["error"]:
        raise Failed(f"fio ended with {done.returncode}, error {job['error']}: {done.stderr.strip()}")
    ways = [job["read"], job["write"], job["trim"]]
    return Load(
        sum(way["iops"] for way in ways),
        sum(way["bw_bytes"] for way in ways) / MIB,
        job["write"]["io_bytes"],
        max(way["clat_ns"].get("max", 0) for way in ways) / 1e9,
    )
