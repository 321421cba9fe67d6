"""Answers for exact hits on their way to the tier: not indexed, not held in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from reprise.retrieval.api.answer import Answer

_MAX_AT_ONCE = 32


class ExactWrites:
    """Answers that wait for the worker to read their queries, oldest first; not thread-safe.

    Args:
        max_length: Bound on their number.
        max_bytes: Bound on their bytes.
    """

    def __init__(self, *, max_length: int, max_bytes: int) -> None:
        self._max_length, self._max_bytes = max_length, max_bytes
        self._waiting: deque[Answer] = deque()
        self._num_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, answer: Answer) -> bool:
        """Let an answer wait; False if there is no room for it."""
        num_bytes = self._num_bytes + answer.num_bytes
        if len(self._waiting) >= self._max_length or num_bytes > self._max_bytes:
            return False
        self._waiting.append(answer)
        self._num_bytes = num_bytes
        return True

    def take(self) -> list[Answer]:
        """Return some of the oldest."""
        count = min(_MAX_AT_ONCE, len(self._waiting))
        taken = [self._waiting.popleft() for _ in range(count)]
        self._num_bytes -= sum(answer.num_bytes for answer in taken)
        return taken

    def drop(self, is_meant: Callable[[Answer], bool]) -> None:
        """Do not write answers after all."""
        self._waiting = deque(answer for answer in self._waiting if not is_meant(answer))
        self._num_bytes = sum(answer.num_bytes for answer in self._waiting)
