"""Rows of the CSV of exact hits."""

from collections.abc import Sequence
from typing import Any

from reprise.eval.report.intervals import median_interval

FIELDS = ("section", "from", "requests", "name", "value", "unit", "note")


def figure_row(
    section: str, source: str, asked: Sequence[Any], name: str, value: float, unit: str
) -> dict[str, Any]:
    """Return a row of a figure of so many requests."""
    return {
        "section": section,
        "from": source,
        "requests": len(asked),
        "name": name,
        "value": round(value, 3),
        "unit": unit,
    }


def how_sure(values: Sequence[float]) -> str:
    """Return the interval in which the median lies; empty where there are too few values."""
    interval = median_interval(values)
    return "" if interval is None else f"95% sure: {interval[0]:.3f} to {interval[1]:.3f}"
