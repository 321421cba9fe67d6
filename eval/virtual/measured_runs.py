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
