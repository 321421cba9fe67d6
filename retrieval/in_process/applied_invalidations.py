"""What was forgotten lately, and whatever arrives late is compared with."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.host import steady_clock

_MAX_APPLIED = 1000
# So long an answer may be on its way from the engine.
_ON_ITS_WAY_S = 2.0


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

    def made_lately(self) -> Iterable[Invalidation]:
        """Return those that an answer on its way from the engine may be older than."""
        earliest_s = steady_clock.now_s() - _ON_ITS_WAY_S
        return [each for each in self._latest if each.made_s >= earliest_s]

    def all(self) -> Iterable[Invalidation]:
        """Return those that an answer read from a tier may be older than."""
        return self._latest
