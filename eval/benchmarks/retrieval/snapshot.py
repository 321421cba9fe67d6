"""What the vector index's file costs and saves: writing, searching meanwhile, restoring."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

from reprise.eval.benchmarks.retrieval.inputs import (
    NAMESPACE,
    Figure,
    clustered,
    quantiles_us,
)
from reprise.retrieval.search.answer_index import AnswerIndex
from reprise.retrieval.search.index_snapshot import read_snapshot, write_snapshot

_DIM = 384
_IDENTITY = "made-up"


def snapshot_figures(count: int, *, seed: int) -> list[Figure]:
    """An index of `count` vectors, all in its graph, to a file and back.

    Raises:
        AssertionError: What comes back finds other answers.
    """
    rows = clustered(count, _DIM, seed=seed)
    index = AnswerIndex(_DIM)
    began_s = time.perf_counter()
    for number, row in enumerate(rows):
        index.add(NAMESPACE, f"{number:032x}", row, number.to_bytes(8, "little"))
    while index.maintain():
        pass
    build_s = time.perf_counter() - began_s
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        began_s = time.perf_counter()
        parts = index.parts()
        taken_s = time.perf_counter() - began_s
        writer = threading.Thread(
            target=write_snapshot, args=(path, parts), kwargs={"identity": _IDENTITY, "dim": _DIM}
        )
        began_s, took = time.perf_counter(), []
        writer.start()
        while writer.is_alive():
            query_s = time.perf_counter()
            index.search(NAMESPACE, rows[:1], 32)
            took.append(time.perf_counter() - query_s)
        write_s = time.perf_counter() - began_s
        num_bytes = path.stat().st_size
        began_s = time.perf_counter()
        again = AnswerIndex(_DIM)
        again.restore(read_snapshot(path, identity=_IDENTITY, dim=_DIM))
        restore_s = time.perf_counter() - began_s
    queries = rows[:100]
    assert again.search(NAMESPACE, queries, 8) == index.search(NAMESPACE, queries, 8)
    at = f"{count} vectors"
    return [
        Figure("snapshot", f"graph built, {at}", build_s, "s"),
        Figure("snapshot", f"graph restored, {at}", restore_s, "s"),
        Figure("snapshot", f"written, searching meanwhile, {at}", write_s, "s"),
        Figure("snapshot", "nothing else is done while it begins", taken_s * 1e3, "ms"),
        Figure("snapshot", "search while it is written, p99", quantiles_us(took)[1] / 1e3, "ms"),
        Figure("snapshot", "in the file for each vector", num_bytes / count, "bytes"),
    ]
