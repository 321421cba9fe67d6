"""Near answers by the tokens that two prompts share: found in a fraction of a millisecond.

Meaning takes a model, some milliseconds of it, and where those are short the first tokens of an
answer would go without drafts. Shared rare tokens say much of which answers are alike, and
nothing has to be waited for.

Prompts are sets of hashed tokens, weighted by how rare they are among the namespace's answers; the
likeness is the cosine of two such sets. Each hash remembers only the latest answers that have it:
time and memory stay bounded however many answers there are, and what a common token has forgotten
a rarer one finds.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .answer import PROMPT_END, AnswerUpdate
from .near_answer import NearAnswer

_BUCKET_BITS = 13
_BUCKETS = 1 << _BUCKET_BITS
_LATEST = 1024
_MAX_VISITS = 4096
_MIN_LIKENESS = 0.05
_FIRST_ROOM = 64
_OVERHEAD_BYTES = 600


class TokenOverlap:
    """An index of the answers' prompts, a wall around each namespace. Thread-safe."""

    def __init__(self) -> None:
        self._namespaces: dict[str, _Namespace] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Answers indexed."""
        with self._lock:
            return sum(len(namespace.places) for namespace in self._namespaces.values())

    @property
    def num_bytes(self) -> int:
        """What the index holds, about."""
        with self._lock:
            return sum(namespace.num_bytes for namespace in self._namespaces.values())

    def apply(self, update: AnswerUpdate) -> None:
        """Index an answer that joined, or forget one that left."""
        with self._lock:
            namespace = self._namespaces.get(update.namespace)
            if update.added:
                if namespace is None:
                    namespace = self._namespaces[update.namespace] = _Namespace()
                namespace.add(update)
            elif namespace is not None:
                namespace.remove(update.answer_id)
                if not namespace.places:
                    del self._namespaces[update.namespace]

    def search(
        self, namespace: str, prompt_token_ids: ArrayLike, *, count: int
    ) -> list[NearAnswer]:
        """The answers whose prompts are most alike, best first.

        Args:
            namespace: Only its answers are seen.
            prompt_token_ids: [p] integers; the end of a long prompt counts.
            count: At most so many.
        """
        features = _features(prompt_token_ids)
        with self._lock:
            found = self._namespaces.get(namespace)
            return [] if found is None else found.search(features, count)


class _Namespace:
    """The answers of one namespace; an answer's place is reused when it is gone."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.num_bytes = _BUCKETS * 4
        self._free: list[int] = []
        self._updates: list[AnswerUpdate | None] = []
        self._features: list[NDArray[np.int32]] = []
        self._latest: dict[int, NDArray[np.int32]] = {}
        self._written: dict[int, int] = {}
        self._frequency = np.zeros(_BUCKETS, np.int32)
        self._scores = np.zeros(_FIRST_ROOM, np.float32)
        self._seen = np.zeros(_FIRST_ROOM, np.int32)
        self._breadths = np.ones(_FIRST_ROOM, np.float32)

    def add(self, update: AnswerUpdate) -> None:
        features = _features(update.prompt_token_ids)
        if update.answer_id in self.places or not len(features):
            return
        if not self._free:
            self._free.append(len(self._updates))
            self._updates.append(None)
            self._features.append(features)
            if len(self._updates) > len(self._scores):
                self._scores = np.zeros(2 * len(self._scores), np.float32)
                self._seen = np.zeros(len(self._scores), np.int32)
                self._breadths = np.concatenate((self._breadths, np.ones_like(self._breadths)))
        place = self._free.pop()
        self.places[update.answer_id] = place
        self._updates[place], self._features[place] = update, features
        self._breadths[place] = np.sqrt(len(features))
        self._frequency[features] += 1
        self.num_bytes += _num_bytes(update, features)
        for bucket in features.tolist():
            self._remember(bucket, place)

    def remove(self, answer_id: str) -> None:
        place = self.places.pop(answer_id, None)
        if place is None:
            return
        features, update = self._features[place], self._updates[place]
        assert update is not None
        self._frequency[features] -= 1
        self.num_bytes -= _num_bytes(update, features)
        self._updates[place] = None
        self._free.append(place)

    def search(self, features: NDArray[np.int32], count: int) -> list[NearAnswer]:
        weights = self._weights(features)
        places = self._candidates(features, weights, 2 * count)
        if not len(places):
            return []
        likenesses = self._likenesses(features, weights, places)
        near = []
        for i in np.argsort(-likenesses)[:count].tolist():
            update = self._updates[places[i]]
            if update is not None and likenesses[i] >= _MIN_LIKENESS:
                near.append(
                    NearAnswer(
                        answer_id=update.answer_id,
                        similarity=float(likenesses[i]),
                        prompt_token_ids=update.prompt_token_ids,
                        response_token_ids=update.response_token_ids,
                        namespace=update.namespace,
                    )
                )
        return near

    def _remember(self, bucket: int, place: int) -> None:
        latest = self._latest.get(bucket)
        written = self._written.get(bucket, 0)
        if latest is None:
            latest = self._latest[bucket] = np.full(2, -1, np.int32)
            self.num_bytes += _OVERHEAD_BYTES // 2
        elif written == len(latest) < _LATEST:
            grown = np.full(2 * len(latest), -1, np.int32)
            grown[:written] = latest
            self.num_bytes += 4 * written
            latest = self._latest[bucket] = grown
        latest[written % len(latest)] = place
        self._written[bucket] = written + 1

    def _weights(self, features: NDArray[np.int32]) -> NDArray[np.float32]:
        """Squared weight of each feature: what all answers have counts for next to nothing."""
        frequency = np.maximum(self._frequency[features], 1)
        weights: NDArray[np.float32] = np.square(
            np.log((len(self.places) + 1.0) / frequency), dtype=np.float32
        )
        return weights

    def _candidates(
        self, features: NDArray[np.int32], weights: NDArray[np.float32], count: int
    ) -> NDArray[np.int32]:
        """Places of answers that share much: some may have been reused, none is there twice."""
        held: list[NDArray[np.int32]] = []
        shared: list[float] = []
        visits = 0
        for i in np.argsort(-weights).tolist():
            latest = self._latest.get(int(features[i]))
            if latest is None:
                continue
            if visits + len(latest) > _MAX_VISITS:
                break
            visits += len(latest)
            held.append(latest)
            shared.append(float(weights[i]))
        if not held:
            return np.zeros(0, np.int32)
        places: NDArray[np.int32] = np.concatenate(held)
        gains = np.repeat(np.array(shared, np.float32), [len(latest) for latest in held])
        filled = places >= 0
        places, gains = places[filled], gains[filled]
        self._scores[places] = 0.0
        np.add.at(self._scores, places, gains)
        numbers = np.arange(len(places), dtype=np.int32)
        self._seen[places] = numbers
        places = places[self._seen[places] == numbers]
        if len(places) > count:
            # Their lengths need every weight; how many tokens they have is near enough here.
            best = np.argpartition(-self._scores[places] / self._breadths[places], count)[:count]
            places = places[best]
        return places

    def _likenesses(
        self,
        features: NDArray[np.int32],
        weights: NDArray[np.float32],
        places: NDArray[np.int32],
    ) -> NDArray[np.float32]:
        """Cosines [n] of the query's set and those of the answers at these places."""
        theirs = [self._features[place] for place in places.tolist()]
        flat = np.concatenate(theirs)
        starts = np.concatenate(([0], np.cumsum([len(each) for each in theirs])[:-1]))
        flat_weights = self._weights(flat)
        at = np.minimum(np.searchsorted(features, flat), len(features) - 1)
        shared = np.add.reduceat(np.where(features[at] == flat, flat_weights, 0.0), starts)
        whole = np.add.reduceat(flat_weights, starts) * weights.sum()
        likenesses: NDArray[np.float32] = shared / np.sqrt(np.maximum(whole, 1e-12))
        return likenesses


def _features(prompt_token_ids: ArrayLike) -> NDArray[np.int32]:
    """int32 [n], ascending: the hashes of the tokens at the prompt's end, each once."""
    tokens = np.asarray(prompt_token_ids)[-PROMPT_END:].astype(np.uint32)
    hashed = (tokens * np.uint32(2654435761)) >> np.uint32(32 - _BUCKET_BITS)
    return np.unique(hashed).astype(np.int32)


def _num_bytes(update: AnswerUpdate, features: NDArray[np.int32]) -> int:
    contents = len(update.prompt_tokens) + len(update.response_tokens) + features.nbytes
    return contents + _OVERHEAD_BYTES
