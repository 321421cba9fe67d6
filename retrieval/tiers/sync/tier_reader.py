"""Reads a tier: all that it holds at start and after an outage, then what others do to it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import (
    Forgotten,
    Invalidation,
    InvalidationPage,
    all_until,
)
from reprise.retrieval.host import steady_clock
from reprise.retrieval.host.loop_errors import LoopErrors
from reprise.retrieval.tiers.sync.circuit_breaker import CircuitBreaker
from reprise.retrieval.tiers.sync.invalidation_index import InvalidationIndex
from reprise.retrieval.tiers.sync.known_invalidations import KnownInvalidations
from reprise.retrieval.tiers.sync.late_writes import LateWrites
from reprise.retrieval.tiers.sync.memory_before import MemoryBefore
from reprise.retrieval.tiers.sync.write_queue import Key, WriteQueue
from reprise.retrieval.tiers.tier import Tier, TierError

_READ_BATCH = 500
# Of one namespace, before the next one has its turn.
_VALUABLE_BATCH = 250
# Told once more where a log was lost, the last ones: a log holds a thousand.
_MAX_TOLD_AGAIN = 500
_MAX_LEFT = 4096
# What was removed during an outage is to be gone within a second of its end.
MAX_RETRY_S = 0.8


class TierReader:
    """Takes over what a tier holds, and takes out of what waits to be written what is forgotten.

    Args:
        tier: Where answers are kept.
        memory: Before it.
        queue: What waits to be written.
        known: Takes what is to be forgotten before anything else does.
        late: What was written lately.
        changed: Guards `queue`, `known`, `late` and what is here.
        poll_s: How often to look for what other replicas did.
    """

    def __init__(
        self,
        tier: Tier,
        memory: MemoryBefore,
        *,
        queue: WriteQueue,
        known: KnownInvalidations,
        late: LateWrites,
        changed: threading.Condition,
        poll_s: float,
    ) -> None:
        self._tier, self._memory = tier, memory
        self._queue, self._known, self._late, self._changed = queue, known, late, changed
        self._poll_s = poll_s
        self.breaker = CircuitBreaker(f"Reading from {tier.name}", max_retry_s=MAX_RETRY_S)
        """Around every call that reads."""
        self._removed_meanwhile: set[Key] = set()
        self._left: dict[str, None] = {}
        self._position: str | None = None
        self._behind = False
        # Times that the tier went back, and those after which it was looked through.
        self._num_restores = self._num_mended = 0
        self._followed_s = float("-inf")
        self._closing = False
        self.caught_up = threading.Event()
        """Set once all that the tier held has been taken."""
        self.errors = LoopErrors(f"Reading from {tier.name}")

    @property
    def position(self) -> str | None:
        """How far the tier's log of invalidations has been followed; None: not yet."""
        return self._position

    @property
    def has_gone_back(self) -> bool:
        """Whether the tier may hold again what it had forgotten."""
        return self._num_restores > self._num_mended

    def has_followed(self, within_s: float) -> bool:
        """Return whether what others had forgotten was read this recently."""
        return time.monotonic() - self._followed_s < within_s

    def invalidations(self, after: str | None) -> InvalidationPage:
        """Return the log of invalidations beyond an earlier position; None: all of it.

        Raises:
            TierError: It cannot be read now.
        """
        return self.breaker.call(lambda: self._tier.invalidations(after))

    def note_removed(self, keys: Iterable[Key]) -> None:
        """Note what was removed from the tier for this process; the caller holds the lock."""
        keys = tuple(keys)
        self._removed_meanwhile.update(keys)
        self._note_left(keys)

    def _note_left(self, keys: Iterable[Key]) -> None:
        """Note which namespaces something left, the last ones: a tier that holds it again may not
        name them."""
        for namespace, _ in keys:
            self._left.pop(namespace, None)
            self._left[namespace] = None
            if len(self._left) > _MAX_LEFT:
                del self._left[next(iter(self._left))]

    def stop(self) -> None:
        """Have the loop end; the caller holds the lock and notifies."""
        self._closing = True

    def loop(self) -> None:
        """Read until stopped."""
        caught_up = False
        while not self._closing:
            more = False
            with self._changed:
                self._removed_meanwhile.clear()
            try:
                if caught_up:
                    more = self.breaker.call(self._follow)
                    caught_up = not self._behind
                else:
                    self.breaker.call(self._catch_up)
                    caught_up = True
                    self.caught_up.set()
            except TierError:
                # What was read before it failed is lost; what was removed meanwhile is unknown.
                caught_up = False
            except Exception as error:  # the breaker has counted it too
                caught_up = False
                self.errors.failed(error)
            with self._changed:
                self._late.drop_old(self._followed_s)
                if not more:
                    self._changed.wait_for(lambda: self._closing, self._poll_s)

    def _catch_up(self) -> None:
        """Take all that the tier holds, and forget what it no longer does."""
        self._behind = False
        self._follow_invalidations()
        if self.has_gone_back:
            self._forget_again()
        self._tier.changes(anew=True)  # from here on; what follows may be seen twice, never missed
        held = self._memory.held()
        with self._changed:
            expected = held - self._queue.unwritten
        present = (
            self._take_all() if self._memory.has_room is None else self._take_valuable(expected)
        )
        if self._closing:
            return
        with self._changed:
            gone = expected - present - self._queue.unwritten
        if gone:
            self._memory.on_forgotten(Forgotten(removed=tuple(gone)))

    def _forget_again(self) -> None:
        """Have removed what the tier may hold again, though it was to be forgotten."""
        num_restores = self._num_restores
        with self._changed:
            known, left = self._known.carried_out(), tuple(self._left)
            index = self._known.index_of_carried_out()
        for each in known[-_MAX_TOLD_AGAIN:]:
            self._tier.announce(each)
        for namespace in filter(index.covers, {*self._tier.namespaces(), *left}):
            for answers in (self._tier.answers(namespace), self._tier.exact_answers(namespace)):
                self._remove_meant(namespace, answers, index)
        self._num_mended = num_restores

    def _remove_meant(
        self, namespace: str, answers: Iterator[Answer], index: InvalidationIndex
    ) -> None:
        """Remove from the tier what is meant of these answers of it."""
        while (batch := list(islice(answers, _READ_BATCH))) and not self._closing:
            if meant := [answer for answer in batch if index.means(answer)]:
                self._tier.remove(namespace, [answer.stored_id for answer in meant])
            self._follow_invalidations()

    def _take_all(self) -> set[Key]:
        """Take what the tier holds, and return its keys."""
        present: set[Key] = set()
        for namespace in self._tier.namespaces():
            answers = self._tier.answers(namespace)
            while (batch := list(islice(answers, _READ_BATCH))) and not self._closing:
                self._take(batch, present)
        return present

    def _take_valuable(self, expected: set[Key]) -> set[Key]:
        """Take the most valuable answers, of each namespace some at a time, as long as there is
        room; return the keys of these, and of those expected that the tier holds."""
        assert self._memory.has_room is not None
        present: set[Key] = set()
        reading = deque(map(self._tier.valuable, self._tier.namespaces()))
        while reading and self._memory.has_room() and not self._closing:
            answers = reading.popleft()
            if batch := list(islice(answers, _VALUABLE_BATCH)):
                self._take(batch, present)
                reading.append(answers)
        for found in self._find(expected - present):
            present.update((answer.namespace, answer.answer_id) for answer in found)
        return present

    def _find(self, keys: Iterable[Key]) -> Iterator[list[Answer]]:
        """Yield what the tier holds of these, in pages."""
        wanted: dict[str, list[str]] = {}
        for namespace, answer_id in keys:
            wanted.setdefault(namespace, []).append(answer_id)
        for namespace, answer_ids in wanted.items():
            for begin in range(0, len(answer_ids), _READ_BATCH):
                yield self._tier.find(namespace, answer_ids[begin : begin + _READ_BATCH])

    def _take(self, batch: Sequence[Answer], present: set[Key]) -> None:
        """Hand over answers that were read, and follow what happened meanwhile."""
        present.update((answer.namespace, answer.answer_id) for answer in batch)
        self._hand_over(batch)
        self._follow_invalidations()

    def _hand_over(self, answers: Sequence[Answer]) -> None:
        """Have answers join memory, but for those that were to be forgotten meanwhile."""
        meanwhile: list[Invalidation] = []
        while not self._memory.wait_for_room(self._poll_s) and not self._closing:
            # What memory holds must not wait for what has yet to join it.
            meanwhile += self._follow_invalidations()
        if meanwhile:
            answers = [a for a in answers if not any(each.means(a) for each in meanwhile)]
        self._memory.on_added(answers)
        keys = {(answer.namespace, answer.answer_id) for answer in answers}
        with self._changed:
            # Read before that, they may have joined after it.
            gone = keys & self._removed_meanwhile
        if gone:
            self._memory.on_removed(tuple(gone))

    def _follow(self) -> bool:
        """Take what has changed; returns whether something was added."""
        self._follow_invalidations()
        if self.has_gone_back:
            return False
        # What others add while there is no room is found where it is.
        changes = self._tier.changes(
            wants_added=self._memory.has_room is None or self._memory.has_room()
        )
        if changes.added:
            self._hand_over(changes.added)
        if changes.removed:
            removed = set(changes.removed)
            with self._changed:
                self._queue.drop(lambda answer: (answer.namespace, answer.stored_id) in removed)
                self._note_left(removed)
            self._memory.on_forgotten(Forgotten(removed=changes.removed))
        self._behind |= not changes.complete
        for found in self._find(self._memory.take_orphans()):
            self._memory.on_orphans(found)
        return bool(changes.added)

    def _follow_invalidations(self) -> tuple[Invalidation, ...]:
        """Carry out what others had forgotten; returns what is new of that."""
        began_s = time.monotonic()
        # At first all of it: answers that wait, here or on their way here, may be older than this.
        page = self._tier.invalidations(self._position)
        self._take_out(page.invalidations)
        if not page.complete:
            self._note_restore()
            with self._changed:
                # Any of them may be meant, and what is on its way to them.
                self._known.add([all_until(steady_clock.now_s())])
                self._queue.lose_all()
        if page.invalidations or not page.complete:
            self._memory.on_forgotten(
                Forgotten(
                    page.invalidations,
                    position=page.position,
                    complete=page.complete,
                    is_history=self._position is None,
                )
            )
            # What memory held until now may have come to wait, or been written.
            self._take_out(page.invalidations)
        self._position = page.position
        with self._changed:
            self._followed_s = began_s
            self._changed.notify_all()
        # Only now: writing need not wait for a cluster's master that does not answer.
        if self._tier.has_gone_back():
            self._note_restore()
        return page.invalidations

    def _note_restore(self) -> None:
        """Have the tier looked through: it may hold again what it had forgotten."""
        self._behind = True
        self._num_restores += 1

    def _take_out(self, invalidations: Sequence[Invalidation]) -> None:
        """Take what is meant out of what waits to be written and what was written lately."""
        if not invalidations:
            return
        index = InvalidationIndex(invalidations)
        with self._changed:
            self._known.add(invalidations)
            self._queue.drop(index.means)
            self._late.forget(index.means, self._queue.being_written)
