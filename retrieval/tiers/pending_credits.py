"""What answers were good for, on its way to the tier that is to remember it."""

from __future__ import annotations

from collections.abc import Mapping

from reprise.retrieval.tiers.tier import Uses


class PendingCredits:
    """Uses by namespace and answer id, added up until they are taken; not thread-safe.

    Args:
        most: Answers at most; what further ones earn is lost, counted in `lost`.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._pending: dict[str, dict[str, Uses]] = {}
        self._count = 0
        self.lost = 0

    def __len__(self) -> int:
        return self._count

    def add(self, namespace: str, earned: Mapping[str, Uses]) -> None:
        """Add to what is pending."""
        pending = self._pending.get(namespace, {})
        for answer_id, uses in earned.items():
            before = pending.get(answer_id)
            if before is not None:
                pending[answer_id] = before.plus(uses)
            elif self._count < self._most:
                pending[answer_id] = uses
                self._pending[namespace] = pending
                self._count += 1
            else:
                self.lost += 1

    def take(self) -> dict[str, dict[str, Uses]]:
        """All that is pending, by namespace; nothing is, afterwards."""
        taken, self._pending, self._count = self._pending, {}, 0
        return taken
