"""From a query's vector to the ids of near answers, one vector index per namespace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reprise.retrieval.api.answer import Answer, digest
from reprise.retrieval.search.vector_index import VectorIndex, VectorParts

FloatArray = NDArray[np.float32]
_MARK_BYTES = 8


@dataclass(frozen=True, slots=True)
class NamespaceParts:
    """What an index holds of one namespace, to be written to a file and read back."""

    namespace: str
    graph: Any | None
    """A faiss index, or None."""
    graph_ids: list[str | None]
    """Answer id of each vector of `graph`; None for the dead."""
    tail_ids: list[str]
    tail: FloatArray
    """float32 [tail_ids, dim]"""
    marks: dict[str, bytes]
    """What each answer was made from, see `prompt_mark`."""


def prompt_mark(answer: Answer) -> bytes:
    """Return 8 bytes of what an answer's vector is made from: another prompt under its id shows."""
    return digest(answer.prompt_text.encode(), answer.prompt_tokens, size=_MARK_BYTES)


@dataclass(slots=True)
class _Namespace:
    vectors: VectorIndex
    number_of: dict[str, int] = field(default_factory=dict)
    answer_id_of: dict[int, str] = field(default_factory=dict)
    mark_of: dict[str, bytes] = field(default_factory=dict)
    unclaimed: set[str] = field(default_factory=set)
    next_number: int = 0

    def number(self, answer_id: str) -> int:
        """Return a new number for an id."""
        number = self.next_number
        self.next_number += 1
        self.number_of[answer_id] = number
        self.answer_id_of[number] = answer_id
        return number


class AnswerIndex:
    """Answer ids by vector; not thread-safe. No call looks beyond the namespace it names.

    What `restore` brings back is *unclaimed*: whether the answer is still there is only known once
    `claim` is called for it.
    """

    def __init__(self, dim: int, *, exact_search_limit: int = 20_000) -> None:
        self.dim = dim
        self._exact_search_limit = exact_search_limit
        self._namespaces: dict[str, _Namespace] = {}
        # Those that changed since `maintain` last found nothing to do there.
        self._changed: dict[str, None] = {}

    def __len__(self) -> int:
        return sum(len(held.number_of) for held in self._namespaces.values())

    def add(self, namespace: str, answer_id: str, vector: FloatArray, mark: bytes = b"") -> bool:
        """Add float32 [dim]; returns False, changing nothing, if the id is there already.

        `mark` is what `claim` will ask for after a restart. An unclaimed id is replaced.
        """
        held = self._namespaces.get(namespace)
        if held is not None and answer_id in held.unclaimed:
            self.remove(namespace, answer_id)
            held = self._namespaces.get(namespace)
        if held is None:
            held = self._namespaces[namespace] = _Namespace(self._new_vectors(None))
        if answer_id in held.number_of:
            return False
        held.vectors.add(held.number(answer_id), vector)
        held.mark_of[answer_id] = mark
        self._changed[namespace] = None
        return True

    def claim(self, namespace: str, answer_id: str, mark: bytes) -> FloatArray | None:
        """Return the restored float32 [dim] of an answer that is still there; None if there is
        none."""
        held = self._namespaces.get(namespace)
        if held is None or answer_id not in held.unclaimed or held.mark_of[answer_id] != mark:
            return None
        held.unclaimed.discard(answer_id)
        return held.vectors.vector(held.number_of[answer_id])

    def drop_unclaimed(self) -> list[tuple[str, str]]:
        """Remove what was restored and never claimed; their (namespace, id)."""
        gone = [(name, i) for name, held in self._namespaces.items() for i in held.unclaimed]
        for namespace, answer_id in gone:
            self.remove(namespace, answer_id)
        return gone

    def remove(self, namespace: str, answer_id: str) -> bool:
        """Remove an id; returns whether it was there."""
        held = self._namespaces.get(namespace)
        number = held.number_of.pop(answer_id, None) if held else None
        if held is None or number is None:
            return False
        held.vectors.remove(number)
        del held.answer_id_of[number]
        del held.mark_of[answer_id]
        held.unclaimed.discard(answer_id)
        self._changed[namespace] = None
        if not held.number_of:
            del self._namespaces[namespace]
            del self._changed[namespace]
        return True

    def erase_removed(self, namespace: str) -> None:
        """Overwrite what the index still holds of vectors that were removed."""
        held = self._namespaces.get(namespace)
        if held is not None:
            held.vectors.erase_removed()

    def search(
        self, namespace: str, vectors: FloatArray, count: int
    ) -> list[list[tuple[str, float]]]:
        """Return the `count` nearest (answer id, cosine) for each row of float32 [n, dim]."""
        held = self._namespaces.get(namespace)
        if held is None:
            return [[] for _ in vectors]
        return [
            [(held.answer_id_of[number], cosine) for number, cosine in row]
            for row in held.vectors.search(vectors, count)
        ]

    def neighbours(self, namespace: str, answer_id: str, count: int) -> list[tuple[str, float]]:
        """Return the `count` nearest (answer id, cosine) to an answer, but itself; none if it is
        not there."""
        held = self._namespaces.get(namespace)
        number = held.number_of.get(answer_id) if held else None
        vector = None if held is None or number is None else held.vectors.vector(number)
        if vector is None:
            return []
        [found] = self.search(namespace, vector[None], count + 1)
        return [(i, cosine) for i, cosine in found if i != answer_id][:count]

    def parts(self) -> list[NamespaceParts]:
        """Return what it holds now; stays as it is until `maintain` is called next."""
        found = []
        for name, held in self._namespaces.items():
            parts, ids = held.vectors.parts(), held.answer_id_of
            found.append(
                NamespaceParts(
                    namespace=name,
                    graph=parts.graph,
                    graph_ids=[ids.get(number) for number in parts.graph_ids],
                    tail_ids=[ids[number] for number in parts.tail_ids],
                    tail=parts.tail,
                    marks=dict(held.mark_of),
                )
            )
        return found

    def restore(self, namespaces: Sequence[NamespaceParts]) -> None:
        """Begin with what an earlier index held, all of it unclaimed; only while empty."""
        for parts in namespaces:
            held = _Namespace(self._new_vectors(None))
            graph_ids = [-1 if i is None else held.number(i) for i in parts.graph_ids]
            tail_ids = [held.number(answer_id) for answer_id in parts.tail_ids]
            held.vectors = self._new_vectors(
                VectorParts(parts.graph, graph_ids, tail_ids, parts.tail)
            )
            held.mark_of = {i: parts.marks.get(i, b"") for i in held.number_of}
            held.unclaimed = set(held.number_of)
            if held.number_of:
                self._namespaces[parts.namespace] = held
                self._changed[parts.namespace] = None

    @property
    def num_waiting(self) -> int:
        """Answers that `maintain` has yet to move into a graph."""
        return sum(self._namespaces[name].vectors.num_waiting for name in self._changed)

    def maintain(self) -> bool:
        """Do one step of upkeep, for one namespace that needs it; return whether there is more to
        do."""
        while self._changed:
            name = next(iter(self._changed))
            if self._namespaces[name].vectors.maintain():
                return True
            del self._changed[name]
        return False

    def _new_vectors(self, parts: VectorParts | None) -> VectorIndex:
        return VectorIndex(self.dim, exact_search_limit=self._exact_search_limit, parts=parts)
