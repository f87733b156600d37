"""`scrub`: read all that is live, and say whom damage affects."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from snapctl.cli import output, progress, session
from snapctl.cli.options import ContainerPath, Json, Wait
from snapctl.cli.path import locate
from snapctl.errors import UsageError
from snapctl.units import format_size

if TYPE_CHECKING:
    from snapctl.services.scrub import Damage, Report

commands = typer.Typer()


@commands.command("scrub")
def scrub(path: ContainerPath = None, as_json: Json = False, wait: Wait = 5.0) -> None:
    """Read and verify all that is live, beside writers.

    Goes on past damage, and names the nodes and bytes that cannot be read because of it. A damaged superblock copy is
    written anew from the other one; nothing else is changed.

    The exit code is 0 if all can be read, 4 if there is damage that was not known as lost before.

    \b
    Example:
      snapctl scrub lab.snap
    """
    from snapctl.services.scrub import scrub_container

    location = locate(path)
    if location.node is not None:
        raise UsageError(f"{location}: name the container; scrub always reads the whole of it")
    session.check_path(location.container)
    began = time.monotonic()
    with progress.reporting("scrubbing") as report_progress:
        report = scrub_container(location.container, wait, report_progress)
    seconds = time.monotonic() - began
    if as_json:
        output.emit_json(_document(location.container, report, seconds))
    else:
        for damage in report.damages:
            output.emit_lines(_lines(damage))
        output.emit_lines(_summary(location.container, report, seconds))
    raise typer.Exit(report.exit_code)


def _lines(damage: Damage) -> Iterator[str]:
    """One line for a damage, and below it one for each range that it affects."""
    where = damage.owner if damage.byte_range is None else f"{damage.owner} bytes {_range(*damage.byte_range)}"
    page = None if damage.page_no is None else f"at page {damage.page_no}"
    yield " ".join(filter(None, (f"{damage.severity.value}: {where}:", damage.what, page, damage.cause)))
    width = max((len(hit.node) for hit in damage.affected), default=0)
    for hit in damage.affected:
        end = hit.offset_bytes + hit.length_bytes
        yield f"  affects {hit.node:<{width}}  bytes {_range(hit.offset_bytes, end)} ({format_size(hit.length_bytes)})"


def _summary(container: str, report: Report, seconds: float) -> Iterator[str]:
    if report.affected_left_out:
        yield f"{report.affected_left_out} more affected ranges were left out"
    for severity, count in report.damages_left_out.items():
        yield f"{count} more of severity {severity.value} were left out"
    count = len(report.damages) + sum(report.damages_left_out.values())
    verdict = "no errors"
    if count:
        nodes = len({hit.node for damage in report.damages for hit in damage.affected})
        verdict = output.count(count, "finding")
        verdict += f", {output.count(nodes, 'node')} affected" if nodes else ""
    rate = format_size(int(report.bytes_verified / max(seconds, 1e-3)))
    took = f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"
    yield f"{container}: {verdict}; verified {format_size(report.bytes_verified)} in {took} s ({rate}/s)"


def _range(start: int, stop: int) -> str:
    return f"{start} to {stop}"


def _document(container: str, report: Report, seconds: float) -> dict[str, object]:
    return {
        "container": {"path": container},
        "exit_code": report.exit_code,
        "nodes": report.nodes,
        "pages_verified": report.pages_verified,
        "bytes_verified": report.bytes_verified,
        "seconds": round(seconds, 3),
        "damages": [
            {
                "severity": damage.severity.value,
                "owner": damage.owner,
                "what": damage.what,
                "cause": damage.cause,
                "page": damage.page_no,
                "start": damage.byte_range and damage.byte_range[0],
                "end": damage.byte_range and damage.byte_range[1],
                "affected": [
                    {"node": hit.node, "offset": hit.offset_bytes, "length": hit.length_bytes}
                    for hit in damage.affected
                ],
            }
            for damage in report.damages
        ],
        "damages_left_out": sum(report.damages_left_out.values()),
        "affected_left_out": report.affected_left_out,
    }
