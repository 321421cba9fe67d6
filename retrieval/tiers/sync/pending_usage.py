"""What answers were good for, on its way to the tier that is to remember it."""

from __future__ import annotations

from collections.abc import Mapping

from reprise.retrieval.tiers.tier import UsageCounts


class PendingUsage:
    """Usage by namespace and answer id, added up until they are taken; not thread-safe.

    Args:
        max_answers: Bound on their number; what further ones earn is lost, counted in `lost`.
    """

    def __init__(self, max_answers: int) -> None:
        self._max_answers = max_answers
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

    def take(self) -> dict[str, dict[str, UsageCounts]]:
        """Return all that is pending, by namespace; nothing is, afterwards."""
        taken, self._pending, self._count = self._pending, {}, 0
        return taken
