"""
What the machine must have for a test: where it is missing the test is skipped, aloud.

`make test` needs only Python; CI installs everything else and sets FLUX_TESTS_SKIP=never, which makes a skip a failure.
"""

import os
import shutil
from pathlib import Path

import pytest


def needs(there: object, what: str) -> None:
    """Skip unless *there*."""
    if not there:
        pytest.skip(f"{what} (.ci/run installs it)")


def needs_program(name: str) -> str:
    """Where *name* is on PATH, or the test is skipped."""
    found = shutil.which(name)
    needs(found, f"{name} is not installed")
    return str(found)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("FLUX_TESTS_SKIP") == "never":
        report.outcome = "failed"
        path, line, reason = report.longrepr if isinstance(report.longrepr, tuple) else ("", 0, str(report.longrepr))
        report.longrepr = f"{Path(path).name}:{line}: nothing may be skipped here: {reason}"
    return report
