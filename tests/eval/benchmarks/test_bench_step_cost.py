"""The benchmark of an engine's steps: its arithmetic, its complaints, and a real engine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from reprise.eval.benchmarks.bench_step_cost import cost_per_token, main
from reprise.eval.report.command_line import run_command

SCRIPT = Path(__file__).resolve().parents[3] / "eval" / "benchmarks" / "bench_step_cost.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=os.environ | {"NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=800,
    )


def test_a_step_twice_as_long_with_four_tokens_each_costs_a_quarter_a_token() -> None:
    assert cost_per_token({(8, 0): 0.004, (8, 4): 0.008}, 8, 4) == pytest.approx(0.25)


@pytest.mark.parametrize("batch", ["", "0", "1,x"])
def test_batches_that_are_none_are_named(batch: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, ["--batch", batch], name="bench_step_cost.py") == 2
    assert capsys.readouterr().err.splitlines() == [
        "bench_step_cost.py: error: --batch: expected whole numbers from 1 on with commas between, "
        f"got {batch!r}"
    ]


@pytest.mark.slow
@pytest.mark.engine
def test_a_context_that_leaves_no_room_is_named(demo_model: Path) -> None:
    done = run("--model", str(demo_model), "--context", "100000")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "error: --context" in line]
    assert line.startswith("bench_step_cost.py: error: --context 100000: expected at most")


@pytest.mark.slow
@pytest.mark.engine
def test_a_real_engine_is_timed_at_each_batch(demo_model: Path) -> None:
    done = run("--model", str(demo_model), "--batch", "1,4", "--drafted", "2", "--context", "32")
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    rows = [re.split(r"  +", line) for line in lines if line[:1].isdigit()]
    assert [int(row[0]) for row in rows] == [1, 4]
    assert all(float(row[1]) > 0 and "(" in row[2] for row in rows)
