"""Answers requests from the cache: one object per API server process, on its event loop."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec
from vllm.logger import init_logger
from vllm.v1.engine import FinishReason

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.core.model_key import model_key_of, tokenizer_key_of
from reprise.engine_ext.core.request_hints import attach_hints, read_hints
from reprise.engine_ext.core.same_samples import drafts_keep_samples, promises_a_sample
from reprise.engine_ext.frontend.exact_answers import ExactAnswers
from reprise.engine_ext.frontend.front_end_figures import FrontEndFigures, metrics_of
from reprise.engine_ext.frontend.near_answers import NearAnswers
from reprise.engine_ext.frontend.others_answers import OthersAnswers, Submit
from reprise.engine_ext.frontend.spans import Spans
from reprise.engine_ext.frontend.tracked_request import TrackedRequest
from reprise.engine_ext.outputs.flight import FinishedFlight
from reprise.engine_ext.outputs.one_token_outputs import OneTokenOutputs, watch_parsers
from reprise.engine_ext.outputs.replay import Ending, Replayer
from reprise.engine_ext.outputs.single_flight import SingleFlight
from reprise.engine_ext.outputs.waiting_request import wait_as_known
from reprise.engine_ext.request.exact_hits import SAMPLED, is_determined, word_of
from reprise.engine_ext.request.recorded_answers import RecordedAnswers
from reprise.engine_ext.request.request_control import NotCachedError
from reprise.engine_ext.request.request_policy import RequestPolicy
from reprise.retrieval.api.answer import Answer

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

    from reprise.engine_ext.core.config import RepriseConfig
    from reprise.retrieval.api.retriever import Retriever

logger = init_logger(__name__)


class FrontEnd:
    """Serves exact hits and single flight through one vLLM output processor."""

    def __init__(
        self,
        vllm_config: "VllmConfig",
        config: "RepriseConfig",
        processor: "OutputProcessor",
        *,
        num_api_servers: int = 1,
        has_fixed_adapters: bool = False,
        retriever: "Retriever | None" = None,
    ) -> None:
        """As `AsyncLLM` attaches it.

        Args:
            vllm_config: Of the engine.
            config: Our settings.
            processor: Of the engine's client.
            num_api_servers: Processes that serve the engine.
            has_fixed_adapters: Whether all of them have the same adapters, under the same numbers,
                for as long as they run.
            retriever: This process's own, if it has one.
        """
        serving = config.serving
        self.config, self._vllm_config = config, vllm_config
        self._processor = processor
        self.errors = ErrorCounter()
        self._uses_near_answers = config.drafts.max_near_answers > 0
        self.recorded = RecordedAnswers(ttl_s=config.retrieval.ttl_s)
        self._drafts_keep_samples = drafts_keep_samples(vllm_config, config)
        self.exact = ExactAnswers(
            vllm_config,
            config,
            num_api_servers=num_api_servers,
            has_fixed_adapters=has_fixed_adapters,
        )
        self.metrics = metrics_of(vllm_config, config, searches_here=retriever is not None)
        self.counts: Counter[str] = Counter()
        """exact, followed, miss; of the latter verified; stored; tokens_saved, tokens_verified."""
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
                errors=self.errors,
            )
            if retriever is not None
            else None
        )
        """None: the workers search by themselves."""
        self.find_retrieval: Callable[[], Sequence[Retriever]] = lambda: (
            [] if retriever is None else [retriever]
        )
        """Returns the retrieval processes of the engine that are known."""
        self.others = OthersAnswers(
            exact=self.exact,
            flights=self.flights,
            metrics=self.metrics,
            counts=self.counts,
            errors=self.errors,
        )
        self.is_paused = False
        """Whether the engine's generation is paused: it decides then on every request."""

    def open_others(self, *, loaded_since_s: float, submit: Submit | None) -> None:
        """Use the answers of others too, as the settings have it; until then, exact hits stay in
        this process.

        Args:
            loaded_since_s: The time of day before the engine began to load its weights.
            submit: Gives the engine a request that the processor knows; None: nothing is verified.
        """
        self.others.open(
            self._vllm_config,
            self.config,
            processor=self._processor,
            replayer=self._replayer,
            submit=submit,
            loaded_since_s=loaded_since_s,
            retrieval=lambda: self.find_retrieval(),
        )

    @cached_property
    def figures(self) -> FrontEndFigures:
        """What is reported of all this."""
        return FrontEndFigures(
            self.config,
            self._processor,
            exact=self.exact,
            flights=self.flights,
            near_answers=self.near_answers,
            metrics=self.metrics,
            counts=self.counts,
            refusals=self.refusals,
            errors=self.errors,
        )

    async def fetch(self, request: "EngineCoreRequest", policy: RequestPolicy) -> Answer | None:
        """Look for the answer to `request` beyond this process, see `OthersAnswers.fetch`."""
        return None if self.is_paused else await self.others.fetch(request, policy)

    def is_live(self, request_id: str) -> bool:
        """Return whether a request of this id is not over: vLLM knows it, or what it has become
        with `n` above 1, or the engine goes on for those that follow it."""
        return (
            self._processor.has_request(request_id)
            or request_id in getattr(self._processor, "parent_requests", ())
            or self.flights.watcher_of(request_id) is not None
        )

    def waits_for_others(self, request: "EngineCoreRequest", policy: RequestPolicy) -> bool:
        """Return whether a request waits in `fetch`."""
        return not self.is_paused and self.others.may_answer(request, policy)

    async def fetch_as_known(
        self,
        request: "EngineCoreRequest",
        prompt: str | None,
        queue: "RequestOutputCollector",
        policy: RequestPolicy,
    ) -> Answer | None:
        """As `fetch`; vLLM knows the request meanwhile, see `wait_as_known`."""
        return await wait_as_known(
            self.fetch(request, policy),
            request,
            prompt,
            queue,
            processor=self._processor,
            replayer=self._replayer,
            on_over=lambda: self.others.end_lease(request.request_id),
        )

    def answer(
        self,
        request: "EngineCoreRequest",
        prompt: str | None,
        queue: "RequestOutputCollector",
        policy: RequestPolicy,
    ) -> bool:
        """Answer `request`, of whose id none is live, without the engine if that can be done
        exactly.

        Returns:
            False: the engine has to generate. The search for near answers has begun then, and
            what the engine emits for this id is recorded.

        Raises:
            NotCachedError: it has to, and the request forbids it.
        """
        started_s = time.perf_counter()
        tracked: TrackedRequest | None = None
        kind = "miss"
        try:
            tracked = TrackedRequest(
                request,
                policy,
                weights=self.exact.weights_of(request.lora_request),
                weight_version=self.flights.weight_version,
                near_answers=self.near_answers,
                metrics=self.metrics,
                spans=self.spans,
                on_answer=self._store_answer,
                on_end=self.others.end_lease,
            )
            kind = self._take(request, prompt, queue, tracked)
        except Exception as error:
            self.errors.record("exact_hit", error)
            self._withdraw(request.request_id, queue)
        try:
            self._record(request, policy, tracked, kind, time.perf_counter() - started_s)
        except Exception as error:
            self.errors.record("front_end_records", error)
        if kind != "miss" or tracked is None or tracked.keys is None:
            self.others.end_lease(request.request_id)
        if kind != "miss":
            return True
        if policy.control.only_if_cached:
            self.others.end_lease(request.request_id)
            raise NotCachedError
        try:
            if tracked is not None:
                self._watch(request, tracked)
        except Exception as error:
            self.errors.record("watch", error)
            self.others.end_lease(request.request_id)
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
                policy.http_context.add_outcome(lambda: tracked.kind, reason=lambda: tracked.reason)
            if policy.info is not None:
                policy.info.add(tracked)
        self.counts[kind] += 1
        self.metrics.request(kind, took_s)
        self.spans.exact_lookup(request.trace_headers, kind=kind, took_s=took_s)

    def not_admitted(self, request_id: str, error: Exception) -> None:
        """End the flight of a request that vLLM refused: no other may wait for it."""
        try:
            self.others.forget(request_id)
            self.flights.cancel(request_id, error)
        except Exception as own_error:
            self.errors.record("not_admitted", own_error)

    def model_changed(self) -> None:
        """Drop all answers: weights were loaded, moved or replaced."""
        self.exact.model_changed()

    def close(self) -> None:
        """Stop replays in progress, and look-ups."""
        self._replayer.close()
        self.others.close()

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
            self._refuse("unknown tenant", tracked)
            return "miss"
        if not control.look_up and not control.store:
            return "miss"
        if self.is_paused:
            self._refuse("paused engine", tracked)
            return "miss"
        reason = self.exact.refusal(request)
        if reason is not None:
            self._refuse(reason, tracked)
            return "miss"
        try:
            keys = self.exact.keys(request, tracked.policy.namespace)
            tracked.shared = self.exact.shared_keys(request, tracked.policy.namespace)
        except ValueError:
            self._refuse("a setting without an encoding", tracked)
            return "miss"
        tracked.keys = keys
        if control.look_up:
            stored = self.exact.find(keys, request, control.max_age_s)
            if stored is not None:
                if self._replay(stored, request, prompt, queue):
                    self.exact.used(tracked, stored)
                    return "exact"
                # It would fail the next time as well.
                self.exact.memory.remove_key(stored.exact_key)
            if self.flights.join(keys.limited, request, prompt, queue):
                return "followed"
        return "miss"

    def _watch(self, request: "EngineCoreRequest", tracked: TrackedRequest) -> None:
        """Begin the search for near answers; record what the engine will emit."""
        assert request.sampling_params is not None
        hints = read_hints(request.sampling_params)
        may_draft = hints.drafts and hints.max_draft != 0 and tracked.policy.shares
        may_draft = may_draft and self._uses_near_answers
        if promises_a_sample(request.sampling_params):
            may_draft = may_draft and self._drafts_keep_samples
        if self.near_answers is not None and may_draft and not request.resumable:
            tracked.search_id = self.near_answers.begin(request, tracked.policy.namespace)
            if tracked.search_id is not None:
                hints = msgspec.structs.replace(hints, retrieval_id=tracked.search_id)
                attach_hints(request.sampling_params, hints)
        keys = tracked.keys
        if keys is None and tracked.search_id is None:
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

    def _refuse(self, reason: str, tracked: TrackedRequest) -> None:
        tracked.reason = word_of(reason)
        if reason == SAMPLED and not self.refusals[reason]:
            logger.info(
                "Reprise: a request without temperature 0 or a seed is sampled anew each time, so "
                "it is never an exact hit; drafts speed it up. Send temperature 0 or a seed, or "
                "set REPRISE_SERVING__EXACT_HITS=always to have one sample repeated. (Said once.)"
            )
        self.refusals[reason] += 1
        self.metrics.refused(reason)

    def _save(self, num_tokens: int) -> None:
        self.counts["tokens_saved"] += num_tokens
        self.metrics.saved(num_tokens)

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
        if tracked.search_id is not None and self.near_answers is not None:
            self.near_answers.store(tracked.prompt_token_ids, finished, tracked.policy.namespace)
        if self.exact.store(tracked, finished, weight_version=self.flights.weight_version):
            self.counts["stored"] += 1
            self.metrics.stored()
            self.metrics.memory(self.exact.memory.stats())


_REASONS = {
    str(reason): reason
    for reason in (FinishReason.STOP, FinishReason.LENGTH, FinishReason.REPETITION)
}
