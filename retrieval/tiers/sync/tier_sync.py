"""Between memory and the tier behind it: writes behind, catch-up, what other replicas did.

Everything here runs in threads of its own. A tier that fails or hangs costs hits, never time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import Forgotten, Invalidation, InvalidationPage
from reprise.retrieval.host.loop_errors import LoopErrors, keep_going
from reprise.retrieval.tiers.sync.circuit_breaker import CircuitBreaker, State
from reprise.retrieval.tiers.sync.known_invalidations import KnownInvalidations
from reprise.retrieval.tiers.sync.late_writes import LateWrites
from reprise.retrieval.tiers.sync.memory_before import MemoryBefore
from reprise.retrieval.tiers.sync.pending_forgets import PendingForget, PendingForgets
from reprise.retrieval.tiers.sync.pending_usage import PendingUsage
from reprise.retrieval.tiers.sync.tier_mirror import TierMirror
from reprise.retrieval.tiers.sync.tier_reader import MAX_RETRY_S, TierReader
from reprise.retrieval.tiers.sync.write_queue import WriteQueue
from reprise.retrieval.tiers.tier import Tier, TierError, UsageCounts

Result = TypeVar("Result")
_WRITE_BATCH = 128
_RETRY_S = 0.25
_SECOND_TRY_S = 0.05
# Usage is added up for so long before it is written: nothing but eviction waits for them.
_USAGE_EVERY_S = 1.0
# Nothing is written unless what others removed was read this recently.
_FOLLOWED_WITHIN_S = 1.0


class TierSync:
    """Keeps a tier and this process's memory in step.

    Args:
        tier: Where answers are kept; closed with this.
        memory: Before it.
        queue_length: Most answers waiting to be written; the oldest beyond are lost, counted.
        queue_bytes: Most bytes of them; the same.
        poll_s: How often to look for what other replicas did.
        mirror: Told what this process had the tier hold, and no longer hold.

    Example:
        >>> from reprise.retrieval.tiers.memory_tier import MemoryTier
        >>> tier = MemoryTier(max_bytes=1 << 20)
        >>> memory = MemoryBefore(on_added=lambda _: None, on_forgotten=lambda _: None)
        >>> sync = TierSync(tier, memory)
        >>> sync.write([Answer.create(prompt_token_ids=[1], response_token_ids=[2])])
        >>> sync.drain(timeout_s=60)
        True
        >>> tier.num_answers
        1
        >>> sync.close()
    """

    def __init__(
        self,
        tier: Tier,
        memory: MemoryBefore,
        *,
        queue_length: int = 4096,
        queue_bytes: int = 64 << 20,
        poll_s: float = 0.2,
        mirror: TierMirror | None = None,
    ) -> None:
        self._tier, self._memory, self._mirror = tier, memory, mirror
        self._queue = WriteQueue(max_length=queue_length, max_bytes=queue_bytes)
        self._poll_s = poll_s
        self._usage, self._draining = PendingUsage(queue_length, every_s=_USAGE_EVERY_S), 0
        self._forgets = PendingForgets()
        self._known = KnownInvalidations()
        self._late = LateWrites()
        self._writing = self._closing = False
        self._changed = threading.Condition()
        self._writes = CircuitBreaker(f"Writing to {tier.name}", max_retry_s=MAX_RETRY_S)
        self._write_errors = LoopErrors(f"Writing to {tier.name}")
        self._reader = TierReader(
            tier,
            memory,
            queue=self._queue,
            known=self._known,
            late=self._late,
            changed=self._changed,
            poll_s=poll_s,
        )
        # Reads and writes fail apart: a full Redis refuses writes and still answers.
        self._reads = self._reader.breaker
        self.caught_up = self._reader.caught_up
        self._threads = [
            threading.Thread(
                target=keep_going, args=(loop, errors), kwargs={"pause": self._pause}, name=name
            )
            for loop, errors, name in (
                (self._write_loop, self._write_errors, "reprise-writer"),
                (self._reader.loop, self._reader.errors, "reprise-reader"),
            )
        ]
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    @property
    def unwritten(self) -> int:
        """Answers that the tier never got."""
        return self._queue.num_lost

    @property
    def uncredited(self) -> int:
        """Answers whose uses the tier never got."""
        return self._usage.lost

    @property
    def unreadable(self) -> int:
        """Records and other entries of the tier that were skipped."""
        return self._tier.num_damaged

    @property
    def tier_name(self) -> str:
        """sqlite or redis."""
        return self._tier.name

    @property
    def breakers(self) -> dict[str, State]:
        """The state of each circuit breaker: read and write fail apart."""
        return {
            "read": self._reads.state,
            "write": self._writes.state,
        }

    @property
    def degraded(self) -> str:
        """What does not work now; empty if all does."""
        failing = [verb for verb, state in self.breakers.items() if state != "closed"]
        return f"{self._tier.name}: cannot {', '.join(failing)}" if failing else ""

    def write(self, answers: Iterable[Answer]) -> None:
        """Have answers written soon, but for what is to be forgotten; returns at once."""
        with self._changed:
            self._queue.put(self._wanted(answers))
            self._changed.notify_all()

    def _wanted(self, answers: Iterable[Answer]) -> list[Answer]:
        """Return the answers that are not known to be forgotten since they were made; the caller
        holds the lock."""
        return [each for each in answers if not self._known.mean_since(each.created_s, each)]

    def record_usage(self, namespace: str, usage: Mapping[str, UsageCounts]) -> None:
        """Have uses added to those in the tier soon; returns at once."""
        with self._changed:
            self._usage.add(namespace, usage)

    def forget(self, invalidation: Invalidation) -> PendingForget:
        """Have the tier forget soon, tried until it has; returns at once."""
        with self._changed:
            pending = self._forgets.find(invalidation)
            if pending is None:
                pending = PendingForget(invalidation)
                self._known.add([invalidation])
                self._queue.drop(invalidation.means)
                self._forgets.add(pending)
                self._changed.notify_all()
        return pending

    def is_being_forgotten(self, answer: Answer) -> bool:
        """Return whether the tier has yet to forget an answer, which it hands out until then."""
        with self._changed:
            if self._forgets.mean(answer):
                return True
            if not self._reader.has_gone_back:
                return False
            return self._known.index_of_carried_out().means(answer)

    @property
    def position(self) -> str | None:
        """How far the tier's log of invalidations has been followed; None: not yet."""
        return self._reader.position

    def invalidations(self, after: str | None) -> InvalidationPage:
        """Return the log of invalidations beyond an earlier position; None: all of it.

        Raises:
            TierError: It cannot be read now.
        """
        return self._reader.invalidations(after)

    def find(self, namespace: str, answer_ids: Sequence[str]) -> list[Answer]:
        """Return the answers of these ids that the tier holds.

        Raises:
            TierError: It cannot be read now.
        """
        return self._reads.call(lambda: self._tier.find(namespace, answer_ids))

    def drain(self, timeout_s: float) -> bool:
        """Wait until all answers and uses are written; False if it took longer."""
        with self._changed:
            self._draining += 1
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not (self._waits() or self._writing), timeout_s)
            self._draining -= 1
            return done

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is waiting, if that takes no longer than `timeout_s`, and stop."""
        deadline_s = time.monotonic() + timeout_s
        if self._writes.state == self._reads.state == "closed":
            with self._changed:  # where the machine stood still, once the tier was read again
                self._changed.wait_for(lambda: self._may_write() or not self._waits(), timeout_s)
            if self._may_write():
                self.drain(max(0.0, deadline_s - time.monotonic()))
        with self._changed:
            self._closing = True
            self._reader.stop()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)
        with self._changed:
            # Only now: a batch that fails on its way is put back.
            self._queue.lose_all()
            self._usage.lost += len(self._usage)
            self._usage.take()
        # One that still opens a file, or waits for Redis, would be waited for.
        if not any(thread.is_alive() for thread in self._threads):
            self._tier.close()

    def _pause(self, seconds: float) -> bool:
        """Wait; returns whether the threads are to end."""
        with self._changed:
            self._writing = False  # whoever drains need not wait for what was lost
            return self._changed.wait_for(lambda: self._closing, seconds)

    def _write_loop(self) -> None:
        kept_s = time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, _USAGE_EVERY_S)
                if self._closing:
                    return
                usage = self._usage.take() if self._usage_is_due() else {}
                batch = self._queue.take(_WRITE_BATCH if self._may_write() else 0)
                forgets, stale = list(self._forgets), self._late.take()
                self._writing = True
            forgotten = self._try_remove(stale) & self._try_forget(forgets)
            written = not batch or self._try_write(partial(self._put, batch), len(batch))
            # After the answers: they may be what was used.
            pending = self._try_record_usage(usage) if written else usage
            if time.monotonic() - kept_s >= _USAGE_EVERY_S and self._may_write():
                kept_s = time.monotonic()
                self._expire()
            with self._changed:
                self._put_back(batch, written, pending)
                if pending or not written or not forgotten:
                    self._changed.wait_for(lambda: self._closing, _RETRY_S)
                self._changed.notify_all()

    def _put_back(
        self, batch: list[Answer], written: bool, pending: dict[str, dict[str, UsageCounts]]
    ) -> None:
        """End a batch of writing: what failed is tried again; the caller holds the lock."""
        self._writing, self._queue.being_written = False, []
        for namespace, uses in pending.items():
            self._usage.add(namespace, uses)
        if written:
            self._late.wrote(batch)
        else:
            # What is to be forgotten since it was taken is forgotten before it would be written.
            self._queue.put_back(self._wanted(self._late.without(batch)))

    def _put(self, answers: Sequence[Answer]) -> None:
        """Write answers; those that had to make room for them leave memory too."""
        gone = self._tier.put(answers)
        if self._mirror is not None:
            self._mirror.written(a for a in answers if not a.fingerprint)
            self._mirror.removed(gone)
        if gone:
            self._memory.on_forgotten(Forgotten(removed=tuple(gone)))

    def _waits(self) -> bool:
        """Return whether the tier has yet to get something; the caller holds the lock."""
        return bool(self._queue or self._usage or self._forgets or self._late)

    def _has_work(self) -> bool:
        waits = (self._queue and self._may_write()) or self._forgets or self._late
        return bool(waits) or self._closing or self._usage_is_due()

    def _may_write(self) -> bool:
        """Return whether what others removed is known: what they removed during an outage must not
        be written again after it."""
        return self._reader.has_followed(_FOLLOWED_WITHIN_S + 5 * self._poll_s)

    def _usage_is_due(self) -> bool:
        return self._usage.is_due(at_once=self._draining > 0)

    def _try_forget(self, forgets: Sequence[PendingForget]) -> bool:
        """Return False if it should be tried again."""
        for pending in forgets:
            forget = partial(self._tier.forget, pending.invalidation, removed=pending.found)
            try:
                pending.removed = tuple(self._writes.call(partial(_patiently, forget)))
            except TierError:
                return False
            except Exception as error:  # a fault of ours: it will not go better the next time
                self._write_errors.failed(error)
                with self._changed:
                    self._forgets.end(pending)
                continue
            with self._changed:
                self._reader.note_removed(pending.removed)
                self._forgets.end(pending)
            # What memory does not hold may lie in what is shared of it, or has joined meanwhile.
            self._memory.on_removed(pending.removed)
            if self._mirror is not None:
                self._mirror.forgot(pending.invalidation, pending.removed)
            pending.done.set()
        return True

    def _try_remove(self, stale: dict[str, list[str]]) -> bool:
        """Return False if it should be tried again."""
        for namespace, answer_ids in stale.items():
            if not self._try_write(partial(self._tier.remove, namespace, answer_ids), 0):
                with self._changed:
                    self._late.add((n, i) for n, ids in stale.items() for i in ids)
                return False
            if self._mirror is not None:
                self._mirror.removed((namespace, answer_id) for answer_id in answer_ids)
        return True

    def _try_record_usage(
        self, usage: dict[str, dict[str, UsageCounts]]
    ) -> dict[str, dict[str, UsageCounts]]:
        """Return what should be tried again."""
        pending = dict(usage)
        for namespace, uses in usage.items():
            if not self._try_write(partial(self._tier.record_usage, namespace, uses), 0):
                break
            del pending[namespace]
        return pending

    def _expire(self) -> None:
        """Have the tier drop what is past its time. There may be nothing to drop: that it goes
        well says nothing of writing."""
        if self._writes.state != "closed":
            with self._changed:
                waits = self._waits()
            if not waits:  # or what waits will tell
                self._try_write(self._tier.expire, 0)
            return
        try:
            self._tier.expire()
        except TierError as error:
            self._writes.failed(str(error))
        except Exception as error:
            self._write_errors.failed(error)

    def _try_write(self, write: Callable[[], object], num_answers: int) -> bool:
        """Return False if it should be tried again."""
        try:
            self._writes.call(partial(_patiently, write))
        except TierError:
            return False
        except Exception as error:  # an answer that has no encoding, say: never again
            self._write_errors.failed(error)
            self._queue.num_lost += num_answers
        return True


def _patiently(write: Callable[[], Result]) -> Result:
    """Try twice: that holds nobody up here, and spares the breaker a dropped connection."""
    try:
        return write()
    except TierError:
        time.sleep(_SECOND_TRY_S)
        return write()
