"""Answers that say nearly what another one says are held once.

An answer joins, is found and is written to the tier before anybody has looked whether it is one of
these: looking takes a search of its own. The tier keeps it, so that it can be held again once the
answer that stands for it is removed.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from reprise.retrieval.in_process.recent_removals import Key
from reprise.retrieval.in_process.retriever_memory import RetrieverMemory
from reprise.retrieval.search.near_search import NearSearch

_DIFFERENT_SHARE = 20
"""One of so many tokens may differ."""
_NEIGHBOURS = 4
# In one step of upkeep: each is a search, of half a millisecond where many answers are held.
_STEP = 16
# Answers that wait to be looked at; the oldest beyond are held, whatever they say.
_MAX_WAITING = 1 << 16


class NearDuplicates:
    """Finds answers to fold into others of their namespace; for the worker thread.

    Args:
        memory: Where answers are held.
        min_cosine: Of the prompts.
    """

    def __init__(self, memory: RetrieverMemory, *, min_cosine: float) -> None:
        self._memory, self._min_cosine = memory, min_cosine
        self._unchecked: dict[Key, None] = {}

    def joined(self, keys: Iterable[Key]) -> None:
        """Note answers that were indexed; a later step looks at them."""
        self._unchecked.update(dict.fromkeys(keys))
        while len(self._unchecked) > _MAX_WAITING:
            del self._unchecked[next(iter(self._unchecked))]

    def step(self, search: NearSearch) -> bool:
        """Look at the latest of what joined; returns whether any was folded.

        The index moves the latest into its graph, too, and so is to do that only after a step that
        folded none: a graph cannot lose them, and around many that are alike it leads to nothing
        else.
        """
        num_folded = 0
        for _ in range(min(_STEP, len(self._unchecked))):
            key, _ = self._unchecked.popitem()
            num_folded += self._check(search, *key)
        return num_folded > 0

    @property
    def has_more(self) -> bool:
        """Whether there is more to look at."""
        return bool(self._unchecked)

    def _check(self, search: NearSearch, namespace: str, answer_id: str) -> int:
        """Fold an answer and its neighbours that say nearly the same: the oldest stays, so that
        all replicas hold the same one. Returns how many left."""
        answer, num_folded = self._memory.answer(namespace, answer_id), 0
        if answer is None:
            return 0
        for other_id, cosine in search.neighbours(namespace, answer_id, _NEIGHBOURS):
            if cosine < self._min_cosine:
                break
            other = self._memory.answer(namespace, other_id)
            if other is None or not nearly_same(
                answer.response_token_ids, other.response_token_ids
            ):
                continue
            older, younger = sorted((answer, other), key=lambda a: (a.created_s, a.answer_id))
            if self._memory.fold(namespace, younger.answer_id, into=older.answer_id):
                num_folded += search.leave(namespace, younger.answer_id)
            if younger is answer:
                break
        return num_folded


def nearly_same(one: NDArray[np.int32], other: NDArray[np.int32]) -> bool:
    """Return whether two token sequences differ in one place, and there by no more than a 20th.

    What is not in their common beginning or end counts as different, so that it takes linear time.

    Example:
        >>> order = np.arange(40, dtype=np.int32)
        >>> nearly_same(order, np.where(order == 7, 99, order))
        True
        >>> nearly_same(order, order[::-1])
        False
    """
    shorter, longer = sorted((len(one), len(other)))
    most = longer // _DIFFERENT_SHARE
    if longer - shorter > most:
        return False
    alike = _common(one, other) + _common(one[::-1], other[::-1])
    return longer - min(shorter, alike) <= most


def _common(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """Return how many tokens two sequences begin with alike."""
    count = min(len(one), len(other))
    differs = np.flatnonzero(one[:count] != other[:count])
    return int(differs[0]) if len(differs) else count
