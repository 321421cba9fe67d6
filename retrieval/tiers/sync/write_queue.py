"""Answers on their way to a tier."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from reprise.retrieval.api.answer import Answer

Key = tuple[str, str]
"""(namespace, name in the tier, which is the answer's id or of its exact key)"""
_MAX_LOST = 100_000


class WriteQueue:
    """Answers that wait to be written, oldest first, or are being written; not thread-safe.

    Args:
        max_length: Bound on those that wait; the oldest beyond are lost, counted.
        max_bytes: Bound on their bytes; the same.
    """

    def __init__(self, *, max_length: int, max_bytes: int) -> None:
        self._max_length, self._max_bytes = max_length, max_bytes
        self._waiting: deque[Answer] = deque()
        self._num_bytes = 0
        self._lost: dict[Key, None] = {}
        self.being_written: list[Answer] = []
        self.num_lost = 0
        """Answers that are never written."""

    def __len__(self) -> int:
        """Return the number of those that wait."""
        return len(self._waiting)

    @property
    def unwritten(self) -> set[Key]:
        """What the tier cannot have: it waits, is being written, or was lost."""
        under_way = (*self._waiting, *self.being_written)
        return {*self._lost, *((answer.namespace, answer.stored_id) for answer in under_way)}

    def put(self, answers: Iterable[Answer]) -> None:
        """Let answers wait."""
        for answer in answers:
            self._waiting.append(answer)
            self._num_bytes += answer.num_bytes
        self._lose_oldest()

    def take(self, count: int) -> list[Answer]:
        """Return the oldest, which are now being written."""
        batch = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
        self._num_bytes -= sum(answer.num_bytes for answer in batch)
        self.being_written = batch
        return batch

    def put_back(self, answers: list[Answer]) -> None:
        """Let answers of a batch that failed wait again, before all others."""
        self._waiting.extendleft(reversed(answers))
        self._num_bytes += sum(answer.num_bytes for answer in answers)
        self._lose_oldest()

    def drop(self, is_meant: Callable[[Answer], bool]) -> None:
        """Do not write answers after all."""
        self._waiting = deque(answer for answer in self._waiting if not is_meant(answer))
        self._num_bytes = sum(answer.num_bytes for answer in self._waiting)

    def lose_all(self) -> None:
        """Write none of those that wait, and forget which were lost."""
        self.num_lost += len(self._waiting)
        self._waiting.clear()
        self._num_bytes = 0
        self._lost.clear()

    def _lose_oldest(self) -> None:
        """Keep to the bounds."""
        while len(self._waiting) > self._max_length or self._num_bytes > self._max_bytes:
            oldest = self._waiting.popleft()
            self._num_bytes -= oldest.num_bytes
            self.num_lost += 1
            self._lost[oldest.namespace, oldest.stored_id] = None
            if len(self._lost) > _MAX_LOST:
                del self._lost[next(iter(self._lost))]
