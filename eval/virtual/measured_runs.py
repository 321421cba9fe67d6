"""Runs of Reprise on vLLM's V1 runner that were measured on an H200, to be reproduced.

The table behind them, with what they ran on, is in docs/measurements.md (A live engine on a GPU).
"""

from __future__ import annotations

from typing import NamedTuple

from reprise.eval.virtual.engines import HostGap


class Workload(NamedTuple):
    """Some requests of a trace, as many at a time, and what was measured."""

    trace: str
    concurrency: int
    requests: int
    none_tokens_per_s: float
    tokens_per_s: float

    @property
    def to_none(self) -> float:
        return self.tokens_per_s / self.none_tokens_per_s


class MeasuredRun(NamedTuple):
    """Workloads that one engine served one after the other."""

    engine: str
    """A name of ENGINES."""
    gap: HostGap
    """As the engine was then."""
    is_warm: bool
    """Whether the cache held the warm rows of support at the start."""
    keeps_cache: bool
    """Whether the workloads were served by one engine, whose cache fills: of other rows each."""
    workloads: tuple[Workload, ...]


_FIRST_GAP = HostGap(drafted_ms=2.5, undrafted_ms=1.9, drafter_ms=0.3, request_ms=0.1)
GAP = HostGap(drafted_ms=1.5, undrafted_ms=1.5, drafter_ms=0.3, request_ms=0.05)
PREFILL_MS = 2.0
RETRIEVAL_S = 0.015

MEASURED = (
    MeasuredRun(
        engine="v1",
        gap=_FIRST_GAP,
        is_warm=True,
        keeps_cache=False,
        workloads=(
            Workload("support", 1, 12, 207, 294),
            Workload("support", 8, 70, 1349, 1432),
            Workload("support", 32, 70, 2955, 2448),
            Workload("chat_cold", 8, 30, 1250, 994),
            Workload("chat_cold", 32, 40, 2386, 2203),
        ),
    ),
    MeasuredRun(
        engine="v1-ahead",
        gap=GAP,
        is_warm=False,
        keeps_cache=True,
        workloads=(
            Workload("chat_cold", 8, 24, 1298, 976),
            Workload("support", 8, 64, 1428, 1384),
            Workload("chat_cold", 32, 64, 2986, 2313),
            Workload("support", 32, 96, 3949, 4129),
            Workload("support", 1, 6, 210, 298),
            Workload("chat_cold", 1, 3, 204, 306),
        ),
    ),
)
