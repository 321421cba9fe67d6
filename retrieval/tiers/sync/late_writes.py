"""Forgetting in a tier that is written to behind: what waits for it, and what is just too late."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import Invalidation

_REMEMBERED_S = 5.0
_MAX_REMEMBERED = 4096


class PendingForget:
    """An invalidation that a tier has yet to carry out."""

    def __init__(self, invalidation: Invalidation) -> None:
        self.invalidation = invalidation
        self.done = threading.Event()
        self.found: dict[tuple[str, str], None] = {}
        """(namespace, answer id) that were there, as far as it got; the writing thread's."""
        self.removed: tuple[tuple[str, str], ...] = ()
        """The same, once done."""

    def is_of(self, invalidation: Invalidation) -> bool:
        """Return whether it is this one."""
        return self.invalidation.invalidation_id == invalidation.invalidation_id


class LateWrites:
    """Answers that were written, or are being written, when word came that they are to be
    forgotten; the caller guards it.

    Between another process's removal and our reading of it we may have written an answer that is
    meant. So what was written lately is looked through again, and removed once more.
    """

    def __init__(self) -> None:
        self._written: deque[tuple[float, Answer]] = deque(maxlen=_MAX_REMEMBERED)
        self._stale: dict[tuple[str, str], None] = {}

    def __bool__(self) -> bool:
        return bool(self._stale)

    def wrote(self, answers: Iterable[Answer]) -> None:
        """Remember answers that are in the tier now."""
        self._written.extend((time.monotonic(), answer) for answer in answers)

    def drop_old(self, followed_s: float) -> None:
        """Remember nothing for longer than it takes word to arrive.

        Args:
            followed_s: When what others had forgotten was last read (monotonic). On a machine that
                stood still that is longer ago than it should be, and word is still to come.
        """
        while self._written and followed_s - self._written[0][0] > _REMEMBERED_S:
            self._written.popleft()

    def forget(self, invalidation: Invalidation, being_written: Sequence[Answer]) -> None:
        """Have removed what is meant of what was or is being written."""
        for answer in (*being_written, *(answer for _, answer in self._written)):
            if invalidation.means(answer):
                self._stale[_key(answer)] = None
        kept = [pair for pair in self._written if _key(pair[1]) not in self._stale]
        self._written = deque(kept, maxlen=_MAX_REMEMBERED)

    def add(self, keys: Iterable[tuple[str, str]]) -> None:
        """Have these (namespace, name in the tier) removed."""
        self._stale.update(dict.fromkeys(keys))

    def take(self) -> dict[str, list[str]]:
        """Return names in the tier to remove, by namespace; they are gone from here."""
        by_namespace: dict[str, list[str]] = {}
        for namespace, answer_id in self._stale:
            by_namespace.setdefault(namespace, []).append(answer_id)
        self._stale.clear()
        return by_namespace

    def without(self, answers: Sequence[Answer]) -> list[Answer]:
        """Return those that are not to be removed."""
        return [answer for answer in answers if _key(answer) not in self._stale]


def _key(answer: Answer) -> tuple[str, str]:
    return (answer.namespace, answer.stored_id)
