"""Answer updates waiting to be picked up: bounded in bytes, so that nobody has to."""

from __future__ import annotations

import threading

from reprise.retrieval.api.answer import AnswerUpdate

Key = tuple[str, str]
"""(namespace, answer id)"""
_OVERHEAD_BYTES = 400


class UpdateQueue:
    """One entry for each answer, whatever became of it since the last `take`. Thread-safe.

    An answer that left before anybody knew that it had joined is left out. When there is no
    room, answers that joined give way, the oldest first; that an answer left is never lost, since a
    reader that never learns of it would keep the answer: there are at most as many such entries as
    answers that the reader holds.

    Args:
        max_bytes: Bound on what waits.

    Example:
        >>> updates = UpdateQueue(max_bytes=1 << 20)
        >>> updates.put(AnswerUpdate(answer_id="a", namespace="", added=True))
        []
        >>> updates.put(AnswerUpdate.removal("", "a"))
        []
        >>> updates.take()
        []
    """

    def __init__(self, *, max_bytes: int = 64 << 20) -> None:
        self._max_bytes = max_bytes
        self._left: dict[Key, AnswerUpdate] = {}
        self._joined: dict[Key, AnswerUpdate] = {}
        self._num_bytes = 0
        self._lock = threading.Lock()

    def put(self, update: AnswerUpdate) -> list[Key]:
        """Add an update; return the answers whose addition was dropped for want of room.

        Whoever puts must put them again later.
        """
        key = (update.namespace, update.answer_id)
        with self._lock:
            waiting = self._joined.pop(key, None)
            if waiting is not None:
                self._num_bytes -= _num_bytes(waiting)
            if update.added:
                self._joined[key] = update
                self._num_bytes += _num_bytes(update)
            elif waiting is None and key not in self._left:
                self._left[key] = update
                self._num_bytes += _num_bytes(update)
            return self._make_room()

    def take(self) -> list[AnswerUpdate]:
        """Return all updates, those that left first, else the oldest first; they are gone from
        here."""
        with self._lock:
            taken = [*self._left.values(), *self._joined.values()]
            self._left.clear()
            self._joined.clear()
            self._num_bytes = 0
            return taken

    def _make_room(self) -> list[Key]:
        dropped = []
        while self._num_bytes > self._max_bytes and self._joined:
            key = next(iter(self._joined))
            self._num_bytes -= _num_bytes(self._joined.pop(key))
            dropped.append(key)
        return dropped


def _num_bytes(update: AnswerUpdate) -> int:
    return len(update.prompt_tokens) + len(update.response_tokens) + _OVERHEAD_BYTES
