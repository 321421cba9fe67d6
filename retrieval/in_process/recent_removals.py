"""Which answers were removed lately, for whoever began to look for some before."""

from __future__ import annotations

from collections.abc import Iterable

Key = tuple[str, str]
"""(namespace, answer id)"""
_MAX_REMEMBERED = 10_000


class RecentRemovals:
    """The last answers that were removed, in their order; not thread-safe.

    Example:
        >>> removals = RecentRemovals()
        >>> before = removals.num
        >>> removals.note([("acme", "a")])
        >>> removals.has_since(before, ("acme", "a")), removals.has_since(before, ("acme", "b"))
        (True, False)
    """

    def __init__(self) -> None:
        self.num = 0
        """Removals so far."""
        self._last: dict[Key, int] = {}

    def note(self, keys: Iterable[Key]) -> None:
        """Note that answers are removed."""
        for key in keys:
            self.num += 1
            self._last.pop(key, None)
            self._last[key] = self.num
            if len(self._last) > _MAX_REMEMBERED:
                del self._last[next(iter(self._last))]

    def has_since(self, num: int, key: Key) -> bool:
        """Return whether an answer was removed after the first `num` removals, or may have been:
        not all of that is remembered."""
        return self.num - num > _MAX_REMEMBERED or self._last.get(key, 0) > num
