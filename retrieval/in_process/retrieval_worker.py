"""The thread in which a retriever embeds, searches and indexes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.tier_url import snapshot_path
from reprise.retrieval.host.loop_errors import LoopErrors, keep_going
from reprise.retrieval.in_process.batch_processor import BatchProcessor, OnFound
from reprise.retrieval.in_process.behind_memory import BehindMemory
from reprise.retrieval.in_process.near_duplicates import NearDuplicates
from reprise.retrieval.in_process.retriever_memory import RetrieverMemory
from reprise.retrieval.in_process.shared_state import SharedState
from reprise.retrieval.in_process.work_queue import Work
from reprise.retrieval.query.clauses import ClauseSplitter
from reprise.retrieval.search.embedding import LEXICAL, Embedder
from reprise.retrieval.search.near_search import NearSearch

OnGone = Callable[[Sequence[tuple[str, str]]], None]
_IDLE_S = 0.25
_EXPIRE_EVERY_S = 0.5
# Of what expired or left the tier. With each time the embedder forgets its namespaces' texts, and
# every vector of their graphs is looked at.
_ERASE_EVERY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class ModelLoading:
    """How a worker comes by its models, for which its caller waits."""

    embedder: Embedder | None
    """Instead of loading the configured model."""
    threads: int | None
    """Torch threads, see `Embedder`."""
    began_s: float
    """Since when the caller waits for the retriever, in seconds of `time.monotonic`."""


class RetrievalWorker:
    """Takes what waits in a retriever's queues, a batch at a time, until the retriever closes.

    Args:
        config: Settings.
        shared: What waits for it, and where it leaves what it has found.
        memory: What the retriever holds.
        behind: The tier and the search beyond memory.
        models: Where its models come from.
        on_found: Called with each request's id, namespace, near answers and clauses.
        on_gone: Called with the (namespace, id) that left memory.
        on_erased: Called with those of which no trace is to be left.
    """

    def __init__(
        self,
        config: RetrievalConfig,
        shared: SharedState,
        *,
        memory: RetrieverMemory,
        behind: BehindMemory,
        models: ModelLoading,
        on_found: OnFound | None,
        on_gone: OnGone | None,
        on_erased: OnGone | None,
    ) -> None:
        self._config, self._queue, self._queries = config, shared.queue, shared.queries
        self._memory, self._behind, self._tiers = memory, behind, behind.tiers
        self._changed, self._closing, self._on_gone = shared.changed, shared.closing, on_gone
        self._models = models
        self._on_erased = on_erased
        self.search: NearSearch | None = None
        """None until the models are loaded."""
        self.ready_after_s: float | None = None
        """How long the caller waited for the models; None until they are loaded."""
        self.num_waiting = 0
        """Answers that upkeep of the index has yet to move into its graph."""
        self.is_busy = True
        """Whether there is work under way, loading the models included; the lock guards it."""
        self.errors = LoopErrors("A batch of retrieval work")
        # Nothing but a tier could bring back what another answer stood for.
        self._duplicates = (
            None
            if self._tiers is None
            else NearDuplicates(memory, min_cosine=config.duplicate_similarity)
        )
        self._batches = BatchProcessor(
            shared, memory=memory.tier, on_found=on_found, duplicates=self._duplicates
        )
        self._thread = threading.Thread(
            target=keep_going,
            args=(self._work, self.errors),
            kwargs={"pause": self._pause},
            name="reprise-retrieval",
            daemon=True,
        )

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait until what was left to be done at closing is done, or for so long."""
        self._thread.join(timeout=timeout_s)

    def write_waiting(self) -> None:
        """Have answers that wait for the models written without vectors; for a retriever that
        closes before they are loaded."""
        answers: list[Answer] = []
        exact: list[Answer] = []
        with self._changed:
            while self._queue:
                work = self._queue.take(self._config.queue_length)
                self._batches.give_nothing(work.prompts)
                answers += [answer for answer, ours in work.answers if ours]
            while self._memory.exact:
                exact += self._memory.exact.take()
        self._attempt(partial(self._write_bare, answers))
        self._attempt(partial(self._write_exact, exact))

    def has_work(self) -> bool:
        """Return whether something waits for the worker; the caller holds the lock."""
        memory, closing = self._memory, self._closing.is_set()
        found = self._behind.has_found
        return bool(self._queue or memory.exact) or memory.has_erasures or found or closing

    def _work(self) -> None:
        """Load the models, then do what there is to do until closed: the worker thread."""
        if self.search is None:
            self.search = self._load()
            self.ready_after_s = time.monotonic() - self._models.began_s
            self._behind.open_search(self.search.embedder)
        search, next_expiry_s, next_erasure_s, upkeep = self.search, 0.0, 0.0, False
        while True:
            with self._changed:
                self.is_busy = False
                self._changed.notify_all()
                self._changed.wait_for(
                    self.has_work, 0.0 if upkeep else self._behind.pause_s(_IDLE_S)
                )
                if self._closing.is_set() and self._is_idle():
                    search.close()
                    return
                work, exact = self._queue.take(self._config.batch_size), self._memory.exact.take()
                self._memory.joining = work.answers
                is_due = self._closing.is_set() or time.monotonic() >= next_erasure_s
                erased, at_once = self._memory.take_erasures(later_too=is_due)
                # Upkeep alone is not work that anybody waits for.
                self.is_busy = bool(work or erased or exact or self._behind.has_found)
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
                next_erasure_s = time.monotonic() + _ERASE_EVERY_S
                self._erase(search, erased, at_once=at_once)
            if is_complete:
                self._attempt(search.drop_unclaimed)

    def _attempt(self, part: Callable[[], Any]) -> Any:
        """Do a part of a batch; returns its result, None after an error."""
        try:
            return part()
        except Exception as error:
            self.errors.failed(error)
            return None

    def _erase(self, search: NearSearch, keys: set[tuple[str, str]], *, at_once: bool) -> None:
        """Leave no trace of answers; what fails is tried again, for it has been promised."""
        try:
            search.erase(keys, at_once=at_once)
        except Exception as error:
            with self._changed:
                if not self._closing.is_set():
                    self._memory.put_back_erasures(keys)
            self._pause(self.errors.failed(error))
            return
        if self._on_erased is not None:
            self._attempt(partial(self._on_erased, tuple(keys)))

    def _load(self) -> NearSearch:
        """Return the search, with its models."""
        config = self._config
        embedder = self._models.embedder or Embedder(
            config.embedding_model, threads=self._models.threads, batch_size=config.batch_size
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
            return self._changed.wait_for(self._closing.is_set, seconds)

    def _is_idle(self) -> bool:
        """Return whether nothing is left to be done before closing; the caller holds the lock."""
        queue, memory = self._queue, self._memory
        erases = memory.has_erasures or memory.has_later_erasures
        return not (queue.num_answers or queue.num_gone or erases or memory.exact)

    def _is_complete(self) -> bool:
        """Return whether all that the tier holds has been taken; the caller holds the lock."""
        tiers = self._tiers
        if tiers is None or self._closing.is_set():
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
            self.errors.failed(error)
            self._batches.give_nothing(work.prompts)
        if work.answers:
            self._write(self._batches.join(search, work.answers))
        duplicates = self._duplicates
        # What was folded into another one is to leave before it is moved into a graph.
        more = (duplicates is not None and duplicates.step(search)) or search.maintain()
        more = more or (duplicates is not None and duplicates.has_more)
        self.num_waiting = search.num_waiting
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

    def _write_bare(self, answers: Sequence[Answer]) -> None:
        """Have answers that are still held written without vectors."""
        if self._tiers is None:
            return
        named = self._batches.with_prompt_texts(answers)
        with self._changed:
            held = [a for a in named if self._memory.answer(a.namespace, a.answer_id)]
            self._tiers.write(held)

    def _write_exact(self, answers: Sequence[Answer]) -> None:
        """Have answers for exact hits written, with their queries, by which they are forgotten."""
        if self._tiers is None or not answers:
            return
        # One whose query cannot be read could not be forgotten by it: it is not written.
        read = [self._attempt(partial(self._with_query, answer)) for answer in answers]
        whole = [answer for answer in read if answer is not None]
        with self._changed:
            self._tiers.write(whole)

    def _with_query(self, answer: Answer) -> Answer:
        text = self._queries.read(None, answer.prompt_token_ids)
        return msgspec.structs.replace(answer, prompt_text=text)
