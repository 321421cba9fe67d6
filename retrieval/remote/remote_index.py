"""The interface of an index beyond this process: ids of answers by vector, for all replicas."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reprise.retrieval.tiers.tier import TierError

FloatArray = NDArray[np.float32]


class RemoteError(TierError):
    """The index could not do it now; trying later may work."""


@dataclass(frozen=True, slots=True, eq=False)
class RemoteRow:
    """What the index holds of an answer: never its tokens or texts, which the tier keeps."""

    namespace: str
    answer_id: str
    created_s: float
    vector: FloatArray
    """float32 [dim], L2-normalised"""


class RemoteIndex(ABC):
    """Answer ids by vector. All calls but `close` may raise `RemoteError`; none waits for longer
    than its timeout.

    What it holds may be stale: an answer is what the tier gives for an id, or nothing.
    """

    @abstractmethod
    def open(self) -> None:
        """Connect, and make what is missing; called again after failures."""

    @abstractmethod
    def upsert(self, rows: Sequence[RemoteRow]) -> None:
        """Hold rows, replacing those of the same namespace and id."""

    @abstractmethod
    def remove(self, namespace: str, answer_ids: Sequence[str]) -> None:
        """Remove these answers of a namespace; those not there are no error."""

    @abstractmethod
    def remove_namespace(self, namespace: str, *, created_until_s: float) -> None:
        """Remove what was created until then of a namespace."""

    @abstractmethod
    def remove_older(self, created_s: float) -> None:
        """Remove what was created before then, in all namespaces."""

    @abstractmethod
    def search(
        self, namespace: str, vectors: FloatArray, count: int
    ) -> list[list[tuple[str, float]]]:
        """Return the `count` nearest (answer id, cosine) of the namespace for each row of float32
        [n, dim]."""

    @abstractmethod
    def settle(self) -> None:
        """Make what was written lately quick to find; called when there is nothing to write."""

    @abstractmethod
    def close(self) -> None:
        """Release what is held. Idempotent."""
