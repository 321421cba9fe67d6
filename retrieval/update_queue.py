"""Answer updates waiting to be picked up: bounded in bytes, so that nobody has to."""

from __future__ import annotations

import threading
from collections import deque

from .answer import AnswerUpdate

_OVERHEAD_BYTES = 200


class UpdateQueue:
    """Thread-safe; the oldest updates give way when nobody takes them.

    Args:
        max_bytes: Bound on what waits.
    """

    def __init__(self, *, max_bytes: int = 64 << 20) -> None:
        self._max_bytes = max_bytes
        self._updates: deque[AnswerUpdate] = deque()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def put(self, update: AnswerUpdate) -> None:
        """Add an update."""
        with self._lock:
            self._updates.append(update)
            self._num_bytes += _num_bytes(update)
            while self._num_bytes > self._max_bytes:
                self._num_bytes -= _num_bytes(self._updates.popleft())

    def take(self) -> list[AnswerUpdate]:
        """All updates, oldest first; they are gone from here."""
        with self._lock:
            taken = list(self._updates)
            self._updates.clear()
            self._num_bytes = 0
            return taken


def _num_bytes(update: AnswerUpdate) -> int:
    return len(update.prompt_tokens) + len(update.response_tokens) + _OVERHEAD_BYTES
