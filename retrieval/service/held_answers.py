"""Answers that wait in a client until there is a retrieval process to send them to."""

from __future__ import annotations

from collections import deque

from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.service.wire import Store
from reprise.retrieval.tiers.record import decode_record


class HeldAnswers:
    """Messages that store answers, oldest first; not thread-safe.

    Args:
        max_length: Bound on their number.
        max_bytes: Bound on the bytes of their records.
    """

    def __init__(self, *, max_length: int, max_bytes: int) -> None:
        self._max_length, self._max_bytes = max_length, max_bytes
        self._held: deque[Store] = deque()
        self._num_bytes = 0

    def put(self, message: Store) -> bool:
        """Hold an answer; False if there is no room for it."""
        num_bytes = self._num_bytes + len(message.record)
        if len(self._held) >= self._max_length or num_bytes > self._max_bytes:
            return False
        self._held.append(message)
        self._num_bytes = num_bytes
        return True

    def forget(self, invalidation: Invalidation) -> None:
        """Drop what is to be forgotten."""
        self._held = deque(store for store in self._held if not _is_meant(store, invalidation))
        self._num_bytes = sum(len(store.record) for store in self._held)

    def take(self) -> list[Store]:
        """Return all of them; they are gone from here."""
        taken = list(self._held)
        self._held.clear()
        self._num_bytes = 0
        return taken


def _is_meant(store: Store, invalidation: Invalidation) -> bool:
    """Return whether an answer that waits here is to be forgotten; where its text is not known, and
    a prompt is asked for, it goes too."""
    answer = decode_record(store.record)
    if invalidation.needs_text and not answer.prompt_text:
        return invalidation.covers(answer.namespace)
    return invalidation.means(answer)
