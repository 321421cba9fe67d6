"""Processes that tests start take less of the machine, and find the same packages."""

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import light_processes
import pytest

PROGRAM = """
import gc, importlib.metadata, json
print(json.dumps([gc.get_threshold()[0], importlib.metadata.packages_distributions()]))
"""
FOLDERS = Path(__file__).parent


@pytest.mark.parametrize("first", [None, "v2_on_cpu", "other_processor"])
def test_a_process_that_is_started_imports_faster(first: str | None, tmp_path: Path) -> None:
    file = tmp_path / "packages.json"
    path = os.environ["PYTHONPATH"]
    if first is not None:
        path = os.pathsep.join([str(FOLDERS / first), path])
    environment = os.environ | {light_processes.FILE: str(file), "PYTHONPATH": path}

    def report() -> list[object]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, check=True
        )
        return list(json.loads(done.stdout))

    allocations, packages = report()
    assert allocations == light_processes.ALLOCATIONS
    assert {"pytest": ["pytest"]}.items() <= dict(packages).items()  # type: ignore[call-overload]
    # The next one reads the file.
    file.write_text(json.dumps({"a": ["b"]}))
    assert report()[1] == {"a": ["b"]}


def test_the_same_packages_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(light_processes.FILE, str(tmp_path / "packages.json"))
    found = light_processes.read_packages()
    for _ in range(2):
        assert light_processes.packages_distributions() == found
    assert importlib.metadata.packages_distributions is light_processes.packages_distributions
    # A damaged file is as none.
    (tmp_path / "packages.json").write_text("{")
    assert light_processes.packages_distributions() == found


def test_a_server_that_is_tested_waits_longer() -> None:
    module = "reprise.engine_ext.request.draft_counts_fetcher"
    program = f"import {module} as module; print(module._TIMEOUT_S)"
    found = []
    for patient in ({}, {light_processes.PATIENT: "1"}):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | patient,
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(float(done.stdout))
    assert found[0] <= 1.0
    assert found[1] == light_processes.WAITS[module]["_TIMEOUT_S"] >= 30.0


@pytest.mark.parametrize("module", light_processes.WAITS)
def test_what_it_waits_for_has_these_names(module: str) -> None:
    source = FOLDERS.parent.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text()
    for name in light_processes.WAITS[module]:
        assert f"\n{name} = " in source


def test_engines_sleep_between_looks_into_their_queues() -> None:
    pytest.importorskip("vllm")
    queues = importlib.import_module(light_processes.QUEUES)
    assert queues.sched_yield is light_processes.sleep_briefly
