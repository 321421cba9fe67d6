"""A semantic cache as such: answer from the nearest cached prompt, right or wrong.

It is here to count what Reprise avoids: how often the text that it serves is not the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from reprise.eval.replay.peer_drafters import NoDrafter
from reprise.eval.replay.replay import ReplayCounts, replay_request
from reprise.eval.replay.token_rows import IntArray, TokenRow
from reprise.eval.replay.traces import TraceRow
from reprise.retrieval.search.embedding import Embedder


@dataclass
class SemanticCacheCounts(ReplayCounts):
    """What a replay against a semantic cache counted."""

    hits: int = 0
    changed: int = 0
    """Hits whose text is not the model's own answer."""

    @property
    def hit_rate(self) -> float:
        """Share of requests answered from the cache."""
        return self.hits / self.requests if self.requests else 0.0

    @property
    def changed_answers(self) -> float:
        """Share of the hits whose text is not the model's own answer."""
        return self.changed / self.hits if self.hits else 0.0


def cached_rows(
    rows: Sequence[TraceRow], *, embedder: Embedder, threshold: float
) -> list[int | None]:
    """Of each row that is not warm, in order: the number of the row whose answer a semantic cache
    would serve it, or None where the model must answer, whose answer then joins the cache."""
    vectors = embedder.encode([row.query_text for row in rows])  # float32 [rows, dim]
    cached = [number for number, row in enumerate(rows) if row.warm]
    found: list[int | None] = []
    for number, row in enumerate(rows):
        if row.warm:
            continue
        similarities = vectors[cached] @ vectors[number]
        nearest = int(similarities.argmax()) if cached else -1
        if nearest >= 0 and similarities[nearest] >= threshold:
            found.append(cached[nearest])
        else:
            found.append(None)
            cached.append(number)
    return found


def replay_semantic_cache(
    rows: Sequence[TokenRow],
    *,
    embedder: Embedder,
    threshold: float,
    on_request: Callable[[], None] = lambda: None,
) -> SemanticCacheCounts:
    """Fill the cache, then answer each request from it or, below `threshold`, by the model.

    A hit takes no step at all and does not join the cache; all tokens of its answer but the first
    count as emitted.
    """
    vectors = embedder.encode([row.source.query_text for row in rows])  # float32 [rows, dim]
    cached: list[IntArray] = []
    keys = np.empty((2 * len(rows), vectors.shape[1]), np.float32)

    def add(vector: np.ndarray, answer_token_ids: IntArray) -> None:
        keys[len(cached)] = vector
        cached.append(answer_token_ids)

    for row, vector in zip(rows, vectors, strict=True):
        if row.warm:
            add(vector, row.response_token_ids)
        if row.cached_token_ids is not None:
            add(vector, row.cached_token_ids)
    counts = SemanticCacheCounts()
    model = NoDrafter()
    for row, vector in zip(rows, vectors, strict=True):
        if row.warm:
            continue
        similarities = keys[: len(cached)] @ vector
        nearest = int(similarities.argmax()) if len(cached) else -1
        if nearest >= 0 and similarities[nearest] >= threshold:
            counts.requests += 1
            counts.hits += 1
            counts.changed += not np.array_equal(cached[nearest], row.response_token_ids)
            counts.emitted_tokens += len(cached[nearest]) - 1
        else:
            replay_request(model, row, counts)
            if row.cached_token_ids is None:
                add(vector, row.response_token_ids)
        on_request()
    return counts
