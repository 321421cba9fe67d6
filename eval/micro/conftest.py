"""What a micro-benchmark's file says of where it was measured: the machine's kind, not its name."""

from __future__ import annotations

from typing import Any

import pytest

from reprise.eval.report.machine import describe_machine
from reprise.eval.report.results_csv import commit


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Keep what decides how fast it is."""
    python = machine_info["python_version"]
    machine_info.clear()
    machine_info.update(machine=describe_machine(), python=python)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    """Keep the commit, without the names of branch and folder."""
    commit_info.clear()
    commit_info["id"] = commit()
