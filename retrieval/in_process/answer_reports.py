"""Which answers joined and left, for whoever mirrors them."""

from __future__ import annotations

from collections.abc import Callable

from reprise.retrieval.api.answer import Answer, AnswerUpdate
from reprise.retrieval.in_process.update_queue import Key, UpdateQueue


class AnswerReports:
    """Updates to be picked up; those that there was no room for are reported later.

    Not thread-safe.

    Args:
        max_bytes: Bound on what waits, and on what one `take` adds to it.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._updates = UpdateQueue(max_bytes=max_bytes)
        self._unreported: dict[Key, None] = {}

    def joined(self, answer: Answer) -> bool:
        """Report that an answer joined; return whether this is the first that must wait."""
        return self._put(AnswerUpdate.addition(answer))

    def left(self, key: Key) -> bool:
        """Report that the answer of a (namespace, id) left; returns as `joined`."""
        if key in self._unreported:
            del self._unreported[key]
            return False
        return self._put(AnswerUpdate.removal(*key))

    def waits(self, key: Key) -> bool:
        """Return whether an answer that joined has yet to be reported, for want of room."""
        return key in self._unreported

    def take(self, find: Callable[[str, str], Answer | None]) -> list[AnswerUpdate]:
        """Return all updates, and of those without room as much as there is room for now.

        `find` returns the answer of a namespace and id, if it is still there.
        """
        updates = self._updates.take()
        num_bytes = 0
        while self._unreported and num_bytes < self._max_bytes:
            key = next(iter(self._unreported))
            del self._unreported[key]
            answer = find(*key)
            if answer is not None:
                updates.append(AnswerUpdate.addition(answer))
                num_bytes += answer.num_bytes
        return updates

    def _put(self, update: AnswerUpdate) -> bool:
        unreported = self._updates.put(update)
        is_first = bool(unreported) and not self._unreported
        self._unreported.update(dict.fromkeys(unreported))
        return is_first
