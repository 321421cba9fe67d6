"""The demo: a real vLLM on this machine, with and without cached answers to draft from.

    make demo

Serves the demo trace, with a small model that comes with the sources, by each method in an engine
of its own; the engines take turns of a second. Our plugin is loaded into ours alone: the others are
vLLM as its users get it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from reprise.eval.demo_data.demo_model import DEMO_DTYPE, demo_model_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.live.engine_turns import LiveError, serve
from reprise.eval.live.live import method_groups, run_of_outcome
from reprise.eval.live.live_worker import LiveJob, LiveOutcome, speculative_config
from reprise.eval.replay.peer_drafters import suffix_installed
from reprise.eval.replay.results import Run
from reprise.eval.replay.traces import TraceRow, limit_rows
from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.machine import describe_machine
from reprise.eval.report.progress import progress_stages

CONCURRENCY = 8
_ENGINE_BYTES = 3 << 30  # with a key-value cache of one GiB, and the processes around it
_LABELS = {
    "none": "no speculation",
    "ngram": "n-gram (vLLM)",
    "suffix": "SuffixDecoding",
    "reprise": "Reprise",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0, or 2 if no engine can be started, or 1 if any answer differs."""
    return run_command(demo, arguments, name="demo.py")


def demo(
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many timed requests, the first ones.")
    ] = None,
) -> int:
    """Serve the demo trace with real vLLM engines: no speculation, its peers, and Reprise."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError("vLLM is not installed")
    rows = limit_rows(make_demo_trace(), limit)
    methods = ["none", "ngram", *(["suffix"] if suffix_installed() else []), "reprise"]
    try:
        runs = _serve_all(methods, rows)
    except LiveError as error:
        raise InputError(str(error)) from error
    _print(runs, rows)
    return 0 if all(run.identical_outputs == run.requests for run in runs) else 1


def _serve_all(methods: Sequence[str], rows: Sequence[TraceRow]) -> list[Run]:
    """Engines that take turns where there is memory for all of them, so that a slow minute of the
    machine meets them all; else one after the other."""
    model = str(demo_model_path())
    take_turns = _available_bytes() >= len(methods) * _ENGINE_BYTES
    outcomes: list[LiveOutcome] = []
    with progress_stages(quiet=False) as stage:
        for group in method_groups(methods, take_turns=take_turns):
            jobs = [
                LiveJob(
                    model=model,
                    speculative_config=speculative_config(method, None),
                    rows=list(rows),
                    concurrency=CONCURRENCY,
                    seed=0,
                    dtype=DEMO_DTYPE,
                )
                for method in group
            ]
            name = f"vLLM with {', '.join(_LABELS[method] for method in group)}"
            with stage(name, len(group) * len(rows)) as tick:
                outcomes += serve(jobs, on_request=tick)
    reference = outcomes[0].output_token_ids
    return [
        run_of_outcome("demo", method, outcome, reference, cost=0.0)
        for method, outcome in zip(methods, outcomes, strict=True)
    ]


def _available_bytes() -> int:
    """Memory that programs can still have."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def _print(runs: Sequence[Run], rows: Sequence[TraceRow]) -> None:
    console = Console()
    warm = sum(row.warm for row in rows)
    table = Table(
        title=f"{runs[0].requests} support requests, {CONCURRENCY} at a time, after {warm} earlier"
        " answers",
        title_justify="left",
        box=None,
        header_style="bold",
        padding=(0, 2, 0, 0),
    )
    headings = ("", "tokens/s", "ratio", "MAL", "acceptance", "drafted/step", "answers identical")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "" else "right")
    for run in runs:
        table.add_row(
            _LABELS[run.method],
            f"{run.output_tokens_per_s or 0:,.0f}",
            f"{_ratio(run, runs[0]):.2f}",
            f"{run.mean_acceptance_length or 1:.2f}",
            "" if run.acceptance_rate is None else f"{run.acceptance_rate:.1%}",
            f"{run.drafted_per_step or 0:.2f}",
            f"{run.identical_outputs} of {run.requests}",
            style="bold" if run.method == "reprise" else None,
        )
    console.print(table)
    console.print(summary(runs), soft_wrap=True)
    console.print(f"Measured in {DEMO_DTYPE} on {describe_machine()}.", soft_wrap=True)


def summary(runs: Sequence[Run]) -> str:
    """One sentence that says what the figures say, good or bad."""
    by_method = {run.method: run for run in runs}
    none, reprise = by_method["none"], by_method["reprise"]
    peers = [run for run in runs if run.method not in ("none", "reprise")]
    speed = _ratio(reprise, none)
    compared = "faster" if speed > 1 else "slower"
    factor = speed if speed > 1 else 1 / speed
    sentence = (
        f"With Reprise vLLM gave {_identical(reprise)} {factor:.2f} times {compared} than without"
        f" speculation, in {_fewer(reprise, none)} steps"
    )
    if peers:
        best = max(peers, key=lambda run: run.output_tokens_per_s or 0.0)
        margin = _ratio(reprise, best) - 1
        verb = "ahead of" if margin > 0 else "behind"
        sentence += f", and was {abs(margin):.0%} {verb} the best peer, {_LABELS[best.method]}"
    return sentence + "."


def _identical(run: Run) -> str:
    if run.identical_outputs == run.requests:
        return f"the same {run.requests} answers"
    return f"answers of which only {run.identical_outputs} of {run.requests} were the same"


def _fewer(run: Run, none: Run) -> str:
    """Steps of a run against those without speculation."""
    share = run.steps / none.steps if none.steps else 1.0
    return f"{abs(1 - share):.0%} {'fewer' if share <= 1 else 'more'}"


def _ratio(run: Run, to: Run) -> float:
    return (run.output_tokens_per_s or 0.0) / (to.output_tokens_per_s or 1.0)


if __name__ == "__main__":
    sys.exit(main())
