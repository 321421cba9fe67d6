"""What answers were good for, on its way to the tier that is to remember it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from reprise.retrieval.tiers.tier import UsageCounts


class PendingUsage:
    """Usage by namespace and answer id, added up until they are taken; not thread-safe.

    Args:
        max_answers: Bound on their number; what further ones earn is lost, counted in `lost`.
        every_s: For how long it is added up.
    """

    def __init__(self, max_answers: int, *, every_s: float) -> None:
        self._max_answers, self._every_s = max_answers, every_s
        self._taken_s = time.monotonic()
        self._pending: dict[str, dict[str, UsageCounts]] = {}
        self._count = 0
        self.lost = 0

    def __len__(self) -> int:
        return self._count

    def add(self, namespace: str, usage: Mapping[str, UsageCounts]) -> None:
        """Add to what is pending."""
        pending = self._pending.get(namespace, {})
        for answer_id, uses in usage.items():
            before = pending.get(answer_id)
            if before is not None:
                pending[answer_id] = before.plus(uses)
            elif self._count < self._max_answers:
                pending[answer_id] = uses
                self._pending[namespace] = pending
                self._count += 1
            else:
                self.lost += 1

    def is_due(self, *, at_once: bool) -> bool:
        """Return whether something is pending, for long enough if it is not wanted at once."""
        return self._count > 0 and (at_once or time.monotonic() - self._taken_s >= self._every_s)

    def take(self) -> dict[str, dict[str, UsageCounts]]:
        """Return all that is pending, by namespace; nothing is, afterwards."""
        self._taken_s = time.monotonic()
        taken, self._pending, self._count = self._pending, {}, 0
        return taken
