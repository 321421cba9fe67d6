"""Time the small parts that every step or request pays for, and compare with an earlier time.

    python eval/micro_benchmarks.py             time all, keep the figures in .benchmarks
    python eval/micro_benchmarks.py --compare   and fail if one is slower than the baseline
    python eval/micro_benchmarks.py --baseline  make these figures the baseline of this machine

Each file in eval/micro times what it is named by. A baseline holds for the machines of its kind:
processor, instruction set and number of cores.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.machine import describe_machine
from reprise.eval.report.results_csv import RESULTS, ROOT

BENCHMARKS = ROOT / "eval" / "micro"
BASELINES = RESULTS / "micro"
HISTORY = ROOT / ".benchmarks"
MAX_LOSS_PERCENT = 30
"""Of the median: medians of the same code differ by a tenth or two on a shared machine."""
_COMPARED = {"min", "max", "mean", "stddev", "median", "iqr", "ops", "outliers"}
_COMPARED |= {"rounds", "iterations"}
"""What pytest-benchmark reads of a baseline's statistics, whichever columns it is to show."""


def main(
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help=f"Fail if a median is over {MAX_LOSS_PERCENT}% above the baseline's."
        ),
    ] = False,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Write the baseline of this kind of machine.")
    ] = False,
    only: Annotated[
        str | None, typer.Option(metavar="WORD", help="Benchmarks whose names have this word.")
    ] = None,
) -> int:
    """Time the small parts that every step or request pays for, and keep the figures as JSON."""
    if importlib.util.find_spec("pytest_benchmark") is None:
        raise InputError("pytest-benchmark is not installed")
    if baseline and only:
        raise InputError("--baseline: it holds all benchmarks, so no --only")
    path = baseline_path()
    options = ["-k", only] if only else []
    if compare:
        if not path.is_file():
            kept = sorted(one.stem for one in BASELINES.glob("*.json"))
            print(f"No baseline for this kind of machine, {path.stem}: nothing is compared.")
            print(f"There are: {', '.join(kept) or 'none'}.")
            return 0
        options += [f"--benchmark-compare={path}"]
        options += [f"--benchmark-compare-fail=median:{MAX_LOSS_PERCENT}%"]
    if baseline:
        status = run_benchmarks(*options, f"--benchmark-json={path}")
        keep_what_is_compared(path)
        return status
    return run_benchmarks(
        *options, f"--benchmark-storage=file://{HISTORY}", f"--benchmark-save={path.stem}"
    )


def baseline_path(machine: str | None = None) -> Path:
    """Return the file of the baseline for a machine, by default for this one."""
    machine = describe_machine() if machine is None else machine
    return BASELINES / f"{re.sub('[^a-z0-9]+', '-', machine.lower()).strip('-')}.json"


def keep_what_is_compared(path: Path) -> None:
    """Leave out of a file of figures how they were timed, and what no comparison reads."""
    document = json.loads(path.read_text())
    for benchmark in document["benchmarks"]:
        del benchmark["options"]
        stats = benchmark["stats"].items()
        benchmark["stats"] = {name: value for name, value in stats if name in _COMPARED}
    path.write_text(json.dumps(document, indent=1) + "\n")


def run_benchmarks(*options: str) -> int:
    """Run the files in eval/micro by pytest; returns its exit status."""
    BASELINES.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pytest", str(BENCHMARKS), "-q", "-p", "no:cacheprovider"]
    command += ["-o", "python_files=bench_*.py", "-o", "python_functions=bench_*"]
    command += ["--benchmark-columns=min,median,iqr,rounds", "--benchmark-sort=name"]
    command += ["--benchmark-group-by=func", "--benchmark-disable-gc", "--benchmark-warmup=on"]
    # Not the options of a pytest that this may run in, nor its word that tests run side by side.
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    return subprocess.run([*command, *options], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(run_command(main, name="micro_benchmarks.py"))
