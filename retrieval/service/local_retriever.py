"""The retriever that lives in the caller's process, with one worker thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import msgspec
from numpy.typing import ArrayLike

from reprise.retrieval.api.answer import Answer, AnswerUpdate
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.invalidation import Forgetting, Forgotten, Invalidation, InvalidationPage
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.retrieval.api.retriever import RetrievalHealth, RetrievalStats, Retriever
from reprise.retrieval.api.tier_url import snapshot_path
from reprise.retrieval.host.loop_errors import LoopErrors, keep_going
from reprise.retrieval.query.clauses import ClauseSplitter
from reprise.retrieval.query.query_reader import Decode, QueryReader
from reprise.retrieval.query.turns import QueryOf, prompt_tail
from reprise.retrieval.search.embedding import LEXICAL, Embedder
from reprise.retrieval.search.near_search import NearSearch
from reprise.retrieval.service.answer_reports import AnswerReports
from reprise.retrieval.service.applied_invalidations import AppliedInvalidations
from reprise.retrieval.service.awaited_results import AwaitedResults
from reprise.retrieval.service.batch_processor import BatchProcessor, OnFound
from reprise.retrieval.service.exact_writes import ExactWrites
from reprise.retrieval.service.open_tier import open_now_or_later
from reprise.retrieval.service.work_queue import Prompt, Work, WorkQueue
from reprise.retrieval.tiers.memory_tier import MemoryTier
from reprise.retrieval.tiers.tier import UsageCounts
from reprise.retrieval.tiers.tier_sync import TierSync

OnForgotten = Callable[[Forgotten], None]
OnGone = Callable[[Sequence[tuple[str, str]]], None]
_IDLE_S = 0.25
# Vector of 384 dimensions, graph links and dictionary entries, as measured.
_INDEX_BYTES = 2200
# What a namespace takes in the indexes of vectors, of shared tokens and of the corpus, as measured.
_NAMESPACE_BYTES = 3000
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
        on_found: Called in the worker thread with each request's id, namespace and near answers.
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
        on_found: OnFound | None = None,
        on_gone: OnGone | None = None,
        on_forgotten: OnForgotten | None = None,
    ) -> None:
        self._config = config or RetrievalConfig()
        self._queries = QueryReader(decode=decode, query_of=query_of)
        self._tokenizer_key, self._threads = tokenizer_key, threads
        self._on_gone, self._on_forgotten = on_gone, on_forgotten
        self._applied = AppliedInvalidations()
        self._to_erase: set[tuple[str, str]] = set()
        self._joining: list[tuple[Answer, bool]] = []
        self._search: NearSearch | None = None
        self._memory = MemoryTier(
            max_bytes=self._config.memory_bytes,
            index_bytes=_INDEX_BYTES,
            namespace_bytes=_NAMESPACE_BYTES,
            max_namespaces=self._config.max_namespaces,
            ttl_s=self._config.ttl_s,
        )
        self._queue = WorkQueue(
            max_length=self._config.queue_length, max_bytes=self._config.queue_bytes
        )
        self._exact = ExactWrites(
            max_length=self._config.queue_length, max_bytes=self._config.queue_bytes
        )
        self._results = AwaitedResults(max_requests=4 * self._config.queue_length)
        self._reports = AnswerReports(max_bytes=self._config.queue_bytes)
        self._stats = RetrievalStats()
        self._waiting = 0
        self._closing = False
        self._busy = True  # until the models are loaded
        self._changed = threading.Condition()
        self._batches = BatchProcessor(
            memory=self._memory,
            results=self._results,
            queries=self._queries,
            changed=self._changed,
            count=self._count,
            on_found=on_found,
        )
        self._tiers = self._open_tiers()
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
                self._admit([answer], ours=True)

    def _store_exact(self, answer: Answer) -> None:
        """Have an answer for exact hits written to the tier; the caller holds the lock."""
        if self._tiers is None:
            return
        if self._closing or not self._exact.put(answer):
            self._count(dropped=1)
        else:
            self._changed.notify_all()

    def record_usage(self, namespace: str, accepted_tokens: Mapping[str, int]) -> None:
        usage = {i: UsageCounts(1, tokens) for i, tokens in accepted_tokens.items() if tokens >= 0}
        self._memory.record_usage(namespace, usage)
        if self._tiers is not None:
            self._tiers.record_usage(namespace, usage)

    def forget(self, invalidation: Invalidation, *, timeout_s: float) -> Forgetting:
        gone = self._forget_here(invalidation)
        self._notify_forgotten(Forgotten((invalidation,)))
        if self._tiers is None:
            return Forgetting(tuple(gone), done=True)
        pending = self._tiers.forget(invalidation, timeout_s)
        # What memory does not hold may still lie in shared memory; what it holds came meanwhile.
        self._remove(pending.removed)
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
            return self._reports.take(self.answer)

    def flush(self, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            done = self._changed.wait_for(
                lambda: self._closing or not (self._has_work() or self._busy), timeout_s
            )
        if self._tiers is not None:
            done = self._tiers.drain(max(0.0, deadline_s - time.monotonic())) and done
        return done

    def stats(self) -> RetrievalStats:
        search = self._search
        with self._changed:
            return replace(
                self._stats,
                errors=self._errors.num,
                embedded=0 if search is None else search.num_embedded,
                restored=0 if search is None else search.num_restored,
                refused_snapshots=0 if search is None else search.num_refused_snapshots,
                answers=self._memory.num_answers,
                namespaces=self._memory.num_namespaces,
                bytes=self._memory.num_bytes,
                waiting=self._waiting,
                unreadable=0 if self._tiers is None else self._tiers.unreadable,
                unwritten=0 if self._tiers is None else self._tiers.unwritten,
                uncredited=0 if self._tiers is None else self._tiers.uncredited,
            )

    def health(self) -> RetrievalHealth:
        search, tiers = self._search, self._tiers
        if self._closing:
            return RetrievalHealth("closed")
        if search is None:
            return RetrievalHealth("starting")
        embedder = search.embedder
        troubles = [] if tiers is None else [tiers.degraded]
        if embedder.name == LEXICAL and self._config.embedding_model != LEXICAL:
            troubles.append(f"{self._config.embedding_model} is unavailable")
        detail = "; ".join(trouble for trouble in troubles if trouble)
        state: Literal["degraded", "ready"] = "degraded" if detail else "ready"
        if tiers is None:
            return RetrievalHealth(state, embedder.identity, detail)
        return RetrievalHealth(
            state, embedder.identity, detail, tier=tiers.tier_name, breakers=tiers.breakers
        )

    def wait_until_warm(self, timeout_s: float) -> bool:
        """Wait until what the tier held at start has joined; False if it took longer."""
        deadline_s = time.monotonic() + timeout_s
        if self._tiers is not None and not self._tiers.caught_up.wait(timeout_s):
            return False
        return self.flush(max(0.0, deadline_s - time.monotonic()))

    def answer(self, namespace: str, answer_id: str) -> Answer | None:
        """Return an answer held in memory."""
        return self._memory.get(namespace, [answer_id])[0]

    def answers(self) -> list[Answer]:
        """Return all answers held in memory."""
        return [a for name in self._memory.namespaces() for a in self._memory.answers(name)]

    def keys(self) -> list[tuple[str, str]]:
        """Return (namespace, answer id) of all answers held in memory."""
        return self._memory.keys()

    def close(self) -> None:
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._worker.join(timeout=10.0)
        if self._tiers is not None:
            self._tiers.close()

    def _open_tiers(self) -> TierSync | None:
        tier = open_now_or_later(self._config)
        if tier is None:
            return None
        return TierSync(
            tier,
            on_added=self._arrived,
            on_forgotten=self._forgotten,
            held=self._held,
            queue_length=self._config.queue_length,
            queue_bytes=self._config.queue_bytes,
            poll_s=self._config.poll_s,
        )

    def _arrived(self, answers: Sequence[Answer]) -> None:
        """Admit answers from the tier; wait while the worker has its hands full."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue.takes_answers or self._closing)
            own = [a for a in answers if a.tokenizer_key == self._tokenizer_key]
            self._count(wrong_tokenizer=len(answers) - len(own))
            self._admit([a for a in own if not self.answer(a.namespace, a.answer_id)], ours=False)

    def _forgotten(self, forgotten: Forgotten) -> None:
        """Forget what other replicas removed, or had forgotten."""
        if not forgotten.complete:
            # Any of those that wait to be written may be meant.
            with self._changed:
                self._exact.drop(lambda _: True)
        for invalidation in forgotten.invalidations:
            if invalidation not in self._applied:
                self._forget_here(invalidation)
        self._remove(forgotten.removed)
        self._notify_forgotten(forgotten)

    def _forget_here(self, invalidation: Invalidation) -> list[tuple[str, str]]:
        """Forget in this process; the (namespace, id) that were there."""
        with self._changed:
            self._applied.add(invalidation)
            self._exact.drop(lambda answer: self._is_meant(answer, invalidation))
        meant = [
            (answer.namespace, answer.answer_id)
            for namespace in filter(invalidation.covers, self._memory.namespaces())
            for answer in self._memory.answers(namespace)
            if self._is_meant(answer, invalidation)
        ]
        return self._remove(meant)

    def _is_meant(self, answer: Answer, invalidation: Invalidation) -> bool:
        text = None
        if invalidation.needs_text and not answer.prompt_text:
            text = self._queries.read(None, answer.prompt_token_ids)
        return invalidation.means(answer, text)

    def _remove(self, keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Remove answers (namespace, id) here and wherever they are shared; those there were."""
        with self._changed:
            gone = [key for key in keys if self._memory.remove(key[0], [key[1]])]
            self._note_gone(gone)
            self._results.forget(set(keys))
        self._erase(keys)
        return gone

    def _erase(self, keys: Sequence[tuple[str, str]]) -> None:
        """Have the worker leave no trace of answers that are gone."""
        if not keys:
            return
        with self._changed:
            self._to_erase.update(keys)
            self._changed.notify_all()

    def _notify_forgotten(self, forgotten: Forgotten) -> None:
        if self._on_forgotten is not None:
            self._on_forgotten(forgotten)

    def _held(self) -> set[tuple[str, str]]:
        """Return what is held here and is not on its way to the tier."""
        with self._changed:
            under_way = {
                (answer.namespace, answer.answer_id)
                for answer, ours in (*self._queue.answers, *self._joining)
                if ours
            }
            names = self._memory.namespaces()
            held = {(name, i) for name in names for i in self._memory.answer_ids(name)}
            return held - under_way

    def _admit(self, answers: Sequence[Answer], *, ours: bool) -> None:
        """Hold answers, report them, and have the worker index them; the caller holds the lock."""
        if ours:
            answers = [answer for answer in answers if not self._was_just_forgotten(answer)]
        keyed = {(a.namespace, a.answer_id): a for a in answers}
        new = {key: answer for key, answer in keyed.items() if not self._memory.holds(*key)}
        # The index holds the vector: once is enough.
        bare = [msgspec.structs.replace(a, embedding=b"", embedder="") for a in answers]
        gone = dict.fromkeys(self._memory.put(bare))
        for key, answer in new.items():
            if key not in gone:
                self._count(stored=1, resyncs=self._reports.joined(answer))
        self._note_gone([key for key in gone if key not in new])
        self._queue.put_answers(answers, ours=ours)
        self._changed.notify_all()

    def _was_just_forgotten(self, answer: Answer) -> bool:
        """Return whether it was on its way here when it was to be forgotten; the caller holds the
        lock."""
        return any(
            answer.created_s <= each.made_s and self._is_meant(answer, each)
            for each in self._applied.made_lately()
        )

    def _note_gone(self, gone: Sequence[tuple[str, str]]) -> None:
        """Report that answers (namespace, id) left memory; the caller holds the lock."""
        for key in gone:
            self._count(resyncs=self._reports.left(key))
        self._queue.put_gone(gone)
        self._count(evicted=len(gone))

    def _work(self, embedder: Embedder | None) -> None:
        """Load the models, then do what there is to do until closed: the worker thread."""
        if self._search is None:
            self._search = self._load(embedder)
        search, next_expiry_s, upkeep = self._search, 0.0, False
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(self._has_work, 0.0 if upkeep else _IDLE_S)
                is_idle = not (self._queue.num_answers or self._queue.num_gone)
                is_idle = is_idle and not (self._to_erase or self._exact)
                if self._closing and is_idle:
                    search.close()
                    return
                work, exact = self._queue.take(self._config.batch_size), self._exact.take()
                self._joining = work.answers
                erased, self._to_erase = self._to_erase, set()
                # Upkeep alone is not work that anybody waits for.
                self._busy = bool(work or erased or exact)
                settled = self._has_settled()
            try:
                if time.monotonic() >= next_expiry_s:
                    with self._changed:
                        expired = self._memory.expired()
                        self._note_gone(expired)
                        self._to_erase.update(expired)
                        self._results.forget(set(expired))
                    next_expiry_s = time.monotonic() + _EXPIRE_EVERY_S
                upkeep = self._process_batch(search, work)
                self._write_exact(exact)
                if erased:
                    search.erase(erased)
                    self._notify_gone(tuple(erased))
                if settled:
                    search.drop_unclaimed()
            except Exception as error:
                self._errors.failed(error)
                self._batches.give_nothing(work.prompts)
                upkeep = False  # what failed at once would fail at once again

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
            self._memory,
            splitter=ClauseSplitter(config.clause_pipeline) if config.clauses else None,
            # What hashed words stand in for is not to be overwritten.
            snapshot=snapshot_path(config.url, config.index_snapshot) if as_wanted else None,
        )

    def _pause(self, seconds: float) -> bool:
        """Wait; returns whether the worker is to end."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closing, seconds)

    def _has_work(self) -> bool:
        return bool(self._queue or self._exact or self._to_erase) or self._closing

    def _has_settled(self) -> bool:
        """Return whether all that the tier holds has been taken; the caller holds the lock."""
        tiers = self._tiers
        if tiers is None or self._closing:
            return False
        return tiers.caught_up.is_set() and not self._queue.num_answers

    def _process_batch(self, search: NearSearch, work: Work) -> bool:
        """Do a batch of each kind of work; returns whether the index wants more upkeep."""
        self._batches.leave(search, work.gone)
        self._notify_gone(work.gone)
        # Prompts first: a request waits for them, nobody waits for an answer to join.
        if work.prompts:
            self._batches.answer(search, work.prompts)
        if work.answers:
            self._write(self._batches.join(search, work.answers))
        more = search.maintain()
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
            self._tiers.write(a for a in answers if self.answer(a.namespace, a.answer_id))
            self._joining = []

    def _write_exact(self, answers: Sequence[Answer]) -> None:
        """Have answers for exact hits written, with their queries, by which they are forgotten."""
        if self._tiers is None or not answers:
            return
        texts = [self._queries.read(None, answer.prompt_token_ids) for answer in answers]
        whole = [
            msgspec.structs.replace(answer, prompt_text=text)
            for answer, text in zip(answers, texts, strict=True)
        ]
        with self._changed:
            self._tiers.write(a for a in whole if not self._was_just_forgotten(a))

    def _count(self, **increments: float) -> None:
        """Add to the counters; the caller holds the lock."""
        self._stats = replace(
            self._stats,
            **{name: getattr(self._stats, name) + value for name, value in increments.items()},
        )
