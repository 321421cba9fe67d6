"""Stores answers for exact hits in this process, bounded by bytes, evicting by least recent use."""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.host import steady_clock

_MIN_EXPIRIES = 64


class _Entry(NamedTuple):
    answer: Answer
    expires_s: float | None
    """Seconds since 1970, by a clock that runs while the machine sleeps; None: never."""


class ExactMemoryStats(NamedTuple):
    """What the memory holds and has dropped."""

    answers: int
    bytes: int
    evicted: int
    expired: int


class ExactMemory:
    """Maps exact keys to answers. Not thread-safe: it belongs to the event loop.

    Example:
        >>> memory = ExactMemory(max_bytes=1 << 20)
        >>> memory.get(b"a key") is None
        True
    """

    def __init__(self, *, max_bytes: int, ttl_s: float | None = None) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._keys_of: dict[tuple[str, str], tuple[bytes, ...]] = {}
        """Exact keys by (namespace, answer id): one answer may be that of several requests."""
        self._expiries: list[tuple[float, bytes]] = []
        """A heap of (seconds since 1970, exact key), in which dropped entries may linger."""
        self._bytes = 0
        self._evicted = 0
        self._expired = 0

    def get(self, key: bytes) -> Answer | None:
        """Return the answer under `key`; this counts as a use."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_s is not None and steady_clock.now_s() >= entry.expires_s:
            self._drop(key)
            self._expired += 1
            return None
        self._entries.move_to_end(key)
        return entry.answer

    def put(self, answer: Answer, *, ttl_s: float | None = None) -> None:
        """Store `answer` under its exact key, in place of any other there.

        `ttl_s` can only shorten the configured time to live. An answer larger than the whole
        memory is not stored.

        Raises:
            ValueError: the answer has no exact key.
        """
        key = answer.exact_key
        if key is None:
            raise ValueError(f"answer {answer.answer_id} has no exact key: it is for drafts only")
        self._drop(key)
        if answer.num_bytes > self._max_bytes:
            return
        lives_s = min((ttl for ttl in (ttl_s, self._ttl_s) if ttl is not None), default=None)
        expires_s = None if lives_s is None else steady_clock.now_s() + lives_s
        self._entries[key] = _Entry(answer, expires_s)
        name = (answer.namespace, answer.answer_id)
        self._keys_of[name] = (*self._keys_of.get(name, ()), key)
        if expires_s is not None:
            self._push_expiry(expires_s, key)
        self._bytes += answer.num_bytes
        self.expire()
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
            self._evicted += 1

    def answers(self) -> list[Answer]:
        """Return all answers that have not expired, most recently used first."""
        self.expire()
        return [entry.answer for entry in reversed(self._entries.values())]

    def remove(self, answers: Iterable[Answer]) -> list[tuple[str, str]]:
        """Drop these very answers; return the (namespace, id) of those that were there."""
        gone = []
        for answer in answers:
            entry = None if answer.exact_key is None else self._entries.get(answer.exact_key)
            if entry is not None and entry.answer is answer:
                self._drop(answer.exact_key)  # type: ignore[arg-type]
                gone.append((answer.namespace, answer.answer_id))
        return gone

    def remove_key(self, key: bytes | None) -> None:
        """Drop the answer under a key, whether it was given as a whole or cut."""
        if key is not None:
            self._drop(key)

    def remove_ids(self, ids: Iterable[tuple[str, str]]) -> int:
        """Drop the answers of each (namespace, id), for any sampling params; return how many."""
        before = len(self._entries)
        for each in ids:
            for key in self._keys_of.get(each, ()):
                self._drop(key)
        return before - len(self._entries)

    def expire(self) -> int:
        """Drop expired answers, whether or not they are asked for; return how many."""
        before = len(self._entries)
        while self._expiries and self._expiries[0][0] <= steady_clock.now_s():
            expires_s, key = heapq.heappop(self._expiries)
            entry = self._entries.get(key)
            # The key may hold a later answer by now.
            if entry is not None and entry.expires_s == expires_s:
                self._drop(key)
        self._expired += before - len(self._entries)
        return before - len(self._entries)

    def clear(self) -> None:
        """Drop all answers, as when the weights have changed."""
        self._entries.clear()
        self._keys_of.clear()
        self._expiries.clear()
        self._bytes = 0

    def namespaces(self) -> dict[str, int]:
        """Return the number of answers by namespace."""
        return dict(Counter(entry.answer.namespace for entry in self._entries.values()))

    def stats(self) -> ExactMemoryStats:
        """Return figures since this process started."""
        return ExactMemoryStats(len(self._entries), self._bytes, self._evicted, self._expired)

    def _push_expiry(self, expires_s: float, key: bytes) -> None:
        # Dropped entries must not accumulate for as long as they would have lived.
        if len(self._expiries) >= 2 * len(self._entries) + _MIN_EXPIRIES:
            self._expiries = [
                (entry.expires_s, each)
                for each, entry in self._entries.items()
                if entry.expires_s is not None and each != key
            ]
            heapq.heapify(self._expiries)
        heapq.heappush(self._expiries, (expires_s, key))

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._bytes -= entry.answer.num_bytes
        name = (entry.answer.namespace, entry.answer.answer_id)
        left = tuple(each for each in self._keys_of[name] if each != key)
        if left:
            self._keys_of[name] = left
        else:
            del self._keys_of[name]
