"""Measured runs come out in virtual time as they were measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from reprise.eval.live.record_answers import record_answers
from reprise.eval.replay.peer_drafters import suffix_installed
from reprise.eval.replay.token_rows import TokenRow, load_tokenizer, tokenize_rows
from reprise.eval.replay.traces import load_trace
from reprise.eval.virtual.checking import check_run
from reprise.eval.virtual.engines import DeviceDrafter
from reprise.eval.virtual.h200 import H200
from reprise.eval.virtual.measured_runs import GAP, MEASURED, PREFILL_MS, RETRIEVAL_S, SUFFIX_GAP
from reprise.eval.virtual.replays import Prices

SHARED = Path(__file__).resolve().parents[4] / "shared"
MODEL = SHARED / "models" / "support"
LIMITS = {"support": 300, "chat_cold": 91}
PRICES = Prices(
    device=H200(prefill_ms=PREFILL_MS),
    gap=GAP,
    suffix_gap=SUFFIX_GAP,
    retrieval_s=RETRIEVAL_S,
    drafter=DeviceDrafter(3e-6),
    draft_length=16,
)
CLOSE = 0.15
"""A tenth, what rounding of the measured figures adds, and answers that are recorded here: another
processor picks other tokens at near ties, after which 40 answers take another number of steps. On
two machines chat_cold at 32, on V1 and warm, came out 8 and 13% too slow."""
FAR = 0.3
"""Our drafts in the run that began with nothing in the cache: of a code that has changed since. And
those on V2 at 128, where steps without a full graph cost what was never measured: 14 to 17% off."""


@pytest.fixture(scope="module")
def traces() -> dict[str, list[TokenRow]]:
    """The measured model's own answers."""
    if not MODEL.exists():
        pytest.skip("the measured model does not lie beside this checkout")
    tokenizer = load_tokenizer(str(MODEL))
    found = {}
    for name, limit in LIMITS.items():
        rows = load_trace(SHARED / "traces" / f"{name}.jsonl")[:limit]
        answered = record_answers(
            rows, model=str(MODEL), concurrency=32, dtype="float32", quiet=True
        )
        found[name] = tokenize_rows(answered, tokenizer)
    return found


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "number", range(len(MEASURED)), ids=[f"{run.engine}-{run.is_warm}" for run in MEASURED]
)
def test_measured_runs_come_out_as_measured(number: int, traces: dict[str, list[TokenRow]]) -> None:
    run = MEASURED[number]
    if run.engine == "suffix" and not suffix_installed():
        pytest.skip("arctic-inference is not installed")
    checks = list(check_run(run, traces, PRICES, embedder=None))
    assert len(checks) == len(run.workloads)
    is_far = [
        run.engine == "v1-ahead" or (run.engine, c.workload.concurrency) == ("v2", 128)
        for c in checks
    ]
    errors = {f"{c.workload.trace} at {c.workload.concurrency}": c.error for c in checks}
    bounds = [FAR if far else CLOSE for far in is_far]
    pairs = zip(errors.items(), bounds, strict=True)
    assert {name: e for (name, e), bound in pairs if abs(e) > bound} == {}
    if not run.is_warm:
        return
    # Which rows the other run was asked for is not known, so its absolute speeds say nothing.
    speeds = [c.none.tokens_per_s / c.workload.none for c in checks]
    assert all(0.9 < speed < 1.1 for speed in speeds)


def test_rows_are_served_once_where_the_cache_is_kept() -> None:
    with pytest.raises(ValueError, match="chat_cold: too few rows for 24 requests"):
        list(check_run(MEASURED[2], {"support": [], "chat_cold": []}, PRICES, embedder=None))
