"""Verification on model runner V2, in vLLM's own samplers in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs vLLM")

HERE = Path(__file__).parent
V2_ON_CPU = HERE.parents[1] / "v2_on_cpu"


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_cases_pass_in_the_interpreter() -> None:
    # What decides the model runner is decided while vLLM is imported.
    path = [str(V2_ON_CPU), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"V2_ON_CPU": "1", "PYTHONPATH": os.pathsep.join(path)}
    cases = HERE / "verification_v2_cases.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)],
        env=environment,
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
