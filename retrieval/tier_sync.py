"""Between memory and the tier behind it: writes behind, catch-up, what other replicas did.

Everything here runs in threads of its own. A tier that fails or hangs costs hits, never time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from itertools import islice

import tenacity

from .answer import Answer
from .circuit_breaker import CircuitBreaker, State
from .loop_errors import LoopErrors, keep_going
from .pending_credits import PendingCredits
from .tier import Tier, TierError, Uses

OnAdded = Callable[[Sequence[Answer]], None]
OnRemoved = Callable[[str, str], None]
_WRITE_BATCH = 128
_READ_BATCH = 500
_LOOK_UPS_AT_ONCE = 4
_RETRY_S = 0.25
# Uses are added up for so long before they are written: nothing but eviction waits for them.
_CREDIT_EVERY_S = 1.0


class TierSync:
    """Keeps a tier and this process's memory in step.

    Args:
        tier: Where answers are kept; closed with this.
        on_added: Called with answers found in the tier: all at start, then what others add. May
            wait, which slows the reading down.
        on_removed: Called with (namespace, answer id) that others removed.
        queue_length: Most answers waiting to be written; the oldest beyond are lost, counted.
        queue_bytes: Most bytes of them; the same.
        poll_s: How often to look for what other replicas did.
        look_up_s: Most seconds that a look-up may take.
    """

    def __init__(
        self,
        tier: Tier,
        *,
        on_added: OnAdded,
        on_removed: OnRemoved,
        queue_length: int = 4096,
        queue_bytes: int = 64 << 20,
        poll_s: float = 0.2,
        look_up_s: float = 0.05,
    ) -> None:
        self._tier, self._on_added, self._on_removed = tier, on_added, on_removed
        self._queue: deque[Answer] = deque()
        self._queue_length, self._poll_s, self._look_up_s = queue_length, poll_s, look_up_s
        self._queue_bytes, self._waiting_bytes = queue_bytes, 0
        self._credits = PendingCredits(queue_length)
        self._credited_s, self._draining = time.monotonic(), 0
        self._unwritten = 0
        self._writing = self._closing = False
        self._changed = threading.Condition()
        self.caught_up = threading.Event()
        # Reads and writes fail apart: a full Redis refuses writes and still answers.
        self._reads = CircuitBreaker(f"Reading from {tier.name}")
        self._look_ups = CircuitBreaker(f"Look-up in {tier.name}")
        self._writes = CircuitBreaker(f"Writing to {tier.name}")
        self._pool = ThreadPoolExecutor(_LOOK_UPS_AT_ONCE, thread_name_prefix="reprise-look-up")
        self._pending = threading.BoundedSemaphore(_LOOK_UPS_AT_ONCE)
        self._write_errors = LoopErrors(f"Writing to {tier.name}")
        self._read_errors = LoopErrors(f"Reading from {tier.name}")
        self._threads = [
            threading.Thread(
                target=keep_going, args=(loop, errors), kwargs={"pause": self._pause}, name=name
            )
            for loop, errors, name in (
                (self._write_loop, self._write_errors, "reprise-writer"),
                (self._read_loop, self._read_errors, "reprise-reader"),
            )
        ]
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    @property
    def unwritten(self) -> int:
        """Answers that the tier never got."""
        return self._unwritten

    @property
    def uncredited(self) -> int:
        """Answers whose uses the tier never got."""
        return self._credits.lost

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
        """The state of each circuit breaker: read, look up and write fail apart."""
        return {
            "read": self._reads.state,
            "look up": self._look_ups.state,
            "write": self._writes.state,
        }

    @property
    def degraded(self) -> str:
        """What does not work now; empty if all does."""
        failing = [verb for verb, state in self.breakers.items() if state != "closed"]
        return f"{self._tier.name}: cannot {', '.join(failing)}" if failing else ""

    def write(self, answers: Iterable[Answer]) -> None:
        """Have answers written soon; returns at once."""
        with self._changed:
            for answer in answers:
                self._queue.append(answer)
                self._waiting_bytes += answer.num_bytes
            self._drop_oldest()
            self._changed.notify_all()

    def credit(self, namespace: str, earned: Mapping[str, Uses]) -> None:
        """Have uses added to those in the tier soon; returns at once."""
        with self._changed:
            self._credits.add(namespace, earned)

    def remove(self, namespace: str, answer_ids: Sequence[str]) -> None:
        """Forget answers in the tier; waits for it.

        Raises:
            TierError: It could not.
        """
        self._writes.call(lambda: self._tier.remove(namespace, answer_ids))

    def find_exact(self, namespace: str, exact_key: bytes) -> Answer | None:
        """Look an exact key up within the budget; None too if the tier fails or is slow."""
        if not self._pending.acquire(blocking=False):
            return None  # the tier hangs, and enough threads wait for it already
        began_s = time.monotonic()
        future = self._pool.submit(
            self._look_ups.call, lambda: self._tier.find_exact(namespace, exact_key)
        )
        future.add_done_callback(lambda _: self._pending.release())
        try:
            return future.result(timeout=self._look_up_s)
        except FutureTimeoutError:
            self._look_ups.failed(f"no reply in {time.monotonic() - began_s:.3f} s")
        except TierError:
            pass
        except Exception as error:
            self._read_errors.failed(error)
        return None

    def drain(self, timeout_s: float) -> bool:
        """Wait until all answers and uses are written; False if it took longer."""
        with self._changed:
            self._draining += 1
            self._changed.notify_all()
            done = self._changed.wait_for(
                lambda: not (self._queue or self._credits or self._writing), timeout_s
            )
            self._draining -= 1
            return done

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is waiting, if that takes no longer than `timeout_s`, and stop."""
        if self._writes.state == "closed":
            self.drain(timeout_s)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)
        with self._changed:
            # Only now: a batch that fails on its way is put back.
            self._unwritten += len(self._queue)
            self._credits.lost += len(self._credits)
            self._credits.take()
            self._queue.clear()
            self._waiting_bytes = 0
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._tier.close()

    def _pause(self, seconds: float) -> bool:
        """Wait; returns whether the threads are to end."""
        with self._changed:
            self._writing = False  # whoever drains need not wait for what was lost
            return self._changed.wait_for(lambda: self._closing, seconds)

    def _write_loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, _CREDIT_EVERY_S)
                if self._closing:
                    return
                if not self._has_work():
                    continue
                if self._credits_are_due():
                    self._credited_s = time.monotonic()
                    earned = self._credits.take()
                else:
                    earned = {}
                batch = [self._queue.popleft() for _ in range(min(_WRITE_BATCH, len(self._queue)))]
                self._waiting_bytes -= sum(answer.num_bytes for answer in batch)
                self._writing = True
            written = not batch or self._try_write(partial(self._put, batch), len(batch))
            # After the answers: they may be what was used.
            unpaid = self._try_credit(earned) if written else earned
            with self._changed:
                self._writing = False
                for namespace, uses in unpaid.items():
                    self._credits.add(namespace, uses)
                if not written:
                    self._queue.extendleft(reversed(batch))
                    self._waiting_bytes += sum(answer.num_bytes for answer in batch)
                    self._drop_oldest()
                if unpaid or not written:
                    self._changed.wait_for(lambda: self._closing, _RETRY_S)
                self._changed.notify_all()

    def _put(self, answers: Sequence[Answer]) -> None:
        """Write answers; those that had to make room for them leave memory too, so that whatever
        memory holds is found by who looks into the tier for what is to be forgotten."""
        for namespace, answer_id in self._tier.put(answers):
            self._on_removed(namespace, answer_id)

    def _drop_oldest(self) -> None:
        """Keep the queue within its bounds; the caller holds the lock."""
        while len(self._queue) > self._queue_length or self._waiting_bytes > self._queue_bytes:
            self._waiting_bytes -= self._queue.popleft().num_bytes
            self._unwritten += 1

    def _has_work(self) -> bool:
        return bool(self._queue) or self._closing or self._credits_are_due()

    def _credits_are_due(self) -> bool:
        waited_s = time.monotonic() - self._credited_s
        return bool(self._credits) and (self._draining > 0 or waited_s >= _CREDIT_EVERY_S)

    def _try_credit(self, earned: dict[str, dict[str, Uses]]) -> dict[str, dict[str, Uses]]:
        """What should be tried again."""
        unpaid = dict(earned)
        for namespace, uses in earned.items():
            if not self._try_write(partial(self._tier.credit, namespace, uses), 0):
                break
            del unpaid[namespace]
        return unpaid

    def _try_write(self, write: Callable[[], object], num_answers: int) -> bool:
        """False if it should be tried again."""
        try:
            self._writes.call(lambda: _patiently(write))
        except TierError:
            return False
        except Exception as error:  # an answer that has no encoding, say: never again
            self._write_errors.failed(error)
            self._unwritten += num_answers
        return True

    def _read_loop(self) -> None:
        caught_up = False
        while not self._closing:
            more = False
            try:
                if caught_up:
                    more = self._reads.call(self._follow)
                else:
                    self._reads.call(self._catch_up)
                    caught_up = True
                    self.caught_up.set()
            except TierError:
                # After an outage much may have changed, or the tier have been emptied.
                caught_up = caught_up and self._reads.state == "closed"
            except Exception as error:  # the breaker has counted it too
                self._read_errors.failed(error)
            if not more:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, self._poll_s)

    def _catch_up(self) -> None:
        self._tier.changes(anew=True)  # from here on; what follows may be seen twice, never missed
        for namespace in self._tier.namespaces():
            answers = self._tier.answers(namespace)
            while batch := list(islice(answers, _READ_BATCH)):
                if self._closing:
                    return
                self._on_added(batch)

    def _follow(self) -> bool:
        changes = self._tier.changes()
        if changes.added:
            self._on_added(changes.added)
        for namespace, answer_id in changes.removed:
            self._on_removed(namespace, answer_id)
        return bool(changes.added)


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(TierError),
    stop=tenacity.stop_after_attempt(2),
    wait=tenacity.wait_fixed(0.05),
    reraise=True,
)
def _patiently(write: Callable[[], object]) -> None:
    """One more try costs nobody anything here, and spares the breaker a dropped connection."""
    write()
