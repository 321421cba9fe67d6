"""Takes finished requests off the engine's thread and into the cache and the drafts' corpus."""

import queue
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.retrieval.api.answer import Answer, AnswerUpdate
from reprise.retrieval.api.retriever import Retriever
from reprise.retrieval.search.token_overlap import TokenOverlap
from reprise.spec.api.near_answer import are_tokens

_QUEUE_LENGTH = 1024
# Token ids in lists take some 36 bytes each.
_QUEUE_TOKENS = 2_000_000
# How long an answer that another replica learned may wait before it is drafted from here.
_UPDATE_INTERVAL_S = 0.1


class FinishedRequest(NamedTuple):
    """A request that the engine is done with."""

    namespace: str
    model_key: str
    tokenizer_key: str
    prompt_token_ids: Sequence[int] | NDArray[np.int32]
    response_token_ids: Sequence[int] | NDArray[np.int32]
    ended_s: float
    """In seconds since 1970: what is to be forgotten from later on includes it."""


class DraftsFromCorpora(Protocol):
    """What drafts, on the host or on the device, from all answers of a namespace."""

    def add_answer(
        self, answer_id: str, response_token_ids: NDArray[np.int32], *, namespace: str = ""
    ) -> None:
        """Index an answer of a namespace; one already indexed under this id stays as it is."""

    def remove_answer(self, answer_id: str, *, namespace: str = "") -> None:
        """Take an answer out of the index; an unknown id is ignored."""


class AnswerLearner:
    """One background thread. What it cannot keep up with is dropped and counted.

    Args:
        provider: Drafts from the answers that join, here or on other replicas.
        retriever: Holds them, and finds near ones by meaning.
        overlap: Finds near ones by shared tokens.
        errors: Counts what goes wrong.
    """

    def __init__(
        self,
        provider: DraftsFromCorpora,
        retriever: Retriever,
        overlap: TokenOverlap,
        *,
        vocabulary_size: int,
        errors: ErrorCounter,
    ) -> None:
        self._vocabulary_size = vocabulary_size
        self._provider = provider
        self._retriever = retriever
        self._overlap = overlap
        self._errors = errors
        self._queue: queue.Queue[FinishedRequest] = queue.Queue(_QUEUE_LENGTH)
        self._waiting_tokens = 0
        self._waiting_lock = threading.Lock()
        self._update_rounds = 0
        # A daemon: it ends with the worker, which has nothing of its own to write by then.
        threading.Thread(target=self._run, name="reprise-learn", daemon=True).start()

    def learn(self, finished: FinishedRequest) -> None:
        """Take in a finished request; returns at once."""
        if len(finished.response_token_ids) == 0:
            return
        num_tokens = _num_tokens(finished)
        try:
            with self._waiting_lock:
                if self._waiting_tokens + num_tokens > _QUEUE_TOKENS:
                    raise queue.Full
                self._queue.put_nowait(finished)
                self._waiting_tokens += num_tokens
        except queue.Full as error:
            self._errors.record("learn: queue full", error)

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was handed in so far is stored, searchable and in the corpus."""
        deadline = time.monotonic() + timeout_s
        while self._queue.unfinished_tasks:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        if not self._retriever.flush(max(0.0, deadline - time.monotonic())):
            return False
        # Two rounds: one may have begun before the retriever was done.
        rounds = self._update_rounds + 2
        while self._update_rounds < rounds:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def _run(self) -> None:
        while True:
            try:
                finished = self._queue.get(timeout=_UPDATE_INTERVAL_S)
            except queue.Empty:
                finished = None
            if finished is not None:
                with self._errors.recording("learn"):
                    self._learn(finished)
                with self._waiting_lock:
                    self._waiting_tokens -= _num_tokens(finished)
                self._queue.task_done()
            with self._errors.recording("learn"):
                self._apply_updates()
            self._update_rounds += 1

    def _learn(self, finished: FinishedRequest) -> None:
        answer = Answer.create(
            namespace=finished.namespace,
            model_key=finished.model_key,
            tokenizer_key=finished.tokenizer_key,
            prompt_token_ids=finished.prompt_token_ids,
            response_token_ids=finished.response_token_ids,
            created_s=finished.ended_s,
        )
        self._retriever.store(answer)

    def _apply_updates(self) -> None:
        for update in self._retriever.updates():
            # One that fails takes no other along: they come once.
            with self._errors.recording("learn"):
                self._apply(update)

    def _apply(self, update: AnswerUpdate) -> None:
        if not update.added:
            # Also if the other one fails: what is removed must not be drafted from.
            with self._errors.recording("learn"):
                self._provider.remove_answer(update.answer_id, namespace=update.namespace)
            self._overlap.apply(update)
            return
        if not are_tokens(update.response_token_ids, self._vocabulary_size):
            raise ValueError("an answer holds what is no token of the model's vocabulary")
        self._overlap.apply(update)
        self._provider.add_answer(
            update.answer_id, update.response_token_ids, namespace=update.namespace
        )


def _num_tokens(finished: FinishedRequest) -> int:
    return len(finished.prompt_token_ids) + len(finished.response_token_ids)
