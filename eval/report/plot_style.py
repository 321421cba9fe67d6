"""The one style of all plots: colours by method, axes, and the band of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLOURS = {
    "reprise": "#c2410c",
    "suffix": "#1d4ed8",
    "ngram": "#6b7280",
    "none": "#1c1917",
}
_OTHERS = ("#0f766e", "#7c3aed", "#a16207")
_GRID = {"color": "#9ca3af", "alpha": 0.25, "linewidth": 0.8}


def colour_of(method: str, *, number: int = 0) -> str:
    """Return a method's colour, by the first word of its name; others get one by their number."""
    return COLOURS.get(method.split("-")[0], _OTHERS[number % len(_OTHERS)])


def line_of(method: str) -> dict[str, Any]:
    """Return how a method's line is drawn, without its colour; ours lies on top."""
    ours = method.split("-")[0] == "reprise"
    return {"marker": "o", "markersize": 4, "linewidth": 2 if ours else 1.5, "zorder": 2 + ours}


def draw_band(
    axes: Any, at: Sequence[float], low: Sequence[float], high: Sequence[float], *, colour: str
) -> None:
    """Draw the range from `low` to `high` behind a line, where there is any."""
    if any(a < b for a, b in zip(low, high, strict=True)):
        axes.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0, zorder=1)


def style_axes(axes: Any, title: str = "") -> None:
    """Set title, grid and frame."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(visible=True, **_GRID)
    axes.spines[["top", "right"]].set_visible(False)
