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


def test_engines_sleep_between_looks_into_their_queues() -> None:
    pytest.importorskip("vllm")
    queues = importlib.import_module(light_processes.QUEUES)
    assert queues.sched_yield is light_processes.sleep_briefly
