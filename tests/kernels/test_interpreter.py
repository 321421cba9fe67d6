"""The Triton tests without a GPU: in Triton's interpreter, in a process of their own."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = (
    "draft/test_draft_triton.py",
    "verify/test_coupled_triton.py",
    "verify/test_verify_triton.py",
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is that process")
def test_triton_tests_pass_in_the_interpreter():
    # The interpreter has to be chosen before triton is first imported, and would stay chosen for
    # every later test of this process, the engine's among them.
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
        + [str(HERE / name) for name in FILES],
        env=environment,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in FILES:
        assert re.search(rf"{name}::.* PASSED", done.stdout), name


def test_every_triton_test_file_is_run():
    found = (path.relative_to(HERE).as_posix() for path in HERE.rglob("*_triton.py"))
    assert sorted(FILES) == sorted(found)


@pytest.mark.parametrize("path", sorted(HERE.rglob("*_triton.py")), ids=lambda path: path.stem)
def test_a_gpu_run_finds_every_triton_test_file(path):
    """By the mark: `eval/gpu/measure.py` selects by it. Not imported, see `conftest.py`."""
    assigned = {
        ast.unparse(target): ast.unparse(node.value)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        for target in node.targets
    }
    assert "pytest.mark.gpu" in assigned.get("pytestmark", "")
