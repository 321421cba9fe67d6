"""Runs of Reprise that were measured on an H200, to be reproduced.

The table behind them, with what they ran on, is in docs/measurements.md (A live engine on a GPU).
"""

from __future__ import annotations

from typing import NamedTuple

from reprise.eval.virtual.engines import HostGap


class Workload(NamedTuple):
    """Some requests of a trace, as many at a time, and what was measured: tokens a second."""

    trace: str
    concurrency: int
    requests: int
    none: float
    drafted: float
    lost_s: float = 0.0
    """Of the time with drafts, that went into something else, as was found afterwards."""
    length: int | None = None
    """Tokens of all drafts, where the rule that chose them is no more: that of its lengths which is
    nearest to the mean."""


class MeasuredRun(NamedTuple):
    """Workloads that one engine served one after the other."""

    engine: str
    """A name of ENGINES."""
    gap: HostGap
    """As the engine was then."""
    is_warm: bool
    """Whether the cache held the warm rows of support for the workloads of support."""
    keeps_cache: bool
    """Whether the workloads were served by one engine, whose cache fills: of other rows each."""
    workloads: tuple[Workload, ...]
    num_warm: int = 0
    """First rows of support that were answered before, beside those that are marked so."""


# At 8 requests measured, of a step with drafts: inputs 1.1, attention 0.3, scheduling 0.3, the rest
# 0.8 ms; our drafter 1.1, that of SuffixDecoding 0.3. Not measured, and chosen so that the runs
# below come out: all at 1 and 32 requests, and what a step without drafts waits for.
_FIRST_GAP = HostGap(
    drafted_ms={1: 1.8, 8: 2.5, 32: 2.7},
    undrafted_ms={1: 0.9, 8: 1.6, 32: 1.6},
    drafting_ms={1: 0.3, 8: 1.1, 32: 2.2},
)
SUFFIX_GAP = _FIRST_GAP._replace(drafting_ms={1: 0.1, 8: 0.3, 32: 1.0})
# Measured later, with one copy of what describes a batch's drafts: a gap of "some 1.5 ms" at 8, and
# 0.4 to 1 ms for our drafter; a step with drafts took 1.2 to 1.4 times one without at 8, and 1.4 to
# 1.5 times at 32, the drafter not counted. The rest is chosen as above.
GAP = HostGap(
    drafted_ms={1: 1.5, 8: 1.5, 32: 2.0},
    undrafted_ms={1: 0.9, 8: 1.6, 32: 1.6},
    drafting_ms={1: 0.4, 8: 0.8, 32: 1.6},
)
# Chosen so that the speeds of none come out.
PREFILL_MS = 2.0
# 10 to 20 ms of a core for a request, beside the prefill.
RETRIEVAL_S = 0.015


def _warm(engine: str, gap: HostGap, drafted: tuple[float, ...]) -> MeasuredRun:
    """The run with 230 answers of support in the cache, every step waited for."""
    asked = (
        ("support", 1, 12, 207),
        ("support", 8, 70, 1349),
        ("support", 32, 70, 2955),
        ("chat_cold", 8, 30, 1250),
        ("chat_cold", 32, 40, 2386),
    )
    workloads = tuple(Workload(*a, d) for a, d in zip(asked, drafted, strict=True))
    return MeasuredRun(engine, gap, is_warm=True, keeps_cache=False, workloads=workloads)


def _empty(engine: str, gap: HostGap, drafted: tuple[float, ...], lost_s: float) -> MeasuredRun:
    """The run with nothing in the cache at the start."""
    asked = (
        ("chat_cold", 8, 24, 1298),
        ("support", 8, 64, 1428),
        ("chat_cold", 32, 64, 2986),
        ("support", 32, 96, 3949),
        ("support", 1, 6, 210),
        ("chat_cold", 1, 3, 204),
    )
    lost = (lost_s, *[0.0] * (len(asked) - 1))
    workloads = tuple(Workload(*a, d, s) for a, d, s in zip(asked, drafted, lost, strict=True))
    return MeasuredRun(engine, gap, is_warm=False, keeps_cache=True, workloads=workloads)


V2_LENGTHS = (1, 2, 4, 8, 16)
"""Of which graphs were captured in the run on V2: of half of all numbers of requests without
drafts, as many with 1, 2 or 4 drafted tokens, and nearly all with 8 and 16."""


def _on_v2() -> MeasuredRun:
    """The run with vLLM 0.32, on what is warm. What its model answers to cold questions is not
    recorded in a trace."""
    asked = (
        Workload("support", 8, 32, 1108.4, 1633.1, length=16),
        Workload("support", 32, 64, 2546.9, 3096.2, length=8),
        Workload("support", 1, 6, 203.9, 410.3, length=8),
        Workload("support", 128, 98, 5369.1, 4599.0, length=4),
    )
    return MeasuredRun("v2", GAP, is_warm=False, keeps_cache=True, workloads=asked, num_warm=100)


MEASURED = (
    _warm("suffix", SUFFIX_GAP, (255, 1409, 2699, 1157, 2258)),
    _warm("v1", _FIRST_GAP, (294, 1432, 2448, 994, 2203)),
    _empty("suffix", SUFFIX_GAP, (1188, 1419, 2474, 4169, 283, 257), 0.0),
    # A function was compiled when it was first needed, for 0.4 s of the first workload.
    _empty("v1-ahead", GAP, (976, 1384, 2313, 4129, 298, 306), 0.4),
    _on_v2(),
)
