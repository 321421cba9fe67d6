"""The retriever that lives in the caller's process, with one worker thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import msgspec
from numpy.typing import ArrayLike

from reprise.retrieval.api.answer import Answer, AnswerUpdate
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.found_clause import FoundClause
from reprise.retrieval.api.invalidation import Forgetting, Forgotten, Invalidation, InvalidationPage
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.retrieval.api.retriever import RetrievalHealth, RetrievalStats, Retriever
from reprise.retrieval.api.tier_url import snapshot_path
from reprise.retrieval.host.loop_errors import LoopErrors, keep_going
from reprise.retrieval.in_process.awaited_results import AwaitedResults
from reprise.retrieval.in_process.batch_processor import BatchProcessor, OnFound
from reprise.retrieval.in_process.behind_memory import BehindMemory
from reprise.retrieval.in_process.near_duplicates import NearDuplicates
from reprise.retrieval.in_process.retriever_memory import RetrieverMemory
from reprise.retrieval.in_process.work_queue import Prompt, Work, WorkQueue
from reprise.retrieval.query.clauses import ClauseSplitter
from reprise.retrieval.query.query_reader import Decode, QueryReader
from reprise.retrieval.query.turns import QueryOf, prompt_tail
from reprise.retrieval.search.embedding import LEXICAL, Embedder
from reprise.retrieval.search.near_search import NearSearch
from reprise.retrieval.tiers.tier import UsageCounts

logger = logging.getLogger(__name__)
OnForgotten = Callable[[Forgotten], None]
OnGone = Callable[[Sequence[tuple[str, str]]], None]
_IDLE_S = 0.25
_EXPIRE_EVERY_S = 0.5


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
        on_forgotten: Called with what is to be forgotten wherever else it is held.

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
        on_forgotten: OnForgotten | None = None,
    ) -> None:
        self._config = config or RetrievalConfig()
        self.max_concurrent_searches = self._config.max_concurrent_searches
        self._queries = QueryReader(decode=decode, query_of=query_of)
        self._tokenizer_key, self._threads = tokenizer_key, threads
        self._has_warned_of_others = False
        self._on_gone, self._on_forgotten = on_gone, on_forgotten
        self._search: NearSearch | None = None
        self._began_s = time.monotonic() if began_s is None else began_s
        self._ready_after_s: float | None = None
        self._queue = WorkQueue(
            max_length=self._config.queue_length, max_bytes=self._config.queue_bytes
        )
        self._results = AwaitedResults(max_requests=4 * self._config.queue_length)
        self._stats = RetrievalStats()
        self._waiting = 0
        self._closing = False
        self._busy = True  # until the models are loaded
        self._changed = threading.Condition()
        self._memory = RetrieverMemory(
            self._config,
            queue=self._queue,
            results=self._results,
            queries=self._queries,
            changed=self._changed,
            count=self._count,
        )
        self._behind = BehindMemory(
            self._config,
            memory=self._memory,
            changed=self._changed,
            tokenizer_key=tokenizer_key,
            on_added=self._arrived,
            on_forgotten=self._forgotten,
        )
        self._tiers = self._behind.tiers
        # Nothing but a tier could bring back what another answer stood for.
        self._duplicates = (
            None
            if self._tiers is None
            else NearDuplicates(self._memory, min_cosine=self._config.duplicate_similarity)
        )
        self._batches = BatchProcessor(
            memory=self._memory.tier,
            results=self._results,
            queries=self._queries,
            changed=self._changed,
            count=self._count,
            on_found=on_found,
            duplicates=self._duplicates,
        )
        self._errors = LoopErrors("A batch of retrieval work")
        self._worker = threading.Thread(
            target=keep_going,
            args=(partial(self._work, embedder), self._errors),
            kwargs={"pause": self._pause},
            name="reprise-retrieval",
            daemon=True,
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
            if self._closing or not self._queue.put_prompt(prompt):
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
            elif self._closing or not self._queue.takes_answers:
                self._count(dropped=1)
            else:
                self._memory.admit([answer], ours=True)

    def _store_exact(self, answer: Answer) -> None:
        """Have an answer for exact hits written to the tier; the caller holds the lock."""
        if self._tiers is None:
            return
        if self._closing or not self._memory.exact.put(answer):
            self._count(dropped=1)
        else:
            self._changed.notify_all()

    def record_usage(self, namespace: str, accepted_tokens: Mapping[str, int]) -> None:
        usage = {i: UsageCounts(1, tokens) for i, tokens in accepted_tokens.items() if tokens >= 0}
        self._memory.tier.record_usage(namespace, usage)
        if self._tiers is not None:
            self._tiers.record_usage(namespace, usage)

    def forget(self, invalidation: Invalidation, *, timeout_s: float) -> Forgetting:
        gone = self._memory.forget(invalidation)
        self._notify_forgotten(Forgotten((invalidation,)))
        if self._tiers is None:
            return Forgetting(tuple(gone), done=True)
        pending = self._tiers.forget(invalidation, timeout_s)
        # What memory does not hold may still lie in shared memory; what it holds came meanwhile.
        self._memory.remove(pending.removed)
        removed = tuple({**dict.fromkeys(gone), **dict.fromkeys(pending.removed)})
        return Forgetting(removed, done=pending.done.is_set())

    @property
    def position(self) -> str | None:
        """How far the tier's log of invalidations has been followed."""
        return None if self._tiers is None else self._tiers.position

    def invalidations(self, after: str) -> InvalidationPage:
        """Return the tier's log of invalidations beyond an earlier position.

        Raises:
            TierError: It cannot be read now.
        """
        return InvalidationPage() if self._tiers is None else self._tiers.invalidations(after)

    def updates(self) -> list[AnswerUpdate]:
        with self._changed:
            return self._memory.take_updates()

    def flush(self, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            done = self._changed.wait_for(
                lambda: (
                    self._closing or not (self._has_work() or self._busy or self._behind.is_asking)
                ),
                timeout_s,
            )
        return self._behind.drain(max(0.0, deadline_s - time.monotonic())) and done

    def stats(self) -> RetrievalStats:
        search = self._search
        with self._changed:
            return replace(
                self._stats,
                errors=self._errors.num + self._behind.num_errors,
                embedded=0 if search is None else search.num_embedded,
                restored=0 if search is None else search.num_restored,
                refused_snapshots=0 if search is None else search.num_refused_snapshots,
                answers=self._memory.tier.num_answers,
                namespaces=self._memory.tier.num_namespaces,
                bytes=self._memory.tier.num_bytes,
                waiting=self._waiting,
                **self._behind.figures(),
            )

    def health(self) -> RetrievalHealth:
        search = self._search
        if self._closing:
            return RetrievalHealth("closed")
        if search is None:
            return RetrievalHealth("starting")
        embedder = search.embedder
        troubles = self._behind.troubles
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
            ready_after_s=self._ready_after_s,
        )

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
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._worker.join(timeout=10.0)
        self._behind.close()

    def _arrived(self, answers: Sequence[Answer]) -> None:
        """Admit answers from the tier; wait while the worker has its hands full."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue.takes_answers or self._closing)
            own = [a for a in answers if a.tokenizer_key == self._tokenizer_key]
            self._count(wrong_tokenizer=len(answers) - len(own))
            self._warn_of_others({a.tokenizer_key for a in answers} - {self._tokenizer_key})
            new = [a for a in own if not self.answer(a.namespace, a.answer_id)]
            self._memory.admit(new, ours=False)

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
            # Any of those that wait to be written may be meant.
            with self._changed:
                self._memory.exact.drop(lambda _: True)
        for invalidation in forgotten.invalidations:
            if not self._memory.has_forgotten(invalidation):
                self._memory.forget(invalidation)
        self._memory.remove(forgotten.removed)
        self._notify_forgotten(forgotten)

    def _notify_forgotten(self, forgotten: Forgotten) -> None:
        if self._on_forgotten is not None:
            self._on_forgotten(forgotten)

    def _work(self, embedder: Embedder | None) -> None:
        """Load the models, then do what there is to do until closed: the worker thread."""
        if self._search is None:
            self._search = self._load(embedder)
            self._ready_after_s = time.monotonic() - self._began_s
            self._behind.open_search(self._search.embedder)
        search, next_expiry_s, upkeep = self._search, 0.0, False
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(
                    self._has_work, 0.0 if upkeep else self._behind.pause_s(_IDLE_S)
                )
                if self._closing and self._is_idle():
                    search.close()
                    return
                work, exact = self._queue.take(self._config.batch_size), self._memory.exact.take()
                self._memory.joining = work.answers
                erased = self._memory.take_erasures()
                # Upkeep alone is not work that anybody waits for.
                self._busy = bool(work or erased or exact or self._behind.has_found)
                is_complete = self._is_complete()
            # Each part by itself: what fails must cost no other its work, which is taken already.
            if time.monotonic() >= next_expiry_s:
                self._attempt(self._memory.expire)
                next_expiry_s = time.monotonic() + _EXPIRE_EVERY_S
            # What failed at once would fail at once again: no upkeep after an error.
            upkeep = self._attempt(partial(self._process_batch, search, work)) is True
            if (second := self._behind.second) is not None:
                self._attempt(partial(second.step, search, self._batches.publish))
            self._attempt(partial(self._write_exact, exact))
            if erased:
                self._erase(search, erased)
            if is_complete:
                self._attempt(search.drop_unclaimed)

    def _attempt(self, part: Callable[[], Any]) -> Any:
        """Do a part of a batch; returns its result, None after an error."""
        try:
            return part()
        except Exception as error:
            self._errors.failed(error)
            return None

    def _erase(self, search: NearSearch, keys: set[tuple[str, str]]) -> None:
        """Leave no trace of answers; what fails is tried again, for it has been promised."""
        try:
            search.erase(keys)
        except Exception as error:
            with self._changed:
                if not self._closing:
                    self._memory.put_back_erasures(keys)
            self._pause(self._errors.failed(error))
            return
        self._attempt(partial(self._notify_gone, tuple(keys)))

    def _load(self, embedder: Embedder | None) -> NearSearch:
        """Return the search, with its models."""
        config = self._config
        embedder = embedder or Embedder(
            config.embedding_model, threads=self._threads, batch_size=config.batch_size
        )
        as_wanted = embedder.name != LEXICAL or config.embedding_model == LEXICAL
        return NearSearch(
            config,
            embedder,
            self._memory.tier,
            splitter=ClauseSplitter(config.clause_pipeline) if config.clauses else None,
            # What hashed words stand in for is not to be overwritten.
            snapshot=snapshot_path(config.url, config.index_snapshot) if as_wanted else None,
        )

    def _pause(self, seconds: float) -> bool:
        """Wait; returns whether the worker is to end."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closing, seconds)

    def _has_work(self) -> bool:
        memory = self._memory
        found = self._behind.has_found
        return bool(self._queue or memory.exact) or memory.has_erasures or found or self._closing

    def _is_idle(self) -> bool:
        """Return whether nothing is left to be done before closing; the caller holds the lock."""
        queue, memory = self._queue, self._memory
        return not (queue.num_answers or queue.num_gone or memory.has_erasures or memory.exact)

    def _is_complete(self) -> bool:
        """Return whether all that the tier holds has been taken; the caller holds the lock."""
        tiers = self._tiers
        if tiers is None or self._closing:
            return False
        return tiers.caught_up.is_set() and not self._queue.num_answers

    def _process_batch(self, search: NearSearch, work: Work) -> bool:
        """Do a batch of each kind of work; returns whether the index wants more upkeep."""
        try:
            self._batches.leave(search, work.gone)
            self._notify_gone(work.gone)
            # Prompts first: a request waits for them, nobody waits for an answer to join.
            if work.prompts:
                self._batches.answer(search, work.prompts, self._behind.second)
        except Exception as error:
            self._errors.failed(error)
            self._batches.give_nothing(work.prompts)
        if work.answers:
            self._write(self._batches.join(search, work.answers))
        more = search.maintain()
        if self._duplicates is not None:
            more = self._duplicates.step(search) or more
        self._waiting = search.num_waiting
        return more

    def _notify_gone(self, keys: Sequence[tuple[str, str]]) -> None:
        if self._on_gone is not None and keys:
            self._on_gone(keys)

    def _write(self, answers: Sequence[Answer]) -> None:
        """Have answers that joined written to the tier, but for what was forgotten meanwhile."""
        if self._tiers is None:
            return
        with self._changed:
            self._tiers.write(self._memory.take_joined(answers))

    def _write_exact(self, answers: Sequence[Answer]) -> None:
        """Have answers for exact hits written, with their queries, by which they are forgotten."""
        if self._tiers is None or not answers:
            return
        # One whose query cannot be read could not be forgotten by it: it is not written.
        read = [self._attempt(partial(self._with_query, answer)) for answer in answers]
        whole = [answer for answer in read if answer is not None]
        with self._changed:
            self._tiers.write(a for a in whole if not self._memory.was_forgotten(a))

    def _with_query(self, answer: Answer) -> Answer:
        text = self._queries.read(None, answer.prompt_token_ids)
        return msgspec.structs.replace(answer, prompt_text=text)

    def _count(self, **increments: float) -> None:
        """Add to the counters; the caller holds the lock."""
        self._stats = replace(
            self._stats,
            **{name: getattr(self._stats, name) + value for name, value in increments.items()},
        )
