"""A semantic cache as such: answer from the nearest cached prompt, right or wrong.

It is here to count what Reprise avoids: how often the text that it serves is not the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from reprise.engine_ext.answer_page.records import MAX_RECORDED, CachedReply
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
    replies: list[CachedReply | None] = field(default_factory=list)
    """To the first requests; None: it asked the model."""

    @property
    def hit_rate(self) -> float:
        """Share of requests answered from the cache."""
        return self.hits / self.requests if self.requests else 0.0

    @property
    def changed_answers(self) -> float:
        """Share of the hits whose text is not the model's own answer."""
        return self.changed / self.hits if self.hits else 0.0


class CacheHit(NamedTuple):
    """What a semantic cache takes for the same question."""

    row: int
    """The number of the row whose answer it serves."""
    similarity: float


def cached_rows(
    rows: Sequence[TraceRow], *, embedder: Embedder, threshold: float
) -> list[CacheHit | None]:
    """Of each row that is not warm, in order: the row whose answer a semantic cache would serve it,
    or None where the model must answer, whose answer then joins the cache."""
    vectors = embedder.encode([row.query_text for row in rows])  # float32 [rows, dim]
    cached = [number for number, row in enumerate(rows) if row.warm]
    found: list[CacheHit | None] = []
    for number, row in enumerate(rows):
        if row.warm:
            continue
        similarities = vectors[cached] @ vectors[number]
        nearest = int(similarities.argmax()) if cached else -1
        if nearest >= 0 and similarities[nearest] >= threshold:
            found.append(CacheHit(cached[nearest], float(similarities[nearest])))
        else:
            found.append(None)
            cached.append(number)
    return found


def cached_replies(
    rows: Sequence[TraceRow],
    served_from: Sequence[CacheHit | None],
    answers: Mapping[int, Sequence[int]],
) -> list[CachedReply | None]:
    """What a semantic cache says to each row that is not warm.

    Args:
        served_from: of `cached_rows`.
        answers: token ids by number of row, of those that joined the cache.
    """
    return [
        None
        if hit is None
        else CachedReply(rows[hit.row].query_text, hit.similarity, list(answers[hit.row]))
        for hit in served_from
    ]


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
    questions: list[str] = []
    keys = np.empty((2 * len(rows), vectors.shape[1]), np.float32)

    def add(row: TokenRow, vector: np.ndarray, answer_token_ids: IntArray) -> None:
        keys[len(cached)] = vector
        cached.append(answer_token_ids)
        questions.append(row.source.query_text)

    for row, vector in zip(rows, vectors, strict=True):
        if row.warm:
            add(row, vector, row.response_token_ids)
        if row.cached_token_ids is not None:
            add(row, vector, row.cached_token_ids)
    counts = SemanticCacheCounts()
    model = NoDrafter()
    for row, vector in zip(rows, vectors, strict=True):
        if row.warm:
            continue
        similarities = keys[: len(cached)] @ vector
        nearest = int(similarities.argmax()) if len(cached) else -1
        reply: CachedReply | None = None
        if nearest >= 0 and similarities[nearest] >= threshold:
            similarity = float(similarities[nearest])
            reply = CachedReply(questions[nearest], similarity, cached[nearest].tolist())
            counts.requests += 1
            counts.hits += 1
            counts.changed += not np.array_equal(cached[nearest], row.response_token_ids)
            counts.emitted_tokens += len(cached[nearest]) - 1
        else:
            replay_request(model, row, counts)
            if row.cached_token_ids is None:
                add(row, vector, row.response_token_ids)
        if len(counts.replies) < MAX_RECORDED:
            counts.replies.append(reply)
        on_request()
    return counts
