"""Benchmark of engines on a GPU in virtual time: what drafts bring before a GPU is there.

    python eval/benchmarks/bench_virtual_gpu.py --trace requests.jsonl --tokenizer my-model
    python eval/benchmarks/bench_virtual_gpu.py --check \\
        --trace support.jsonl --trace chat_cold.jsonl --tokenizer my-model

Recorded answers are replayed, several requests at a time, through the drafts and the decisions that
serve, on steps that cost what they were measured to cost on an H200 with a model of 8 billion
parameters (`eval/virtual/h200.py`); on V2 the drafts are those of `kernels/draft`. It takes no GPU.
With `--check` it replays runs that were measured there, and says how far off it is. Compared are

    none          vLLM without drafts: its V2 runner, steps sent ahead
    suffix        V1, SuffixDecoding, every step waited for, full graphs
    v1            V1, drafts from the host, every step waited for
    v1-ahead      V1, drafts from the host, only steps with drafts waited for
    v2            V2, copies made on the device, as many tokens for all requests
    v2-adaptive   the same with vLLM's adaptive verification
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec import structs
from rich.table import Table

from reprise.eval.demo_data.demo_model import demo_tokenizer_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.replay.peer_drafters import all_but_missing, suffix_installed
from reprise.eval.replay.token_rows import TokenizerError, TokenRow, load_tokenizer, tokenize_rows
from reprise.eval.replay.traces import TraceError, limit_rows, load_trace
from reprise.eval.report.command_line import InputError, counts_of, names_of, run_command
from reprise.eval.report.progress import Stage, progress_stages
from reprise.eval.report.results_csv import append_rows, check_rows_fit
from reprise.eval.report.tables import table_console
from reprise.eval.virtual.checking import Check, check_run
from reprise.eval.virtual.engines import DeviceDrafter
from reprise.eval.virtual.h200 import H200
from reprise.eval.virtual.measured_runs import (
    GAP,
    MEASURED,
    PREFILL_MS,
    RETRIEVAL_S,
    SUFFIX_GAP,
    MeasuredRun,
)
from reprise.eval.virtual.replays import ENGINES, Outcome, Prices, virtual_engine
from reprise.retrieval.search.embedding import Embedder
from reprise.spec import DraftProvider

MACHINE = "NVIDIA H200, in virtual time"
FIELDS = (
    "section", "trace", "warm_rows", "engine", "concurrency", "requests", "quality", "drafting_us",
    "tokens_per_s", "to_none", "busy_to_none", "measured_to_none", "mean_acceptance_length",
    "drafted_per_step", "drafted_steps_share",
)  # fmt: skip
"""Columns of the CSV."""


def main(
    trace: Annotated[
        list[Path] | None,
        typer.Option(help="Recorded requests, JSON lines, once for each; else the demo trace."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="A tokenizer.json, a folder or a name; the demo model's.")
    ] = None,
    concurrency: Annotated[
        str, typer.Option(metavar="LIST", help="Requests at a time.")
    ] = "1,8,32,128",
    engines: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help=f"Beside none, some of {','.join(ENGINES[1:])}; else all."
        ),
    ] = None,
    warm: Annotated[
        int | None,
        typer.Option(min=0, help="First rows that only fill the cache; else those marked so."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Requests of each trace, warm ones not counted.")
    ] = None,
    quality: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="On V2, of the tokens that the device's copies have right, so many count.",
        ),
    ] = 1.0,
    drafting_us: Annotated[
        float, typer.Option(min=0, help="Of the device, for each position that it drafts.")
    ] = 3.0,
    draft_length: Annotated[int, typer.Option(min=1, max=64, help="Most tokens of a draft.")] = 16,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Replay runs that were measured: of traces named support and"
            " chat_cold, with the measured model's own answers.",
        ),
    ] = False,
    csv: Annotated[Path | None, typer.Option(help="Append the results to a file of rows.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no table.")] = False,
) -> int:
    """What drafts bring on a GPU, in virtual time; with --check, how far off that is."""
    traces = _load(trace or [], tokenizer, warm, limit)
    names, numbers = _engines(engines), counts_of("--concurrency", concurrency)
    if csv and not csv.resolve().parent.is_dir():
        raise InputError(f"{csv}: its folder does not exist")
    if csv:
        check_rows_fit(csv, fields=FIELDS)
    prices = Prices(
        device=H200(prefill_ms=PREFILL_MS),
        gap=GAP,
        suffix_gap=SUFFIX_GAP,
        retrieval_s=RETRIEVAL_S,
        drafter=DeviceDrafter(drafting_us / 1e6, quality),
        draft_length=draft_length,
    )
    runs = _measured(names, traces) if check else []
    embedder = Embedder()
    embedder.encode([row.source.query_text for rows in traces.values() for row in rows])
    if any(name.startswith("v1") for name in names):
        DraftProvider().warm_up()
    with progress_stages(quiet=quiet) as stage:
        if check:
            checks = _check(runs, traces, prices, embedder, stage)
            rows = [_check_cells(one, prices) for one in checks]
        else:
            rows = [
                cells
                for name, of_trace in traces.items()
                for cells in _compare(name, of_trace, numbers, names, prices, embedder, stage)
            ]
    if not quiet:
        _print(rows, title="measured and in virtual time" if check else "in virtual time")
    if csv:
        append_rows(csv, rows, fields=FIELDS)
    return 0


def _load(
    paths: Sequence[Path], tokenizer: str | None, warm: int | None, limit: int | None
) -> dict[str, list[TokenRow]]:
    """Rows by the trace's name: those that fill the cache, and at most `limit` others."""
    try:
        reader = load_tokenizer(tokenizer or demo_tokenizer_path())
        loaded = {path.stem: load_trace(path) for path in paths} or {"demo": make_demo_trace()}
    except (TraceError, TokenizerError) as error:
        raise InputError(str(error)) from error
    traces = {}
    for name, rows in loaded.items():
        if warm is not None:
            rows = [structs.replace(row, warm=n < warm) for n, row in enumerate(rows)]
        rows = limit_rows(rows, limit)
        if all(row.warm for row in rows):
            raise InputError(f"{name}: no request is left to time: all warm")
        traces[name] = tokenize_rows(rows, reader)
    return traces


def _engines(text: str | None) -> list[str]:
    if text is None:
        return all_but_missing(ENGINES)
    names = names_of("--engines", text, ENGINES)
    if "suffix" in names and not suffix_installed():
        raise InputError("engine 'suffix' is not installed: pip install -e '.[peers]'")
    return ["none", *(name for name in names if name != "none")]


def _compare(
    trace: str,
    rows: Sequence[TokenRow],
    numbers: Sequence[int],
    names: Sequence[str],
    prices: Prices,
    embedder: Embedder,
    stage: Stage,
) -> list[dict[str, Any]]:
    """Serve a trace with each engine, at each number of requests at a time."""
    cached = [row for row in rows if row.warm]
    timed = [row for row in rows if not row.warm]
    found = []
    if fewer := [number for number in numbers if number > len(timed)]:
        print(
            f"{trace} has {len(timed)} requests to time: as many are there at a time at "
            f"{', '.join(map(str, fewer))}",
            file=sys.stderr,
        )
    with stage(f"{trace}: {', '.join(names)}", len(numbers) * len(names)) as tick:
        for number in numbers:
            none: Outcome | None = None
            for name in names:
                with virtual_engine(name, prices, embedder=embedder) as engine:
                    engine.learn(cached)
                    outcome = engine.serve(timed, concurrency=number)
                none = none or outcome
                cells: dict[str, Any] = {
                    "section": "forecast",
                    "machine": MACHINE,
                    "trace": trace,
                    "warm_rows": len(cached),
                }
                ratio = outcome.tokens_per_s / none.tokens_per_s
                if outcome.busy_tokens_per_s and none.busy_tokens_per_s:
                    busy = outcome.busy_tokens_per_s / none.busy_tokens_per_s
                    cells["busy_to_none"] = round(busy, 3)
                found.append(cells | _cells(outcome, number, ratio, prices))
                tick()
    return found


def _measured(names: Sequence[str], traces: Mapping[str, Sequence[TokenRow]]) -> list[MeasuredRun]:
    """What was measured of these engines."""
    runs = [run for run in MEASURED if run.engine in names]
    if missing := {w.trace for run in runs for w in run.workloads} - traces.keys():
        raise InputError(f"--check: no trace named {' or '.join(sorted(missing))}")
    return runs


def _check(
    runs: Sequence[MeasuredRun],
    traces: Mapping[str, Sequence[TokenRow]],
    prices: Prices,
    embedder: Embedder,
    stage: Stage,
) -> list[Check]:
    """Replay what was measured."""
    checks = []
    with stage("measured runs", sum(len(run.workloads) for run in runs)) as tick:
        for run in runs:
            try:
                for one in check_run(run, traces, prices, embedder=embedder):
                    checks.append(one)
                    tick()
            except ValueError as error:
                raise InputError(str(error)) from error
    return checks


def _check_cells(check: Check, prices: Prices) -> dict[str, Any]:
    cells = _cells(check.drafted, check.workload.concurrency, check.to_none, prices)
    return {
        "section": "check",
        "machine": MACHINE,
        "trace": check.workload.trace,
        "measured_to_none": round(check.measured_to_none, 3),
        **cells,
    }


def _cells(outcome: Outcome, concurrency: int, to_none: float, prices: Prices) -> dict[str, Any]:
    cells = {
        "engine": outcome.engine,
        "concurrency": concurrency,
        "requests": outcome.requests,
        "tokens_per_s": round(outcome.tokens_per_s, 1),
        "to_none": round(to_none, 3),
        "mean_acceptance_length": round(outcome.mean_acceptance_length, 3),
        "drafted_per_step": round(outcome.drafted_per_step, 2),
        "drafted_steps_share": round(outcome.drafted_steps / outcome.steps, 3),
    }
    if outcome.engine.startswith("v2"):
        cells["quality"] = prices.drafter.quality
        cells["drafting_us"] = round(prices.drafter.position_s * 1e6, 3)
    return cells


def _print(rows: Sequence[Mapping[str, Any]], *, title: str) -> None:
    table = Table(title=f"Steps of an H200 and a model of 8 billion parameters, {title}", box=None)
    headings = {
        "trace": "trace",
        "concurrency": "at once",
        "engine": "engine",
        "tokens_per_s": "tokens/s",
        "to_none": "to none",
        "busy_to_none": "all busy",
        "measured_to_none": "measured",
        "mean_acceptance_length": "MAL",
        "drafted_per_step": "drafted",
        "drafted_steps_share": "steps with drafts",
    }
    names = [name for name in headings if any(name in row for row in rows)]
    for name in names:
        table.add_column(headings[name], justify="left" if name in ("trace", "engine") else "right")
    for row in rows:
        table.add_row(*(str(row.get(name, "")) for name in names))
    # Elsewhere than on a terminal rich would cut names off at 80 columns.
    console = table_console()
    console.print(table)
    console.print("In virtual time: no figure of a device.")


if __name__ == "__main__":
    sys.exit(run_command(main, name="bench_virtual_gpu.py"))
