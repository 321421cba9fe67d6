"""Answers requests from the cache: one object per API server process, on its event loop."""

import time
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from vllm.exceptions import GracefulHTTPError
from vllm.logger import init_logger
from vllm.v1.engine import FinishReason

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.core.model_key import model_key_of, tokenizer_key_of
from reprise.engine_ext.core.request_hints import attach_hints, read_hints
from reprise.engine_ext.frontend.exact_memory import ExactMemory
from reprise.engine_ext.frontend.near_answers import NearAnswers
from reprise.engine_ext.frontend.one_token_outputs import OneTokenOutputs, watch_parsers
from reprise.engine_ext.frontend.replay import Ending, Replayer
from reprise.engine_ext.frontend.serving_metrics import ServingMetrics
from reprise.engine_ext.frontend.single_flight import FinishedFlight, SingleFlight
from reprise.engine_ext.frontend.spans import Spans
from reprise.engine_ext.frontend.tracked_request import TrackedRequest
from reprise.engine_ext.request.adapter_epochs import AdapterEpochs
from reprise.engine_ext.request.exact_hits import (
    ExactKeys,
    exact_keys,
    is_determined,
    refusal,
    unsupported_engine,
)
from reprise.engine_ext.request.request_policy import RequestPolicy
from reprise.retrieval.api.answer import Answer
from reprise.retrieval.host import steady_clock

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

    from reprise.engine_ext.core.config import RepriseConfig
    from reprise.retrieval.api.retriever import Retriever

logger = init_logger(__name__)


class NotCachedError(GracefulHTTPError):  # type: ignore[misc]
    """Raised if a request may only be answered from the cache, which has no answer."""

    def __init__(self) -> None:
        super().__init__(
            "no cached answer, and the request asked for only-if-cached",
            HTTPStatus.GATEWAY_TIMEOUT,
        )


class FrontEnd:
    """Serves exact hits and single flight through one vLLM output processor."""

    def __init__(
        self,
        vllm_config: "VllmConfig",
        config: "RepriseConfig",
        processor: "OutputProcessor",
        *,
        num_api_servers: int = 1,
        retriever: "Retriever | None" = None,
    ) -> None:
        serving = config.serving
        self.config = config
        self._processor = processor
        self.errors = ErrorCounter()
        lives_s = [s for s in (serving.ttl_s, config.retrieval.ttl_s) if s is not None]
        self.memory = ExactMemory(
            max_bytes=serving.exact_memory_bytes, ttl_s=min(lives_s, default=None)
        )
        self.metrics = ServingMetrics(vllm_config.model_config.served_model_name)
        self.counts: Counter[str] = Counter()
        """exact, followed, miss; stored; tokens_saved."""
        self.refusals: Counter[str] = Counter()
        """Requests that could not be answered from the cache, by reason."""
        watch_parsers()
        # Innermost of what replaces the processor's methods: it splits what the others pass on.
        OneTokenOutputs(processor, errors=self.errors)
        self._replayer = Replayer(
            processor, chunk_tokens=serving.replay_chunk_tokens, errors=self.errors
        )
        self.spans = Spans(enabled=processor.tracing_enabled)
        self.flights = SingleFlight(processor, self._replayer, errors=self.errors)
        self.near_answers = (
            NearAnswers(
                retriever,
                model_key=model_key_of(vllm_config),
                tokenizer_key=tokenizer_key_of(vllm_config),
            )
            if retriever is not None
            else None
        )
        """None: the workers search by themselves."""
        self._vllm_config = vllm_config
        self._num_api_servers = num_api_servers
        self._model_key = model_key_of(vllm_config)
        self.weights_epoch = 0
        self.is_paused = False
        """Whether the engine's generation is paused: it decides then on every request."""
        self.adapters = AdapterEpochs()
        self._unsupported = unsupported_engine(vllm_config)
        if num_api_servers > 1 and vllm_config.weight_transfer_config is not None:
            self._unsupported = "weights may change through another API server process"
        if self._unsupported is not None and serving.exact_hits != "off":
            logger.warning("Reprise: no exact hits, because %s.", self._unsupported)

    def answer(
        self,
        request: "EngineCoreRequest",
        prompt: str | None,
        queue: "RequestOutputCollector",
        policy: RequestPolicy,
    ) -> bool:
        """Answer `request` without the engine if that can be done exactly.

        Returns:
            False: the engine has to generate. The search for near answers has begun then, and
            what the engine emits for this id is recorded.

        Raises:
            NotCachedError: it has to, and the request forbids it.
        """
        started_s = time.perf_counter()
        tracked: TrackedRequest | None = None
        kind = "miss"
        # Of streaming input, each piece comes here.
        is_new = not self._processor.has_request(request.request_id)
        try:
            tracked = TrackedRequest(
                request,
                policy,
                weights_epoch=self.weights_epoch,
                weight_version=self.flights.weight_version,
                near_answers=self.near_answers,
                metrics=self.metrics,
                spans=self.spans,
                on_answer=self._store_answer,
            )
            kind = self._take(request, prompt, queue, tracked)
        except Exception as error:
            self.errors.record("exact_hit", error)
            if is_new:
                self._withdraw(request.request_id, queue)
        try:
            self._record(request, policy, tracked, kind, time.perf_counter() - started_s)
        except Exception as error:
            self.errors.record("front_end_records", error)
        if kind != "miss":
            return True
        if policy.control.only_if_cached:
            raise NotCachedError
        try:
            if tracked is not None:
                self._watch(request, tracked)
        except Exception as error:
            self.errors.record("watch", error)
        return False

    def _withdraw(self, request_id: str, queue: "RequestOutputCollector") -> None:
        """Undo what was done for a request before an error: vLLM must find it as it came."""
        try:
            self.flights.leave(request_id)
            self._replayer.withdraw(request_id, queue)
        except Exception as error:
            self.errors.record("withdraw", error)

    def _record(
        self,
        request: "EngineCoreRequest",
        policy: RequestPolicy,
        tracked: TrackedRequest | None,
        kind: str,
        took_s: float,
    ) -> None:
        """Count the request, and report how it was answered to the client that asked."""
        if tracked is not None:
            if kind != "miss":
                tracked.kind = "exact"
            if policy.http_context is not None:
                policy.http_context.add_outcome(lambda: tracked.kind)
            if policy.info is not None:
                policy.info.add(tracked)
        self.counts[kind] += 1
        self.metrics.request(kind, took_s)
        self.spans.exact_lookup(request.trace_headers, kind=kind, took_s=took_s)

    def not_admitted(self, request_id: str, error: Exception) -> None:
        """End the flight of a request that vLLM refused: no other may wait for it."""
        try:
            self.flights.cancel(request_id, error)
        except Exception as own_error:
            self.errors.record("not_admitted", own_error)

    def model_changed(self) -> None:
        """Drop all answers: weights were loaded, moved or replaced."""
        self.weights_epoch += 1
        self.memory.clear()

    def progress(self) -> int:
        """Return a number that changes with every request and every answer stored."""
        return self.counts.total()

    def report(self, workers: list[Any] | None) -> None:
        """Bring the metrics up to date; `workers` are their reports, in one process only."""
        self.metrics.memory(self.memory.stats())
        self.metrics.errors("front_end", self.errors.counts())
        if self.near_answers is not None:
            self.metrics.retrieval(self.near_answers.stats())
        if workers is not None:
            self.metrics.workers(workers)

    def close(self) -> None:
        """Stop replays in progress."""
        self._replayer.close()

    def stats(self) -> dict[str, Any]:
        """Return plain figures since this process started."""
        return {
            "counts": dict(self.counts),
            "refusals": dict(self.refusals),
            "memory": self.memory.stats()._asdict(),
            "flights": len(self.flights),
            "errors": self.errors.counts(),
            "retrieval": self.near_answers.stats() if self.near_answers is not None else None,
        }

    def _take(
        self,
        request: "EngineCoreRequest",
        prompt: str | None,
        queue: "RequestOutputCollector",
        tracked: TrackedRequest,
    ) -> str:
        """Answer the request if possible; return exact, followed or miss."""
        control = tracked.policy.control
        if not tracked.policy.shares:
            self._refuse("unknown tenant")
            return "miss"
        if not control.look_up and not control.store:
            return "miss"
        if self.is_paused:
            self._refuse("paused engine")
            return "miss"
        reason = self._unsupported or refusal(request, self.config.serving.exact_hits)
        reason = reason or self._adapter_refusal(request)
        if reason is not None:
            self._refuse(reason)
            return "miss"
        try:
            keys = exact_keys(
                request,
                namespace=tracked.policy.namespace,
                model_key=self._model_key_of(request),
            )
        except ValueError:
            self._refuse("a setting without an encoding")
            return "miss"
        tracked.keys = keys
        if control.look_up:
            stored = self._find(keys, request, control.max_age_s)
            if stored is not None:
                if self._replay(stored, request, prompt, queue):
                    return "exact"
                # It would fail the next time as well.
                self.memory.remove([stored])
            if self.flights.join(keys.limited, request, prompt, queue):
                return "followed"
        return "miss"

    def _watch(self, request: "EngineCoreRequest", tracked: TrackedRequest) -> None:
        """Begin the search for near answers; record what the engine will emit."""
        assert request.sampling_params is not None
        hints = read_hints(request.sampling_params)
        may_draft = hints.drafts and hints.max_draft != 0 and tracked.policy.shares
        if self.near_answers is not None and may_draft and not request.resumable:
            tracked.retrieves = self.near_answers.begin(request, tracked.policy.namespace)
            if tracked.retrieves:
                hints = msgspec.structs.replace(hints, retrieval_id=request.request_id)
                attach_hints(request.sampling_params, hints)
        keys = tracked.keys
        if keys is None and not tracked.retrieves:
            return
        may_be_followed = (
            keys is not None
            and tracked.policy.control.look_up
            and is_determined(request.sampling_params)
        )
        self.flights.lead(
            keys.limited if keys is not None and may_be_followed else None,
            request.request_id,
            watcher=tracked,
            priority=request.priority,
        )

    def _refuse(self, reason: str) -> None:
        self.refusals[reason] += 1
        self.metrics.refused(reason)

    def _save(self, num_tokens: int) -> None:
        self.counts["tokens_saved"] += num_tokens
        self.metrics.saved(num_tokens)

    def _find(
        self, keys: ExactKeys, request: "EngineCoreRequest", max_age_s: float | None
    ) -> Answer | None:
        assert request.sampling_params is not None
        max_tokens = request.sampling_params.max_tokens
        complete = self.memory.get(keys.complete)
        if complete is not None and not _has_room(complete, max_tokens):
            complete = None
        answer = complete if complete is not None else self.memory.get(keys.limited)
        if (
            answer is None
            or max_age_s is None
            or steady_clock.now_s() - answer.created_s <= max_age_s
        ):
            return answer
        return None

    def _replay(
        self,
        answer: Answer,
        request: "EngineCoreRequest",
        prompt: str | None,
        queue: "RequestOutputCollector",
    ) -> bool:
        token_ids: list[int] = answer.response_token_ids.tolist()
        ending = Ending(_REASONS[answer.finish_reason or ""], answer.stop_reason)
        replayed = self._replayer.replay(
            request, prompt, queue, token_ids, ending, self.flights.weight_version
        )
        if replayed:
            self._save(len(token_ids))
        return replayed

    def _store_answer(self, tracked: TrackedRequest, finished: FinishedFlight) -> None:
        """Store the answer of a request that came to its own end, as far as it allows that."""
        self._save(finished.num_followers * len(finished.token_ids))
        control = tracked.policy.control
        if not control.store:
            return
        if tracked.retrieves and self.near_answers is not None:
            self.near_answers.store(tracked.prompt_token_ids, finished, tracked.policy.namespace)
        keys = tracked.keys
        weight_version = self.flights.weight_version
        same_weights = tracked.weights_epoch == self.weights_epoch and tracked.weight_version in (
            None,
            weight_version,
        )
        if keys is None or not same_weights:
            return
        cut = finished.ending.finish_reason is FinishReason.LENGTH
        answer = Answer.create(
            prompt_token_ids=tracked.prompt_token_ids,
            response_token_ids=finished.token_ids,
            namespace=tracked.policy.namespace,
            model_key=self._model_key,
            finish_reason=str(finished.ending.finish_reason),
            stop_reason=finished.ending.stop_reason,
            exact_key=keys.limited if cut else keys.complete,
        )
        self.memory.put(answer, ttl_s=control.ttl_s)
        self.counts["stored"] += 1
        self.metrics.stored()
        self.metrics.memory(self.memory.stats())

    def _adapter_refusal(self, request: "EngineCoreRequest") -> str | None:
        adapter = request.lora_request
        if adapter is None:
            return None
        if self._num_api_servers > 1:
            return "adapters may change through another API server process"
        return self.adapters.refusal(adapter)

    def _model_key_of(self, request: "EngineCoreRequest") -> str:
        adapter = request.lora_request
        if adapter is None:
            return f"{self._model_key}:{self.weights_epoch}"
        with_adapter = model_key_of(self._vllm_config, lora_request=adapter)
        return f"{with_adapter}:{self.weights_epoch}:{self.adapters.key(adapter)}"


_REASONS = {
    str(reason): reason
    for reason in (FinishReason.STOP, FinishReason.LENGTH, FinishReason.REPETITION)
}


def _has_room(answer: Answer, max_tokens: int | None) -> bool:
    """Return whether an answer that ended by itself would have done so within `max_tokens`."""
    if max_tokens is None:
        return True
    num_tokens = len(answer.response_tokens) // 4
    # vLLM looks for repetition last: at the limit the limit is the reason.
    if answer.finish_reason == str(FinishReason.REPETITION):
        return num_tokens < max_tokens
    return num_tokens <= max_tokens
