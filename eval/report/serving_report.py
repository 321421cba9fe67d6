"""What `bench_serving` measured: a table and a plot."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from reprise.eval.report.machine import describe_machine
from reprise.eval.report.plot_style import colour_of, draw_band, line_of, style_axes
from reprise.eval.report.tables import table_console

_PANELS = (
    ("tokens_per_s", "output tokens per second (band: range of the rounds)"),
    ("whole_ms_p50", "time of a request, ms (median; dotted: p99)"),
)
_RANGE = re.compile(r"([\d.]+) to ([\d.]+)")


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
    console = table_console()
    console.print(table)
    console.print(f"Measured on {describe_machine()}.")


def save_plots(stem: Path, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """Throughput and latency by concurrency, a line a method with its spread, as PNG and as SVG.

    Args:
        stem: path without an ending.
        rows: of `methods`.

    Returns:
        The files written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    handles: dict[str, Any] = {}
    for axes, (name, label) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        points = [row for row in rows if row["section"] == "methods" and row["name"] == name]
        for number, method in enumerate(dict.fromkeys(row["method"] for row in points)):
            line = [row for row in points if row["method"] == method]
            at = [row["concurrency"] for row in line]
            colour = colour_of(method, number=number)
            (handles[method],) = axes.plot(
                at, [row["value"] for row in line], color=colour, **line_of(method)
            )
            draw_band(axes, at, *zip(*map(_range_of, line), strict=True), colour=colour)
            tails = [_tail_of(row, rows) for row in line]
            axes.plot(at, tails, color=colour, linestyle=":", linewidth=1)
        style_axes(axes, label)
        axes.set(xlabel="requests at once", xscale="log")
        ticks = sorted({row["concurrency"] for row in points})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper left", ncols=4, frameon=False
    )
    written = [stem.with_name(stem.name + ending) for ending in (".png", ".svg")]
    stem.parent.mkdir(parents=True, exist_ok=True)
    for path in written:
        figure.savefig(path, dpi=150)
    return written


def _range_of(row: dict[str, Any]) -> tuple[float, float]:
    """Return the lowest and the highest round, as a figure's note says; else the figure itself."""
    noted = _RANGE.fullmatch(row["note"])
    return (row["value"], row["value"]) if noted is None else (float(noted[1]), float(noted[2]))


def _tail_of(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float:
    """Return the 99th percentile that stands beside a median; not a number where none does."""
    tail = row["name"].replace("_p50", "_p99")
    same = ("section", "method", "concurrency")
    for other in rows:
        if other["name"] == tail != row["name"] and all(other[key] == row[key] for key in same):
            return float(other["value"])
    return math.nan
