"""Answers from the tier that nothing vouches for: the engine verifies them."""

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.frontend.exact_answers import ExactAnswers
from reprise.engine_ext.frontend.serving_metrics import ServingMetrics
from reprise.engine_ext.frontend.tracked_request import TrackedRequest
from reprise.engine_ext.outputs.replay import Replayer
from reprise.engine_ext.outputs.single_flight import SingleFlight
from reprise.engine_ext.outputs.verdict import Verdict
from reprise.engine_ext.outputs.verified_replay import VerifiedReplays
from reprise.retrieval.api.answer import Answer
from reprise.spec.api.near_answer import are_tokens

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.output_processor import OutputProcessor

# The first token comes from the prefill with or without a check.
_MIN_TOKENS = 2
# Model runner V1 holds the logits of all prompt tokens of a step at once: as the model gives them,
# as float32, and their logarithms. V2 takes a thousand tokens at a time.
_MAX_LOGITS_BYTES = 1 << 30
_BYTES_A_LOGIT = 12


class VerifiedAnswers:
    """Decides what is verified, and counts what comes of it. Event loop only.

    Args:
        vllm_config: Of the engine.
        processor: Of the engine's client.
        submit: Gives the engine a request that the processor knows.
        flights: Where requests that the engine generates for are recorded.
        replayer: Ends requests that have failed.
        exact: Told of the use of stored answers.
        metrics: Count verified answers and tokens.
        counts: As of the front end.
        errors: Counts what goes wrong here.
    """

    def __init__(
        self,
        vllm_config: "VllmConfig",
        processor: "OutputProcessor",
        *,
        submit: "Callable[[EngineCoreRequest], Awaitable[None]]",
        flights: SingleFlight,
        replayer: Replayer,
        exact: ExactAnswers,
        metrics: ServingMetrics,
        counts: Counter[str],
        errors: ErrorCounter,
    ) -> None:
        self._processor, self._flights, self._replayer = processor, flights, replayer
        self._exact, self._metrics, self._counts, self._errors = exact, metrics, counts, errors
        model = vllm_config.model_config
        self._max_model_len = model.max_model_len
        self._vocabulary_size = model.get_vocab_size()
        self._max_logits_tokens: int | None = None
        """In one step; None: any number."""
        if not vllm_config.use_v2_model_runner:
            self._max_logits_tokens = _MAX_LOGITS_BYTES // (_BYTES_A_LOGIT * self._vocabulary_size)
        self._max_step_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self._replays = VerifiedReplays(
            processor,
            submit=partial(self._generate, submit),
            is_led=lambda request_id: flights.watcher_of(request_id) is not None,
            on_failure=self._fail,
            max_model_len=self._max_model_len,
            breaks_ties=model.dtype in (torch.bfloat16, torch.float16),
            turns=replayer.turns,
            errors=errors,
        )

    def begin(self, request: "EngineCoreRequest", stored: Answer) -> "EngineCoreRequest | None":
        """Return the check of a stored answer, which the engine is to be given in place of the
        request; None: it is not worth one, or takes too much memory."""
        tracked = self._flights.watcher_of(request.request_id)
        if not isinstance(tracked, TrackedRequest):
            return None
        token_ids = self._checkable(request, stored)
        if len(token_ids) < _MIN_TOKENS:
            return None
        on_verdict = partial(self._on_verdict, tracked, stored, len(token_ids))
        return self._replays.begin(request, token_ids, on_verdict=on_verdict)

    def forget(self, request_id: str) -> None:
        """Drop the check of a request that is not under way after all."""
        self._replays.forget(request_id)

    def close(self) -> None:
        """Give the engine nothing more."""
        self._replays.close()

    def _checkable(self, request: "EngineCoreRequest", stored: Answer) -> list[int]:
        """Return as much of a stored answer as can be checked at once."""
        assert request.sampling_params is not None
        num_prompt_tokens = len(request.prompt_token_ids or ())
        room = self._max_model_len - 1 - num_prompt_tokens
        if (max_tokens := request.sampling_params.max_tokens) is not None:
            room = min(room, max_tokens)
        token_ids = stored.response_token_ids[: max(0, room)]
        at_once = min(num_prompt_tokens + len(token_ids), self._max_step_tokens)
        if self._max_logits_tokens is not None and at_once > self._max_logits_tokens:
            return []
        # What is stored may be anything, and the model looks each of them up.
        return token_ids.tolist() if are_tokens(token_ids, self._vocabulary_size) else []

    def _on_verdict(
        self, tracked: TrackedRequest, stored: Answer, num_asked: int, verdict: Verdict
    ) -> None:
        num_tokens = tracked.num_verified = verdict.num_tokens
        outcome = "whole" if num_tokens == num_asked else "part" if num_tokens else "none"
        if verdict.ending is not None:
            outcome = "whole"
        self._metrics.verified(outcome, num_tokens)
        self._counts["checked"] += 1
        if num_tokens:
            self._counts["verified"] += 1
            self._counts["tokens_verified"] += num_tokens
            if self._exact.shared is not None and stored.exact_key is not None:
                self._exact.shared.used(stored.namespace, stored.exact_key, num_tokens)

    async def _generate(
        self,
        submit: "Callable[[EngineCoreRequest], Awaitable[None]]",
        request: "EngineCoreRequest",
    ) -> None:
        """Give the engine what the verified tokens do not end."""
        tracked = self._flights.watcher_of(request.request_id)
        if isinstance(tracked, TrackedRequest) and tracked.policy.info is not None:
            tracked.policy.info.generates(request.request_id)
        await submit(request)

    def _fail(self, request_id: str, error: Exception) -> None:
        """End a request that the engine could not be given, and those that follow it."""
        try:
            self._flights.cancel(request_id, error)
            state = self._processor.request_states.get(request_id)
            if state is not None:
                self._replayer.fail(state, error)
        except Exception as another:
            self._errors.record("verified_replay", another)
