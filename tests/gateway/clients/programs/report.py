"""Plugin of pytest: writes each test's name and what went wrong, or an empty text, as a line of JSON."""

import json
import os
from pathlib import Path
from typing import Any


def pytest_runtest_logreport(report: Any) -> None:
    """Called after each phase of a test."""
    if report.when == "call" or report.failed:
        _write(report.location[2], report.longreprtext if report.failed else "")


def pytest_collectreport(report: Any) -> None:
    """Called after each file was read."""
    if report.failed:
        _write("collecting", report.longreprtext)


def _write(name: str, problem: str) -> None:
    with Path(os.environ["REPORT"]).open("a") as file:
        file.write(json.dumps([name, problem]) + "\n")
