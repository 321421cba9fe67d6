"""What `make test-identity` relies on: vLLM takes its kernels for AVX2 when it is told to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

FOLDER = Path(__file__).with_name("other_processor")
REPORT = """
import torch, vllm._custom_ops
kernels = {line.split("/")[-1].strip() for line in open("/proc/self/maps") if "/vllm/_C" in line}
print(torch.backends.cpu.get_cpu_capability(), *sorted(kernels))
"""


@pytest.mark.engine
@pytest.mark.slow
def test_a_process_held_to_avx2_has_no_other_kernels() -> None:
    if os.environ.get("OTHER_PROCESSOR"):
        pytest.skip("this run is held already")
    environment = {**os.environ, "OTHER_PROCESSOR": "avx2", "PYTHONPATH": str(FOLDER)}
    done = subprocess.run(
        [sys.executable, "-c", REPORT], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["AVX2", "_C_AVX2.abi3.so"]


@pytest.mark.identity
def test_a_run_of_the_identity_tests_is_held_where_it_says_so() -> None:
    import torch

    if os.environ.get("OTHER_PROCESSOR") == "avx2":
        assert not torch.cpu._is_avx512_supported()
        assert torch.backends.cpu.get_cpu_capability() == "AVX2"
    else:
        assert torch.cpu._is_avx512_supported() == ("avx512f" in Path("/proc/cpuinfo").read_text())
