"""The retriever that lives in the caller's process, with one worker thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from numpy.typing import ArrayLike

from reprise.retrieval.api.answer import Answer, AnswerUpdate
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.found_clause import FoundClause
from reprise.retrieval.api.invalidation import Forgetting, Forgotten, Invalidation, InvalidationPage
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.retrieval.api.retriever import RetrievalHealth, RetrievalStats, Retriever
from reprise.retrieval.in_process.awaited_results import AwaitedResults
from reprise.retrieval.in_process.batch_processor import OnFound
from reprise.retrieval.in_process.behind_memory import BehindMemory
from reprise.retrieval.in_process.retrieval_worker import ModelLoading, OnGone, RetrievalWorker
from reprise.retrieval.in_process.retriever_memory import RetrieverMemory
from reprise.retrieval.in_process.shared_state import SharedState
from reprise.retrieval.in_process.work_queue import Prompt, WorkQueue
from reprise.retrieval.query.query_reader import Decode, QueryReader
from reprise.retrieval.query.turns import QueryOf, prompt_tail
from reprise.retrieval.search.embedding import LEXICAL, Embedder
from reprise.retrieval.tiers.sync.memory_before import OnForgotten
from reprise.retrieval.tiers.tier import UsageCounts

logger = logging.getLogger(__name__)


class LocalRetriever(Retriever):
    """Retrieval in this process.

    Args:
        config: Settings; the defaults keep everything in memory.
        decode: Token ids to text, special tokens included; needed where prompts or answers come
            without text.
        query_of: A rendered prompt to its query, see `turns.learn_query_of`.
        tokenizer_key: Names the tokenizer; answers made with another one are refused.
        embedder: Instead of loading the configured model (in the worker thread).
        threads: Torch threads, see `Embedder`.
        began_s: Since when the caller waits for this, in seconds of `time.monotonic`; None: now.
        on_found: Called in the worker thread with each request's id, namespace, near answers and
            clauses.
        on_gone: Called in the worker thread with the (namespace, id) that left memory.
        on_erased: Called there with those of which no trace is to be left.
        on_forgotten: Called with what is to be forgotten wherever else it is held, but for what
            the tier's log held at first, see `invalidations`.

    Raises:
        ValueError: The configured URL names no tier.
    """

    def __init__(
        self,
        config: RetrievalConfig | None = None,
        *,
        decode: Decode | None = None,
        query_of: QueryOf | None = None,
        tokenizer_key: str = "",
        embedder: Embedder | None = None,
        threads: int | None = None,
        began_s: float | None = None,
        on_found: OnFound | None = None,
        on_gone: OnGone | None = None,
        on_erased: OnGone | None = None,
        on_forgotten: OnForgotten | None = None,
    ) -> None:
        began_s = time.monotonic() if began_s is None else began_s
        self._config = config or RetrievalConfig()
        self.max_concurrent_searches = min(
            self._config.max_concurrent_searches, self._config.queue_length
        )
        self._tokenizer_key, self._on_forgotten = tokenizer_key, on_forgotten
        self._has_warned_of_others = False
        self._queue = WorkQueue(
            max_length=self._config.queue_length, max_bytes=self._config.queue_bytes
        )
        self._results = AwaitedResults(max_requests=4 * self._config.queue_length)
        self._stats = RetrievalStats()
        shared = SharedState(
            queue=self._queue,
            results=self._results,
            queries=QueryReader(decode=decode, query_of=query_of),
            count=self._count,
        )
        self._changed, self._closing = shared.changed, shared.closing
        self._memory = RetrieverMemory(self._config, shared)
        with self._changed:  # for which waits what arrives at once
            self._behind = BehindMemory(
                self._config,
                memory=self._memory,
                changed=self._changed,
                tokenizer_key=tokenizer_key,
                on_added=self._arrived,
                on_forgotten=self._forgotten,
                wait_for_room=self._wait_for_room,
            )
        self._tiers = self._behind.tiers
        self._worker = RetrievalWorker(
            self._config,
            shared,
            memory=self._memory,
            behind=self._behind,
            models=ModelLoading(embedder=embedder, threads=threads, began_s=began_s),
            on_found=on_found,
            on_gone=on_gone,
            on_erased=on_erased,
        )
        self._worker.start()

    def submit(
        self,
        request_id: str,
        *,
        namespace: str,
        text: str | None = None,
        prompt_token_ids: ArrayLike | None = None,
    ) -> None:
        ids = None if prompt_token_ids is None else prompt_tail(prompt_token_ids)
        with self._changed:
            self._results.expect(request_id)
            prompt = Prompt(request_id, namespace, text, ids)
            if self._closing.is_set() or not self._queue.put_prompt(prompt):
                self._count(dropped=1)
                self._results.give(request_id, [])
            else:
                self._changed.notify_all()

    def poll(self, request_id: str) -> list[NearAnswer] | None:
        with self._changed:
            return self._results.get(request_id)

    def progress(self) -> int:
        return self._results.num_given

    def clauses(self, request_id: str) -> list[FoundClause]:
        with self._changed:
            return self._results.clauses(request_id)

    def discard(self, request_id: str) -> None:
        with self._changed:
            self._results.discard(request_id)

    def store(self, answer: Answer) -> None:
        with self._changed:
            if answer.fingerprint:
                self._store_exact(answer)
            elif answer.tokenizer_key != self._tokenizer_key:
                self._count(wrong_tokenizer=1)
            elif self._closing.is_set() or not self._queue.takes_answers:
                self._count(dropped=1)
            else:
                self._memory.admit([answer], ours=True)

    def _store_exact(self, answer: Answer) -> None:
        """Have an answer for exact hits written to the tier; the caller holds the lock."""
        if self._tiers is None:
            return
        if self._closing.is_set() or not self._memory.exact.put(answer):
            self._count(dropped=1)
        else:
            self._changed.notify_all()

    def record_usage(self, namespace: str, accepted_tokens: Mapping[str, int]) -> None:
        usage = {i: UsageCounts(1, tokens) for i, tokens in accepted_tokens.items() if tokens >= 0}
        self._memory.tier.record_usage(namespace, usage)
        if self._tiers is not None:
            self._tiers.record_usage(namespace, usage)

    def forget(self, invalidation: Invalidation, *, timeout_s: float) -> Forgetting:
        # The tier first: nothing that is meant joins memory from there any more.
        pending = None if self._tiers is None else self._tiers.forget(invalidation)
        gone = self._memory.forget([invalidation])
        self._notify_forgotten(Forgotten((invalidation,)))
        if pending is None:
            return Forgetting(tuple(gone), done=True)
        pending.done.wait(timeout_s)
        removed = tuple({**dict.fromkeys(gone), **dict.fromkeys(pending.removed)})
        return Forgetting(removed, done=pending.done.is_set())

    @property
    def position(self) -> str | None:
        """How far the tier's log of invalidations has been followed."""
        return None if self._tiers is None else self._tiers.position

    def invalidations(self, after: str | None) -> InvalidationPage:
        """Return the tier's log of invalidations beyond an earlier position; None: all of it.

        Raises:
            TierError: It cannot be read now.
        """
        return InvalidationPage() if self._tiers is None else self._tiers.invalidations(after)

    def updates(self) -> list[AnswerUpdate]:
        with self._changed:
            return self._memory.take_updates()

    def updates_and_keys(self) -> tuple[list[AnswerUpdate], list[tuple[str, str]]]:
        """Return `updates`, and (namespace, answer id) of all answers that were reported by then
        and are held in memory: what leaves of them from now on is reported."""
        with self._changed:
            updates = self._memory.take_updates()
            return updates, self._memory.reported_keys()

    def flush(self, timeout_s: float) -> bool:
        deadline_s, worker = time.monotonic() + timeout_s, self._worker
        with self._changed:
            done = self._changed.wait_for(
                lambda: (
                    self._closing.is_set()
                    or not (worker.has_work() or worker.is_busy or self._behind.is_asking)
                ),
                timeout_s,
            )
        return self._behind.drain(max(0.0, deadline_s - time.monotonic())) and done

    def stats(self) -> RetrievalStats:
        search = self._worker.search
        num_failed = 0 if search is None else search.num_failed_snapshots
        with self._changed:
            return replace(
                self._stats,
                errors=self._worker.errors.num + self._behind.num_errors + num_failed,
                embedded=0 if search is None else search.num_embedded,
                restored=0 if search is None else search.num_restored,
                refused_snapshots=0 if search is None else search.num_refused_snapshots,
                answers=self._memory.tier.num_answers,
                namespaces=self._memory.tier.num_namespaces,
                bytes=self._memory.tier.num_bytes,
                waiting=self._worker.num_waiting,
                **self._behind.figures(),
            )

    def health(self) -> RetrievalHealth:
        search = self._worker.search
        if self._closing.is_set():
            return RetrievalHealth("closed")
        if search is None:
            return RetrievalHealth("starting")
        embedder = search.embedder
        troubles = self._behind.troubles + search.troubles
        if embedder.name == LEXICAL and self._config.embedding_model != LEXICAL:
            troubles.append(f"{self._config.embedding_model} is unavailable")
        detail = "; ".join(troubles)
        state: Literal["degraded", "ready"] = "degraded" if detail else "ready"
        return RetrievalHealth(
            state,
            embedder.identity,
            detail,
            tier=self._behind.tier_name,
            breakers=self._behind.breakers,
            ready_after_s=self._worker.ready_after_s,
        )

    @property
    def has_read(self) -> bool:
        """Whether memory has all that the tier held at first. Also true once something was to be
        forgotten, shortly before this began too: who holds what is not here may hold that."""
        if self._tiers is None or self._tiers.caught_up.is_set():
            return True
        with self._changed:
            return self._memory.forgets_of_late

    def wait_until_warm(self, timeout_s: float) -> bool:
        """Wait until what the tier held at start has joined; False if it took longer."""
        deadline_s = time.monotonic() + timeout_s
        if self._tiers is not None and not self._tiers.caught_up.wait(timeout_s):
            return False
        return self.flush(max(0.0, deadline_s - time.monotonic()))

    def answer(self, namespace: str, answer_id: str) -> Answer | None:
        """Return an answer held in memory."""
        return self._memory.answer(namespace, answer_id)

    def answers(self) -> list[Answer]:
        """Return all answers held in memory."""
        return self._memory.answers()

    def keys(self) -> list[tuple[str, str]]:
        """Return (namespace, answer id) of all answers held in memory."""
        return self._memory.tier.keys()

    def close(self) -> None:
        with self._changed:
            if self._closing.is_set():
                return
            self._closing.set()
            self._changed.notify_all()
        # Loading its models, which nothing ends, it writes nothing.
        self._worker.join(10.0 if self._worker.search is not None else 1.0)
        if self._worker.search is None:
            self._worker.write_waiting()
        self._behind.close()

    def _wait_for_room(self, seconds: float) -> bool:
        """Wait while the worker has its hands full, but no longer; returns whether it has not."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._queue.takes_answers or self._closing.is_set(), seconds
            )

    def _arrived(self, answers: Sequence[Answer]) -> None:
        """Admit answers from the tier."""
        with self._changed:
            own = [a for a in answers if a.tokenizer_key == self._tokenizer_key]
            self._count(wrong_tokenizer=len(answers) - len(own))
            self._warn_of_others({a.tokenizer_key for a in answers} - {self._tokenizer_key})
            new = [a for a in own if not self._behind.is_being_forgotten(a)]
            self._memory.admit([a for a in new if self._memory.lacks(a)], ours=False)

    def _warn_of_others(self, keys: set[str]) -> None:
        """Say once that the tier holds answers of other tokenizers."""
        if not keys or self._has_warned_of_others:
            return
        self._has_warned_of_others = True
        logger.warning(
            "Answers in the tier that were made with another tokenizer are ignored: its key is %s, "
            "this engine's is %s. If they are your history, import it again with reprise cache "
            "import --model MODEL.",
            " or ".join(sorted(key or "empty" for key in keys)),
            self._tokenizer_key or "empty",
        )

    def _forgotten(self, forgotten: Forgotten) -> None:
        """Forget what other replicas removed, or had forgotten."""
        if not forgotten.complete:
            self._memory.lose_under_way()
        self._memory.forget(
            [each for each in forgotten.invalidations if not self._memory.has_forgotten(each)]
        )
        self._memory.follow_removal(forgotten.removed)
        if not forgotten.is_history:
            self._notify_forgotten(forgotten)

    def _notify_forgotten(self, forgotten: Forgotten) -> None:
        if self._on_forgotten is not None:
            self._on_forgotten(forgotten)

    def _count(self, **increments: float) -> None:
        """Add to the counters; the caller holds the lock."""
        self._stats = replace(
            self._stats,
            **{name: getattr(self._stats, name) + value for name, value in increments.items()},
        )
