"""The drafter that vLLM loads for `--speculative-config '{"model": "...CacheHitProposer"}'`."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from reprise.engine_ext import runner_hooks
from reprise.engine_ext.answer_learner import AnswerLearner, FinishedRequest
from reprise.engine_ext.config import RepriseConfig, engine_config
from reprise.engine_ext.kernel_warm_up import make_kernels
from reprise.engine_ext.latency import LatencyHistogram
from reprise.engine_ext.live_request import LiveRequest
from reprise.engine_ext.model_key import model_key_of, tokenizer_key_of
from reprise.engine_ext.plugin import unsupported_start
from reprise.engine_ext.request_hints import RequestHints
from reprise.engine_ext.request_info import DraftCountsKeeper
from reprise.engine_ext.row_tracker import (
    ContentRowTracker,
    IdRowTracker,
    IntArray,
    TrackedRow,
    num_known,
)
from reprise.engine_ext.swallowed import SwallowedErrors
from reprise.engine_ext.worker_retriever import worker_retriever
from reprise.retrieval.token_overlap import TokenOverlap
from reprise.spec.draft_length import Turn
from reprise.spec.provider import DraftProvider

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class Pace(NamedTuple):
    """How the engine goes on from step to step."""

    turn: Turn
    is_late: bool = False
    """Other steps were launched before the tokens of this one were known."""
    was_ahead: bool = False
    """It was launched while the one before it ran."""
    saved_s: float = 0.0
    """How much of the time that drafting takes is no loss."""


class CacheHitProposer(runner_hooks.RunnerAware):
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
        if (refused := unsupported_start()) is not None:
            raise ValueError(refused)
        config = engine_config(vllm_config)
        self._num_speculative_tokens = config.drafts.num_speculative_tokens
        self._max_model_len: int = vllm_config.model_config.max_model_len
        self._namespace = config.namespace
        self._model_key = model_key_of(vllm_config)
        self._tokenizer_key = tokenizer_key_of(vllm_config)
        self._errors = SwallowedErrors()
        self._live: dict[str, LiveRequest] = {}
        self._awaiting: dict[str, LiveRequest] = {}
        """Of the live requests, those whose near answers by meaning are not there yet."""
        self._seen_progress = -1
        self._draft_counts = DraftCountsKeeper()
        self._propose_us = LatencyHistogram()
        self._near_answers_in_time = {"meaning": 0, "tokens": 0}
        self._near_answers_late = 0
        self._propose_began_s = self._propose_ended_s = 0.0
        self._usual_pace = self._pace = Pace(Turn.WAITED)
        self._steps = {"waited_for": 0, "run_ahead": 0}
        self._num_drafted_tokens = 0
        self._only_decoded = False
        self._previous_ids: frozenset[str] = frozenset()
        self._kernels_up_to = 0
        # Only the first rank's drafts reach the scheduler; the others would draft for nothing.
        self._is_drafting_rank = (
            vllm_config.parallel_config.rank % (vllm_config.parallel_config.tensor_parallel_size)
            == 0
        )
        self._ids = IdRowTracker() if runner_hooks.install(self) else None
        self._rows = self._ids or ContentRowTracker()
        # Without ids there are no namespaces: what one request is answered must then never reach
        # another, unless the operator has declared a single tenant.
        self._shares_answers = self._ids is not None or self._namespace is not None
        self._install_in_worker(config)
        self._provider = DraftProvider(config.drafts)
        self._max_near_answers = config.drafts.max_near_answers
        self._overlap = TokenOverlap()
        self._retriever = None
        self._learner = None
        if self._is_drafting_rank:
            self._provider.warm_up()
            if self._shares_answers:
                self._overlap.warm_up()
                self._retriever = worker_retriever(vllm_config, config.retrieval)
                self._learner = AnswerLearner(
                    self._provider, self._retriever, self._overlap, errors=self._errors
                )

    def _install_in_worker(self, config: RepriseConfig) -> None:
        """What makes steps with drafts cheap. vLLM does itself what cannot be installed."""
        try:
            from reprise.engine_ext import (
                draft_metadata,
                full_graphs,
                sampling_repair,
                verification,
            )
        except Exception as error:
            self._errors.swallow("install in worker", error)
            return
        installs: dict[str, Callable[[], object]] = {
            "repair sampling": sampling_repair.install,
            "install verification": lambda: verification.install(config.verification),
            "install draft metadata": draft_metadata.install,
            "install full graphs": full_graphs.install,
        }
        for name, install in installs.items():
            try:
                install()
            except Exception as error:
                self._errors.swallow(name, error)

    def load_model(self, *_args: Any, **_kwargs: Any) -> None:
        """vLLM calls this of every drafter; there is no model to load."""

    def propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: IntArray,
        token_ids_cpu: IntArray,
        slot_mappings: Any = None,  # noqa: ARG002 - vLLM passes it by name
    ) -> list[list[int]]:
        """Drafts for the next step.

        Args:
            sampled_token_ids: [num_reqs] lists of this step's tokens; empty: still prefilling.
            num_tokens_no_spec: [max_num_reqs] int32, prompt and output so far.
            token_ids_cpu: [max_num_reqs, max_model_len] int32.
            slot_mappings: unused.

        Returns:
            [num_reqs] lists of at most `num_speculative_tokens` token ids.
        """
        started_s = time.perf_counter()
        drafts: list[list[int]] = [[] for _ in sampled_token_ids]
        if not self._is_drafting_rank:
            return drafts
        try:
            self._attach_awaited()
            step_time_s = self._step_time_s(started_s)
            if self._ids is None or not self._rest(self._ids, step_time_s):
                rows = self._rows.update(sampled_token_ids, num_tokens_no_spec, token_ids_cpu)
                self._propose(rows, step_time_s, drafts)
        except Exception as error:
            self._errors.swallow("propose", error)
            drafts = [[] for _ in sampled_token_ids]
        self._steps["run_ahead" if self._pace.is_late else "waited_for"] += 1
        self._propose_began_s = started_s
        self._propose_ended_s = time.perf_counter()
        self._propose_us.observe((self._propose_ended_s - started_s) * 1e6)
        return drafts

    def _rest(self, ids: IdRowTracker, step_time_s: float | None) -> bool:
        """Whether nothing has to be done for this step: no request is new, and no draft can pay.

        What the step emitted is then seen by the next one that looks.
        """
        if not ids.is_settled:
            return False
        rests = self._provider.rest(
            ids.num_requests,
            step_time_s=step_time_s,
            num_drafted_tokens=self._num_drafted_tokens,
            turn=self._pace.turn,
        )
        self._only_decoded = False  # that its time is taken in
        return rests

    def _propose(
        self, rows: Sequence[TrackedRow], step_time_s: float | None, drafts: list[list[int]]
    ) -> None:
        request_ids = [row.request_id for row in rows]
        # Where no request was there the last time, the engine may have idled in between.
        was_busy = not self._previous_ids.isdisjoint(request_ids)
        self._previous_ids = frozenset(request_ids)
        emitted: list[list[int]] = []
        lives = []
        for row in rows:
            live = self._live.get(row.request_id)
            if row.prompt_token_ids is not None:
                live = self._start(row, live)
            assert live is not None
            lives.append(live)
            emitted.append(live.within_answer(row.emitted_token_ids, row.num_tokens))

        def limits() -> list[int]:
            most, room = self._num_speculative_tokens, self._max_model_len - 1
            return [
                live.draft_limit(row.num_tokens, min(most, room - row.num_tokens))
                for row, live in zip(rows, lives, strict=True)
            ]

        proposed = self._provider.step(
            request_ids,
            emitted,
            limits=limits,
            step_time_s=step_time_s if was_busy and self._only_decoded else None,
            num_drafted_tokens=self._num_drafted_tokens,
            turn=self._pace.turn,
            saved_s=self._pace.saved_s,
        )
        for row, draft in zip(rows, proposed, strict=True):
            drafts[row.row] = draft
        if isinstance(self._rows, ContentRowTracker):
            for ended in self._rows.take_ended():
                live = self._live[ended.request_id]
                self._end(ended.request_id, ended.token_ids[live.num_prompt_tokens :])

    def _step_time_s(self, started_s: float) -> float | None:
        """What the step took without the drafter, if it is known and it did nothing but decode."""
        if not self._only_decoded:
            return None
        if not self._pace.is_late:
            return started_s - self._propose_ended_s
        # Drafting went on while it ran. One without drafts after a gap is like no other.
        return started_s - self._propose_began_s if self._pace.was_ahead else None

    def _start(self, row: TrackedRow, live: LiveRequest | None) -> LiveRequest:
        """Begin drafting for a request that emits for the first time."""
        assert row.prompt_token_ids is not None
        if live is None:
            live = LiveRequest(None, row.prompt_token_ids.copy())
            self._begin(row.request_id, live)
        live.num_prompt_tokens = len(row.prompt_token_ids)
        self._provider.start(
            row.request_id,
            row.prompt_token_ids,
            namespace=self._namespace_of(row.request_id, live.hints),
            max_draft=live.hints.max_draft if live.hints.drafts else 0,
        )
        if row.request_id in self._awaiting:
            if self._attach(row.request_id, live):
                self._near_answers_in_time["meaning"] += 1
            elif self._attach_by_tokens(row.request_id, live):
                self._near_answers_in_time["tokens"] += 1
            else:
                self._near_answers_late += 1
        return live

    def _namespace_of(self, request_id: str, hints: RequestHints) -> str:
        if self._namespace is not None:
            return self._namespace
        # A name that no client can give (it holds a NUL): this request alone is behind its wall.
        return hints.namespace if self._ids is not None else f"\0{request_id}"

    def _begin(self, request_id: str, live: LiveRequest) -> None:
        """Know a request from now on; start retrieval unless the front end already has."""
        self._live[request_id] = live
        if self._retriever is None or not live.hints.drafts or live.prompt_token_ids is None:
            return
        self._awaiting[request_id] = live
        if live.hints.retrieval_id is None:
            self._retriever.submit(
                request_id,
                namespace=self._namespace_of(request_id, live.hints),
                prompt_token_ids=live.prompt_token_ids,
            )

    def _attach_awaited(self) -> None:
        if not self._awaiting:
            return
        assert self._retriever is not None
        progress = self._retriever.progress()
        if progress == self._seen_progress:
            return
        self._seen_progress = progress
        for request_id, live in tuple(self._awaiting.items()):
            if live.num_prompt_tokens:  # it has started
                self._attach(request_id, live)

    def _attach(self, request_id: str, live: LiveRequest) -> bool:
        """Draft from what is near in meaning, if that is known by now."""
        assert self._retriever is not None
        near_answers = self._retriever.poll(live.hints.retrieval_id or request_id)
        if near_answers is None:
            return False
        del self._awaiting[request_id]
        # What shares tokens and is not near in meaning may be of use all the same.
        self._provider.attach(request_id, [*near_answers, *live.near_by_tokens])
        return True

    def _attach_by_tokens(self, request_id: str, live: LiveRequest) -> bool:
        """Draft from what shares tokens until what is near in meaning is there."""
        assert live.prompt_token_ids is not None
        live.near_by_tokens = self._overlap.search(
            self._namespace_of(request_id, live.hints),
            live.prompt_token_ids,
            count=self._max_near_answers,
        )
        if live.near_by_tokens:
            self._provider.attach(request_id, live.near_by_tokens)
        return bool(live.near_by_tokens)

    def before_serving(self, runner: "GPUModelRunner") -> None:
        """Have the kernels made that steps with drafts need."""
        try:
            self._kernels_up_to = make_kernels(runner)
            self._provider.note_ready(self._kernels_up_to)
        except Exception as error:
            self._errors.swallow("before_serving", error)

    def on_arrival(self, request: "Request") -> None:
        """Start retrieval while the request still waits to be scheduled."""
        if not self._is_drafting_rank or request.request_id in self._live:
            return
        try:
            live = LiveRequest(request.sampling_params, request.prompt_token_ids)
            self._begin(request.request_id, live)
        except Exception as error:
            self._errors.swallow("on_arrival", error)

    def before_step(self, runner: "GPUModelRunner", scheduler_output: "SchedulerOutput") -> None:
        """Take in which requests ended and which began, before the runner does."""
        if not self._is_drafting_rank:
            return
        try:
            for request_id in scheduler_output.finished_req_ids:
                state = runner.requests.get(request_id)
                outputs: Sequence[int] = state.output_token_ids if state else ()
                # What was computed beyond the end, before the end was known, has no tokens.
                self._end(request_id, outputs[: num_known(outputs)])
            for request in scheduler_output.scheduled_new_reqs:
                live = self._live.get(request.req_id)
                if live is not None and live.num_prompt_tokens:
                    # A streaming session goes on with a longer prompt under the same id.
                    self._end(request.req_id, ())
                    live = None
                if live is None:
                    live = LiveRequest(request.sampling_params, request.prompt_token_ids)
                    self._begin(request.req_id, live)
        except Exception as error:
            self._errors.swallow("before_step", error)

    def can_run_ahead(self) -> bool:
        """Whether late drafts can be made: only for requests that are known by id."""
        if self._ids is None:
            return False
        self._usual_pace = self._pace = Pace(Turn.SETTLED)
        return True

    def propose_late(
        self,
        runner: "GPUModelRunner",
        scheduler_output: "SchedulerOutput",
        emitted: list[list[int]],
        num_tokens: IntArray,
        *,
        is_ahead: bool,
        was_ahead: bool,
        spare_s: float,
    ) -> list[list[int]]:
        """Drafts after a step that was not waited for: see `RunnerAware`."""
        self.before_propose(runner, scheduler_output)
        turn = Turn.AHEAD if is_ahead else Turn.SETTLED
        self._pace = Pace(turn, is_late=True, was_ahead=was_ahead, saved_s=spare_s)
        try:
            return self.propose(emitted, num_tokens, runner.input_batch.token_ids_cpu)
        finally:
            self._pace = self._usual_pace

    def before_propose(self, runner: "GPUModelRunner", scheduler_output: "SchedulerOutput") -> None:
        """Learn which request is in which row."""
        drafts = scheduler_output.scheduled_spec_decode_tokens
        self._num_drafted_tokens = sum(map(len, drafts.values()))
        num_decoded_tokens = len(scheduler_output.num_scheduled_tokens) + self._num_drafted_tokens
        self._only_decoded = scheduler_output.total_num_scheduled_tokens == num_decoded_tokens
        if self._ids is not None:
            self._ids.name_rows(runner.input_batch.req_ids, runner.input_batch.num_prompt_tokens)

    def _end(self, request_id: str, output_token_ids: Sequence[int] | IntArray) -> None:
        """Drop a request's state and hand its answer on to be learned."""
        live = self._live.pop(request_id, None)
        self._awaiting.pop(request_id, None)
        if self._ids is not None:
            if live is not None and live.num_prompt_tokens:
                num_tokens = live.num_prompt_tokens + len(output_token_ids)
                unseen = self._ids.unseen(request_id, num_tokens)
                if unseen > 0:
                    tokens = live.within_answer(list(output_token_ids[-unseen:]), num_tokens)
                    self._provider.observe(request_id, tokens)
            self._ids.forget(request_id)
        stats = self._provider.finish(request_id)
        if live is not None and live.hints.info:
            self._draft_counts.keep(request_id, stats)
        if live is None or self._retriever is None or self._learner is None:
            return
        namespace = self._namespace_of(request_id, live.hints)
        self._retriever.discard(live.hints.retrieval_id or request_id)
        if stats is not None and stats.accepted_by_answer:
            self._retriever.credit(namespace, stats.accepted_by_answer)
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
                )
            )

    def report(self) -> dict[str, Any]:
        """Figures of this worker since it started."""
        stats = self._provider.stats()
        return {
            "provider": stats,
            "steps": dict(self._steps),
            "propose_us": self._propose_us.summary(),
            "near_answers_in_time": self._near_answers_in_time,
            "near_answers_late": self._near_answers_late,
            "live_requests": len(self._live),
            "kernels_up_to": self._kernels_up_to,
            "errors": self._errors.counts(),
        }

    def take_draft_counts(self, request_ids: Sequence[str]) -> dict[str, Any]:
        """Counts of those of these requests that are over and asked for them; once."""
        return self._draft_counts.take(request_ids)

    def flush(self, timeout_s: float) -> bool:
        """Wait until every finished request so far is learned. True when it is."""
        return self._learner.flush(timeout_s) if self._learner is not None else True
