"""What a tier that is written to behind has yet to forget."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.tiers.sync.invalidation_index import InvalidationIndex


class PendingForget:
    """An invalidation that a tier has yet to carry out."""

    def __init__(self, invalidation: Invalidation) -> None:
        self.invalidation = invalidation
        self.done = threading.Event()
        self.found: dict[tuple[str, str], None] = {}
        """(namespace, answer id) that were there, as far as it got; the writing thread's."""
        self.removed: tuple[tuple[str, str], ...] = ()
        """The same, once done."""


class PendingForgets:
    """All of them, the oldest first; not thread-safe."""

    def __init__(self) -> None:
        self._pending: deque[PendingForget] = deque()
        # Made of them where it is asked for.
        self._index: InvalidationIndex | None = None

    def __iter__(self) -> Iterator[PendingForget]:
        return iter(self._pending)

    def __len__(self) -> int:
        return len(self._pending)

    def find(self, invalidation: Invalidation) -> PendingForget | None:
        """Return what is pending of an invalidation, if anything."""
        wanted = invalidation.invalidation_id
        return next((p for p in self._pending if p.invalidation.invalidation_id == wanted), None)

    def add(self, pending: PendingForget) -> None:
        """Let one wait."""
        self._pending.append(pending)
        self._index = None

    def end(self, pending: PendingForget) -> None:
        """Let one wait no more."""
        self._pending.remove(pending)
        self._index = None

    def mean(self, answer: Answer) -> bool:
        """Return whether one of them means an answer."""
        if self._index is None:
            self._index = InvalidationIndex(each.invalidation for each in self._pending)
        return self._index.means(answer)
