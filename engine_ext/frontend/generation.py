"""One request that the engine generates for, as the front end sees it."""

import time
from typing import TYPE_CHECKING

from reprise.engine_ext.frontend.exact_hits import ExactKeys
from reprise.engine_ext.frontend.single_flight import FinishedFlight
from reprise.engine_ext.request.request_plan import RequestPlan

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest

    from reprise.engine_ext.frontend.front_end import FrontEnd


class Generation:
    """One request that the engine generates for: a `FlightWatcher` and an `InfoSource`."""

    def __init__(
        self, front_end: "FrontEnd", request: "EngineCoreRequest", plan: RequestPlan
    ) -> None:
        self._front_end = front_end
        self._request_id = request.request_id
        self._trace_headers = request.trace_headers
        self._begun_s = time.monotonic()
        self.prompt_token_ids = request.prompt_token_ids or []
        self.plan = plan
        self.keys: ExactKeys | None = None
        """Where its answer will lie; None: it is no exact answer."""
        self.retrieves = False
        """Whether near answers are searched for here."""
        self.kind = "miss"
        """What the reply tells: exact, semantic, clause or miss."""
        self.weights_epoch = front_end.weights_epoch
        self.weight_version = front_end.flights.weight_version

    def on_first_token(self) -> None:
        """Near answers that are there now help from the first decode step on."""
        near_answers = self._front_end.near_answers
        if self.retrieves and near_answers is not None:
            self.kind = near_answers.kind(self._request_id)
            self._front_end.metrics.near_answers(self.kind)

    def on_finish(self, finished: FinishedFlight) -> None:
        """Hand the answer on."""
        self._front_end.keep(self, finished)

    def on_end(self) -> None:
        """Let go of the near answers."""
        near_answers = self._front_end.near_answers
        if self.retrieves and near_answers is not None:
            self._front_end.spans.retrieval(
                self._trace_headers,
                kind=self.kind,
                begun_s=self._begun_s,
                found_s=near_answers.found_s(self._request_id),
            )
            near_answers.end(self._request_id)

    def retrieval_ms(self) -> float | None:
        """From here until near answers were there; None: not searched for here, or not yet."""
        near_answers = self._front_end.near_answers
        if not self.retrieves or near_answers is None:
            return None
        found_s = near_answers.found_s(self._request_id)
        return (found_s - self._begun_s) * 1e3 if found_s is not None else None
