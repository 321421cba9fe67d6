"""Processes that tests start import faster, and find the same packages."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reprise.tests.quick_imports import quick_imports

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
    environment = os.environ | {quick_imports.FILE: str(file), "PYTHONPATH": path}

    def report() -> list[object]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, check=True
        )
        return list(json.loads(done.stdout))

    allocations, packages = report()
    assert allocations == quick_imports._ALLOCATIONS
    assert {"pytest": ["pytest"]}.items() <= dict(packages).items()  # type: ignore[call-overload]
    # The next one reads the file.
    file.write_text(json.dumps({"a": ["b"]}))
    assert report()[1] == {"a": ["b"]}


def test_the_same_packages_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(quick_imports.FILE, str(tmp_path / "packages.json"))
    found = quick_imports._read_packages()
    for _ in range(2):
        assert quick_imports.packages_distributions() == found
    assert importlib.metadata.packages_distributions is quick_imports.packages_distributions
    # A damaged file is as none.
    (tmp_path / "packages.json").write_text("{")
    assert quick_imports.packages_distributions() == found
