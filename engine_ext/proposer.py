"""The drafter that vLLM loads for `--speculative-config '{"model": "...CacheHitProposer"}'`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.logger import init_logger

from reprise.engine_ext.compat import model_runner
from reprise.engine_ext.compat.guarded import step_errors
from reprise.engine_ext.compat.hooks import DrafterHooks
from reprise.engine_ext.compat.patches import Feature
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.config import draft_config, engine_config
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.core.identity import unsupported_start
from reprise.engine_ext.core.model_key import model_key_of, tokenizer_key_of, vocabulary_size_of
from reprise.engine_ext.core.placeholders import num_known
from reprise.engine_ext.core.same_samples import promises_a_sample
from reprise.engine_ext.request.request_info import DraftCountsStore, counts_id, no_draft_counts
from reprise.engine_ext.request.tenants import is_private, namespace_of_request
from reprise.engine_ext.request.verifiable import may_verify
from reprise.engine_ext.scheduling import resolve_drafts, step_exchange
from reprise.engine_ext.scheduling.runner_choice import refuse_other_runner
from reprise.engine_ext.worker import undrafted_settings, worker_installs
from reprise.engine_ext.worker.answer_learner import AnswerLearner, FinishedRequest
from reprise.engine_ext.worker.forward.kernel_warm_up import make_kernels
from reprise.engine_ext.worker.live_request import LiveRequest
from reprise.engine_ext.worker.near_drafts import NearDrafts
from reprise.engine_ext.worker.row_tracker import IntArray, RowTracker, TrackedRow
from reprise.engine_ext.worker.step_clock import StepClock, StepContext
from reprise.engine_ext.worker.thinking_budgets import keep_undrafted
from reprise.engine_ext.worker.weights_keeper import WeightsKeeper, weights_path
from reprise.engine_ext.worker.worker_retriever import worker_retriever
from reprise.retrieval.host import steady_clock
from reprise.retrieval.search.token_overlap import TokenOverlap
from reprise.spec.api.scheduling_mode import SchedulingMode
from reprise.spec.api.stats import RequestStats
from reprise.spec.provider import DraftProvider

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

logger = init_logger(__name__)

_NEEDED = {
    Feature.REQUESTS: model_runner,
    # Not among those whose failure is survived: requests have been let in that rely on it.
    Feature.UNDRAFTED_SETTINGS: undrafted_settings,
    Feature.STEP_EXCHANGE: step_exchange,
    Feature.ASYNC_SCHEDULING: resolve_drafts,
}
"""What the proposer cannot do without in its process, and what depends on it, with their hooks."""


class CacheHitProposer(DrafterHooks):
    """Drafts from the answers of similar prompts, from earlier answers and from the context.

    vLLM builds one per worker and calls `propose` after every step. Nothing in here raises into
    the engine or waits for retrieval: an error becomes no draft, a count and one log line; near
    answers are used from the step on at which they are there.

    Example:
        `vllm serve MODEL --speculative-config
        '{"model": "reprise.engine_ext.proposer.CacheHitProposer", "num_speculative_tokens": 16}'`
    """

    def __init__(self, vllm_config: "VllmConfig") -> None:
        """Read the settings and start retrieval.

        Raises:
            ValueError: a setting is unknown or out of bounds, or vLLM was started in a way that
                cannot be served (it then refuses to start).
        """
        if (refused := unsupported_start(vllm_config)) is not None:
            raise ValueError(refused)
        config = engine_config(vllm_config)
        if config.engine.runner == "v2":
            refuse_other_runner(vllm_config)
        drafts = draft_config(config, vllm_config)
        self._num_speculative_tokens = drafts.num_speculative_tokens
        self._max_model_len: int = vllm_config.model_config.max_model_len
        self._namespace = config.namespace
        self._optimizes_cpu = config.engine.cpu_optimizations
        self._may_verify = may_verify(vllm_config, config)
        self._model_key = model_key_of(vllm_config)
        self._tokenizer_key = tokenizer_key_of(vllm_config)
        self._errors = ErrorCounter()
        self._live: dict[str, LiveRequest] = {}
        self._draft_counts = DraftCountsStore()
        self._clock = StepClock()
        self._kernels_up_to = 0
        # Only the first rank's drafts reach the scheduler; the others would draft for nothing.
        parallel = vllm_config.parallel_config
        is_first_rank = parallel.rank % parallel.tensor_parallel_size == 0
        self._is_drafting_rank = is_first_rank and config.features.drafts
        self._says_no_drafts = is_first_rank and not config.features.drafts
        self._rows = RowTracker()
        self._vocabulary_size = vocabulary_size_of(vllm_config)
        worker_installs.apply_needed(config, _NEEDED)
        model_runner.register_drafter(self, vllm_config)
        self._verification = worker_installs.install(config, vllm_config, self._errors)
        logger.info("Reprise: %s.", registry.summary())
        self._provider = DraftProvider(drafts)
        self._near: NearDrafts | None = None
        self._learner: AnswerLearner | None = None
        self._weights: WeightsKeeper | None = None
        if self._is_drafting_rank:
            self._provider.warm_up()
            if (path := weights_path(config, self._tokenizer_key)) is not None:
                self._weights = WeightsKeeper(self._provider, path, errors=self._errors)
        if is_first_rank:
            # Without drafts too: what is to be forgotten in a tier, retrieval forgets.
            overlap = TokenOverlap()
            overlap.warm_up()
            retriever = worker_retriever(vllm_config, config.retrieval)
            vocabulary_size = self._vocabulary_size
            self._near = NearDrafts(
                self._provider,
                retriever,
                overlap,
                max_near=config.drafts.max_near_answers,
                vocabulary_size=vocabulary_size,
                errors=self._errors,
            )
            self._learner = AnswerLearner(
                self._provider,
                retriever,
                overlap,
                vocabulary_size=vocabulary_size,
                errors=self._errors,
            )

    def load_model(self, *_args: Any, **_kwargs: Any) -> None:
        """vLLM calls this of every drafter; there is no model to load."""

    def propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: IntArray,
        token_ids_cpu: IntArray,
        slot_mappings: Any = None,  # noqa: ARG002 - vLLM passes it by name
    ) -> list[list[int]]:
        """Draft for the next step.

        Args:
            sampled_token_ids: [num_reqs] lists of this step's tokens; empty: still prefilling.
            num_tokens_no_spec: [max_num_reqs] int32, prompt and output so far.
            token_ids_cpu: [max_num_reqs, max_model_len] int32.
            slot_mappings: unused.

        Returns:
            [num_reqs] lists of at most `num_speculative_tokens` token ids.
        """
        drafts: list[list[int]] = [[] for _ in sampled_token_ids]
        if not self._is_drafting_rank:
            return drafts
        step_time_s = self._clock.take_step_time_s()
        if self._near is not None:
            self._near.attach_arrived()
        try:
            if self._rows.is_settled:
                # No request is new. Where no draft can pay, nothing has to be done for this step:
                # what it emitted is seen by the next one that looks.
                if self._provider.skip_drafting(
                    self._rows.num_requests,
                    step_time_s=step_time_s,
                    num_drafted_tokens=self._clock.num_drafted_tokens,
                    mode=self._clock.context.mode,
                ):
                    return drafts
                step_time_s = None  # it is recorded
            rows = self._rows.update(sampled_token_ids, num_tokens_no_spec, token_ids_cpu)
            self._propose(rows, step_time_s, drafts)
        except Exception as error:
            self._errors.record("propose", error)
            drafts = [[] for _ in sampled_token_ids]
        finally:
            self._clock.note_drafted()
            self._rows.forget_rows()
        return drafts

    def _propose(
        self, rows: Sequence[TrackedRow], step_time_s: float | None, drafts: list[list[int]]
    ) -> None:
        request_ids = [row.request_id for row in rows]
        was_busy = self._clock.note_requests(request_ids)
        emitted: list[list[int]] = []
        lives: list[LiveRequest] = []
        known: list[TrackedRow] = []
        for row in rows:
            try:
                live = self._live.get(row.request_id)
                if row.prompt_token_ids is not None:
                    live = self._start(row, live)
                if live is None:
                    continue
                tokens = live.within_answer(row.emitted_token_ids, row.num_tokens)
            except Exception as error:
                self._errors.record("start request", error)
                self._drop(row.request_id)
                continue
            known.append(row)
            lives.append(live)
            emitted.append(tokens)

        def limits() -> list[int]:
            longest, room = self._num_speculative_tokens, self._max_model_len - 1
            keeps = self._verification.keeps_samples_now
            return [
                live.draft_limit(
                    row.num_tokens, min(longest, room - row.num_tokens), keeps_sample=keeps
                )
                for row, live in zip(known, lives, strict=True)
            ]

        proposed = self._provider.step(
            [row.request_id for row in known],
            emitted,
            limits=limits,
            step_time_s=step_time_s if was_busy else None,
            num_drafted_tokens=self._clock.num_drafted_tokens,
            mode=self._clock.context.mode,
            saved_s=self._clock.context.saved_s,
        )
        for row, live, tokens, draft in zip(known, lives, emitted, proposed, strict=True):
            drafts[row.row] = draft
            if live.recorder is not None:
                with self._errors.recording("record"):
                    live.recorder.observe(tokens)
                    drafted = self._provider.drafted_tokens(row.request_id)
                    live.recorder.note_draft(drafted[: len(draft)])

    def _drop(self, request_id: str) -> None:
        """Stop drafting for a request: something failed that its next drafts need. What vLLM does
        for it goes on, and so does what is drafted for others."""
        self._live.pop(request_id, None)
        if self._near is not None:
            self._near.forget(request_id)
        with self._errors.recording("drop request"):
            self._provider.finish(request_id)

    def _start(self, row: TrackedRow, live: LiveRequest | None) -> LiveRequest:
        """Begin drafting for a request that emits for the first time."""
        assert row.prompt_token_ids is not None
        if live is None:
            live = LiveRequest(None, row.prompt_token_ids.copy())
            self._begin(row.request_id, live)
        live.num_prompt_tokens = len(row.prompt_token_ids)
        namespace = namespace_of_request(self._namespace, live.hints.namespace)
        self._provider.start(
            row.request_id,
            # What stands for an image may be no token that the model can look up.
            np.minimum(row.prompt_token_ids, self._vocabulary_size - 1),
            namespace=namespace,
            max_draft=live.hints.max_draft if live.hints.drafts else 0,
        )
        if self._near is not None:
            self._near.attach_first(row.request_id, live, namespace)
        return live

    def _begin(self, request_id: str, live: LiveRequest) -> None:
        """Record a request; start retrieval unless the front end already has."""
        self._live[request_id] = live
        namespace = namespace_of_request(self._namespace, live.hints.namespace)
        shares = not is_private(namespace)
        keeps = self._verification.keeps_samples_now
        is_drafted_for = keeps or not promises_a_sample(live.params)
        if self._near is not None and shares and is_drafted_for:
            self._near.begin(request_id, live, namespace)

    def before_serving(self, runner: "GPUModelRunner") -> None:
        """Have made what steps with drafts and verified answers need."""
        if self._optimizes_cpu:
            with self._errors.recording("before_serving"):
                self._kernels_up_to = make_kernels(runner)
                self._provider.note_ready(self._kernels_up_to)
        if self._may_verify:
            worker_installs.rank_prompts(runner.model_config.get_vocab_size(), self._errors)

    def on_arrival(self, request: "Request") -> None:
        """Start retrieval while the request still waits to be scheduled."""
        if not self._is_drafting_rank:
            return
        with self._errors.recording("on_arrival"):
            if request.request_id not in self._live:
                live = LiveRequest(request.sampling_params, request.prompt_token_ids)
                self._begin(request.request_id, live)

    def before_step(self, runner: "GPUModelRunner", scheduler_output: "SchedulerOutput") -> None:
        """Record which requests ended and which began, before the runner does."""
        keep_undrafted(runner)
        if not self._is_drafting_rank:
            return
        for request_id in scheduler_output.finished_req_ids:
            with self._errors.recording("end request"):
                state = runner.requests.get(request_id)
                outputs: Sequence[int] = state.output_token_ids if state else ()
                # What was computed beyond the end, before the end was known, has no tokens.
                self._end(request_id, outputs[: num_known(outputs)])
        for request_id in scheduler_output.scheduled_cached_reqs.resumed_req_ids:
            # It was preempted, and its draft went with it.
            self._provider.drop_draft(request_id)
            live = self._live.get(request_id)
            if live is not None and live.recorder is not None:
                live.recorder.note_draft([])
        for request in scheduler_output.scheduled_new_reqs:
            with self._errors.recording("begin request"):
                live = self._live.get(request.req_id)
                if live is not None and live.num_prompt_tokens:
                    # A streaming session goes on with a longer prompt under the same id.
                    self._end(request.req_id, ())
                    live = None
                if live is None:
                    live = LiveRequest(request.sampling_params, request.prompt_token_ids)
                    self._begin(request.req_id, live)

    def supports_async_launch(self) -> bool:
        """Return that late drafts can be made."""
        self._clock.set_async_launch()
        return True

    def propose_late(
        self,
        runner: "GPUModelRunner",
        scheduler_output: "SchedulerOutput",
        emitted: list[list[int]],
        num_tokens: IntArray,
        *,
        is_in_flight: bool,
        was_in_flight: bool,
        spare_s: float,
    ) -> list[list[int]]:
        """Draft after a step that was not waited for: see `DrafterHooks`."""
        self.before_propose(runner, scheduler_output)
        mode = SchedulingMode.IN_FLIGHT if is_in_flight else SchedulingMode.DRAINED
        context = StepContext(mode, is_late=True, was_in_flight=was_in_flight, saved_s=spare_s)
        with self._clock.at(context):
            return self.propose(emitted, num_tokens, runner.input_batch.token_ids_cpu)

    def before_propose(self, runner: "GPUModelRunner", scheduler_output: "SchedulerOutput") -> None:
        """Record which request is in which row."""
        with self._errors.recording("before_propose"):
            self._clock.note_step(scheduler_output)
            batch = runner.input_batch
            self._rows.name_rows(batch.req_ids, batch.num_prompt_tokens)

    def _end(self, request_id: str, output_token_ids: Sequence[int] | IntArray) -> None:
        """Drop a request's state and hand its answer on to be learned. Whatever fails of it, the
        state is gone, and no other request is concerned."""
        live = self._live.pop(request_id, None)
        if live is not None and live.num_prompt_tokens:
            with self._errors.recording("observe end"):
                self._observe_end(request_id, live, output_token_ids)
        self._rows.forget(request_id)
        stats = None
        with self._errors.recording("end request"):
            stats = self._provider.finish(request_id)
        if live is None:
            return
        with self._errors.recording("end request"):
            if (nonce := live.hints.counts_nonce) is not None:
                record = live.recorder.record() if live.recorder is not None else None
                self._draft_counts.put(counts_id(nonce, request_id), stats, record)
        with self._errors.recording("end request"):
            self._hand_on(request_id, live, output_token_ids, stats)

    def _observe_end(
        self,
        request_id: str,
        live: LiveRequest,
        output_token_ids: Sequence[int] | IntArray,
    ) -> None:
        """Observe what a request emitted since it was last seen."""
        num_tokens = live.num_prompt_tokens + len(output_token_ids)
        unseen = self._rows.unseen(request_id, num_tokens)
        if unseen > 0:
            tokens = live.within_answer(list(output_token_ids[-unseen:]), num_tokens)
            self._provider.observe(request_id, tokens)
            if live.recorder is not None:
                live.recorder.observe(tokens)

    def _hand_on(
        self,
        request_id: str,
        live: LiveRequest,
        output_token_ids: Sequence[int] | IntArray,
        stats: RequestStats | None,
    ) -> None:
        """Have a finished request's answer learned, and a use counted of each answer that it was
        drafted from."""
        if self._near is None or self._learner is None:
            return
        namespace = namespace_of_request(self._namespace, live.hints.namespace)
        if is_private(namespace):
            return
        accepted = stats.accepted_by_answer if stats is not None else {}
        self._near.end(request_id, live, namespace, accepted)
        # The front end stores what it has retrieved for: it knows the text and how it finished.
        is_ours = live.hints.store and live.hints.retrieval_id is None
        if is_ours and live.prompt_token_ids is not None:
            self._learner.learn(
                FinishedRequest(
                    namespace=namespace,
                    model_key=self._model_key,
                    tokenizer_key=self._tokenizer_key,
                    prompt_token_ids=live.prompt_token_ids,
                    response_token_ids=live.answer_of(output_token_ids),
                    ended_s=steady_clock.now_s(),
                )
            )

    def report(self) -> dict[str, Any]:
        """Return figures of this worker since it started."""
        return {
            "provider": self._provider.stats(),
            **self._clock.report(),
            **(self._near.report() if self._near is not None else {}),
            "live_requests": len(self._live),
            "kernels_up_to": self._kernels_up_to,
            "verification": self._verification.report(),
            "compat": registry.states(),
            "errors": {**step_errors.counts(), **self._errors.counts()},
        }

    def take_draft_counts(self, counts_ids: Sequence[str]) -> dict[str, Any]:
        """Return, once, the counts under these ids, of requests that are over."""
        if self._says_no_drafts:
            return no_draft_counts(counts_ids)
        return self._draft_counts.take(counts_ids)

    def flush(self, timeout_s: float) -> bool:
        """Wait until every finished request so far is learned, and saved; return whether it is."""
        if self._weights is not None:
            self._weights.save()
        return self._learner.flush(timeout_s) if self._learner is not None else True
