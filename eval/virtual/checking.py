"""Measured runs, replayed in virtual time: how far off the model of an H200 is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from reprise.eval.replay.token_rows import TokenRow
from reprise.eval.virtual.measured_runs import V2_LENGTHS, MeasuredRun, Workload
from reprise.eval.virtual.replays import Outcome, Prices, virtual_engine
from reprise.retrieval.search.embedding import Embedder


@dataclass(frozen=True, kw_only=True)
class Check:
    """A measured workload, and what it came to in virtual time."""

    workload: Workload
    none: Outcome
    drafted: Outcome

    @property
    def to_none(self) -> float:
        seconds = self.drafted.seconds + self.workload.lost_s
        return self.drafted.tokens / seconds / self.none.tokens_per_s

    @property
    def measured_to_none(self) -> float:
        """What was measured."""
        return self.workload.drafted / self.workload.none

    @property
    def error(self) -> float:
        """Of the speed relative to none, as a share of what was measured."""
        return self.to_none / self.measured_to_none - 1.0


def check_run(
    run: MeasuredRun,
    traces: Mapping[str, Sequence[TokenRow]],
    prices: Prices,
    *,
    embedder: Embedder | None,
) -> Iterator[Check]:
    """Serve a run's workloads, with the rows that its trace names; yields each when it is done.

    Raises:
        ValueError: a trace has too few rows.
    """
    captured = V2_LENGTHS if run.engine == "v2" else None
    prices = replace(prices, gap=run.gap, suffix_gap=run.gap, captured=captured)
    parts = _parts(run, traces)
    with (
        virtual_engine("none", prices, embedder=None) as plain,
        virtual_engine(run.engine, prices, embedder=embedder) as kept,
    ):
        kept.learn(traces["support"][: run.num_warm])
        for workload, rows in zip(run.workloads, parts, strict=True):
            none = plain.serve(rows, concurrency=workload.concurrency)
            if run.keeps_cache:
                outcome = kept.serve(rows, concurrency=workload.concurrency, length=workload.length)
            else:
                with virtual_engine(run.engine, prices, embedder=embedder) as fresh:
                    if run.is_warm and workload.trace == "support":
                        fresh.learn([row for row in traces["support"] if row.warm])
                    outcome = fresh.serve(rows, concurrency=workload.concurrency)
            yield Check(workload=workload, none=none, drafted=outcome)


def _parts(run: MeasuredRun, traces: Mapping[str, Sequence[TokenRow]]) -> list[list[TokenRow]]:
    """Rows of each workload; where the cache is kept, no row is served twice."""
    used: dict[str, int] = defaultdict(int, support=run.num_warm)
    parts = []
    for workload in run.workloads:
        rows = [row for row in traces[workload.trace] if not (run.is_warm and row.warm)]
        begin = used[workload.trace] if run.keeps_cache else 0
        part = rows[begin : begin + workload.requests]
        if len(part) < workload.requests:
            raise ValueError(f"{workload.trace}: too few rows for {workload.requests} requests")
        used[workload.trace] += workload.requests
        # Ids of different traces must differ where they share a cache.
        parts.append([replace(r, request_id=f"{workload.trace}-{r.request_id}") for r in part])
    return parts
