"""What a small memory costs: traces replayed with a share of it, alone and with Milvus behind."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from reprise.eval.benchmarks.retrieval.inputs import Figure
from reprise.eval.replay.replay import replay
from reprise.eval.replay.reprise_drafter import RepriseDrafter
from reprise.eval.replay.token_rows import ReplayTokenizer, TokenRow, tokenize_rows
from reprise.eval.replay.traces import load_trace
from reprise.retrieval import RetrievalConfig, RetrievalStats
from reprise.retrieval.search.embedding import Embedder

COST = 0.02
"""Of verifying a drafted token, in steps of its request."""
SHARES = (0.1, 0.01)
_MIN_BYTES = 1 << 13
_WHOLE_BYTES = 1 << 32
_HOLDS_ALL = 2.0
"""A cosine that no two prompts have."""
# Milvus Lite is written in Python; what is measured is what is found, not how fast.
_BUDGET_MS = 1000.0


def small_memory_figures(
    traces: Sequence[Path], tokenizer: ReplayTokenizer, *, limit: int | None = None
) -> list[Figure]:
    """Return, for each trace, the speed-up with all answers in memory, and what of its gain stays
    with a share of the bytes: by value alone, and with Milvus behind it."""
    embedder = Embedder()
    figures = []
    for path in traces:
        rows = tokenize_rows(load_trace(path)[:limit], tokenizer)
        speedup, stats = _replayed(rows, embedder, None)
        gain = speedup - 1
        figures.append(Figure("share", f"{path.stem}, all {stats.answers}", speedup, "x"))
        for share in SHARES:
            num_bytes = max(_MIN_BYTES, int(share * stats.bytes))
            for behind in ("memory alone", "with Milvus"):
                with tempfile.TemporaryDirectory() as folder:
                    config = _config(folder, num_bytes, searches=behind == "with Milvus")
                    speedup, held = _replayed(rows, embedder, config)
                if behind == "with Milvus":
                    check_searched(held)
                name = f"{path.stem}, {share:.0%} ({held.answers}), {behind}"
                print(f"{name}: {speedup:.3f}x {held}", file=sys.stderr, flush=True)
                figures.append(Figure("share", name, (speedup - 1) / gain, "of gain"))
    return figures


def check_searched(stats: RetrievalStats) -> None:
    """See that what is beyond memory was looked up there.

    Raises:
        RuntimeError: it was not, or not always: the figure would be of memory alone.
    """
    if not stats.remote_searches or stats.remote_failed:
        raise RuntimeError(f"expected look-ups in Milvus, came {stats}")


def duplicate_figures(
    traces: Sequence[Path], tokenizer: ReplayTokenizer, *, limit: int | None = None
) -> list[Figure]:
    """Return, for each trace with all answers in memory, what holding nearly the same ones once
    saves and costs."""
    embedder = Embedder()
    figures = []
    for path in traces:
        rows = tokenize_rows(load_trace(path)[:limit], tokenizer)
        for held, similarity in (("all", _HOLDS_ALL), ("nearly the same once", None)):
            with tempfile.TemporaryDirectory() as folder:
                config = _config(folder, _WHOLE_BYTES, searches=False)
                if similarity is not None:
                    config = config.model_copy(update={"duplicate_similarity": similarity})
                speedup, stats = _replayed(rows, embedder, config)
            name = f"{path.stem}, {held} held"
            print(f"{name}: {speedup:.4f}x {stats}", file=sys.stderr, flush=True)
            figures += [
                Figure("duplicates", f"{name}: speed-up", speedup, "x"),
                Figure("duplicates", f"{name}: answers", stats.answers, "answers"),
                Figure("duplicates", f"{name}: bytes", stats.bytes, "bytes"),
            ]
    return figures


def _config(folder: str, num_bytes: int, *, searches: bool) -> RetrievalConfig:
    search = f"milvus://{folder}/index.db" if searches else "faiss"
    return RetrievalConfig(
        url=f"sqlite://{folder}/answers.sqlite",
        memory_bytes=num_bytes,
        search=search,
        search_budget_ms=_BUDGET_MS,
        queue_length=1 << 20,
    )


def _replayed(
    rows: Sequence[TokenRow], embedder: Embedder, config: RetrievalConfig | None
) -> tuple[float, RetrievalStats]:
    """Return the speed-up and the retriever's counts at the end."""
    drafter = RepriseDrafter(embedder=embedder, cost=COST, retrieval=config)
    try:
        counts = replay(drafter, rows)
        return counts.model_speedup(COST) or 1.0, drafter.retrieval_stats()
    finally:
        drafter.close()
