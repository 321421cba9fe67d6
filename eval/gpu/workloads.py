"""What engines are asked for in a GPU run: no request twice, as their caches stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from reprise.eval.replay.traces import TraceRow

COLD, WARM = "cold", "warm"
SHARES = {8: 0.16, 32: 0.32, 1: 0.03, 128: 0.49}
"""Of a trace's rows, by requests at a time; in the order in which they are measured."""


class Workload(NamedTuple):
    """Some requests, so many at a time."""

    kind: str
    """Rows of which trace: WARM or COLD."""
    concurrency: int
    rows: Sequence[TraceRow]

    @property
    def name(self) -> str:
        return f"{self.kind} at {self.concurrency}"


class Plan(NamedTuple):
    """All of a run: first the cold workloads, then the warm rows, then those that they help."""

    cold: list[Workload]
    warm_rows: Sequence[TraceRow]
    warm: list[Workload]


def make_plan(cold: Sequence[TraceRow], warm: Sequence[TraceRow], *, dry_run: bool) -> Plan:
    """Share out the rows of both traces.

    Args:
        cold: of a trace with nothing to reuse.
        warm: of a trace of similar requests. Its first third fills the cache.
        dry_run: two requests a workload, at 1 and 2.

    Raises:
        ValueError: a trace has too few rows.
    """
    shares = {2: 0.01, 1: 0.01} if dry_run else SHARES
    num_warm = 4 if dry_run else len(warm) // 3
    return Plan(
        _share_out(COLD, cold, shares),
        warm[:num_warm],
        _share_out(WARM, warm[num_warm:], shares),
    )


def _share_out(kind: str, rows: Sequence[TraceRow], shares: Mapping[int, float]) -> list[Workload]:
    workloads, begin = [], 0
    for concurrency, share in shares.items():
        size = max(2, int(share * len(rows)))
        part = rows[begin : begin + size]
        if len(part) < size:
            raise ValueError(f"the {kind} trace has {len(rows)} rows, too few to share out")
        workloads.append(Workload(kind, concurrency, part))
        begin += size
    return workloads
