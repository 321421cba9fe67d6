"""The benchmark of the drafting kernel without a GPU: it checks, and notices a wrong kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
COMMAND = """
from reprise.eval.benchmarks import bench_draft_kernel as bench
from reprise.eval.report.command_line import run_command

def command():
    raise SystemExit(run_command(bench.main, [], name="bench_draft_kernel.py"))
"""
WRONG = """
from reprise.kernels.draft import triton_kernels

right = triton_kernels.draft_tokens_triton

def wrong(state, *, chances, **more):
    right(state, chances=chances, **more)
    chances[0, 1] += 0.25

triton_kernels.draft_tokens_triton = wrong
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND + code],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
    )


@pytest.mark.slow
def test_the_kernel_is_checked_and_nothing_timed_without_a_gpu() -> None:
    done = run("command()")
    assert done.returncode == 0, done.stderr
    assert "checked 2 shapes against the definition: 0 wrong" in done.stdout
    assert "nothing is timed" in done.stdout


@pytest.mark.slow
def test_a_wrong_kernel_is_noticed() -> None:
    done = run(WRONG + "command()")
    assert done.returncode == 1
    assert "the chances differ" in done.stderr
