"""The requests of a worker on model runner V2: what they draft from, and what they leave behind.

Host only, and in no step's way: writes are enqueued, reads come back in another thread.
"""

import re
from array import array
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.core.model_key import model_key_of, tokenizer_key_of, vocabulary_size_of
from reprise.engine_ext.request.request_info import DraftCountsStore, counts_id
from reprise.engine_ext.request.tenants import is_private, namespace_of_request
from reprise.engine_ext.speculator import page_locked
from reprise.engine_ext.speculator.device_corpora import DeviceCorpora
from reprise.engine_ext.speculator.hit_keeper import HitKeeper, hits_path
from reprise.engine_ext.speculator.host_corpus import HostCorpus
from reprise.engine_ext.speculator.read_back import ReadBack
from reprise.engine_ext.speculator.slot_counts import SlotCounts, stats_of
from reprise.engine_ext.speculator.slot_rows import SlotRows
from reprise.engine_ext.speculator.waiting_writes import STEP_TOKENS
from reprise.engine_ext.worker.answer_learner import AnswerLearner, FinishedRequest
from reprise.engine_ext.worker.live_request import LiveRequest
from reprise.engine_ext.worker.near_drafts import NearDrafts
from reprise.engine_ext.worker.worker_retriever import worker_retriever
from reprise.kernels.draft.state import DraftState
from reprise.retrieval.host import steady_clock
from reprise.retrieval.search.token_overlap import TokenOverlap
from reprise.spec.api.stats import ProviderStats, RequestStats

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput

_WARM_UP_ID = re.compile(r"_\w*warmup_")
"""How ids of vLLM's own requests begin, of the runs before it serves."""


class _Request:
    """A live request: in a slot, or preempted."""

    __slots__ = ("ended_s", "live", "namespace", "num_to_prefill", "slot", "stats")

    def __init__(self, live: LiveRequest, namespace: str) -> None:
        self.live = live
        self.namespace = namespace
        self.slot: int | None = None
        self.num_to_prefill = 0
        """Tokens until it is drafted for; 0: near answers have been looked for."""
        self.stats = RequestStats()
        """Of slots that it had to leave; written by the thread that reads back."""
        self.ended_s = 0.0
        """In seconds since 1970, once it is over."""

    def end(self) -> None:
        """Note when it is over."""
        self.ended_s = steady_clock.now_s()

    def take_slot(self, slot: int, data: "NewRequestData") -> None:
        """Begin, or go on after preemption, in a slot."""
        assert data.prefill_token_ids is not None
        self.slot = slot
        self.num_to_prefill = len(data.prefill_token_ids) - data.num_computed_tokens
        self.live.num_prompt_tokens = data.prompt_len

    def leave_slot(self) -> None:
        """End, or be preempted."""
        self.slot = None

    def is_prefilled_by(self, num_scheduled: int) -> bool:
        """Count tokens that a step computes; return whether drafting begins after it."""
        if self.num_to_prefill <= 0:
            return False
        self.num_to_prefill -= num_scheduled
        return self.num_to_prefill <= 0


def largest_copy_bytes(state: DraftState, max_model_len: int) -> int:
    """Return how much is copied at once at most, of what steps write and read back."""
    copied = [state.slots, state.corpora, state.near_token_ids[0], state.hit_counts]
    return max(4 * max_model_len, 4 * STEP_TOKENS, *(tensor.nbytes for tensor in copied))


class DeviceRequests:
    """Keeps the device's state in step with vLLM's requests, on the rank that drafts.

    A request without hints is of an unknown tenant: it has no near answers and no corpus, and
    leaves nothing behind. A slot is cleared before it is given to a request, and on the device with
    the step in which that begins; should either fail, nothing is drafted any more.

    Args:
        state: what the device drafts from.
        counts: what became of drafts.
        errors: counts what goes wrong.
    """

    def __init__(
        self,
        vllm_config: "VllmConfig",
        config: RepriseConfig,
        state: DraftState,
        counts: SlotCounts,
        *,
        errors: ErrorCounter,
    ) -> None:
        self._errors = errors
        self._counts = counts
        self._namespace = config.namespace
        self._model_key = model_key_of(vllm_config)
        self._tokenizer_key = tokenizer_key_of(vllm_config)
        self._rows = SlotRows(state, max_near=config.drafts.max_near_answers)
        self._corpora = DeviceCorpora(state)
        self._read_back = ReadBack(state.slots.device, errors=errors)
        self._hits: HitKeeper | None = None
        path = hits_path(config, self._tokenizer_key)
        if path is not None:
            self._hits = HitKeeper(state, path, self._read_back, errors=errors)
        self._requests: dict[str, _Request] = {}
        self._draft_counts = DraftCountsStore()
        self._total = RequestStats()
        self._num_ended = 0
        self.has_failed = False
        """Nothing must be drafted any more: a slot may be another request's on the device."""
        if state.slots.is_cuda:
            max_model_len = vllm_config.model_config.max_model_len
            page_locked.reserve(state.num_slots, max_bytes=largest_copy_bytes(state, max_model_len))
        HostCorpus.warm_up()
        overlap = TokenOverlap()
        overlap.warm_up()
        self._retriever = worker_retriever(vllm_config, config.retrieval)
        vocabulary_size = vocabulary_size_of(vllm_config)
        self._near = NearDrafts(
            self._rows,
            self._retriever,
            overlap,
            max_near=config.drafts.max_near_answers,
            vocabulary_size=vocabulary_size,
            errors=errors,
        )
        self._learner = AnswerLearner(
            self._corpora, self._retriever, overlap, vocabulary_size=vocabulary_size, errors=errors
        )

    def begin_step(self, req_states: Any, scheduler_output: "SchedulerOutput") -> None:
        """Give requests that begin what they draft from, and others what has come since."""
        try:
            self._write_slots(req_states, scheduler_output)
            self._rows.send()
        except Exception:
            self.has_failed = True
            raise
        if self._hits is not None and self._num_ended:
            # Not before: while graphs are captured, nothing is to be waited for in a thread.
            with self._errors.recording("save hits"):
                self._hits.step()

    def _write_slots(self, req_states: Any, scheduler_output: "SchedulerOutput") -> None:
        """Clear the slots of requests that begin, and write what all draft from."""
        begun = [
            (request, req_states.req_id_to_index[request.req_id])
            for request in scheduler_output.scheduled_new_reqs
        ]
        if begun:
            self._rows.clear([slot for _, slot in begun])
        for data, slot in begun:
            with self._errors.recording("begin request"):
                self._begin(data, slot)
        self._look_for_near_answers(scheduler_output)
        with self._errors.recording("corpora"):
            moved = self._corpora.put_in_place()
            if moved:
                self._follow(moved)

    def end(self, req_states: Any, scheduler_output: "SchedulerOutput") -> None:
        """Read back what requests leave behind that end or are preempted."""
        for request_id in scheduler_output.finished_req_ids:
            with self._errors.recording("end request"):
                self._end(request_id, req_states)
        for request_id in scheduler_output.preempted_req_ids or ():
            with self._errors.recording("preempt request"):
                request = self._requests.get(request_id)
                if request is not None and request.slot is not None:
                    parts = [self._counts.counts[request.slot]]
                    # First, as another tenant's may have the slot next, whatever fails here.
                    self._leave_slot(request_id, request)
                    self._read_back.send(parts, partial(self._add_stats, request))

    def report(self) -> dict[str, Any]:
        """Return figures since the start, those of drafts as of requests that have ended."""
        total = self._total
        provider = ProviderStats(
            requests=self._num_ended,
            steps=total.steps,
            emitted=total.emitted,
            drafted=total.drafted,
            accepted=total.accepted,
            by_source=total.by_source,
            errors=sum(self._errors.counts().values()),
            **self._corpora.counts(),
        )
        return {
            "provider": provider,
            **self._near.report(),
            "live_requests": len(self._requests),
        }

    def take_draft_counts(self, counts_ids: Sequence[str]) -> dict[str, Any]:
        """Return, once, the counts under these ids, of requests that are over."""
        return self._draft_counts.take(counts_ids)

    def flush(self, timeout_s: float) -> bool:
        """Wait until every finished request so far is learned, and saved; return whether it is."""
        if self._hits is not None:
            self._hits.save()
        return self._read_back.flush(timeout_s) and self._learner.flush(timeout_s)

    def _begin(self, data: "NewRequestData", slot: int) -> None:
        """Give a request its slot, whether it is new or goes on after preemption."""
        if _WARM_UP_ID.match(data.req_id):
            return
        request = self._requests.get(data.req_id)
        if request is not None and request.slot is not None:
            # A streaming session goes on with a longer prompt under the same id.
            self._end(data.req_id, None)
            request = None
        if request is None:
            request = self._start(data)
        request.take_slot(slot, data)
        self._counts.clear(slot)
        row = -1
        if self._shares(request):
            row = self._corpora.enter(request.namespace)
        self._rows.assign(data.req_id, slot, num_prompt_tokens=data.prompt_len, corpus_row=row)

    def _start(self, data: "NewRequestData") -> _Request:
        prompt = data.prompt_token_ids
        if prompt is not None:
            # All of it is read here, and an array of C a third as long as a list.
            prompt = np.array(array("i", prompt), np.int32)
        live = LiveRequest(data.sampling_params, prompt)
        namespace = namespace_of_request(self._namespace, live.hints.namespace)
        request = _Request(live, namespace)
        self._requests[data.req_id] = request
        if not is_private(request.namespace):
            self._near.begin(data.req_id, live, request.namespace)
        return request

    def _shares(self, request: _Request) -> bool:
        return request.live.hints.drafts and not is_private(request.namespace)

    def _look_for_near_answers(self, scheduler_output: "SchedulerOutput") -> None:
        """Attach near answers: the first ones with the step after which drafting begins."""
        num_scheduled = scheduler_output.num_scheduled_tokens
        for request_id, request in self._requests.items():
            if request.is_prefilled_by(num_scheduled.get(request_id, 0)):
                self._near.attach_first(request_id, request.live, request.namespace)
        self._near.attach_arrived()

    def _follow(self, moved: dict[str, int]) -> None:
        """Have live requests of these namespaces drafted for from their new corpora."""
        for request_id, request in self._requests.items():
            if request.namespace in moved and request.slot is not None and self._shares(request):
                self._rows.set_corpus_row(request_id, moved[request.namespace])

    def _leave_slot(self, request_id: str, request: _Request) -> None:
        self._rows.leave(request_id)
        if self._shares(request):
            self._corpora.leave(request.namespace)
        request.leave_slot()

    def _end(self, request_id: str, req_states: Any | None) -> None:
        """Forget a request, and read back what became of it; its answer too if `req_states`, which
        has its tokens, is given."""
        request = self._requests.get(request_id)
        if request is None:
            return
        request.end()
        slot = request.slot
        nearest = self._rows.nearest.get(request_id)
        self._drop(request_id)
        self._num_ended += 1
        receiver = partial(self._receive, request_id, request, nearest)
        if slot is None:
            self._read_back.send([], receiver)
            return
        parts = [self._counts.counts[slot]]
        if req_states is not None and self._is_to_be_learned(request):
            # What was computed beyond the end, before the end was known, is cut off later.
            parts += [
                req_states.total_len.gpu[slot : slot + 1],
                req_states.all_token_ids.gpu[slot, : request.live.max_tokens_in_all()],
            ]
        self._read_back.send(parts, receiver)

    def _drop(self, request_id: str) -> None:
        """Forget a request."""
        request = self._requests.pop(request_id)
        if request.slot is not None:
            self._leave_slot(request_id, request)
        self._rows.end(request_id)
        if not is_private(request.namespace):
            self._near.end(request_id, request.live, request.namespace, {})

    def _is_to_be_learned(self, request: _Request) -> bool:
        """Return whether its answer is stored from here: the front end stores what it has
        retrieved for."""
        hints = request.live.hints
        return (
            hints.store
            and hints.retrieval_id is None
            and not is_private(request.namespace)
            and request.live.prompt_token_ids is not None
        )

    def _add_stats(self, request: _Request, values: list[NDArray[Any]]) -> None:
        """In the thread that reads back: add the counts of a slot that a request had."""
        stats = stats_of(values[0])
        request.stats.add(stats)
        self._total.add(stats)

    def _receive(
        self,
        request_id: str,
        request: _Request,
        nearest: str | None,
        values: list[NDArray[Any]],
    ) -> None:
        """In the thread that reads back: hand on what a request that is over leaves behind."""
        if values:
            self._add_stats(request, values)
        if (nonce := request.live.hints.counts_nonce) is not None:
            self._draft_counts.put(counts_id(nonce, request_id), request.stats)
        accepted = request.stats.by_source["near_answer"].accepted
        if nearest is not None and accepted:
            # Which of its near answers was copied is not told apart: mostly it is the nearest.
            self._retriever.record_usage(request.namespace, {nearest: accepted})
        if len(values) > 1:
            _, total_len, tokens = values
            output = tokens[request.live.num_prompt_tokens : int(total_len[0])]
            self._learn(request, request.live.answer_of(output.tolist()))

    def _learn(self, request: _Request, answer: Sequence[int]) -> None:
        """Store the answer of a request that is over."""
        assert request.live.prompt_token_ids is not None
        self._learner.learn(
            FinishedRequest(
                namespace=request.namespace,
                model_key=self._model_key,
                tokenizer_key=self._tokenizer_key,
                prompt_token_ids=request.live.prompt_token_ids,
                response_token_ids=answer,
                ended_s=request.ended_s,
            )
        )
