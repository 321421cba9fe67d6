"""Near answers from beyond memory: who waits for them, until when, and what becomes of late ones.

A prompt's near answers are found in memory first, always. They are held back for the budget at
most, while the remote index is asked; what comes in time joins them, what comes late does not. What
was found there joins memory either way, so that the next look-up finds it without asking.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.found_clause import FoundClause
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.retrieval.in_process.retriever_memory import RetrieverMemory
from reprise.retrieval.in_process.work_queue import Prompt
from reprise.retrieval.remote.remote_search import RemoteFound, RemoteSearch
from reprise.retrieval.search.near_search import FloatArray, NearSearch
from reprise.retrieval.tiers.sync.circuit_breaker import State

# Of one look-up, so many join memory: each goes on to every worker's corpus.
_ADMITTED = 4
IsElsewhere = Callable[[NearAnswer], bool]
Publish = Callable[[Prompt, list[NearAnswer], list[FoundClause], IsElsewhere], None]


@dataclass(slots=True, eq=False)
class Lookup:
    """A prompt that the remote index was asked for."""

    prompt: Prompt
    near_answers: list[NearAnswer]
    """From memory."""
    clauses: list[FoundClause]
    vectors: FloatArray
    """float32 [1 + clauses, dim]"""
    deadline_s: float = 0.0
    num_forgets: int = 0
    """Of memory when it was asked: what is found must not bring back what was forgotten since."""
    num_removals: int = 0
    """The same, of answers that were removed one by one."""
    found_ids: frozenset[str] = frozenset()
    """Of answers that were found beyond memory, which need not join it."""
    is_published: bool = False


class SecondLevel:
    """Between the worker thread, which calls all methods, and the remote search's threads.

    Args:
        remote: The index.
        memory: Where what it finds is held.
        changed: The retriever's lock; notified when something was found.
        count: How many near answers are wanted for each vector.
        tokenizer_key: Of the answers that may be drafted from.
        is_being_forgotten: Whether the tier has yet to forget an answer that it hands out.
    """

    def __init__(
        self,
        remote: RemoteSearch,
        *,
        memory: RetrieverMemory,
        changed: threading.Condition,
        count: int,
        tokenizer_key: str,
        is_being_forgotten: Callable[[Answer], bool],
    ) -> None:
        self._is_being_forgotten = is_being_forgotten
        self.remote, self._memory, self._changed = remote, memory, changed
        self._count, self._tokenizer_key = count, tokenizer_key
        self._waiting: dict[int, Lookup] = {}
        self._done: deque[tuple[Lookup, RemoteFound | None]] = deque()

    @property
    def has_found(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._done)

    @property
    def num_waiting(self) -> int:
        """Look-ups under way, late ones too."""
        return len(self._waiting)

    @property
    def breakers(self) -> dict[str, State]:
        """The state of each circuit breaker: searching and writing fail apart."""
        return {"search": self.remote.state, "index": self.remote.writer.breaker.state}

    @property
    def degraded(self) -> str:
        """What does not work now; empty if all does."""
        failing = [doing for doing, state in self.breakers.items() if state != "closed"]
        return f"search beyond memory: no {', no '.join(failing)}" if failing else ""

    def figures(self) -> dict[str, int]:
        """Return counts by their names in `RetrievalStats`."""
        remote = self.remote
        return {
            "remote_searches": remote.num_asked,
            "remote_found": remote.num_found,
            "remote_late": remote.num_late,
            "remote_failed": remote.num_failed,
            "remote_orphans": remote.num_orphans,
            "remote_unwritten": remote.writer.num_lost,
        }

    def pause_s(self, longest_s: float) -> float:
        """Return how long until `step` is due, if nothing is found before."""
        deadlines = [each.deadline_s for each in self._waiting.values() if not each.is_published]
        if not deadlines:
            return longest_s
        return min(longest_s, max(0.0, min(deadlines) - time.monotonic()))

    def ask(self, lookup: Lookup) -> bool:
        """Search beyond memory; returns whether publishing what memory has is to wait for it."""
        waits = self.remote.is_quick
        lookup.deadline_s = time.monotonic() + self.remote.budget_s
        lookup.is_published, lookup.num_forgets = not waits, self._memory.num_forgets
        lookup.num_removals = self._memory.removals.num
        self._waiting[id(lookup)] = lookup
        asked = self.remote.ask(
            lookup.prompt.namespace, lookup.vectors, self._count, partial(self._found, lookup)
        )
        if not asked:
            del self._waiting[id(lookup)]
        return asked and waits

    def step(self, search: NearSearch, publish: Publish) -> None:
        """Take over what was found, and publish what was or waited long enough, see
        `BatchProcessor.publish`."""
        while self._done:
            lookup, found = self._done.popleft()
            self._waiting.pop(id(lookup), None)
            near_answers = lookup.near_answers
            try:
                if found is not None and lookup.num_forgets == self._memory.num_forgets:
                    near_answers = self._take_over(search, lookup, found)
            finally:
                if not lookup.is_published:
                    self._publish(publish, lookup, near_answers)
        now_s = time.monotonic()
        for lookup in self._waiting.values():
            if not lookup.is_published and now_s >= lookup.deadline_s:
                lookup.is_published = True
                self._publish(publish, lookup, lookup.near_answers)

    def _publish(self, publish: Publish, lookup: Lookup, near_answers: list[NearAnswer]) -> None:
        def is_elsewhere(near: NearAnswer) -> bool:
            return (
                near.answer_id in lookup.found_ids
                and lookup.num_forgets == self._memory.num_forgets
                and not self._was_removed(lookup, near.answer_id)
            )

        publish(lookup.prompt, near_answers, lookup.clauses, is_elsewhere)

    def _take_over(
        self, search: NearSearch, lookup: Lookup, found: RemoteFound
    ) -> list[NearAnswer]:
        """Return near answers of both levels; the best that memory lacks join it."""
        namespace = lookup.prompt.namespace
        answers: Mapping[str, Answer] = {
            answer.answer_id: answer
            for answer in found.answers
            if (answer.namespace, answer.tokenizer_key) == (namespace, self._tokenizer_key)
            and not self._is_being_forgotten(answer)
        }
        ranked = search.rank(namespace, lookup.vectors, more=found.rows, answers=answers)
        joining = [answers[each.answer_id] for each in ranked if each.answer_id in answers][
            :_ADMITTED
        ]
        with self._changed:
            # Once more, with the lock: then nothing can be forgotten in between.
            if lookup.num_forgets != self._memory.num_forgets:
                return lookup.near_answers
            joining = [a for a in joining if not self._was_removed(lookup, a.answer_id)]
            if joining and self._memory.takes_answers:
                self._memory.admit(joining, ours=False)
        lookup.found_ids = frozenset(answers)
        return ranked

    def _was_removed(self, lookup: Lookup, answer_id: str) -> bool:
        """Return whether an answer was removed since it was looked for; the caller holds the
        lock."""
        key = (lookup.prompt.namespace, answer_id)
        return self._memory.removals.has_since(lookup.num_removals, key)

    def _found(self, lookup: Lookup, found: RemoteFound | None) -> None:
        """Hand over what a look-up came to; called in the remote search's threads."""
        with self._changed:
            self._done.append((lookup, found))
            self._changed.notify_all()
