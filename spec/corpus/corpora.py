# mypy: allow-untyped-calls
"""The corpora of all namespaces, as rows of one table, within one bound in bytes."""

import threading
from collections import OrderedDict
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from reprise.spec.api.near_answer import IntArray
from reprise.spec.corpus.corpus import Corpus
from reprise.spec.runtime.layout import BOS, CORPUS_FIELDS, END

FIRST_ROWS = 1 << 15
SMALL_TOKENS = 2048
SMALL_ANSWERS = 16
# What an answer and a namespace are charged beside the arrays: their entries in tables, and names.
TOKEN_BYTES = 12
ANSWER_BYTES = 256
NAMESPACE_BYTES = 512


class Tally(NamedTuple):
    """What one or all namespaces hold."""

    answers: int = 0
    tokens: int = 0
    bytes: int = 0  # of texts and arrays
    charge: int = 0  # in bytes, by the constants above


class _Namespace:
    """As long as it is small its answers are bytes of BOS, tokens, END, by id, and there is a
    corpus of them for live requests only. Then the corpus alone has them."""

    __slots__ = ("corpus", "ids", "row", "tally", "texts", "uses")

    def __init__(self) -> None:
        self.uses = 0  # live requests, and changes under way
        self.row = -1
        self.corpus: Corpus | None = None
        self.ids: tuple[str, ...] | None = ()  # None: the corpus has them
        self.texts: tuple[bytes, ...] = ()
        # A plain tuple, which the garbage collector does not go through again and again.
        self.tally: tuple[int, ...] = tuple(_NOTHING)

    def __contains__(self, answer_id: str) -> bool:
        if self.ids is not None:
            return answer_id in self.ids
        return self.corpus is not None and answer_id in self.corpus

    def __len__(self) -> int:
        if self.ids is not None:
            return len(self.ids)
        return len(self.corpus) if self.corpus is not None else 0

    def count(self) -> Tally:
        """What it holds now."""
        size = sum(map(len, self.texts))
        if self.ids is not None:
            answers, tokens = len(self.ids), size // 4 - 2 * len(self.ids)
        elif self.corpus is not None:
            answers, tokens = len(self.corpus), self.corpus.num_tokens
        else:
            return _NOTHING
        arrays = self.corpus.num_bytes if self.corpus is not None else 0
        charge = ANSWER_BYTES * answers + TOKEN_BYTES * (tokens + 2 * answers)
        charge += NAMESPACE_BYTES if answers else 0
        return Tally(answers, tokens, size + arrays, charge)

    def oldest(self) -> str:
        """The id of the answer that was added first; there is one."""
        if self.ids is not None:
            return self.ids[0]
        assert self.corpus is not None
        return self.corpus.oldest()

    def put(self, answer_id: str, text: bytes) -> None:
        """Add an answer; it stays small."""
        self.ids, self.texts = (*(self.ids or ()), answer_id), (*self.texts, text)

    def drop(self, answer_id: str) -> None:
        """Forget an answer if it is small and has it."""
        if self.ids and answer_id in self.ids:
            i = self.ids.index(answer_id)
            self.ids = self.ids[:i] + self.ids[i + 1 :]
            self.texts = self.texts[:i] + self.texts[i + 1 :]

    def takes(self, tokens: IntArray) -> bool:
        """Whether it stays small with an answer of these."""
        if self.ids is None or len(self.ids) == SMALL_ANSWERS:
            return False
        return sum(map(len, self.texts)) // 4 + len(tokens) + 2 <= SMALL_TOKENS


_NOTHING = Tally()


class Corpora:
    """The answers of each namespace, and a corpus for each that has many or a live request. A
    namespace with no answers and no request is forgotten, so that one for every request costs
    nothing for long.

    `enter` and `leave` are a decode step's. `add` and `remove` are one other thread's at a time,
    and do without the lock what takes time.
    """

    def __init__(self, *, max_bytes: int, lock: AbstractContextManager[Any] | None = None) -> None:
        """`max_bytes` bounds all namespaces together: beyond it the oldest answers of one of the
        largest are dropped, the one that was not used for longest of those within a factor of two.
        Whoever calls `enter` or `leave`, or reads the table, holds `lock`."""
        self.table: npt.NDArray[np.int64] = np.zeros((FIRST_ROWS, CORPUS_FIELDS), np.int64)
        """[rows, CORPUS_FIELDS]: where compiled code finds the corpora."""
        self.total = Tally()
        self._lock = lock or threading.RLock()
        self._max_bytes = max_bytes
        self._namespaces: dict[str, _Namespace] = {}
        # Those that have answers, by the bits of their charge, the least recently used first.
        self._by_size: list[OrderedDict[str, None]] = [OrderedDict() for _ in range(64)]
        self._free: list[int] = []
        self._num_rows = 0

    def __len__(self) -> int:
        return len(self._namespaces)

    def enter(self, namespace: str) -> int:
        """Count a live request of the namespace; returns the row that it drafts from."""
        found = self._use(namespace)
        if found.corpus is None:
            self._make_corpus(found)
        self._recount(namespace, found)
        return found.row

    def leave(self, namespace: str) -> None:
        """The request that entered has ended."""
        self._end_use(namespace)

    def add(self, answer_id: str, tokens: IntArray, namespace: str) -> None:
        """Index an answer; one already indexed under this id stays as it is."""
        charge = TOKEN_BYTES * (len(tokens) + 2) + ANSWER_BYTES
        if not len(tokens) or charge + NAMESPACE_BYTES > self._max_bytes:
            return
        with self._lock:
            found = self._use(namespace)
        try:
            if answer_id not in found:
                while not self._has_room(found, charge) and self._drop_oldest():
                    pass
                self._insert(found, answer_id, tokens)
        finally:
            with self._lock:
                self._end_use(namespace)

    def remove(self, answer_id: str, namespace: str) -> None:
        """Take an answer out; an unknown id is ignored."""
        with self._lock:
            if namespace not in self._namespaces:
                return
            found = self._use(namespace)
        try:
            self._take_out(found, answer_id)
        finally:
            with self._lock:
                self._end_use(namespace)

    def _use(self, name: str) -> _Namespace:
        """The namespace, which is not forgotten, nor its corpus, until `_end_use`."""
        found = self._namespaces.get(name)
        if found is None:
            found = self._namespaces[name] = _Namespace()
        found.uses += 1
        return found

    def _end_use(self, name: str) -> None:
        found = self._namespaces[name]
        found.uses -= 1
        if not found.uses and found.corpus is not None and (found.ids or not len(found.corpus)):
            self.table[found.row] = 0
            self._free.append(found.row)
            found.corpus = None
        self._recount(name, found)
        if not found.uses and not len(found):
            del self._namespaces[name]

    def _recount(self, name: str, found: _Namespace) -> None:
        """Count what the namespace holds into the total and order it by size and use."""
        before, now = Tally(*found.tally), found.count()
        found.tally = tuple(now)
        self.total = Tally(*(a + b - c for a, b, c in zip(self.total, now, before, strict=True)))
        self._by_size[before.charge.bit_length()].pop(name, None)
        if now.answers:
            self._by_size[now.charge.bit_length()][name] = None

    def _has_room(self, found: _Namespace, charge: int) -> bool:
        """Whether the namespace may have another answer of such a charge."""
        if not len(found):
            charge += NAMESPACE_BYTES
        return self.total.charge + charge <= self._max_bytes

    def _drop_oldest(self) -> bool:
        """Take out the oldest answer of one of the largest namespaces; False if there is none."""
        with self._lock:
            names = next((names for names in reversed(self._by_size) if names), None)
            if names is None:
                return False
            name = next(iter(names))
            found = self._namespaces[name]
        self.remove(found.oldest(), name)
        return True

    def _insert(self, found: _Namespace, answer_id: str, tokens: IntArray) -> None:
        is_small = found.takes(tokens)
        text = np.concatenate(([BOS], tokens, [END]), dtype=np.int32).tobytes() if is_small else b""
        with self._lock:
            if found.corpus is None and is_small:
                found.put(answer_id, text)
                return
            if found.corpus is None:
                self._make_corpus(found)
            if not is_small:
                found.ids, found.texts = None, ()
            corpus = found.corpus
        if corpus is not None and corpus.add(answer_id, tokens) and is_small:
            with self._lock:
                found.put(answer_id, text)

    def _take_out(self, found: _Namespace, answer_id: str) -> None:
        with self._lock:
            corpus = found.corpus
            if corpus is None:
                found.drop(answer_id)
                return
        corpus.remove(answer_id)
        with self._lock:
            found.drop(answer_id)

    def _make_corpus(self, found: _Namespace) -> None:
        """Of a namespace that is small yet."""
        if not self._free:
            if self._num_rows == len(self.table):
                self._grow()
            self._free.append(self._num_rows)
            self._num_rows += 1
        corpus = Corpus(self.table[self._free[-1]], lock=self._lock)
        if found.ids:
            corpus.fill(found.ids, found.texts)
        found.corpus, found.row = corpus, self._free.pop()

    def _grow(self) -> None:
        self.table = np.concatenate((self.table, np.zeros_like(self.table)))
        for found in self._namespaces.values():
            if found.corpus is not None:
                found.corpus.move(self.table[found.row])
