"""Near answers for the requests of traces, beside what GPTCache answers them with."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reprise.eval.benchmarks.retrieval.inputs import READY_S, Figure, quantiles_us, wait_for
from reprise.retrieval import Answer
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.search.embedding import Embedder


def quality_figures(traces: Sequence[Path], peer: Path | None) -> list[Figure]:
    """Near answers for the requests of traces, beside GPTCache's one answer where there is it."""
    figures: list[Figure] = []
    if not traces:
        print("quality: left out, no --trace", file=sys.stderr)
    embedder = Embedder()
    for trace in traces:
        rows = [json.loads(line) for line in trace.read_text().splitlines()]
        cached = [row for row in rows if row.get("warm")] or rows[: len(rows) // 2]
        asked = [row for row in rows if row not in cached][:100]
        ours, ours_s = _reprise_answers(embedder, cached, asked)
        systems = {"reprise, nearest": [found[:1] for found in ours], "reprise, all": ours}
        times = {"reprise": ours_s}
        if peer is not None:
            systems["gptcache"], times["gptcache"] = _gptcache_answers(
                peer, embedder, cached, asked
            )
        for name, answers in systems.items():
            pairs = list(zip(asked, answers, strict=True))
            covered = [_covered(row["response"], [c["response"] for c in a]) for row, a in pairs]
            figures.append(
                Figure("quality", f"{trace.stem}: words covered, {name}", _mean(covered), "share")
            )
            if "group" in rows[0]:
                same = [any(c["group"] == row["group"] for c in a) for row, a in pairs]
                figures.append(
                    Figure("quality", f"{trace.stem}: same topic, {name}", _mean(same), "share")
                )
        figures += [
            Figure("quality", f"{trace.stem}: {name}, p50", quantiles_us(took)[0] / 1e3, "ms")
            for name, took in times.items()
        ]
    return figures


def _reprise_answers(
    embedder: Embedder, cached: list[dict[str, Any]], asked: list[dict[str, Any]]
) -> tuple[list[list[dict[str, Any]]], list[float]]:
    retriever = LocalRetriever(embedder=embedder)
    by_id = {}
    for row in cached:
        answer = Answer.create(
            prompt_token_ids=list(row["prompt"].encode()),
            response_token_ids=list(row["response"].encode()),
            prompt_text=_query(row),
        )
        by_id[answer.answer_id] = row
        retriever.store(answer)
    assert retriever.flush(READY_S)
    found, took = [], []
    for number, row in enumerate(asked):
        began_s = time.perf_counter()
        retriever.submit(str(number), namespace="", text=_query(row))
        wait_for(retriever, [str(number)])
        took.append(time.perf_counter() - began_s)
        near_answers = retriever.poll(str(number))
        assert near_answers is not None
        found.append([by_id[near.answer_id] for near in near_answers])
    retriever.close()
    return found, took


def _gptcache_answers(
    folder: Path, embedder: Embedder, cached: list[dict[str, Any]], asked: list[dict[str, Any]]
) -> tuple[list[list[dict[str, Any]]], list[float]]:
    """What GPTCache, with its defaults, SQLite and FAISS and our embeddings, answers."""
    sys.path.append(str(folder))
    from gptcache import Cache
    from gptcache.adapter.api import get
    from gptcache.manager import CacheBase, VectorBase, get_data_manager
    from gptcache.processor.pre import get_prompt
    from gptcache.similarity_evaluation.distance import SearchDistanceEvaluation

    found, took = [], []
    with tempfile.TemporaryDirectory() as scratch:
        manager = get_data_manager(
            CacheBase("sqlite", sql_url=f"sqlite:///{scratch}/answers.sqlite"),
            VectorBase("faiss", dimension=embedder.dim, index_path=f"{scratch}/faiss.index"),
        )
        cache = Cache()
        # Its own: the other run's memory of these texts would flatter this one.
        fresh = Embedder()
        cache.init(
            pre_embedding_func=get_prompt,
            embedding_func=lambda text, **_: fresh.encode([text])[0],
            data_manager=manager,
            similarity_evaluation=SearchDistanceEvaluation(),
        )
        vectors = embedder.encode([_query(row) for row in cached])
        manager.import_data(
            [_query(row) for row in cached],
            [str(number) for number in range(len(cached))],
            list(vectors),
            [None] * len(cached),
        )
        for row in asked:
            began_s = time.perf_counter()
            reply = get(_query(row), cache_obj=cache)
            took.append(time.perf_counter() - began_s)
            found.append([] if reply is None else [cached[int(reply)]])
    return found, took


def _query(row: dict[str, Any]) -> str:
    return str(row.get("query") or row["prompt"])


def _covered(response: str, answers: Sequence[str]) -> float:
    """Share of a response's runs of four words that occur in some of the answers."""
    there = {run for answer in answers for run in _runs(answer)}
    runs = _runs(response)
    return sum(run in there for run in runs) / max(1, len(runs))


def _runs(text: str) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + 4]) for i in range(max(1, len(words) - 3))]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
