"""What is to be forgotten, as far as it is known: whatever arrives late is compared with it."""

from __future__ import annotations

from collections.abc import Iterable

from reprise.retrieval.api.invalidation import CLOCK_SKEW_S, Invalidation

# More than a tier's log holds, and what is made while a process runs.
_MAX_KNOWN = 2000


class KnownInvalidations:
    """The last invalidations that were read or made; not thread-safe."""

    def __init__(self) -> None:
        self._known: dict[str, Invalidation] = {}
        self._newest_s = float("-inf")

    def __contains__(self, invalidation: Invalidation) -> bool:
        return invalidation.invalidation_id in self._known

    def add(self, invalidations: Iterable[Invalidation]) -> None:
        """Remember these, each once."""
        for each in invalidations:
            self._known[each.invalidation_id] = each
            self._newest_s = max(self._newest_s, each.made_s)
            if len(self._known) > _MAX_KNOWN:
                del self._known[next(iter(self._known))]

    def made_since(self, created_s: float) -> Iterable[Invalidation]:
        """Return those that an answer of this age is older than, by clocks that may differ: it may
        have been on its way from the engine, for as long as a busy machine takes, or is read from a
        tier."""
        since_s = created_s - CLOCK_SKEW_S
        if since_s > self._newest_s:
            return ()
        return [each for each in self._known.values() if each.made_s >= since_s]
