"""The interface of a place that keeps answers, and how a URL names one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .answer import Answer


class TierError(Exception):
    """The tier could not do it now; trying later may work."""


@dataclass(frozen=True, slots=True)
class TierChanges:
    """What other replicas did to a tier since the last look."""

    added: tuple[Answer, ...] = ()
    removed: tuple[tuple[str, str], ...] = ()
    """(namespace, answer id)"""


class Tier(ABC):
    """Answers by namespace and id, and by exact key. No call looks beyond its namespace.

    All methods may raise `TierError`; none waits longer than the tier's own timeouts.
    """

    name: str

    @abstractmethod
    def put(self, answers: Sequence[Answer]) -> list[tuple[str, str]]:
        """Keep answers, replacing those of the same id; the (namespace, id) that had to leave."""

    @abstractmethod
    def remove(self, namespace: str, answer_ids: Sequence[str]) -> int:
        """Forget answers; how many of them were there."""

    @abstractmethod
    def find_exact(self, namespace: str, exact_key: bytes) -> Answer | None:
        """The latest answer stored under an exact key, in at most one round trip."""

    @abstractmethod
    def answers(self, namespace: str) -> Iterator[Answer]:
        """All answers of a namespace, in no particular order, read in pages."""

    @abstractmethod
    def namespaces(self) -> list[str]:
        """Those that hold answers."""

    def changes(self, *, anew: bool = False) -> TierChanges:  # noqa: ARG002
        """What other replicas added and removed since the last call.

        The first call, and one with `anew`, begins now and returns nothing.
        """
        return TierChanges()

    @property
    def num_damaged(self) -> int:
        """Records skipped because they could not be read."""
        return 0

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held. Idempotent."""
