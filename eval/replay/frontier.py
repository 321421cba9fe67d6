"""The frontier of each method: how long its accepted drafts get for how many drafted tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from reprise.eval.replay.methods import ReplaySettings, replay_drafter, suffix_sweep
from reprise.eval.replay.peer_drafters import SUFFIX_SWEEP
from reprise.eval.replay.results import Run
from reprise.eval.replay.token_rows import TokenRow

COSTS = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Reprise chooses its draft lengths by the cost, so that is its knob."""
NGRAM_LENGTHS = (1, 2, 4, 8, 16)


class Point(NamedTuple):
    """One setting of a method."""

    drafted_per_step: float
    mean_acceptance_length: float


Frontiers = dict[str, dict[str, list[Point]]]
"""Trace to method to its points, by growing drafted tokens."""


def num_frontier_replays(methods: Sequence[str]) -> int:
    """Replays of one trace that `trace_frontiers` takes."""
    return sum(len(settings) for name, settings in _KNOBS.items() if name in _families(methods))


def trace_frontiers(
    trace: str,
    rows: Sequence[TokenRow],
    methods: Sequence[str],
    settings: ReplaySettings,
    *,
    on_request: Callable[[], None] = lambda: None,
) -> dict[str, list[Point]]:
    """Replay one trace under every setting of the methods' knobs."""
    families = _families(methods)
    frontiers: dict[str, list[Point]] = {}
    if "ngram" in families:
        frontiers["ngram"] = [
            _point(
                replay_drafter(
                    "ngram",
                    trace,
                    rows,
                    dataclasses.replace(settings, num_speculative_tokens=length),
                    on_request=on_request,
                )
            )
            for length in NGRAM_LENGTHS
        ]
    if "suffix" in families:
        sweep = suffix_sweep(trace, rows, settings, on_request=on_request)
        frontiers["suffix"] = upper_envelope([_point(run) for run, _ in sweep])
    if "reprise" in families:
        frontiers["reprise"] = [
            _point(
                replay_drafter(
                    "reprise",
                    trace,
                    rows,
                    dataclasses.replace(settings, cost=cost),
                    on_request=on_request,
                )
            )
            for cost in COSTS
        ]
    return {method: sorted(points) for method, points in frontiers.items()}


def upper_envelope(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats: every one longer accepted than all that draft less."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.drafted_per_step, -p.mean_acceptance_length)):
        if not best or point.mean_acceptance_length > best[-1].mean_acceptance_length:
            best.append(point)
    return best


_KNOBS: dict[str, Sequence[object]] = {
    "ngram": NGRAM_LENGTHS,
    "suffix": SUFFIX_SWEEP,
    "reprise": COSTS,
}


def _families(methods: Sequence[str]) -> set[str]:
    """Methods without their variants: all kinds of SuffixDecoding share one frontier."""
    return {method.split("-")[0] for method in methods} & set(_KNOBS)


def _point(run: Run) -> Point:
    return Point(run.drafted_per_step or 0.0, run.mean_acceptance_length or 1.0)
