"""The benchmark without a GPU: it checks, times nothing, and notices a wrong kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reprise.eval.report.command_line import run_command

ROOT = Path(__file__).resolve().parents[3]


COMMAND = """
from reprise.eval.benchmarks import {module} as bench
from reprise.eval.report.command_line import run_command

def command():
    raise SystemExit(run_command(bench.main, name="{module}.py"))
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            COMMAND.format(module="bench_verify") + code,
            "--output",
            str(folder / "rows.csv"),
        ],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
    )


@pytest.mark.slow
def test_it_checks_and_says_that_nothing_is_timed(tmp_path):
    done = run("command()", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "checked 12 shapes against the reference: 0 wrong" in done.stdout
    assert "No CUDA device" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_wrong_kernel_fails_the_run(tmp_path):
    spoil = (
        "from reprise.kernels import verify\n"
        "right = verify.verify_drafts\n"
        "def wrong(*args, backend, **more):\n"
        "    tokens, accepted = right(*args, backend='torch', **more)\n"
        "    return (tokens, accepted) if backend == 'torch' else (tokens.roll(1, 0), accepted)\n"
        "verify.verify_drafts = wrong\n"
        "command()"
    )
    done = run(spoil, tmp_path)
    assert done.returncode == 1
    assert "WRONG" in done.stderr


def run_on_cpu(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND.format(module="bench_verify_cpu") + code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
    )


@pytest.mark.slow
@pytest.mark.engine
def test_on_the_cpu_it_times_ours_vllms_and_torch():
    fewer = "bench.SHAPES = bench.SHAPES[::9]\ncommand()"
    done = run_on_cpu(fewer, "--repeats", "2")
    assert done.returncode == 0, done.stderr
    rows = [line for line in map(str.strip, done.stdout.splitlines()) if line[:1].isdigit()]
    assert len(rows) == 2
    assert all(row.endswith("x") for row in rows)


@pytest.mark.slow
@pytest.mark.engine
def test_on_the_cpu_a_wrong_output_fails_the_run():
    spoil = (
        "import torch\n"
        "bench.ours = lambda *_: lambda: (torch.zeros(1, 2, dtype=torch.int32),)\n"
        "command()"
    )
    done = run_on_cpu(spoil)
    assert done.returncode == 1
    assert "WRONG" in done.stderr


@pytest.mark.engine
def test_on_the_cpu_the_number_of_repeats_is_checked(capsys):
    from reprise.eval.benchmarks import bench_verify_cpu

    assert run_command(bench_verify_cpu.main, ["--repeats", "0"], name="bench_verify_cpu.py") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench_verify_cpu.py")
    assert "--repeats" in line
    assert "greater than or equal to 1" in line
