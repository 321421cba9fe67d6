"""The kernels compile for a Hopper GPU, without one, and leave nothing to local memory."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[3] / "kernels"


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled there")
def test_no_kernel_is_left_out():
    from reprise.eval.benchmarks.kernel_resources import _variants

    sources = [path.read_text() for path in KERNELS.rglob("*.py")]
    kernels = {name for text in sources for name in re.findall(r"(?m)^def (\w+_kernel)\(", text)}
    assert {kernel.__name__ for kernel, *_ in _variants()} == kernels


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled there")
def test_every_kernel_compiles_for_hopper_without_spilling():
    from reprise.eval.benchmarks.kernel_resources import measure_resources

    rows = measure_resources(90)
    assert {row.kernel for row in rows} == {
        "tile_stats_kernel",
        "restrict_kernel",
        "sample_kernel",
        "walk_kernel",
        "draft_kernel",
        "count_kernel",
        "fold_kernel",
        "scan_kernel",
        "threshold_kernel",
        "noise_kernel",
        "choose_kernel",
    }
    assert {row: row.spilled_bytes for row in rows if row.spilled_bytes} == {}
    # 64 registers in 128 threads leave room for 8 programs, 32 warps, on a multiprocessor.
    full_reads = [row for row in rows if row.kernel in ("tile_stats_kernel", "scan_kernel")]
    assert max(row.registers for row in full_reads if row.variant != "top-p") <= 64
