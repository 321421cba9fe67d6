"""From queries to near answers: embedding, clauses, vector search, ranking. Not thread-safe."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np
from numpy.typing import NDArray

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.found_clause import FoundClause
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.retrieval.host.loop_errors import LoopErrors
from reprise.retrieval.query.clauses import ClauseSplitter
from reprise.retrieval.search.answer_index import AnswerIndex, prompt_mark
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.search.known_words import LanguageWatch
from reprise.retrieval.search.snapshot_writer import SnapshotWriter
from reprise.retrieval.search.vector_index import GRAPH
from reprise.retrieval.tiers.memory_tier import MemoryTier

FloatArray = NDArray[np.float32]
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
class Found:
    """What one batch of the embedding model came to."""

    places: list[int]
    """Of the queries that it was for."""
    near_answers: list[list[NearAnswer]]
    """For each of them, best first."""
    clauses: list[list[FoundClause]]
    """Of each of them; none of a question that asks one thing."""
    vectors: list[FloatArray]
    """Of each of them: float32 [1 + clauses, dim], the whole question first."""
    clause_s: float
    embed_s: float
    search_s: float


class NearSearch:
    """Near answers for queries, among the answers of a memory tier.

    Args:
        config: How many, how near.
        embedder: Texts to vectors.
        memory: Where the answers are held.
        splitter: Finds the clauses of compound questions; None searches each as one.
        snapshot: File that the index is restored from and written to; None keeps it in memory.
    """

    def __init__(
        self,
        config: RetrievalConfig,
        embedder: Embedder,
        memory: MemoryTier,
        *,
        splitter: ClauseSplitter | None = None,
        snapshot: Path | None = None,
    ) -> None:
        self._config, self._memory, self._splitter = config, memory, splitter
        self.embedder = embedder
        self._languages = LanguageWatch(embedder.words, model=embedder.name)
        self._index = AnswerIndex(embedder.dim, exact_search_limit=config.exact_search_limit)
        self._changes, self._has_dropped_unclaimed = 0, False
        self.num_embedded = self.num_restored = 0
        self._snapshots: SnapshotWriter | None = None
        if snapshot is not None:
            self._snapshots = SnapshotWriter(snapshot, identity=f"{embedder.identity}:{GRAPH}")
            self._snapshots.restore(self._index)
        self._split_errors = LoopErrors("Finding the clauses of a question")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="reprise-clauses")

    def search(self, queries: Sequence[Query]) -> Iterator[Found]:
        """Yield near answers for the queries, batch by batch, so that none waits for longer
        ones."""
        for places in self.embedder.batches([query.text for query in queries]):
            yield self._search(places, [queries[place] for place in places])

    def _search(self, places: list[int], queries: Sequence[Query]) -> Found:
        began_s = time.perf_counter()
        texts = [query.text for query in queries]
        self._languages.look_at(texts)
        namespaces = [query.namespace for query in queries]
        clauses: list[list[tuple[str, str]]] = [[]] * len(texts)
        clause_s, splitting = 0.0, None
        if any(map(self._may_be_compound, texts)):
            # Splitting is Python, embedding mostly is not: they run side by side.
            splitting = self._pool.submit(self._timed_clauses, texts)
        wholes = self.embedder.encode(texts, namespaces)
        if splitting is not None:
            clauses, clause_s = splitting.result()
        flat = [
            (clause, namespace)
            for found, namespace in zip(clauses, namespaces, strict=True)
            for clause, _ in found
        ]
        parts = iter(self.embedder.encode([c for c, _ in flat], [n for _, n in flat]))
        embedded_s = time.perf_counter()
        vectors = [
            np.stack([whole, *(next(parts) for _ in found)])
            for whole, found in zip(wholes, clauses, strict=True)
        ]
        near_answers = [
            self.rank(query.namespace, each) for query, each in zip(queries, vectors, strict=True)
        ]
        return Found(
            places,
            near_answers,
            [[FoundClause.shortened(*clause) for clause in found] for found in clauses],
            vectors,
            clause_s=clause_s,
            embed_s=embedded_s - began_s,
            search_s=time.perf_counter() - embedded_s,
        )

    def join(self, answers: Sequence[Answer], texts: Sequence[str]) -> list[Answer]:
        """Make answers findable by their texts; returns the new ones, with embeddings."""
        identity = self.embedder.identity
        marks = [prompt_mark(answer) for answer in answers]
        restored = [
            self._index.claim(answer.namespace, answer.answer_id, mark)
            for answer, mark in zip(answers, marks, strict=True)
        ]
        known = [
            self._vector_of(answer) if vector is None else vector
            for answer, vector in zip(answers, restored, strict=True)
        ]
        missing = [
            (text, answer.namespace)
            for answer, text, vector in zip(answers, texts, known, strict=True)
            if vector is None
        ]
        fresh = iter(self.embedder.encode([t for t, _ in missing], [n for _, n in missing]))
        self.num_embedded += len(missing)
        joined = []
        for answer, mark, claimed, held in zip(answers, marks, restored, known, strict=True):
            vector = next(fresh) if held is None else held
            if claimed is not None:
                self.num_restored += 1
            elif self._index.add(answer.namespace, answer.answer_id, vector, mark):
                self._changes += 1
            else:
                continue
            joined.append(
                msgspec.structs.replace(
                    answer, embedding=vector.astype("<f2").tobytes(), embedder=identity
                )
            )
        return joined

    def neighbours(self, namespace: str, answer_id: str, count: int) -> list[tuple[str, float]]:
        """Return the answers that are nearest to one of them: id and cosine."""
        return self._index.neighbours(namespace, answer_id, count)

    def leave(self, namespace: str, answer_id: str) -> bool:
        """Make an answer unfindable; returns whether it was findable."""
        left = self._index.remove(namespace, answer_id)
        self._changes += left
        return left

    def erase(self, keys: Iterable[tuple[str, str]], *, at_once: bool) -> None:
        """Leave no trace of answers (namespace, id) that have left: no vector of theirs in the
        index, and nothing remembered of their namespaces' texts. The snapshot is written anew when
        it is due, or `at_once`."""
        namespaces = {namespace for namespace, _ in keys}
        for namespace in namespaces:
            self._index.erase_removed(namespace)
        self.embedder.forget(namespaces)
        self._changes += 1
        if at_once and self._snapshots is not None:
            self._snapshots.hurry()

    def drop_unclaimed(self) -> None:
        """Remove what the snapshot held and nobody joined: it was removed in the meantime."""
        if not self._has_dropped_unclaimed:
            self._has_dropped_unclaimed = True
            dropped = self._index.drop_unclaimed()
            if dropped:
                self.erase(dropped, at_once=True)

    def maintain(self) -> bool:
        """Do a step of the index's upkeep, some 15 ms; return whether there is more to do."""
        snapshots = self._snapshots
        if snapshots is not None and self._is_to_be_written(snapshots) and snapshots.is_due:
            self._write_snapshot(snapshots)
        # While it is being written, the graph must stay as it is.
        return not (snapshots is not None and snapshots.writing) and self._index.maintain()

    @property
    def num_refused_snapshots(self) -> int:
        """Snapshots that could not be used."""
        return 0 if self._snapshots is None else self._snapshots.num_refused

    @property
    def num_failed_snapshots(self) -> int:
        """Times that a snapshot could not be written."""
        return 0 if self._snapshots is None else self._snapshots.num_failed

    @property
    def troubles(self) -> list[str]:
        """What of it does not work now."""
        is_failing = self._snapshots is not None and self._snapshots.is_failing
        return ["the index snapshot cannot be written"] if is_failing else []

    @property
    def num_waiting(self) -> int:
        """Answers that upkeep has yet to move into the graph."""
        return self._index.num_waiting

    def close(self) -> None:
        """Stop the helper thread, and write the snapshot if there is something to write."""
        self._pool.shutdown(wait=False)
        if (snapshots := self._snapshots) is None:
            return
        snapshots.wait()
        if self._is_to_be_written(snapshots):
            self._write_snapshot(snapshots, wait=True)

    def _is_to_be_written(self, snapshots: SnapshotWriter) -> bool:
        return self._changes > 0 or snapshots.is_behind

    def _write_snapshot(self, snapshots: SnapshotWriter, *, wait: bool = False) -> None:
        self._changes = 0
        snapshots.write(self._index, wait=wait)

    def _vector_of(self, answer: Answer) -> FloatArray | None:
        """Return the vector that an answer brings; None if it has none by this embedder."""
        if answer.embedder != self.embedder.identity:
            return None
        return unpack(answer.embedding, self.embedder.dim)

    def _timed_clauses(self, texts: Iterable[str]) -> tuple[list[list[tuple[str, str]]], float]:
        """Return the clauses of each text, and how long that took in seconds."""
        began_s = time.perf_counter()
        return self._clauses(texts), time.perf_counter() - began_s

    def _clauses(self, texts: Iterable[str]) -> list[list[tuple[str, str]]]:
        return [self._clauses_of(text) for text in texts]

    def _clauses_of(self, text: str) -> list[tuple[str, str]]:
        """Return each clause, as a question of its own, with its connective."""
        try:
            found = [] if self._splitter is None else self._splitter.clauses(text)
            return [(clause.read(text), clause.connective) for clause in found]
        except Exception as error:  # one question must not take the batch's others along
            self._split_errors.failed(error)
            return []

    def _may_be_compound(self, text: str) -> bool:
        try:
            return self._splitter is not None and self._splitter.may_be_compound(text)
        except Exception as error:
            self._split_errors.failed(error)
            return False

    def rank(
        self,
        namespace: str,
        vectors: FloatArray,
        *,
        more: Sequence[Sequence[tuple[str, float]]] = (),
        answers: Mapping[str, Answer] = MappingProxyType({}),
    ) -> list[NearAnswer]:
        """Return near answers for float32 [1 + clauses, dim]: each answer once, by its best
        likeness.

        `more` is (answer id, cosine) for each vector from elsewhere, and `answers` what is not in
        memory of those, by id; what is in neither is left out.
        """
        count = self._config.near_answers
        best: dict[str, tuple[float, int]] = {}
        rows = self._index.search(namespace, vectors, count)
        for row, others in zip(rows, more, strict=False):
            row.extend(
                (i, cosine)
                for i, cosine in others
                if i in answers or self._memory.holds(namespace, i)
            )
        for clause, row in enumerate(rows):
            min_similarity = self._min_similarity(clause, len(vectors) - 1)
            for answer_id, cosine in row:
                if cosine >= min_similarity and cosine > best.get(answer_id, (-2.0, 0))[0]:
                    best[answer_id] = (cosine, clause)
        ranked = sorted(best.items(), key=lambda item: -item[1][0])
        ranked = _with_each_clause(ranked, count)
        held = self._memory.get(namespace, [answer_id for answer_id, _ in ranked])
        found = [
            answers.get(answer_id) if answer is None else answer
            for (answer_id, _), answer in zip(ranked, held, strict=True)
        ]
        return [
            NearAnswer(
                answer_id=answer_id,
                similarity=min(1.0, cosine),  # of a vector in float16, it may be a little more
                prompt_token_ids=answer.prompt_token_ids,
                response_token_ids=answer.response_token_ids,
                clause=clause,
                namespace=namespace,
            )
            for (answer_id, (cosine, clause)), answer in zip(ranked, found, strict=True)
            if answer is not None
        ]

    def _min_similarity(self, clause: int, num_clauses: int) -> float:
        min_similarity = self._config.min_similarity
        if clause == 0:
            return min_similarity
        stricter = min_similarity + _CLAUSE_MARGIN + _MARGIN_PER_CLAUSE * num_clauses
        return max(min_similarity, min(stricter, _MAX_CLAUSE_SIMILARITY))


def _with_each_clause(
    ranked: list[tuple[str, tuple[float, int]]], count: int
) -> list[tuple[str, tuple[float, int]]]:
    """Return the first `count`, but none of the clauses crowded out by a better one's hits."""
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


def unpack(embedding: bytes, dim: int) -> FloatArray | None:
    """Return a stored embedding, float32 [dim] of length 1 (or 0); None if it is no such vector."""
    if len(embedding) != 2 * dim:
        return None
    vector = np.frombuffer(embedding, dtype="<f2").astype(np.float32)
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length):
        return None
    unit: FloatArray = vector / np.float32(length or 1.0)
    return unit
