"""Answers in this process's memory: bounded in bytes, the least valuable evicted first."""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.host import steady_clock
from reprise.retrieval.tiers.name_heap import NameHeap
from reprise.retrieval.tiers.tier import Tier, UsageCounts
from reprise.retrieval.tiers.value import add_worth, rank_of

# Eviction compares this many answers drawn at random: as good as an ordering, without its cost.
_SAMPLE = 24
# What a namespace with one answer takes here beside the answer, as measured.
_NAMESPACE_BYTES = 800
# Ids in two places, for each answer that another one stands for; of so many, the latest.
_COPY_BYTES = 250
_MAX_COPIES = 16
_MAX_ORPHANS = 10_000


@dataclass(slots=True)
class _Entry:
    answer: Answer
    num_bytes: int
    last_used_s: float
    uses: int
    accepted_tokens: int
    position: int = 0
    copies: tuple[str, ...] = ()
    """Answers that are not held because this one says nearly the same, see `MemoryTier.fold`."""

    @property
    def rank(self) -> float:
        """The answer of the lowest rank is the least valuable, see `value`."""
        return rank_of(
            uses=self.uses,
            accepted_tokens=self.accepted_tokens,
            num_bytes=self.num_bytes,
            used_s=self.last_used_s,
        )


@dataclass(slots=True)
class _Namespace:
    entries: dict[str, _Entry] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    """The same ids, for drawing at random."""
    num_bytes: int = 0
    copy_of: dict[str, str] = field(default_factory=dict)
    """Of each copy, the id of the answer that stands for it."""


class MemoryTier(Tier):
    """Thread-safe; every call names its namespace and touches no other.

    When full, the namespace that holds most gives way, so that a tenant that floods the cache
    evicts its own answers before anybody else's. Beyond `max_namespaces` the least valuable one
    leaves as a whole. However many there are, finding either takes O(log namespaces).

    Args:
        max_bytes: Bound on what answers, namespaces and their indexes take.
        index_bytes: What indexes take beside, for each answer; counts towards the bound.
        namespace_bytes: What indexes take beside, for each namespace; the same.
        max_namespaces: Bound on their number; None for no other than their bytes.
        ttl_s: Age in seconds at which an answer is gone; None for never.
    """

    name = "memory"

    def __init__(
        self,
        *,
        max_bytes: int,
        index_bytes: int = 0,
        namespace_bytes: int = 0,
        max_namespaces: int | None = None,
        ttl_s: float | None = None,
    ) -> None:
        for name, bound in (("max_bytes", max_bytes), ("max_namespaces", max_namespaces)):
            if bound is not None and bound < 1:
                raise ValueError(f"{name} must be positive, got {bound}")
        self._max_bytes, self._index_bytes, self._ttl_s = max_bytes, index_bytes, ttl_s
        self._namespace_bytes = namespace_bytes + _NAMESPACE_BYTES
        self._max_namespaces = math.inf if max_namespaces is None else max_namespaces
        self._namespaces: dict[str, _Namespace] = {}
        # The negative of what each namespace holds, so that the largest comes first; and its rank.
        self._sizes, self._ranks = NameHeap(), NameHeap()
        self._num_bytes = self._num_answers = 0
        self._orphans: deque[tuple[str, str]] = deque(maxlen=_MAX_ORPHANS)
        self._random = random.Random(0)
        self._lock = threading.Lock()

    def put(self, answers: Sequence[Answer]) -> list[tuple[str, str]]:
        with self._lock:
            now_s = steady_clock.now_s()
            return [gone for answer in answers for gone in self._put(answer, now_s)]

    def replace(self, answers: Sequence[Answer]) -> int:
        with self._lock:
            now_s = steady_clock.now_s()
            held = [a for a in answers if self._live(a.namespace, a.answer_id) is not None]
            for answer in held:
                self._put(answer, now_s)
            return len(held)

    def get(self, namespace: str, answer_ids: Sequence[str]) -> list[Answer | None]:
        """Return the answers of these ids; None for those not held or too old."""
        with self._lock:
            return [self._live(namespace, answer_id) for answer_id in answer_ids]

    def record_usage(self, namespace: str, usage: Mapping[str, UsageCounts]) -> None:
        with self._lock:
            held = self._namespaces.get(namespace)
            now_s, worth = steady_clock.now_s(), 0
            for answer_id, uses in usage.items():
                entry = held.entries.get(held.copy_of.get(answer_id, answer_id)) if held else None
                if entry is not None:
                    entry.uses += uses.uses
                    entry.accepted_tokens += uses.accepted_tokens
                    entry.last_used_s = now_s
                    worth += max(0, sum(uses))
            self._raise_rank(namespace, worth, now_s)

    def remove(self, namespace: str, answer_ids: Sequence[str]) -> int:
        with self._lock:
            self._note_orphans((namespace, answer_id) for answer_id in answer_ids)
            return sum(self._drop(namespace, answer_id) for answer_id in answer_ids)

    def fold(self, namespace: str, answer_id: str, *, into: str) -> bool:
        """Drop an answer because another one says nearly the same, which inherits what it earned
        and one use; False, changing nothing, unless both are held.

        Once that other one is removed or too old, not when it is evicted, `take_orphans` names the
        answers that it stood for.
        """
        with self._lock:
            held = self._namespaces.get(namespace)
            gone, kept = (held.entries.get(i) if held else None for i in (answer_id, into))
            if held is None or gone is None or kept is None or gone is kept:
                return False
            self._drop(namespace, answer_id)
            kept.uses += 1 + gone.uses
            kept.accepted_tokens += gone.accepted_tokens
            kept.last_used_s = max(kept.last_used_s, gone.last_used_s)
            self._set_copies(namespace, held, into, (*kept.copies, *gone.copies, answer_id))
            return True

    def is_copy(self, namespace: str, answer_id: str) -> bool:
        """Return whether another answer, which is held, stands for this one."""
        with self._lock:
            held = self._namespaces.get(namespace)
            return held is not None and answer_id in held.copy_of

    def take_orphans(self) -> list[tuple[str, str]]:
        """Return, once, the answers (namespace, id) that nothing stands for any more."""
        with self._lock:
            orphans = list(dict.fromkeys(self._orphans))
            self._orphans.clear()
            return orphans

    def expired(self) -> list[tuple[str, str]]:
        """Drop what is past its time to live; returns the (namespace, id) dropped."""
        if self._ttl_s is None:
            return []
        oldest_s = steady_clock.now_s() - self._ttl_s
        with self._lock:
            gone = [
                (namespace, answer_id)
                for namespace, held in self._namespaces.items()
                for answer_id, entry in held.entries.items()
                if entry.answer.created_s < oldest_s
            ]
            self._note_orphans(gone)
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

    def find(self, namespace: str, answer_ids: Sequence[str]) -> list[Answer]:
        return [answer for answer in self.get(namespace, answer_ids) if answer is not None]

    def namespaces(self) -> list[str]:
        with self._lock:
            return list(self._namespaces)

    def close(self) -> None:
        with self._lock:
            self._namespaces.clear()
            self._sizes.clear()
            self._ranks.clear()
            self._orphans.clear()
            self._num_bytes = self._num_answers = 0

    @property
    def num_answers(self) -> int:
        """Answers held, over all namespaces."""
        return self._num_answers

    @property
    def num_bytes(self) -> int:
        """Bytes charged for, over all namespaces."""
        return self._num_bytes

    @property
    def num_namespaces(self) -> int:
        """Namespaces that hold answers."""
        return len(self._namespaces)

    def holds(self, namespace: str, answer_id: str) -> bool:
        """Return whether an answer is there, too old or not."""
        with self._lock:
            held = self._namespaces.get(namespace)
            return held is not None and answer_id in held.entries

    def knows(self, namespace: str, answer_id: str) -> bool:
        """Return whether an answer is there, or another one that stands for it."""
        return self.holds(namespace, answer_id) or self.is_copy(namespace, answer_id)

    def keys(self) -> list[tuple[str, str]]:
        """Return (namespace, id) of all that is held."""
        with self._lock:
            return [(name, i) for name, held in self._namespaces.items() for i in held.entries]

    def _live(self, namespace: str, answer_id: str) -> Answer | None:
        held = self._namespaces.get(namespace)
        entry = held.entries.get(answer_id) if held else None
        return None if entry is None or self._too_old(entry.answer) else entry.answer

    def _too_old(self, answer: Answer) -> bool:
        return self._ttl_s is not None and answer.created_s < steady_clock.now_s() - self._ttl_s

    def _put(self, answer: Answer, now_s: float) -> list[tuple[str, str]]:
        num_bytes = answer.num_bytes + self._index_bytes
        if num_bytes + self._namespace_bytes > self._max_bytes:
            self._drop(answer.namespace, answer.answer_id)
            return [(answer.namespace, answer.answer_id)]
        held = self._namespaces.get(answer.namespace)
        if held is None:
            held = self._namespaces[answer.namespace] = _Namespace()
            self._charge(answer.namespace, held, self._namespace_bytes)
        old = held.entries.get(answer.answer_id)
        if self._ttl_s is not None and answer.created_s > now_s:
            # By a clock that was ahead: it would outlive the others.
            answer = msgspec.structs.replace(answer, created_s=now_s)
        uses, accepted = answer.uses, answer.accepted_tokens
        copies: tuple[str, ...] = ()
        self._forget_copy(answer.namespace, held, answer.answer_id)
        if old is not None:
            copies = old.copies
            uses, accepted = max(uses, old.uses), max(accepted, old.accepted_tokens)
            self._take_out(answer.namespace, held, answer.answer_id)
        else:
            self._raise_rank(answer.namespace, 1 + uses + accepted, now_s)
        held.entries[answer.answer_id] = _Entry(
            answer, num_bytes, now_s, uses, accepted, len(held.order)
        )
        held.order.append(answer.answer_id)
        self._num_answers += 1
        self._charge(answer.namespace, held, num_bytes)
        self._set_copies(answer.namespace, held, answer.answer_id, copies)
        return self._evict(answer.namespace, answer.answer_id)

    def _drop(self, namespace: str, answer_id: str) -> bool:
        held = self._namespaces.get(namespace)
        if held is None:
            return False
        self._forget_copy(namespace, held, answer_id)
        if answer_id not in held.entries:
            return False
        self._take_out(namespace, held, answer_id)
        if not held.entries:
            self._num_bytes -= held.num_bytes
            del self._namespaces[namespace]
            self._sizes.discard(namespace)
            self._ranks.discard(namespace)
        return True

    def _take_out(self, namespace: str, held: _Namespace, answer_id: str) -> None:
        entry = held.entries.pop(answer_id)
        last = held.order.pop()
        if last != answer_id:
            held.order[entry.position] = last
            held.entries[last].position = entry.position
        self._num_answers -= 1
        for copy in entry.copies:
            del held.copy_of[copy]
        self._charge(namespace, held, -entry.num_bytes)

    def _set_copies(
        self, namespace: str, held: _Namespace, answer_id: str, copies: tuple[str, ...]
    ) -> None:
        """Have an answer stand for these, the latest of them, and charge for that."""
        entry, copies = held.entries[answer_id], copies[-_MAX_COPIES:]
        for copy in entry.copies:
            held.copy_of.pop(copy, None)
        held.copy_of.update(dict.fromkeys(copies, answer_id))
        more = _COPY_BYTES * (len(copies) - len(entry.copies))
        entry.copies = copies
        entry.num_bytes += more
        self._charge(namespace, held, more)

    def _forget_copy(self, namespace: str, held: _Namespace, answer_id: str) -> None:
        """Have no answer stand for this one any more."""
        kept_id = held.copy_of.get(answer_id)
        if kept_id is not None:
            others = tuple(i for i in held.entries[kept_id].copies if i != answer_id)
            self._set_copies(namespace, held, kept_id, others)

    def _note_orphans(self, gone: Iterable[tuple[str, str]]) -> None:
        keys = dict.fromkeys(gone)
        for namespace, answer_id in keys:
            held = self._namespaces.get(namespace)
            entry = held.entries.get(answer_id) if held else None
            copies = () if entry is None else entry.copies
            self._orphans.extend(key for i in copies if (key := (namespace, i)) not in keys)

    def _charge(self, namespace: str, held: _Namespace, num_bytes: int) -> None:
        held.num_bytes += num_bytes
        self._num_bytes += num_bytes
        self._sizes.set(namespace, -held.num_bytes)

    def _raise_rank(self, namespace: str, worth: int, now_s: float) -> None:
        if worth > 0 and namespace in self._namespaces:
            rank = self._ranks.get(namespace)
            self._ranks.set(namespace, add_worth(-math.inf if rank is None else rank, worth, now_s))

    def _evict(self, newcomer: str, new_id: str) -> list[tuple[str, str]]:
        evicted: list[tuple[str, str]] = []
        while len(self._namespaces) > self._max_namespaces:
            # A newcomer is of little value yet, and would never come to any.
            name = self._ranks.lowest(but=newcomer) or newcomer
            for answer_id in list(self._namespaces[name].entries):
                self._drop(name, answer_id)
                evicted.append((name, answer_id))
        while self._num_bytes > self._max_bytes:
            largest = self._sizes.lowest()
            assert largest is not None
            held = self._namespaces[largest]
            drawn = self._random.choices(held.order, k=min(_SAMPLE, len(held.order)))
            # The newcomer is of little value yet too, and would never reach a tier.
            others = [i for i in drawn if i != new_id or largest != newcomer] or drawn
            victim = min(others, key=lambda answer_id: held.entries[answer_id].rank)
            self._drop(largest, victim)
            evicted.append((largest, victim))
        return evicted
