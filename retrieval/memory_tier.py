"""Answers in this process's memory: bounded in bytes, the least valuable evicted first."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from .answer import Answer
from .tier import Tier, Uses

_HALF_LIFE_S = 6 * 3600.0
# Eviction compares this many answers drawn at random: as good as an ordering, without its cost.
_SAMPLE = 24


@dataclass(slots=True)
class _Entry:
    answer: Answer
    num_bytes: int
    last_used_s: float
    uses: int
    accepted_tokens: int
    position: int = 0

    def value(self, now_s: float) -> float:
        """Worth per byte: uses and accepted tokens, halved for every half-life without use."""
        worth = 1.0 + self.uses + self.accepted_tokens
        age_s = max(0.0, now_s - self.last_used_s)
        return float(worth * 2.0 ** (-age_s / _HALF_LIFE_S) / self.num_bytes)


@dataclass(slots=True)
class _Namespace:
    entries: dict[str, _Entry] = field(default_factory=dict)
    by_exact_key: dict[bytes, str] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    """The same ids, for drawing at random."""
    num_bytes: int = 0


class MemoryTier(Tier):
    """Thread-safe; every call names its namespace and touches no other.

    When full, the namespace that holds most gives way, so that a tenant that floods the cache
    evicts its own answers before anybody else's.

    Args:
        max_bytes: Bound on the sum of `Answer.num_bytes` and `index_bytes`.
        index_bytes: What an index takes beside, for each answer; counts towards the bound.
        ttl_s: Age in seconds at which an answer is gone; None for never.
        seed: Of the random draws of eviction.
    """

    name = "memory"

    def __init__(
        self, *, max_bytes: int, index_bytes: int = 0, ttl_s: float | None = None, seed: int = 0
    ) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be positive, got {max_bytes}")
        self._max_bytes, self._index_bytes, self._ttl_s = max_bytes, index_bytes, ttl_s
        self._namespaces: dict[str, _Namespace] = {}
        self._num_bytes = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def put(self, answers: Sequence[Answer]) -> list[tuple[str, str]]:
        with self._lock:
            now_s = time.time()
            return [gone for answer in answers for gone in self._put(answer, now_s)]

    def get(self, namespace: str, answer_ids: Sequence[str]) -> list[Answer | None]:
        """The answers of these ids; None for those not held or too old."""
        with self._lock:
            return [self._live(namespace, answer_id) for answer_id in answer_ids]

    def find_exact(self, namespace: str, exact_key: bytes) -> Answer | None:
        with self._lock:
            held = self._namespaces.get(namespace)
            answer_id = held.by_exact_key.get(exact_key) if held else None
            if held is None or answer_id is None:
                return None
            answer = self._live(namespace, answer_id)
            if answer is not None:
                entry = held.entries[answer_id]
                entry.uses += 1
                entry.last_used_s = time.time()
            return answer

    def credit(self, namespace: str, earned: Mapping[str, Uses]) -> None:
        with self._lock:
            held = self._namespaces.get(namespace)
            now_s = time.time()
            for answer_id, uses in earned.items():
                entry = held.entries.get(answer_id) if held else None
                if entry is not None:
                    entry.uses += uses.uses
                    entry.accepted_tokens += uses.accepted_tokens
                    entry.last_used_s = now_s

    def remove(self, namespace: str, answer_ids: Sequence[str]) -> int:
        with self._lock:
            return sum(self._drop(namespace, answer_id) for answer_id in answer_ids)

    def expired(self) -> list[tuple[str, str]]:
        """Drop what is past its time to live; returns the (namespace, id) dropped."""
        if self._ttl_s is None:
            return []
        oldest_s = time.time() - self._ttl_s
        with self._lock:
            gone = [
                (namespace, answer_id)
                for namespace, held in self._namespaces.items()
                for answer_id, entry in held.entries.items()
                if entry.answer.created_s < oldest_s
            ]
            for namespace, answer_id in gone:
                self._drop(namespace, answer_id)
        return gone

    def set_prompt_text(self, namespace: str, answer_id: str, prompt_text: str) -> None:
        """Hold the text of an answer's prompt too, if it is still there."""
        with self._lock:
            held = self._namespaces.get(namespace)
            entry = held.entries.get(answer_id) if held else None
            if held is None or entry is None:
                return
            before = entry.answer.num_bytes
            entry.answer = msgspec.structs.replace(entry.answer, prompt_text=prompt_text)
            more = entry.answer.num_bytes - before
            entry.num_bytes += more
            held.num_bytes += more
            self._num_bytes += more

    def answer_ids(self, namespace: str) -> list[str]:
        with self._lock:
            held = self._namespaces.get(namespace)
            return [] if held is None else list(held.entries)

    def answers(self, namespace: str) -> Iterator[Answer]:
        with self._lock:
            held = self._namespaces.get(namespace)
            entries = [] if held is None else list(held.entries.values())
        for entry in entries:
            if not self._too_old(entry.answer):
                yield msgspec.structs.replace(
                    entry.answer, uses=entry.uses, accepted_tokens=entry.accepted_tokens
                )

    def namespaces(self) -> list[str]:
        with self._lock:
            return list(self._namespaces)

    def close(self) -> None:
        with self._lock:
            self._namespaces.clear()
            self._num_bytes = 0

    @property
    def num_answers(self) -> int:
        """Answers held, over all namespaces."""
        with self._lock:
            return sum(len(held.entries) for held in self._namespaces.values())

    @property
    def num_bytes(self) -> int:
        """Bytes held, over all namespaces."""
        return self._num_bytes

    def _live(self, namespace: str, answer_id: str) -> Answer | None:
        held = self._namespaces.get(namespace)
        entry = held.entries.get(answer_id) if held else None
        return None if entry is None or self._too_old(entry.answer) else entry.answer

    def _too_old(self, answer: Answer) -> bool:
        return self._ttl_s is not None and answer.created_s < time.time() - self._ttl_s

    def _put(self, answer: Answer, now_s: float) -> list[tuple[str, str]]:
        num_bytes = answer.num_bytes + self._index_bytes
        if num_bytes > self._max_bytes:
            return [(answer.namespace, answer.answer_id)]
        held = self._namespaces.get(answer.namespace)
        old = held.entries.get(answer.answer_id) if held else None
        uses, accepted = answer.uses, answer.accepted_tokens
        if old is not None:
            uses, accepted = max(uses, old.uses), max(accepted, old.accepted_tokens)
            self._drop(answer.namespace, answer.answer_id)
        held = self._namespaces.setdefault(answer.namespace, _Namespace())
        held.entries[answer.answer_id] = _Entry(
            answer, num_bytes, now_s, uses, accepted, len(held.order)
        )
        held.order.append(answer.answer_id)
        if answer.exact_key is not None:
            held.by_exact_key[answer.exact_key] = answer.answer_id
        held.num_bytes += num_bytes
        self._num_bytes += num_bytes
        return self._evict(now_s)

    def _drop(self, namespace: str, answer_id: str) -> bool:
        held = self._namespaces.get(namespace)
        entry = held.entries.pop(answer_id, None) if held else None
        if held is None or entry is None:
            return False
        last = held.order.pop()
        if last != answer_id:
            held.order[entry.position] = last
            held.entries[last].position = entry.position
        key = entry.answer.exact_key
        if key is not None and held.by_exact_key.get(key) == answer_id:
            del held.by_exact_key[key]
        held.num_bytes -= entry.num_bytes
        self._num_bytes -= entry.num_bytes
        if not held.entries:
            del self._namespaces[namespace]
        return True

    def _evict(self, now_s: float) -> list[tuple[str, str]]:
        evicted = []
        while self._num_bytes > self._max_bytes:
            largest = max(self._namespaces, key=lambda name: self._namespaces[name].num_bytes)
            held = self._namespaces[largest]
            drawn = self._random.choices(held.order, k=min(_SAMPLE, len(held.order)))
            victim = min(drawn, key=lambda answer_id: held.entries[answer_id].value(now_s))
            self._drop(largest, victim)
            evicted.append((largest, victim))
        return evicted
