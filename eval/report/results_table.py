"""Results as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from reprise.eval.replay.results import Percentiles, Run
from reprise.eval.report.tables import table_console


def print_results(runs: Sequence[Run], *, cost: float, machine: str) -> None:
    """Print all runs on standard output, trace by trace, and what they were measured on; columns
    that no run fills are left out."""
    console = table_console()
    columns = result_columns(runs, cost=cost)
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for name in columns:
        is_label = name in ("trace", "method")
        # Headings may break at spaces, cells never.
        table.add_column(name, justify="left" if is_label else "right", no_wrap=is_label)
    for number, cells in enumerate(zip(*columns.values(), strict=True)):
        following = runs[number + 1 : number + 2]
        ends_trace = bool(following) and following[0].trace != runs[number].trace
        table.add_row(*cells, end_section=ends_trace)
    console.print(table)
    console.print(f"Measured on {machine}.", soft_wrap=True)


def result_columns(runs: Sequence[Run], *, cost: float | None) -> dict[str, list[str]]:
    """Column heading to one cell a run.

    Args:
        cost: of verifying a drafted token; None: no speedup was computed by it.
    """
    plain = {run.trace: run.output_tokens_per_s for run in runs if run.method == "none"}
    columns: dict[str, list[str]] = {
        "trace": [run.trace for run in runs],
        "method": [run.method for run in runs],
        "requests": [str(run.requests) for run in runs],
        "tokens/s": [_number(run.output_tokens_per_s, 0) for run in runs],
        "to none": [_ratio(run.output_tokens_per_s, plain.get(run.trace)) for run in runs],
        "wall s": [_number(run.wall_s, 2) for run in runs],
        "MAL": [_number(run.mean_acceptance_length, 3) for run in runs],
        "acceptance": [_number(run.acceptance_rate, 3) for run in runs],
        "drafted a step": [_number(run.drafted_per_step, 2) for run in runs],
        **(
            {}
            if cost is None
            else {f"speedup at {cost:g}": [_number(run.model_speedup, 3) for run in runs]}
        ),
        "propose us p50": [_time(run.propose_us, "p50") for run in runs],
        "p99": [_time(run.propose_us, "p99") for run in runs],
        "start us p50": [_time(run.start_us, "p50") for run in runs],
        "bytes a token": [_number(run.bytes_per_cached_token, 0) for run in runs],
        "cache hits": [_percent(run.hit_rate) for run in runs],
        "changed answers": [_percent(run.changed_answers) for run in runs],
        "identical": [
            "" if run.identical_outputs is None else f"{run.identical_outputs} of {run.requests}"
            for run in runs
        ],
    }
    return {name: cells for name, cells in columns.items() if any(cells)}


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _ratio(value: float | None, to: float | None) -> str:
    return f"{value / to:.2f}" if value is not None and to else ""


def _time(times: Percentiles | None, name: str) -> str:
    return "" if times is None else _number(getattr(times, name), 1)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
