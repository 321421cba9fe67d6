"""Plots of the frontiers: mean acceptance length against drafted tokens, a panel for each trace."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reprise.eval.replay.frontier import Frontiers
from reprise.eval.replay.results import Run
from reprise.eval.report.plot_style import COLOURS, line_of, style_axes

_LABELS = {
    "reprise": "Reprise",
    "suffix": "SuffixDecoding, best of 18 settings",
    "ngram": "n-gram",
}
_PANELS_A_ROW = 3
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


class PlotError(ValueError):
    """A plot that cannot be made; the message is one line."""


def check_plot(path: str | Path | None) -> None:
    """Raise PlotError unless plots can be drawn here, and written in the format of `path`."""
    if importlib.util.find_spec("matplotlib") is None:
        raise PlotError("plots need matplotlib, which is not installed")
    if path is not None and Path(path).suffix.lower() not in (".png", ".svg"):
        raise PlotError(f"--plot writes .png or .svg, got {path}")


def save_plot(path: str | Path, frontiers: Frontiers, runs: Sequence[Run]) -> None:
    """Write the plot as PNG or SVG, by the ending of `path`."""
    figure = _draw(frontiers, runs)
    figure.savefig(path, dpi=160)


def plot_svg(frontiers: Frontiers, runs: Sequence[Run]) -> str:
    """The plot as an SVG element to put into a page."""
    buffer = io.StringIO()
    _draw(frontiers, runs).savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _draw(frontiers: Frontiers, runs: Sequence[Run]) -> Any:
    from matplotlib.figure import Figure

    across = min(len(frontiers), _PANELS_A_ROW)
    down = -(-len(frontiers) // _PANELS_A_ROW)
    figure = Figure(figsize=(max(6.0, 4.2 * across), 3.6 * down + 0.7), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for number, axes in enumerate(grid.flat):
        axes.set_visible(number < len(frontiers))
    handles: dict[str, Any] = {}
    for axes, (trace, methods) in zip(grid.flat, frontiers.items(), strict=False):
        for method, points in methods.items():
            (handles[_LABELS[method]],) = axes.plot(
                [point.drafted_per_step for point in points],
                [point.mean_acceptance_length for point in points],
                color=COLOURS[method],
                clip_on=False,  # a method that drafts next to nothing is on the axis
                **line_of(method),
            )
        axes.set_xlim(left=0)
        _mark_runs(axes, [run for run in runs if run.trace == trace])
        _style(axes, trace)
    figure.supxlabel("drafted tokens per step", fontsize=10)
    figure.supylabel("mean acceptance length", fontsize=10)
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper left", ncols=3, frameon=False
    )
    return figure


def _mark_runs(axes: Any, runs: Sequence[Run]) -> None:
    """Rings around what the table lists: the methods as they are set by default."""
    for run in runs:
        colour = COLOURS.get(run.method.split("-")[0])
        if colour is None or not run.drafted_per_step:
            continue
        axes.plot(
            run.drafted_per_step,
            run.mean_acceptance_length,
            marker="o",
            markersize=9,
            markerfacecolor="none",
            markeredgecolor=colour,
            linestyle="none",
            clip_on=False,
        )
        if not run.method.startswith("suffix"):
            continue  # its curve has its name from the legend
        # Below and to the right of the ring, where the curve is not, unless that is off the panel.
        fits = run.drafted_per_step < 0.8 * axes.get_xlim()[1]
        axes.annotate(
            run.method,
            (run.drafted_per_step, run.mean_acceptance_length),
            xytext=(7, -11) if fits else (5, -17),
            textcoords="offset points",
            horizontalalignment="left" if fits else "right",
            fontsize=7.5,
            color=colour,
        )


def _style(axes: Any, title: str) -> None:
    style_axes(axes, title)
    # Without any draft the mean is 1: nothing lies below, and the curves rise from there.
    axes.margins(y=0.08)
    axes.set_ylim(bottom=1.0 - 0.03 * (axes.get_ylim()[1] - 1.0))
