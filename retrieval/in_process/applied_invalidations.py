"""What was forgotten lately, and whatever arrives late is compared with."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from reprise.retrieval.api.invalidation import Invalidation

_MAX_APPLIED = 1000


class AppliedInvalidations:
    """The last invalidations that were carried out here; not thread-safe."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}
        self._latest: deque[Invalidation] = deque(maxlen=_MAX_APPLIED)

    def __contains__(self, invalidation: Invalidation) -> bool:
        return invalidation.invalidation_id in self._ids

    def add(self, invalidation: Invalidation) -> None:
        """Remember one."""
        self._ids[invalidation.invalidation_id] = None
        self._latest.append(invalidation)
        if len(self._ids) > _MAX_APPLIED:
            del self._ids[next(iter(self._ids))]

    def made_since(self, created_s: float) -> Iterable[Invalidation]:
        """Return those that an answer of this age is older than: it may have been on its way from
        the engine, for as long as a busy machine takes, or is read from a tier."""
        return [each for each in self._latest if each.made_s >= created_s]
