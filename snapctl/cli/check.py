"""`check`: verify a whole container, and repair it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from snapctl.cli import output, progress, session
from snapctl.cli.options import ContainerPath, DryRun, Json, Wait, Yes
from snapctl.cli.path import locate
from snapctl.errors import SnapctlError, UsageError
from snapctl.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from snapctl.services.check import Finding, Report
    from snapctl.services.repair import Repair

commands = typer.Typer()


@commands.command("check")
def check(
    path: ContainerPath = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Keep all that can still be read, and mark what cannot as lost."),
    ] = False,
    undo_repair: Annotated[
        bool,
        typer.Option("--undo-repair", help="Go back to the state before a repair, if nothing was written since."),
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
    wait: Wait = 5.0,
) -> None:
    """Verify that a container is whole.

    Looks at every checksum and every record, and sees that every page is owned once. Changes nothing, unless it is told
    to repair. A repair is one transaction, and until something else is written it can be undone.

    The exit code is 0 if all is well, 3 if there is leaked space and nothing worse, 4 if there is corruption. After a
    repair it is 0.

    \b
    Examples:
      snapctl check lab.snap
      snapctl check --repair -n lab.snap
    """
    location = locate(path)
    if location.node is not None:
        raise UsageError(f"{location}: name the container; check always verifies the whole of it")
    if repair and as_json and not (yes or dry_run):
        raise UsageError("--json with --repair cannot ask; give --yes or --dry-run as well")
    if repair and undo_repair:
        raise UsageError("--repair and --undo-repair exclude each other")
    if (dry_run or yes) and not (repair or undo_repair):
        raise UsageError("--dry-run and --yes go with --repair and --undo-repair")
    session.check_path(location.container)
    if repair or undo_repair:
        session.refuse_served(location.container, wait)
    if undo_repair:
        _undo(location.container, wait, dry_run=dry_run, yes=yes, as_json=as_json)
    elif repair:
        _repair(location.container, wait, dry_run=dry_run, yes=yes, as_json=as_json)
    else:
        from snapctl.services.check import check_container

        with progress.reporting(f"checking {location.container}") as told:
            report = check_container(location.container, wait, told)
        if as_json:
            output.emit_json(_fields(location.container, report))
        else:
            _print(location.container, report)
        raise typer.Exit(report.exit_code)


def _repair(container: str, wait: float, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    from snapctl.services.repair import repair_container

    def agree(proposed: Repair) -> bool:
        told.pause()
        if not yes:
            _print(container, proposed.found)
            _print_findings(proposed.actions)
            if not output.confirmed(f"repair {container} as told above?"):
                raise SnapctlError("not confirmed; nothing was changed")
        return True

    with progress.reporting(f"repairing {container}") as told:
        outcome = repair_container(container, wait, agree=None if dry_run else agree, progress=told)
    if as_json:
        actions = [_finding(action) for action in outcome.actions]
        fields = _fields(container, outcome.found)
        output.emit_json({**fields, "exit_code": outcome.exit_code, "actions": actions, "applied": outcome.applied})
        raise typer.Exit(outcome.exit_code)
    if yes or not outcome.applied:
        _print(container, outcome.found)
        _print_findings(outcome.actions)
    if outcome.applied:
        output.emit_lines([f"{container}: repaired; 'check --undo-repair' goes back, until something is written"])
    elif outcome.actions:
        output.emit_lines([f"{container}: this is what a repair would do; nothing was changed"])
    raise typer.Exit(outcome.exit_code)


def _undo(container: str, wait: float, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    from snapctl.services.repair import undo_repair_of

    def agree(transaction: int) -> bool:
        if not (
            yes or output.confirmed(f"give up the repair of {container}, for the state of transaction {transaction}?")
        ):
            raise SnapctlError("not confirmed; nothing was changed")
        return True

    transaction = undo_repair_of(container, wait, agree=None if dry_run else agree)
    if as_json:
        fields = {"state_of_transaction": transaction, "applied": not dry_run}
        output.emit_json({"container": {"path": container}, **fields})
    else:
        verb = "would be" if dry_run else "is"
        output.emit_lines([f"{container}: {verb} again as after transaction {transaction}, before the repair"])


def _fields(container: str, report: Report) -> dict[str, object]:
    return {
        "container": {"path": container},
        "exit_code": report.exit_code,
        "nodes": report.nodes,
        "pages_checked": report.pages_checked,
        "data_bytes": report.data_bytes,
        "logged_flushes": report.logged_flushes,
        "findings": [_finding(finding) for finding in report.findings],
    }


def _finding(finding: Finding) -> dict[str, str]:
    return {"severity": finding.severity.value, "where": finding.where, "message": finding.message}


def _print(container: str, report: Report) -> None:
    _print_findings(report.findings)
    faults = sum(finding.severity.is_fault for finding in report.findings)
    verdict = output.count(faults, "finding") if faults else "no errors"
    nodes, pages = output.count(report.nodes, "node"), output.count(report.pages_checked, "page")
    checked = f"{nodes}, {pages}, {format_size(report.data_bytes)} of data"
    if report.logged_flushes:
        checked += f", {output.count(report.logged_flushes, 'record')} of the log"
    output.emit_lines([f"{container}: {verdict}; checked {checked}"])


def _print_findings(findings: Sequence[Finding]) -> None:
    output.emit_lines(f"{finding.severity.value}: {finding.where}: {finding.message}" for finding in findings)
