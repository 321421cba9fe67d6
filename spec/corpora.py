# mypy: allow-untyped-calls
"""The corpora of all namespaces, as rows of one table."""

import numpy as np
import numpy.typing as npt

from .corpus import Corpus
from .layout import CORPUS_FIELDS
from .near_answer import IntArray

FIRST_ROWS = 8


class _Namespace:
    __slots__ = ("corpus", "requests", "row")

    def __init__(self, row: int, corpus: Corpus) -> None:
        self.row = row
        self.corpus = corpus
        self.requests = 0


class Corpora:
    """A corpus for each namespace that has answers or live requests; the others are forgotten, so
    that a namespace for every request costs nothing for long. Not thread-safe: the provider's lock
    guards it."""

    def __init__(self, *, max_bytes: int) -> None:
        """`max_bytes` bounds each namespace."""
        self.table: npt.NDArray[np.int64] = np.zeros((FIRST_ROWS, CORPUS_FIELDS), np.int64)
        """[rows, CORPUS_FIELDS]: where compiled code finds the corpora."""
        self._max_bytes = max_bytes
        self._namespaces: dict[str, _Namespace] = {}
        self._free = list(range(FIRST_ROWS))

    def __len__(self) -> int:
        return len(self._namespaces)

    def enter(self, namespace: str) -> int:
        """Count a live request of the namespace; returns the row that it drafts from."""
        found = self._of(namespace)
        found.requests += 1
        return found.row

    def leave(self, namespace: str) -> None:
        """The request that entered has ended."""
        self._namespaces[namespace].requests -= 1
        self._forget_if_idle(namespace)

    def add(self, answer_id: str, tokens: IntArray, namespace: str) -> None:
        """Index an answer; one already indexed under this id stays as it is."""
        self._of(namespace).corpus.add(answer_id, tokens)
        self._forget_if_idle(namespace)

    def remove(self, answer_id: str, namespace: str) -> None:
        """Take an answer out; an unknown id is ignored."""
        if namespace in self._namespaces:
            self._namespaces[namespace].corpus.remove(answer_id)
            self._forget_if_idle(namespace)

    def corpora(self) -> list[Corpus]:
        """All of them."""
        return [found.corpus for found in self._namespaces.values()]

    def _of(self, namespace: str) -> _Namespace:
        found = self._namespaces.get(namespace)
        if found is None:
            if not self._free:
                self._grow()
            row = self._free.pop()
            corpus = Corpus(self.table[row], max_bytes=self._max_bytes)
            found = self._namespaces[namespace] = _Namespace(row, corpus)
        return found

    def _grow(self) -> None:
        size = len(self.table)
        self.table = np.concatenate((self.table, np.zeros_like(self.table)))
        for found in self._namespaces.values():
            found.corpus.move(self.table[found.row])
        self._free.extend(range(size, 2 * size))

    def _forget_if_idle(self, namespace: str) -> None:
        found = self._namespaces[namespace]
        if not found.requests and not len(found.corpus):
            del self._namespaces[namespace]
            self.table[found.row] = 0
            self._free.append(found.row)
