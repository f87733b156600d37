"""Settings for every test: Hypothesis profiles, a clean environment, and skips that fail where they are forbidden.

Environment variables:
    HYPOTHESIS_PROFILE: ``ci`` (the default; the same examples on every run), ``dev`` (random ones; failures are
        remembered in .hypothesis) or ``long`` (random, and fifty times as many).
    SNAPCTL_FORBID_SKIPS: ``1`` turns every skipped test into a failed one; .ci/run sets it.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# A loaded machine is slow to draw and to run examples; that says nothing about snapctl.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

settings.register_profile("ci", _PATIENT, derandomize=True, database=None, print_blob=True)
settings.register_profile("dev", _PATIENT, derandomize=False)
settings.register_profile("long", _PATIENT, derandomize=False, max_examples=5_000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# What a user's shell may set and what would change what commands do or print.
_UNWANTED = ("SNAPCTL_CONTAINER", "COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "LINES", "NO_COLOR", "PY_COLORS")

_SKIPS_FORBIDDEN = os.environ.get("SNAPCTL_FORBID_SKIPS", "0") not in {"", "0"}


def pytest_configure() -> None:
    """Give the commands that tests start a known environment, with the `snapctl` under test first in PATH."""
    for name in _UNWANTED:
        os.environ.pop(name, None)
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that was skipped, where skips are forbidden; an expected failure is no skip."""
    report = yield
    if not hasattr(report, "wasxfail"):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a module that was skipped as a whole, where skips are forbidden."""
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if _SKIPS_FORBIDDEN and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"skips are forbidden here (SNAPCTL_FORBID_SKIPS is set): {reason}"
