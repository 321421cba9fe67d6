"""What `bench_serving` measured: a table and a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from reprise.eval.report.machine import describe_machine


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print what was measured, and on what."""
    table = Table("section", "method", "at once", "figure", "value", "unit", "range")
    for row in rows:
        table.add_row(
            row["section"],
            row.get("method", ""),
            str(row.get("concurrency", "")),
            row["name"],
            f"{row['value']:.3g}" if row["value"] < 100 else f"{row['value']:.0f}",
            row["unit"],
            row["note"],
        )
    console = Console(width=120)
    console.print(table)
    console.print(f"Measured on {describe_machine()}.")


def save_plots(stem: Path, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """Throughput and median latency by concurrency, a line a method, as PNG and as SVG.

    Args:
        stem: path without an ending.
        rows: of `methods`.

    Returns:
        The files written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = (
        ("tokens_per_s", "output tokens per second"),
        ("whole_ms_p50", "time of a request, median, ms"),
    )
    for axes, (name, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        points = [row for row in rows if row["section"] == "methods" and row["name"] == name]
        for method in dict.fromkeys(row["method"] for row in points):
            line = [(row["concurrency"], row["value"]) for row in points if row["method"] == method]
            axes.plot(*zip(*line, strict=True), marker="o", label=method)
        axes.set(xlabel="requests at once", ylabel=label, xscale="log")
        ticks = sorted({row["concurrency"] for row in points})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    written = [stem.with_name(stem.name + ending) for ending in (".png", ".svg")]
    stem.parent.mkdir(parents=True, exist_ok=True)
    for path in written:
        figure.savefig(path, dpi=150)
    return written
