"""From a query's vector to the ids of near answers, one vector index per namespace."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .vector_index import VectorIndex

FloatArray = NDArray[np.float32]


@dataclass(slots=True)
class _Namespace:
    vectors: VectorIndex
    number_of: dict[str, int] = field(default_factory=dict)
    answer_id_of: dict[int, str] = field(default_factory=dict)
    next_number: int = 0


class AnswerIndex:
    """Answer ids by vector; not thread-safe. No call looks beyond the namespace it names."""

    def __init__(self, dim: int, *, exact_search_limit: int = 20_000) -> None:
        self.dim = dim
        self._exact_search_limit = exact_search_limit
        self._namespaces: dict[str, _Namespace] = {}

    def __len__(self) -> int:
        return sum(len(held.number_of) for held in self._namespaces.values())

    def add(self, namespace: str, answer_id: str, vector: FloatArray) -> bool:
        """Add float32 [dim]; returns False, changing nothing, if the id is there already."""
        held = self._namespaces.get(namespace)
        if held is None:
            vectors = VectorIndex(self.dim, exact_search_limit=self._exact_search_limit)
            held = self._namespaces[namespace] = _Namespace(vectors)
        if answer_id in held.number_of:
            return False
        number = held.next_number
        held.next_number += 1
        held.vectors.add(number, vector)
        held.number_of[answer_id] = number
        held.answer_id_of[number] = answer_id
        return True

    def remove(self, namespace: str, answer_id: str) -> bool:
        """Remove an id; returns whether it was there."""
        held = self._namespaces.get(namespace)
        number = held.number_of.pop(answer_id, None) if held else None
        if held is None or number is None:
            return False
        held.vectors.remove(number)
        del held.answer_id_of[number]
        if not held.number_of:
            del self._namespaces[namespace]
        return True

    def search(
        self, namespace: str, vectors: FloatArray, count: int
    ) -> list[list[tuple[str, float]]]:
        """The `count` nearest (answer id, cosine) for each row of float32 [n, dim]."""
        held = self._namespaces.get(namespace)
        if held is None:
            return [[] for _ in vectors]
        return [
            [(held.answer_id_of[number], cosine) for number, cosine in row]
            for row in held.vectors.search(vectors, count)
        ]

    @property
    def num_waiting(self) -> int:
        """Answers that `maintain` has yet to move into a graph."""
        return sum(held.vectors.num_waiting for held in self._namespaces.values())

    def maintain(self) -> bool:
        """One step of upkeep, for one namespace that needs it; whether there is more to do."""
        return any(held.vectors.maintain() for held in self._namespaces.values())
