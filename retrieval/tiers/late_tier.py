"""A tier that could not be opened yet: its file's disk is full, read-only, or the file damaged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import Invalidation, InvalidationPage
from reprise.retrieval.tiers.tier import TextOf, Tier, TierChanges, TierError, UsageCounts


class LateTier(Tier):
    """Opens a tier when it is first needed, and tries again at each call until that works.

    So a tier that fails at start is one that fails later: answers wait, and are written once it
    is there.

    Args:
        name: The tier's.
        open_tier: Opens the tier, or raises `TierError`.
    """

    def __init__(self, name: str, open_tier: Callable[[], Tier]) -> None:
        self.name = name
        self._open_tier = open_tier
        self._opened: Tier | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def put(self, answers: Sequence[Answer]) -> list[tuple[str, str]]:
        return self._tier().put(answers)

    def replace(self, answers: Sequence[Answer]) -> int:
        return self._tier().replace(answers)

    def remove(self, namespace: str, answer_ids: Sequence[str]) -> int:
        return self._tier().remove(namespace, answer_ids)

    def record_usage(self, namespace: str, usage: Mapping[str, UsageCounts]) -> None:
        self._tier().record_usage(namespace, usage)

    def answers(self, namespace: str) -> Iterator[Answer]:
        return self._tier().answers(namespace)

    def valuable(self, namespace: str) -> Iterator[Answer]:
        return self._tier().valuable(namespace)

    def find(self, namespace: str, answer_ids: Sequence[str]) -> list[Answer]:
        return self._tier().find(namespace, answer_ids)

    def exact_answers(self, namespace: str) -> Iterator[Answer]:
        return self._tier().exact_answers(namespace)

    def find_exact(self, namespace: str, exact_keys: Sequence[bytes]) -> list[Answer]:
        return self._tier().find_exact(namespace, exact_keys)

    def lease(self, namespace: str, exact_key: bytes, *, ttl_s: float) -> bool:
        return self._tier().lease(namespace, exact_key, ttl_s=ttl_s)

    def end_lease(self, namespace: str, exact_key: bytes) -> None:
        self._tier().end_lease(namespace, exact_key)

    def namespaces(self) -> list[str]:
        return self._tier().namespaces()

    def answer_ids(self, namespace: str) -> list[str]:
        return self._tier().answer_ids(namespace)

    def forget(
        self,
        invalidation: Invalidation,
        *,
        text_of: TextOf = lambda answer: answer.prompt_text,
        removed: dict[tuple[str, str], None] | None = None,
    ) -> list[tuple[str, str]]:
        return self._tier().forget(invalidation, text_of=text_of, removed=removed)

    def has_gone_back(self) -> bool:
        return self._tier().has_gone_back()

    def announce(self, invalidation: Invalidation) -> None:
        self._tier().announce(invalidation)

    def invalidations(self, after: str | None) -> InvalidationPage:
        return self._tier().invalidations(after)

    def expire(self) -> None:
        self._tier().expire()

    def changes(self, *, anew: bool = False, wants_added: bool = True) -> TierChanges:
        return self._tier().changes(anew=anew, wants_added=wants_added)

    @property
    def num_damaged(self) -> int:
        return 0 if self._opened is None else self._opened.num_damaged

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._opened is not None:
                self._opened.close()

    def _tier(self) -> Tier:
        with self._lock:
            if self._is_closed:
                raise TierError(f"{self.name} is closed")
            if self._opened is None:
                self._opened = self._open_tier()
            return self._opened
