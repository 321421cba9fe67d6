"""Benchmark of drafting on the device: what its drafts are worth, beside those of the product.

    python eval/benchmarks/bench_device_drafts.py --trace requests.jsonl --tokenizer my-model

Recorded answers are replayed with exact greedy acceptance. The host's predictor and the device's
definition in torch draft for the same requests, at several costs of verifying a drafted token, in
steps; both choose lengths by the product's rule. Figures are in steps: nothing is said of how long
either takes, and no GPU is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Protocol

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from reprise.eval.demo_data.demo_model import demo_tokenizer_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.replay.device_drafter import DeviceDrafter
from reprise.eval.replay.drafter import Drafter
from reprise.eval.replay.replay import ReplayCounts, replay
from reprise.eval.replay.reprise_drafter import RepriseDrafter
from reprise.eval.replay.token_rows import TokenizerError, TokenRow, load_tokenizer, tokenize_rows
from reprise.eval.replay.traces import TraceError, limit_rows, load_trace
from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.tables import table_console
from reprise.retrieval.search.embedding import Embedder

COPIES = {"device, copies, frozen": False, "device, copies": True}
"""By whether chances are learned."""


class ClosableDrafter(Drafter, Protocol):
    """A drafter with a thread to stop."""

    def close(self) -> None: ...


def run(drafter: ClosableDrafter, rows: Sequence[TokenRow]) -> ReplayCounts:
    """Replay all rows, and check that every answer came out whole."""
    try:
        counts = replay(drafter, rows)
    finally:
        drafter.close()
    expected = sum(len(row.response_token_ids) - 1 for row in rows if not row.warm)
    if counts.emitted_tokens != expected:
        raise RuntimeError(f"{counts.emitted_tokens} tokens came, {expected} are recorded")
    return counts


def describe(counts: ReplayCounts, cost: float, host: ReplayCounts) -> tuple[str, ...]:
    """Cells of a row of the table."""
    speed, beside = counts.model_speedup(cost), host.model_speedup(cost)
    assert speed is not None
    assert beside is not None
    return (
        f"{1 + counts.accepted_tokens / counts.steps:.3f}",
        f"{counts.drafted_tokens / counts.steps:.2f}",
        f"{speed:.3f}",
        f"{speed / beside:.3f}",
    )


def main(
    trace: Annotated[
        list[Path] | None,
        typer.Option(help="Recorded requests, JSON lines; the demo trace if left out."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="A tokenizer.json, a folder or a name; the demo model's.")
    ] = None,
    cost: Annotated[
        list[float] | None, typer.Option(help="Of a drafted token, in steps: 0.003, 0.013, 0.06.")
    ] = None,
    draft_length: Annotated[int, typer.Option(min=1, max=64, help="Most tokens of a draft.")] = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="First requests only.")] = None,
) -> None:
    """What drafts made on the device are worth, beside the product's, in steps."""
    try:
        loaded = {"demo": make_demo_trace()}
        if trace:
            loaded = {path.stem: load_trace(path) for path in trace}
        chosen = load_tokenizer(tokenizer or demo_tokenizer_path())
    except (TraceError, TokenizerError) as error:
        raise InputError(str(error)) from error
    costs = cost or [0.003, 0.013, 0.06]
    embedder = Embedder()
    table = Table(title=f"drafts of up to {draft_length} tokens", box=None)
    for heading in ("trace", "drafted by"):
        table.add_column(heading)
    for heading in ("cost", "MAL", "drafted", "speed", "to host"):
        table.add_column(heading, justify="right")
    runs = [(name, one) for name in loaded for one in costs]
    for name, one in track(runs, "Replaying", console=Console(stderr=True), transient=True):
        rows = tokenize_rows(limit_rows(loaded[name], limit), chosen)
        host = run(RepriseDrafter(embedder=embedder, cost=one, draft_length=draft_length), rows)
        table.add_row(name, "host", f"{one:g}", *describe(host, one, host))
        for label, learns in COPIES.items():
            made = DeviceDrafter(
                embedder=embedder, cost=one, draft_length=draft_length, learns=learns
            )
            table.add_row("", label, f"{one:g}", *describe(run(made, rows), one, host))
    console = table_console()
    console.print(table)
    console.print("In steps: no figure of a device. MAL counts the model's own token in each step.")


if __name__ == "__main__":
    sys.exit(run_command(main, name="bench_device_drafts.py"))
