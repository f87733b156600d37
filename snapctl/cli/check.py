"""`check`: verify a whole container."""

from __future__ import annotations

import typer

from snapctl.cli import output, session
from snapctl.cli.options import ContainerPath, Json, Wait
from snapctl.cli.path import locate
from snapctl.errors import UsageError
from snapctl.units import format_size

commands = typer.Typer()


@commands.command("check")
def check(path: ContainerPath = None, as_json: Json = False, wait: Wait = 5.0) -> None:
    """Verify that a container is whole.

    Looks at every checksum and every record, and sees that every page is owned once. Changes nothing.

    The exit code is 0 if all is well, 3 if there is leaked space and nothing worse, 4 if there is corruption.

    \b
    Example:
      snapctl check lab.snap
    """
    from snapctl.services.check import check_container

    location = locate(path)
    if location.node is not None:
        raise UsageError(f"{location}: name the container; check always verifies the whole of it")
    session.check_path(location.container)
    report = check_container(location.container, wait)
    findings = [
        {"severity": finding.severity.value, "where": finding.where, "message": finding.message}
        for finding in report.findings
    ]
    if as_json:
        output.emit_json(
            {
                "container": {"path": location.container},
                "exit_code": report.exit_code,
                "nodes": report.nodes,
                "pages_checked": report.pages_checked,
                "data_bytes": report.data_bytes,
                "findings": findings,
            }
        )
    else:
        output.emit_lines("{severity}: {where}: {message}".format(**finding) for finding in findings)
        verdict = f"{len(findings)} findings" if findings else "no errors"
        amount = f"{report.nodes} nodes, {report.pages_checked} pages, {format_size(report.data_bytes)} of data"
        output.emit_lines([f"{location.container}: {verdict}; checked {amount}"])
    raise typer.Exit(report.exit_code)
