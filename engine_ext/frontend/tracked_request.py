"""Tracks one request that the engine generates for: its near answers, its time, its answer."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from reprise.engine_ext.frontend.near_answers import NearAnswers
from reprise.engine_ext.frontend.serving_metrics import ServingMetrics
from reprise.engine_ext.frontend.spans import Spans
from reprise.engine_ext.outputs.flight import FinishedFlight
from reprise.engine_ext.request.exact_hits import ExactKeys
from reprise.engine_ext.request.request_policy import RequestPolicy
from reprise.engine_ext.request.shared_keys import SharedKeys

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest

    from reprise.retrieval.api.found_clause import FoundClause


class TrackedRequest:
    """Tracks one request that the engine generates for: a `FlightWatcher` and an `InfoSource`.

    Args:
        request: As the engine gets it.
        policy: Of this request.
        weights: The state of its weights as it comes, see `ExactAnswers.weights_of`.
        weight_version: vLLM's label of the weights, as the request comes; None: not known yet.
        near_answers: Where near answers are searched for; None: the workers do that.
        on_answer: Called with this object and the whole answer, if there is one.
        on_end: Called with its id when it is over.
    """

    def __init__(
        self,
        request: "EngineCoreRequest",
        policy: RequestPolicy,
        *,
        weights: str,
        weight_version: str | None,
        near_answers: NearAnswers | None,
        metrics: ServingMetrics,
        spans: Spans,
        on_answer: "Callable[[TrackedRequest, FinishedFlight], None]",
        on_end: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._near_answers = near_answers
        self._metrics = metrics
        self._spans = spans
        self._on_answer = on_answer
        self._on_end = on_end
        self.request_id = request.request_id
        self._trace_headers = request.trace_headers
        self._begun_s = time.monotonic()
        self.prompt_token_ids = request.prompt_token_ids or []
        params = request.sampling_params
        self.max_tokens: int | None = params.max_tokens if params is not None else None
        self.policy = policy
        self.keys: ExactKeys | None = None
        """What its answer will be stored under; None: not for exact hits."""
        self.shared: SharedKeys | None = None
        """What it will be stored under in the tier; None: not there."""
        self.search_id: str | None = None
        """What its near answers are found under; None: they are not searched for here."""
        self.kind = "miss"
        """What the reply reports: exact, verified, semantic, clause or miss."""
        self.similarity: float | None = None
        """Of the nearest answer that was there at the first token; None: there was none."""
        self.num_verified = 0
        """Tokens of a stored answer that the model has verified, before it emits any."""
        self.reason: str | None = None
        """Why it could be no exact hit, or had no near answers, whatever the cache holds; None: it
        could."""
        self.lora_request = request.lora_request
        self.weights = weights
        self.weight_version = weight_version

    def on_first_token(self) -> None:
        """Note which near answers are there: those help from the first decode step on."""
        if self.search_id is not None and self._near_answers is not None:
            self.kind, self.similarity = self._near_answers.nearest(
                self.search_id, self.policy.namespace
            )
            if self.kind == "miss" and self.reason is None and self._near_answers.are_warming:
                self.reason = "warming"
            self._near_answers.kinds[self.kind] += 1
            self._metrics.near_answers(self.kind)
        if self.num_verified:
            self.kind = "verified"

    def on_finish(self, finished: FinishedFlight) -> None:
        """Pass the answer on."""
        self._on_answer(self, finished)

    def on_end(self) -> None:
        """Release the near answers, and whatever else was taken for it."""
        self._on_end(self.request_id)
        if self.search_id is not None and self._near_answers is not None:
            self._spans.retrieval(
                self._trace_headers,
                kind=self.kind,
                begun_s=self._begun_s,
                found_s=self._near_answers.found_s(self.search_id),
            )
            self._near_answers.end(self.search_id)

    def retrieval_ms(self) -> float | None:
        """Return the time from here until near answers were there, in milliseconds.

        None: they are not searched for here, or the search has not ended.
        """
        if self.search_id is None or self._near_answers is None:
            return None
        found_s = self._near_answers.found_s(self.search_id)
        return (found_s - self._begun_s) * 1e3 if found_s is not None else None

    def clauses(self) -> "list[FoundClause]":
        """Return the clauses that the question was found to have; none where it asks one thing, or
        where that is not known here."""
        if self.search_id is None or self._near_answers is None:
            return []
        return self._near_answers.clauses(self.search_id)
