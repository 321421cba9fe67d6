"""Look-ups beyond memory: ids from the remote index, their tokens from the tier, in time or late.

Nobody waits for them: whoever asks goes on, and is called back in another thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.host.loop_errors import LoopErrors
from reprise.retrieval.remote.remote_index import FloatArray, RemoteIndex
from reprise.retrieval.remote.remote_writer import RemoteWriter
from reprise.retrieval.tiers.sync.circuit_breaker import CircuitBreaker, State
from reprise.retrieval.tiers.tier import TierError

Rows = list[list[tuple[str, float]]]
Find = Callable[[str, Sequence[str]], Sequence[Answer]]
TIMEOUT_S = 1.0
"""Most seconds that the index is waited for, in threads that nobody waits for."""
_MAX_RETRY_S = 5.0
_THREADS = 4
_MAX_UNDER_WAY = 64
# So many late ones in a row, and near answers no longer wait for the index until it is quicker.
_MAX_LATE = 3


@dataclass(frozen=True, slots=True, eq=False)
class RemoteFound:
    """What one look-up came to."""

    rows: Rows
    """(answer id, cosine) for each vector; of what memory and the tier hold no more, too."""
    answers: list[Answer]
    """Of these, those that memory did not hold."""


class RemoteSearch:
    """One remote index, and the circuit breaker around it; thread-safe.

    Args:
        index: Where to search.
        writer: Opens it, and is told what the tier does not hold.
        budget_s: From when an answer counts as late.
        holds: Whether memory holds a (namespace, answer id).
        find: The tier's answers of a namespace by their ids, in one round trip.
    """

    def __init__(
        self,
        index: RemoteIndex,
        writer: RemoteWriter,
        *,
        budget_s: float,
        holds: Callable[[str, str], bool],
        find: Find,
    ) -> None:
        self._index, self.writer = index, writer
        self.budget_s = budget_s
        self._holds, self._find = holds, find
        self._breaker = CircuitBreaker("Searching beyond memory", max_retry_s=_MAX_RETRY_S)
        self.errors = LoopErrors("A search beyond memory")
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="reprise-remote")
        self._lock = threading.Lock()
        self._num_under_way = self._late_in_a_row = 0
        self.num_asked = self.num_found = self.num_late = self.num_failed = self.num_orphans = 0

    @property
    def state(self) -> State:
        """Of the circuit breaker."""
        return self._breaker.state

    @property
    def is_quick(self) -> bool:
        """Whether it is worth waiting for: it has not been late several times in a row."""
        return self._late_in_a_row < _MAX_LATE and self._breaker.state == "closed"

    def ask(
        self,
        namespace: str,
        vectors: FloatArray,
        count: int,
        done: Callable[[RemoteFound | None], None],
    ) -> bool:
        """Search for float32 [n, dim]; False if that cannot be done now.

        `done` is called in another thread: with what was found, or None if it failed.
        """
        with self._lock:
            if not self.writer.is_open or self._num_under_way >= _MAX_UNDER_WAY:
                return False
            self._num_under_way += 1
            self.num_asked += 1
        try:
            self._threads.submit(self._run, namespace, vectors, count, done)
        except RuntimeError:  # closed
            self._ended(failed=True)
            return False
        return True

    def close(self) -> None:
        """Start no further search, and close the index."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._index.close()

    def _run(
        self,
        namespace: str,
        vectors: FloatArray,
        count: int,
        done: Callable[[RemoteFound | None], None],
    ) -> None:
        began_s, found = time.monotonic(), None
        try:
            rows = self._breaker.call(lambda: self._index.search(namespace, vectors, count))
            found = self._with_answers(namespace, rows)
        except TierError:
            pass  # the breakers have said it
        except Exception as error:
            self.errors.failed(error)
        self._ended(
            failed=found is None,
            late=time.monotonic() - began_s > self.budget_s,
            num_found=0 if found is None else len(found.answers),
        )
        if self._breaker.state == "open":
            self.writer.look_again()
        done(found)

    def _with_answers(self, namespace: str, rows: Rows) -> RemoteFound:
        """Fetch what memory does not hold; what the tier does not hold either, leaves the index."""
        ids = dict.fromkeys(answer_id for row in rows for answer_id, _ in row)
        missing = [answer_id for answer_id in ids if not self._holds(namespace, answer_id)]
        answers = list(self._find(namespace, missing)) if missing else []
        orphans = set(missing) - {answer.answer_id for answer in answers}
        if orphans:
            with self._lock:
                self.num_orphans += len(orphans)
            self.writer.removed((namespace, answer_id) for answer_id in orphans)
        return RemoteFound(rows, answers)

    def _ended(self, *, failed: bool, late: bool = False, num_found: int = 0) -> None:
        with self._lock:
            self._num_under_way -= 1
            self.num_failed += failed
            self.num_late += late and not failed
            self.num_found += num_found > 0
            self._late_in_a_row = self._late_in_a_row + 1 if late or failed else 0
