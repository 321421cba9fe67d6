"""What is to be forgotten, as far as it is known: whatever arrives late is compared with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.tiers.sync.invalidation_index import InvalidationIndex

# More than a tier's log holds, and what is made while a process runs.
_MAX_KNOWN = 2000


class KnownInvalidations:
    """The last invalidations that were read or made; not thread-safe."""

    def __init__(self) -> None:
        self._known: dict[str, Invalidation] = {}
        self._index, self._num_indexed = InvalidationIndex(), 0
        # Made where it is asked for.
        self._carried_out: InvalidationIndex | None = None

    def __contains__(self, invalidation: Invalidation) -> bool:
        return invalidation.invalidation_id in self._known

    def add(self, invalidations: Iterable[Invalidation]) -> None:
        """Remember these, each once."""
        self._carried_out = None
        for each in invalidations:
            self._known[each.invalidation_id] = each
            if len(self._known) > _MAX_KNOWN:
                del self._known[next(iter(self._known))]
            self._index.add(each)
            self._num_indexed += 1
        # Nothing is taken out of it one by one.
        if self._num_indexed > 2 * _MAX_KNOWN:
            self._index, self._num_indexed = (
                InvalidationIndex(self._known.values()),
                len(self._known),
            )

    def mean_since(
        self,
        created_s: float,
        answer: Answer,
        *,
        text_of: Callable[[Answer], str] = lambda answer: answer.prompt_text,
    ) -> bool:
        """Return whether an answer is meant by what was made since it was, at `created_s`: it may
        have been on its way from the engine, for as long as a busy machine takes, or is read from a
        tier. `text_of` returns its query."""
        return self._index.means(answer, since_s=created_s, text_of=text_of)

    def any_since(self, made_s: float) -> bool:
        """Return whether one was made since then."""
        return self._index.newest_s >= made_s

    def carried_out(self) -> list[Invalidation]:
        """Return those that a tier has carried out, or is about to; the oldest first."""
        return [each for each in self._known.values() if not each.stands_in]

    def index_of_carried_out(self) -> InvalidationIndex:
        """Return an index of these, to which nothing is added."""
        if self._carried_out is None:
            self._carried_out = InvalidationIndex(self.carried_out())
        return self._carried_out
