"""Filters of queries to Milvus: none is made of anything that a caller may have written.

Milvus takes a filter as text. What comes from outside (namespaces, answer ids) enters it as
hexadecimal digits of a digest, and numbers as digits, so that no text can close a quote. A query
takes a `WithinNamespace`, not text: one that looks beyond its namespace cannot be written down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reprise.retrieval.api.answer import digest

ROW_ID, NAMESPACE, CREATED = "row_id", "namespace", "created_s"
DIGEST_LENGTH = 32
"""Hexadecimal digits of a namespace's or a row's name."""
_HEXADECIMAL = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class WithinNamespace:
    """The rows of one namespace, or some of them; make it with `within`."""

    namespace: str
    """As it stands in the partition key, see `partition_of`."""
    row_ids: tuple[str, ...] | None = None
    """None: all of them."""
    created_until_s: float = math.inf
    """Of younger ones none."""

    def __post_init__(self) -> None:
        if math.isnan(self.created_until_s):
            raise ValueError("expected seconds, got nan")
        for name in (self.namespace, *(self.row_ids or ())):
            if not isinstance(name, str) or len(name) != DIGEST_LENGTH or set(name) - _HEXADECIMAL:
                raise ValueError(f"expected {DIGEST_LENGTH} hexadecimal digits, got {name!r}")

    @property
    def text(self) -> str:
        """The filter."""
        parts = [f'{NAMESPACE} == "{self.namespace}"']
        if self.row_ids is not None:
            listed = ", ".join(f'"{row_id}"' for row_id in self.row_ids)
            parts.append(f"{ROW_ID} in [{listed}]")
        if self.created_until_s < math.inf:
            parts.append(f"{CREATED} <= {self.created_until_s:.3f}")
        return " and ".join(parts)


@dataclass(frozen=True, slots=True)
class CreatedBefore:
    """What is older than the time to live, of all namespaces: to be removed, never to be read."""

    created_s: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.created_s):
            raise ValueError(f"expected seconds, got {self.created_s}")

    @property
    def text(self) -> str:
        """The filter."""
        return f"{CREATED} < {self.created_s:.3f}"


def partition_of(namespace: str) -> str:
    """Return a namespace's name in Milvus: the digest of its own, so of one length and alphabet."""
    return digest(namespace.encode("utf-8", "surrogatepass")).hex()


def row_of(namespace: str, answer_id: str) -> str:
    """Return an answer's name in Milvus: of namespace and id, so that no namespace can replace
    another's row."""
    parts = (text.encode("utf-8", "surrogatepass") for text in (namespace, answer_id))
    return digest(*parts).hex()


def within(
    namespace: str,
    answer_ids: Sequence[str] | None = None,
    *,
    created_until_s: float = math.inf,
) -> WithinNamespace:
    """Return the filter for a namespace, or for these answers of it."""
    rows = None if answer_ids is None else tuple(row_of(namespace, i) for i in answer_ids)
    return WithinNamespace(partition_of(namespace), rows, created_until_s)
