"""From queries to near answers: embedding, clauses, vector search, ranking. Not thread-safe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from .answer import Answer
from .answer_index import AnswerIndex
from .config import RetrievalConfig
from .embedding import Embedder
from .memory_tier import MemoryTier
from .near_answer import NearAnswer

FloatArray = NDArray[np.float32]
SplitClauses = Callable[[str], list[str]]
# A clause is shorter than a whole prompt, so that chance likenesses score higher: each further
# clause must be closer to count.
_CLAUSE_MARGIN = 0.15
_MARGIN_PER_CLAUSE = 0.05
_MAX_CLAUSE_SIMILARITY = 0.6


@dataclass(frozen=True, slots=True)
class Query:
    """One request's search."""

    namespace: str
    text: str


@dataclass(frozen=True, slots=True)
class SearchTimes:
    """Seconds that a batch of queries took."""

    embed_s: float
    search_s: float


class NearSearch:
    """Near answers for queries, among the answers of a memory tier.

    Args:
        config: How many, how near.
        embedder: Texts to vectors.
        memory: Where the answers are held.
        split_clauses: A compound question to its sub-questions, none for a simple one.
    """

    def __init__(
        self,
        config: RetrievalConfig,
        embedder: Embedder,
        memory: MemoryTier,
        *,
        split_clauses: SplitClauses | None = None,
    ) -> None:
        self._config, self._memory, self._split = config, memory, split_clauses
        self.embedder = embedder
        self._index = AnswerIndex(embedder.dim, exact_search_limit=config.exact_search_limit)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="reprise-clauses")

    def search(self, queries: Sequence[Query]) -> tuple[list[list[NearAnswer]], SearchTimes]:
        """Near answers for each query, best first."""
        began_s = time.perf_counter()
        texts = [query.text for query in queries]
        namespaces = [query.namespace for query in queries]
        # Splitting is Python, embedding mostly is not: they run side by side.
        splitting = self._pool.submit(self._clauses, texts)
        wholes = self.embedder.encode(texts, namespaces)
        clauses = splitting.result()
        flat = [
            (clause, namespace)
            for found, namespace in zip(clauses, namespaces, strict=True)
            for clause in found
        ]
        parts = iter(self.embedder.encode([c for c, _ in flat], [n for _, n in flat]))
        embedded_s = time.perf_counter()
        near = []
        for query, whole, found in zip(queries, wholes, clauses, strict=True):
            vectors = np.stack([whole, *(next(parts) for _ in found)])
            near.append(self._rank(query.namespace, vectors))
        return near, SearchTimes(embedded_s - began_s, time.perf_counter() - embedded_s)

    def join(self, answers: Sequence[Answer], texts: Sequence[str]) -> list[Answer]:
        """Make answers findable by their texts; returns the new ones, with embeddings."""
        identity = self.embedder.identity
        missing = [
            (text, a.namespace)
            for a, text in zip(answers, texts, strict=True)
            if a.embedder != identity
        ]
        fresh = iter(self.embedder.encode([t for t, _ in missing], [n for _, n in missing]))
        joined = []
        for answer in answers:
            if answer.embedder == identity:
                vector = _unpack(answer.embedding, self.embedder.dim)
            else:
                vector = next(fresh)
            if vector is not None and self._index.add(answer.namespace, answer.answer_id, vector):
                joined.append(
                    msgspec.structs.replace(
                        answer, embedding=vector.astype("<f2").tobytes(), embedder=identity
                    )
                )
        return joined

    def leave(self, namespace: str, answer_id: str) -> bool:
        """Make an answer unfindable; returns whether it was findable."""
        return self._index.remove(namespace, answer_id)

    def maintain(self) -> bool:
        """A step of the index's upkeep, some 15 ms; returns whether there is more to do."""
        return self._index.maintain()

    @property
    def num_waiting(self) -> int:
        """Answers that upkeep has yet to move into the graph."""
        return self._index.num_waiting

    def close(self) -> None:
        """Stop the helper thread."""
        self._pool.shutdown(wait=False)

    def _clauses(self, texts: Iterable[str]) -> list[list[str]]:
        return [self._split(text) if self._split is not None else [] for text in texts]

    def _rank(self, namespace: str, vectors: FloatArray) -> list[NearAnswer]:
        """Near answers for float32 [1 + clauses, dim]: each answer once, by its best likeness."""
        count = self._config.near_answers
        best: dict[str, tuple[float, int]] = {}
        for clause, row in enumerate(self._index.search(namespace, vectors, count)):
            least = self._least_similarity(clause, len(vectors) - 1)
            for answer_id, cosine in row:
                if cosine >= least and cosine > best.get(answer_id, (-2.0, 0))[0]:
                    best[answer_id] = (cosine, clause)
        ranked = sorted(best.items(), key=lambda item: -item[1][0])
        ranked = _with_each_clause(ranked, count)
        answers = self._memory.get(namespace, [answer_id for answer_id, _ in ranked])
        return [
            NearAnswer(
                answer_id=answer_id,
                similarity=cosine,
                prompt_token_ids=answer.prompt_token_ids,
                response_token_ids=answer.response_token_ids,
                clause=clause,
                namespace=namespace,
            )
            for (answer_id, (cosine, clause)), answer in zip(ranked, answers, strict=True)
            if answer is not None
        ]

    def _least_similarity(self, clause: int, num_clauses: int) -> float:
        least = self._config.min_similarity
        if clause == 0:
            return least
        stricter = least + _CLAUSE_MARGIN + _MARGIN_PER_CLAUSE * num_clauses
        return max(least, min(stricter, _MAX_CLAUSE_SIMILARITY))


def _with_each_clause(
    ranked: list[tuple[str, tuple[float, int]]], count: int
) -> list[tuple[str, tuple[float, int]]]:
    """The first `count`, but none of the clauses crowded out by a better one's hits."""
    if len(ranked) <= count:
        return ranked
    share = max(1, count // (1 + max(clause for _, (_, clause) in ranked)))
    taken: dict[int, int] = {}
    first: list[tuple[str, tuple[float, int]]] = []
    rest: list[tuple[str, tuple[float, int]]] = []
    for item in ranked:
        clause = item[1][1]
        taken[clause] = taken.get(clause, 0) + 1
        (first if taken[clause] <= share else rest).append(item)
    kept = [*first, *rest][:count]
    return sorted(kept, key=lambda item: -item[1][0])


def _unpack(embedding: bytes, dim: int) -> FloatArray | None:
    """Float32 [dim] of length 1 (or 0); None if these bytes are no such vector."""
    if len(embedding) != 2 * dim:
        return None
    vector = np.frombuffer(embedding, dtype="<f2").astype(np.float32)
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length):
        return None
    unit: FloatArray = vector / np.float32(length or 1.0)
    return unit
