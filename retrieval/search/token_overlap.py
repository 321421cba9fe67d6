"""Near answers by the tokens that two prompts share: found in a fraction of a millisecond.

Meaning takes a model, some milliseconds of it, and where those are short the first tokens of an
answer would go without drafts. Shared rare tokens say much of which answers are alike, and
nothing has to be waited for.

Prompts are sets of hashed tokens, weighted by how rare they are among the namespace's answers; the
likeness is the cosine of two such sets. Of what many have, only the latest are visited: time stays
bounded however many answers there are, and what a common token passes over a rarer one finds.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reprise.retrieval.api.answer import PROMPT_END, AnswerUpdate
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.retrieval.search.postings import (
    BUCKETS,
    END,
    POSTING_FIELDS,
    add_free,
    buckets_of,
    empty_heads,
    grown_heads,
    link,
    most_alike,
    unlink,
)

# Small, because there may be a namespace for every user.
_FIRST_ROOM = 2
_FIRST_HEADS = 32
_OVERHEAD_BYTES = 600
# A namespace beside its tables' contents.
_NAMESPACE_BYTES = 1700


class TokenOverlap:
    """An index of the answers' prompts, no search beyond its namespace. Thread-safe."""

    def __init__(self) -> None:
        self._namespaces: dict[str, _Namespace] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of answers indexed."""
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
        """Return the answers whose prompts are most alike, best first.

        Args:
            namespace: Only its answers are seen.
            prompt_token_ids: [p] integers; the end of a long prompt counts.
            count: At most so many.
        """
        buckets = _buckets(prompt_token_ids)
        with self._lock:
            found = self._namespaces.get(namespace)
            return [] if found is None else found.search(buckets, count)

    def warm_up(self) -> None:
        """Load or make the compiled code, so that no request waits for it."""
        tokens = np.arange(3, dtype="<i4").tobytes()
        answer = AnswerUpdate(
            answer_id="", namespace="", added=True, prompt_tokens=tokens, response_tokens=tokens
        )
        other = TokenOverlap()
        other.apply(answer)
        other.search("", [1, 2, 3], count=1)
        other.apply(AnswerUpdate.removal("", ""))


class _Namespace:
    """The answers of one namespace; an answer's place is reused when it is gone."""

    __slots__ = (
        "_breadths",
        "_contents_bytes",
        "_firsts",
        "_free_places",
        "_free_posting",
        "_heads",
        "_num_free",
        "_num_owners",
        "_postings",
        "_scores",
        "_updates",
        "places",
    )

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self._updates: list[AnswerUpdate | None] = []
        self._free_places: list[int] = []
        self._contents_bytes = 0
        self._heads: NDArray[np.int32] = empty_heads(_FIRST_HEADS)
        self._num_owners = 0
        self._postings = np.zeros((0, POSTING_FIELDS), np.int32)
        self._free_posting, self._num_free = END, 0
        self._firsts = np.zeros(_FIRST_ROOM, np.int32)
        self._breadths = np.ones(_FIRST_ROOM, np.float32)
        self._scores = np.zeros(_FIRST_ROOM)

    @property
    def num_bytes(self) -> int:
        tables = (
            self._heads,
            self._postings,
            self._firsts,
            self._breadths,
            self._scores,
        )
        return _NAMESPACE_BYTES + self._contents_bytes + sum(table.nbytes for table in tables)

    def add(self, update: AnswerUpdate) -> None:
        buckets = _buckets(update.prompt_token_ids)
        if update.answer_id in self.places or not len(buckets):
            return
        self._make_room(len(buckets))
        place = self._free_places.pop()
        self.places[update.answer_id] = place
        self._updates[place] = update
        self._breadths[place] = np.sqrt(len(buckets))
        self._firsts[place], self._free_posting, num_new = link(
            self._postings, self._heads, buckets, place, self._free_posting
        )
        self._num_owners += num_new
        self._num_free -= len(buckets)
        self._contents_bytes += _num_bytes(update)

    def remove(self, answer_id: str) -> None:
        place = self.places.pop(answer_id, None)
        if place is None:
            return
        update = self._updates[place]
        assert update is not None
        self._free_posting, freed = unlink(
            self._postings, self._heads, self._firsts[place], self._free_posting
        )
        self._num_free += freed
        self._contents_bytes -= _num_bytes(update)
        self._updates[place] = None
        self._free_places.append(place)

    def search(self, buckets: NDArray[np.int32], count: int) -> list[NearAnswer]:
        places, cosines = most_alike(
            self._postings,
            self._heads,
            self._firsts,
            self._breadths,
            self._scores,
            buckets,
            len(self.places),
            count,
        )
        near_answers = []
        for place, cosine in zip(places.tolist(), cosines.tolist(), strict=True):
            update = self._updates[place]
            assert update is not None
            near_answers.append(
                NearAnswer(
                    answer_id=update.answer_id,
                    similarity=cosine,
                    prompt_token_ids=update.prompt_token_ids,
                    response_token_ids=update.response_token_ids,
                    namespace=update.namespace,
                )
            )
        return near_answers

    def _make_room(self, num_buckets: int) -> None:
        if not self._free_places:
            self._free_places.append(len(self._updates))
            self._updates.append(None)
            if len(self._updates) > len(self._scores):
                self._firsts = np.append(self._firsts, np.zeros_like(self._firsts))
                self._breadths = np.append(self._breadths, np.ones_like(self._breadths))
                self._scores = np.zeros(2 * len(self._scores))
        if self._num_free < num_buckets:
            size = len(self._postings)
            more = np.zeros((max(size, num_buckets - self._num_free), POSTING_FIELDS), np.int32)
            self._postings = np.concatenate((self._postings, more))
            self._free_posting = add_free(self._postings, size, self._free_posting)
            self._num_free += len(more)
        size = len(self._heads)
        if size < BUCKETS and 4 * (self._num_owners + num_buckets) > 3 * size:
            self._heads, self._num_owners = grown_heads(self._heads, num_buckets)


def _buckets(prompt_token_ids: ArrayLike) -> NDArray[np.int32]:
    """Return int32 [n], ascending: the hashes of the tokens at the prompt's end, each once."""
    tokens = np.asarray(prompt_token_ids)[-PROMPT_END:]
    buckets: NDArray[np.int32] = buckets_of(np.ascontiguousarray(tokens, np.int32))
    return buckets


def _num_bytes(update: AnswerUpdate) -> int:
    return len(update.prompt_tokens) + len(update.response_tokens) + _OVERHEAD_BYTES
