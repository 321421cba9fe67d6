"""Learns the mixture's weights on the host, from requests that have ended.

What the device drafted is not followed step by step: a request that is over is gone through once
more, as it came, by the host's predictor, which learns from every token as it does on model runner
V1 (`spec/predictor/learning.py`). Its weights are then written over the device's, between two steps
and in the order of the stream, so that no step sees some of the old and some of the new.

The predictor has corpora of its own here, which an answer joins only when a request that began
after it is gone through: otherwise requests would find their own answers in them, and learn that
copies are always right.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.speculator.upload import prepare
from reprise.kernels.mixture.layout import MAX_NEAR
from reprise.kernels.mixture.state import MixtureState
from reprise.spec.api.config import DraftConfig
from reprise.spec.api.near_answer import NearAnswer
from reprise.spec.provider import DraftProvider

MAX_WAITING = 64
"""Requests; what ends while so many wait is left out."""
MAX_WAITING_UPDATES = 1024
"""Answers that no request has come after yet; beyond, the oldest join all the same."""
MAX_TOKENS = 512
"""That are learned from a request; its first ones."""
TIME_SHARE = 0.1
"""Of one core, that the thread works at most."""
UPLOAD_EVERY_TOKENS = 128
_DRAFT_LENGTH = 4
_REPLAYED = "replayed"

IntArray = NDArray[np.int32]


class EndedRequest(NamedTuple):
    """What is learned from."""

    namespace: str
    prompt_token_ids: Sequence[int] | IntArray
    response_token_ids: Sequence[int] | IntArray
    near_answers: Sequence[NearAnswer]
    num_updates: int
    """Of `MixtureLearner`, when the request began."""


def learning_provider(
    *, max_near_answers: int = MAX_NEAR, max_corpus_bytes: int = 1 << 30
) -> DraftProvider:
    """Return a provider to learn with: short drafts, which waste little, and no threads."""
    return DraftProvider(
        DraftConfig(
            num_speculative_tokens=_DRAFT_LENGTH,
            verify_cost=0.0,
            max_near_answers=min(max_near_answers, MAX_NEAR),
            max_corpus_bytes=max_corpus_bytes,
            num_threads=1,
        )
    )


def replay_request(provider: DraftProvider, ended: EndedRequest) -> int:
    """Have a provider predict a request's tokens as they came, and learn; return how many they
    were.

    Raises:
        RuntimeError: it could not.
    """
    tokens = np.asarray(ended.response_token_ids[:MAX_TOKENS], np.int32).tolist()
    num_errors = provider.stats().errors
    provider.start(_REPLAYED, ended.prompt_token_ids, namespace=ended.namespace)
    try:
        provider.attach(_REPLAYED, ended.near_answers)
        draft: list[int] = []
        at = 0
        while at < len(tokens):
            emitted = tokens[at : at + _num_right(draft, tokens[at:]) + 1]
            at += len(emitted)
            (draft,) = provider.step([_REPLAYED], [emitted])
    finally:
        provider.finish(_REPLAYED)
    if provider.stats().errors != num_errors:
        raise RuntimeError("a step of the predictor failed")
    return len(tokens)


def _num_right(draft: Sequence[int], tokens: Sequence[int]) -> int:
    pairs = zip(draft, tokens, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


class MixtureLearner:
    """A thread that learns, at most `TIME_SHARE` of the time, from what it is offered.

    A failure ends learning: what is drafted with stays as it is.

    Args:
        provider: predicts and learns; this learner's alone.
        state: has the weights that are drafted with.
        errors: counts what goes wrong.
    """

    def __init__(
        self,
        provider: DraftProvider,
        state: MixtureState,
        *,
        errors: ErrorCounter,
    ) -> None:
        self._provider = provider
        self._state = state
        self._errors = errors
        self._ended: deque[EndedRequest] = deque()
        self._num_unfinished = 0
        self._has_ended = threading.Condition()
        self._updates: deque[tuple[str, IntArray, str]] = deque()
        self._num_joined = 0
        self._corpus_lock = threading.Lock()
        self._ready: deque[tuple[NDArray[np.float32], ...]] = deque(maxlen=1)
        self._is_flushed = threading.Event()
        self.num_updates = 0
        """Answers that have come so far."""
        self.num_learned = 0
        """Tokens."""
        self.has_failed = False
        # A daemon: it ends with the worker.
        threading.Thread(target=self._run, name="reprise-mixture", daemon=True).start()

    @property
    def has_room(self) -> bool:
        """Whether another request would be learned from."""
        return not self.has_failed and self._num_unfinished < MAX_WAITING

    def offer(self, ended: EndedRequest) -> None:
        """Take in a request that is over; returns at once."""
        with self._has_ended:
            if self.has_room:
                self._ended.append(ended)
                self._num_unfinished += 1
                self._has_ended.notify()

    def add_answer(
        self, answer_id: str, response_token_ids: IntArray, *, namespace: str = ""
    ) -> None:
        """Let an answer join for requests that begin from now on."""
        if self.has_failed:
            return
        with self._corpus_lock:
            self.num_updates += 1
            self._updates.append((answer_id, response_token_ids, namespace))
            if len(self._updates) > MAX_WAITING_UPDATES:
                self._join(self._num_joined + 1)

    def remove_answer(self, answer_id: str, *, namespace: str = "") -> None:
        """Forget an answer, whether it has joined or not; an unknown id is ignored."""
        with self._corpus_lock:
            self._updates = deque(
                (each, np.zeros(0, np.int32), of)
                if (each, of) == (answer_id, namespace)
                else (each, tokens, of)
                for each, tokens, of in self._updates
            )
            self._provider.remove_answer(answer_id, namespace=namespace)

    def put_in_place(self) -> None:
        """Have the next step draft with what has been learned, if that is new. The thread that
        launches steps only; it does not wait."""
        if self._ready:
            targets = (self._state.mixture_weights, self._state.choice_weights)
            tables = self._ready.popleft()
            uploads = [prepare(*each) for each in zip(targets, tables, strict=True)]
            for upload in uploads:  # both or none
                upload.enqueue()

    def report(self) -> dict[str, int]:
        """Return figures since the start."""
        return {"tokens_learned_from": self.num_learned}

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was offered so far has been learned from, without pauses; return
        whether it is."""
        deadline = time.monotonic() + timeout_s
        self._is_flushed.set()
        try:
            while self._num_unfinished and not self.has_failed:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.002)
            return True
        finally:
            self._is_flushed.clear()

    def _run(self) -> None:
        since_upload = 0
        while not self.has_failed:
            with self._has_ended:
                self._has_ended.wait_for(lambda: self._ended)
                ended = self._ended.popleft()
            began_s = time.monotonic()
            try:
                since_upload += self._learn(ended)
                if since_upload >= UPLOAD_EVERY_TOKENS or not self._ended:
                    self._hand_over()
                    since_upload = 0
            except Exception as error:
                self._errors.record("learn weights", error)
                self.has_failed = True
            with self._has_ended:
                self._num_unfinished -= 1
                if self.has_failed:
                    self._ended.clear()
            self._is_flushed.wait((time.monotonic() - began_s) * (1.0 / TIME_SHARE - 1.0))

    def _learn(self, ended: EndedRequest) -> int:
        with self._corpus_lock:
            self._join(ended.num_updates)
        count = replay_request(self._provider, ended)
        self.num_learned += count
        return count

    def _join(self, num_updates: int) -> None:
        """Let the first so many answers join, as far as they have not. Under the lock."""
        while self._num_joined < num_updates and self._updates:
            answer_id, tokens, namespace = self._updates.popleft()
            self._num_joined += 1
            if len(tokens):
                self._provider.add_answer(answer_id, tokens, namespace=namespace)

    def _hand_over(self) -> None:
        """Leave the weights to the next step: only its thread may ask anything of the device."""
        weights = self._provider.weights()
        tables = (weights.mixture, weights.choice)
        if not all(np.isfinite(table).all() for table in tables):
            raise RuntimeError("weights are not finite any more")
        self._ready.append(tables)
