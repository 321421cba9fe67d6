"""Writes to a remote index in a thread of its own: what a tier was given, it is told after."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import CLOCK_SKEW_S, Invalidation
from reprise.retrieval.host import steady_clock
from reprise.retrieval.host.loop_errors import LoopErrors, keep_going
from reprise.retrieval.remote.pending_changes import ChangeBatch, Key, PendingChanges
from reprise.retrieval.remote.remote_index import RemoteIndex, RemoteRow
from reprise.retrieval.search.near_search import unpack
from reprise.retrieval.tiers.sync.circuit_breaker import CircuitBreaker
from reprise.retrieval.tiers.tier import TierError

_BATCH = 256
_RETRY_S = 0.25
_MAX_RETRY_S = 5.0
# What was written is made quick to find once nothing has come for so long.
_QUIET_S = 0.5
_EXPIRE_EVERY_S = 60.0
_RECENT_S = 10.0
_MAX_RECENT = 20_000


class RemoteWriter:
    """A mirror of a tier: whoever removes from the tier has it removed from the index too.

    Nothing is written before `start`; until then, and while the index is away, changes wait.

    Args:
        max_rows: Most answers that wait; the oldest beyond are lost, counted.
        ttl_s: Age in seconds at which rows are removed; None for never.
        ahead_s: Returns by how much the clock of who shares the index is ahead, see `Tier.ahead_s`.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        ttl_s: float | None,
        ahead_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._pending = PendingChanges(max_rows=max_rows)
        self._ttl_s, self._ahead_s = ttl_s, ahead_s
        self._index: RemoteIndex | None = None
        self._embedder, self._dim = "", 0
        self._is_open = self._writing = self._closing = False
        self._recent: deque[tuple[float, Key]] = deque(maxlen=_MAX_RECENT)
        """Rows that were written lately, or are being written, by time."""
        self._changed = threading.Condition()
        self.breaker = CircuitBreaker("Writing to the search index", max_retry_s=_MAX_RETRY_S)
        self.errors = LoopErrors("Writing to the search index")
        self._thread = threading.Thread(
            target=keep_going,
            args=(self._loop, self.errors),
            kwargs={"pause": self._pause},
            name="reprise-index-writer",
            daemon=True,
        )

    @property
    def num_lost(self) -> int:
        """Changes that the index never got."""
        return self._pending.num_lost

    @property
    def is_open(self) -> bool:
        """Whether the index was reached, and has not failed since."""
        return self._is_open

    def start(self, index: RemoteIndex, *, embedder: str, dim: int) -> None:
        """Begin to write to an index of vectors made by `embedder`; once."""
        with self._changed:
            self._index, self._embedder, self._dim = index, embedder, dim
        self._thread.start()

    def look_again(self) -> None:
        """Have the index opened anew before it is searched again: it may be another process now,
        that has not loaded what it holds."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()

    def written(self, answers: Iterable[Answer]) -> None:
        """Have answers held that the tier holds now; those without a vector of ours are not."""
        with self._changed:
            self._pending.put(row for each in answers if (row := self._row(each)) is not None)
            self._changed.notify_all()

    def removed(self, keys: Iterable[Key]) -> None:
        """Have answers removed that left the tier."""
        with self._changed:
            self._pending.remove(keys)
            self._changed.notify_all()

    def others_removed(self, keys: Iterable[Key]) -> None:
        """Take back answers that other replicas removed, there too: what is on its way to the index
        may arrive after their removal."""
        with self._changed:
            gone = set(keys)
            self._pending.drop(gone)
            self._pending.remove(gone.intersection(key for _, key in self._recent))
            self._changed.notify_all()

    def forgot(self, invalidation: Invalidation, removed: Iterable[Key]) -> None:
        """Have removed what the tier forgot; all of a namespace, if no more was asked."""
        is_whole = invalidation.answer_id is None and not invalidation.needs_contents
        with self._changed:
            if is_whole and invalidation.namespace is not None and not invalidation.is_late:
                # It may be long until the index can be reached; what others write by then stays.
                until_s = invalidation.made_s + CLOCK_SKEW_S + self._ahead_s()
                self._pending.remove_namespace(invalidation.namespace, created_until_s=until_s)
            else:
                self._pending.remove(removed)
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Wait until all is written; False if it took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._pending or self._writing), timeout_s)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, if the index is there, and stop."""
        if self._is_open and self.breaker.state == "closed":
            self.drain(timeout_s)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _row(self, answer: Answer) -> RemoteRow | None:
        if answer.fingerprint or (self._embedder and answer.embedder != self._embedder):
            return None
        vector = unpack(answer.embedding, self._dim or len(answer.embedding) // 2)
        if vector is None or not vector.any():
            return None
        created_s = answer.created_s + self._ahead_s()
        return RemoteRow(answer.namespace, answer.answer_id, created_s, vector)

    def _pause(self, seconds: float) -> bool:
        with self._changed:
            self._writing = False
            return self._changed.wait_for(lambda: self._closing, seconds)

    def _note_recent(self, batch: ChangeBatch) -> None:
        """Remember the rows of a batch for as long as it takes word of a removal to arrive."""
        now_s = time.monotonic()
        self._recent.extend((now_s, key) for key, row in batch.changes.items() if row is not None)
        while self._recent and now_s - self._recent[0][0] > _RECENT_S:
            self._recent.popleft()

    def _has_work(self) -> bool:
        return self._closing or not self._is_open or bool(self._pending)

    def _loop(self) -> None:
        index = self._index
        assert index is not None
        expired_s, is_settled = float("-inf"), True
        while True:
            if not self._is_open and not self._try(index.open):
                if self._pause(_RETRY_S):
                    return
                continue
            self._is_open = True
            with self._changed:
                self._changed.wait_for(self._has_work, _QUIET_S)
                if self._closing:
                    return
                if not self._is_open:
                    continue
                batch = self._pending.take(_BATCH)
                self._writing = bool(batch)
                self._note_recent(batch)
            if batch:
                is_settled = False
                if not self._write(index, batch):
                    self._is_open = False
                with self._changed:
                    self._writing = False
                    self._changed.notify_all()
            elif not is_settled:
                is_settled = self._try(index.settle)
            if self._ttl_s is not None and time.monotonic() - expired_s >= _EXPIRE_EVERY_S:
                expired_s = time.monotonic()
                oldest_s = steady_clock.now_s() + self._ahead_s() - self._ttl_s
                self._try(lambda o=oldest_s: index.remove_older(o))  # type: ignore[misc]

    def _write(self, index: RemoteIndex, batch: ChangeBatch) -> bool:
        """Make changes; those that failed wait again, and False is returned."""

        def write() -> None:
            for namespace, until_s in batch.namespaces.items():
                index.remove_namespace(namespace, created_until_s=until_s)
            for namespace, answer_ids in _by_namespace(batch).items():
                index.remove(namespace, answer_ids)
            rows = [row for row in batch.changes.values() if row is not None]
            if rows:
                index.upsert(rows)

        if self._try(write):
            return True
        with self._changed:
            self._pending.put_back(batch)
        return False

    def _try(self, call: Callable[[], object]) -> bool:
        """Return False if it should be tried again."""
        try:
            self.breaker.call(call)
        except TierError:
            return False
        except Exception as error:  # a fault of ours: it will not go better the next time
            self.errors.failed(error)
        return True


def _by_namespace(batch: ChangeBatch) -> dict[str, Sequence[str]]:
    """Return the ids of answers to remove."""
    found: dict[str, list[str]] = {}
    for (namespace, answer_id), row in batch.changes.items():
        if row is None:
            found.setdefault(namespace, []).append(answer_id)
    return dict(found)
