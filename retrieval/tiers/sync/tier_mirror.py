"""Who is told what a tier holds: an index of it elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import Invalidation


class TierMirror(Protocol):
    """Told after the tier has done it, by whoever had it done; returns at once."""

    def written(self, answers: Iterable[Answer]) -> None:
        """Note answers that the tier holds now."""

    def removed(self, keys: Iterable[tuple[str, str]]) -> None:
        """Note answers (namespace, id) that left the tier."""

    def forgot(self, invalidation: Invalidation, removed: Iterable[tuple[str, str]]) -> None:
        """Note what was forgotten, and the answers (namespace, id) that were there."""
