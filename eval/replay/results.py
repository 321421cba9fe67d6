"""What `acceptance_rate.py` reports: one run a trace and method, and the JSON of them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from reprise.eval.replay.replay import ReplayCounts

VERSION = 1


class Percentiles(msgspec.Struct, frozen=True):
    """Of a time, in microseconds."""

    p50: float
    p99: float

    @classmethod
    def of(cls, values_us: Sequence[float]) -> Percentiles | None:
        """None without values."""
        if not values_us:
            return None
        p50, p99 = np.percentile(values_us, (50, 99))
        return cls(round(float(p50), 2), round(float(p99), 2))


class Run(msgspec.Struct, kw_only=True):
    """One method on one trace. Fields that a method or an engine does not have are None."""

    trace: str
    method: str
    requests: int
    steps: int
    emitted_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    mean_acceptance_length: float | None
    acceptance_rate: float | None
    drafted_per_step: float | None
    model_speedup: float | None
    propose_us: Percentiles | None = None
    start_us: Percentiles | None = None
    bytes_per_cached_token: float | None = None
    by_source: dict[str, dict[str, int]] = {}
    hit_rate: float | None = None
    changed_answers: float | None = None
    wall_s: float | None = None
    output_tokens_per_s: float | None = None
    identical_outputs: int | None = None


def run_of_counts(
    trace: str,
    method: str,
    counts: ReplayCounts,
    *,
    cost: float,
    by_source: Mapping[str, Mapping[str, int]] | None = None,
    bytes_per_cached_token: float | None = None,
) -> Run:
    """The run that these counts make; ratios without a denominator are None."""
    steps, drafted = counts.steps, counts.drafted_tokens
    return Run(
        trace=trace,
        method=method,
        requests=counts.requests,
        steps=steps,
        emitted_tokens=counts.emitted_tokens,
        drafted_tokens=drafted,
        accepted_tokens=counts.accepted_tokens,
        mean_acceptance_length=1 + counts.accepted_tokens / steps if steps else None,
        acceptance_rate=counts.accepted_tokens / drafted if drafted else None,
        drafted_per_step=drafted / steps if steps else None,
        model_speedup=counts.model_speedup(cost),
        propose_us=Percentiles.of(counts.propose_us),
        start_us=Percentiles.of(counts.start_us),
        bytes_per_cached_token=bytes_per_cached_token,
        by_source={source: dict(count) for source, count in (by_source or {}).items()},
    )


def encode_results(config: Mapping[str, Any], runs: Sequence[Run]) -> bytes:
    """The JSON of the command, indented; floats are rounded to what was measured."""
    document = {
        "version": VERSION,
        "config": dict(config),
        "runs": [_rounded(msgspec.to_builtins(run)) for run in runs],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def write_results(path: str | Path, config: Mapping[str, Any], runs: Sequence[Run]) -> None:
    """Write the JSON of the command."""
    Path(path).write_bytes(encode_results(config, runs))


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in fields.items()}
