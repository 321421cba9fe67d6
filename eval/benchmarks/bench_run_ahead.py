"""Benchmark of running ahead, in virtual time: what an engine gains that waits only for its drafts.

    python eval/benchmarks/bench_run_ahead.py
    python eval/benchmarks/bench_run_ahead.py \\
        --trace requests.jsonl --tokenizer my-model --concurrency 32

Recorded answers are replayed, several requests at a time, on a device whose steps take what is
given; the provider that drafts is the real one. Compared are an engine without drafts, one that
waits for every step, and one that runs ahead of those without drafts, as
`engine_ext/scheduling/run_ahead.py` does. It takes no GPU, and says nothing of how long steps are
on one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.progress import track

from reprise.eval.demo_data.demo_model import demo_tokenizer_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.replay.token_rows import TokenizerError, TokenRow, load_tokenizer, tokenize_rows
from reprise.eval.replay.traces import TraceError, load_trace
from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.tables import table_console, table_of
from reprise.eval.virtual.engines import DeviceDrafter, HostGap
from reprise.eval.virtual.replays import Outcome, Prices, virtual_engine
from reprise.spec import DraftProvider


class SteadyDevice(NamedTuple):
    """A device whose steps take as long for any batch, without drafts."""

    undrafted_s: float
    token_cost: float
    """Of verifying a drafted token, in steps of its request."""

    def step_s(self, batch: int, drafted: int = 0, prefilled: int = 0) -> float:  # noqa: ARG002
        return self.undrafted_s * (1.0 + self.token_cost * drafted / batch)

    def sent_ahead_s(
        self,
        batch: int,
        drafted: int = 0,
        prefilled: int = 0,
        *,
        in_pieces: bool = False,  # noqa: ARG002 - there are no graphs here
    ) -> float:
        return self.step_s(batch, drafted, prefilled)


def run_engine(name: str, rows: Sequence[TokenRow], *, concurrency: int, prices: Prices) -> Outcome:
    """Serve a trace's rows with one of ENGINES and a cache of the warm ones."""
    with virtual_engine(ENGINES[name], prices, embedder=None) as engine:
        engine.learn([row for row in rows if row.warm])
        return engine.serve([row for row in rows if not row.warm], concurrency=concurrency)


ENGINES = {"without drafts": "none", "waiting always": "v1", "running ahead": "v1-ahead"}
"""By name: as `eval/virtual/` calls it."""


def main(
    trace: Annotated[
        Path | None, typer.Option(help="Recorded requests, JSON lines; the demo trace if left out.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="A tokenizer.json, a folder or a name; the demo model's.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    step_ms: Annotated[float, typer.Option(min=0.01, help="Of a step without drafts.")] = 5.0,
    gap_ms: Annotated[
        float, typer.Option(min=0.0, help="Before a step that waited for the one before it.")
    ] = 1.5,
    drafting_ms: Annotated[float, typer.Option(min=0.0, help="Of drafting for a batch.")] = 0.6,
    token_cost: Annotated[
        float, typer.Option(min=0.0, help="Of a drafted token, in steps of its request.")
    ] = 0.05,
    draft_length: Annotated[int, typer.Option(min=1, help="Most tokens of a draft.")] = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="First rows of the trace only.")] = None,
) -> None:
    """What an engine gains that waits only for its drafts, in virtual time."""
    try:
        loaded = make_demo_trace() if trace is None else load_trace(trace)
        rows = tokenize_rows(loaded[:limit], load_tokenizer(tokenizer or demo_tokenizer_path()))
    except (TraceError, TokenizerError) as error:
        raise InputError(str(error)) from error
    if all(row.warm for row in rows):
        raise InputError("the trace has no request to time: all warm")
    prices = Prices(
        device=SteadyDevice(step_ms / 1e3, token_cost),
        gap=HostGap({1: gap_ms}, {1: gap_ms}, {1: drafting_ms}),
        suffix_gap=HostGap({1: gap_ms}, {1: gap_ms}, {1: drafting_ms}),
        retrieval_s=0.0,
        drafter=DeviceDrafter(0.0, 1.0),
        draft_length=draft_length,
    )
    DraftProvider().warm_up()
    headings = ("engine", "tokens/s", "to none", "steps", "with drafts")
    title = f"{concurrency} requests at a time, steps of {step_ms:g} ms"
    table = table_of(*headings, title=title)
    speeds = []
    for name in track(ENGINES, "Replaying", console=Console(stderr=True), transient=True):
        outcome = run_engine(name, rows, concurrency=concurrency, prices=prices)
        speeds.append(outcome.tokens_per_s)
        figures = (f"{speeds[-1]:,.0f}", f"{speeds[-1] / speeds[0]:.2f}", f"{outcome.steps:,}")
        table.add_row(name, *figures, f"{outcome.drafted_steps / outcome.steps:.0%}")
    console = table_console()
    console.print(table)
    console.print("In virtual time: no figure of a device. Every answer is as recorded.")


if __name__ == "__main__":
    sys.exit(run_command(main, name="bench_run_ahead.py"))
