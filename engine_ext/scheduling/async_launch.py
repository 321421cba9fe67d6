"""A step that has no drafts is launched while the one before it still runs.

That is vLLM's asynchronous scheduling, which it refuses drafters that need the sampled tokens on
the CPU, as ours does. The device then idles while the host schedules, prepares inputs and drafts:
for a third of a step of a model of 8B parameters, in steps without any draft too. Yet only a draft
needs to know what the step before it emitted. So here

* a step with drafts is waited for, and drafts for the next one are made of what it emitted;
* a step without drafts is not: the next one is launched at once, without drafts, as vLLM would
  without speculation. Drafts after the first are made while the second runs. If drafts would
  pay by then, the second is waited for, and the third has drafts.

The engine is vLLM's asynchronous one (two batches in flight, its `AsyncScheduler`, its outputs that
arrive later); a step that is waited for is sampled as if scheduling were synchronous. Only where
engine core and model runner share a process: one device.
"""

import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm.v1.outputs import AsyncModelRunnerOutput, DraftTokenIds

from reprise.engine_ext.compat.engine_state import (
    drop_drafts,
    forget_draft_length,
    resolve_on_host,
    sampling,
    take_back_output,
    take_inputs_from_host,
)
from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.compat.patches import Feature
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.placeholders import PLACEHOLDER
from reprise.engine_ext.scheduling.failed_loads import forget_failed_loads, needs_kv_loaded
from reprise.engine_ext.scheduling.modes import leave_no_room, step_without_requests

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput

MIN_WAIT_S = 0.0001  # below, the device may have waited for the host
_MAX_UNKNOWN = 4  # tokens of a request: one of each step in flight, and of those that were missed


class _Step(NamedTuple):
    """One that is in flight: launched, and its output not seen by the scheduler."""

    scheduler_output: "SchedulerOutput"
    is_known: bool
    """Its tokens were waited for, and the drafts after it are made."""
    was_in_flight: bool
    """It was launched while another was in flight."""
    is_followed: bool
    """The next one may be launched before its output is there."""


class AsyncLaunch:
    """One engine's: decides before each step whether to wait for what is in flight.

    Args:
        engine_core: vLLM's, with our proposer and a model runner in its own process.
    """

    def __init__(self, engine_core: Any) -> None:
        self._core = engine_core
        self._scheduler = engine_core.scheduler
        self._runner = engine_core.model_executor.driver_worker.worker.model_runner
        self._drafter = self._runner.drafter
        self._may_launch = self._drafter.supports_async_launch()
        self._in_flight: deque[_Step] = deque()
        self._drafts_pay = self._has_drafts = False
        self._waits = False
        self._waited_s = self._draft_late_s = 0.0
        # Nothing that a step has to know is left to be corrected on the device.
        resolve_on_host(self._runner)
        for patched in (self._runner, self._scheduler):
            registry.apply_to(patched, Feature.ASYNC_SCHEDULING, self)

    def step(self, step: Original) -> Any:
        """Run vLLM's `step_with_batch_queue`, which schedules a batch wherever it can; where the
        next batch has to wait for what is in flight, only process the output of that."""
        in_queue = len(self._core.batch_queue)
        while len(self._in_flight) > in_queue:
            self._in_flight.popleft()  # vLLM has taken it in alone: something of ours failed
        is_known = len(self._in_flight) == in_queue
        if not in_queue or (is_known and self._in_flight[-1].is_followed and not self._drafts_pay):
            return step()
        return step_without_requests(step, self._scheduler)

    def update_after_schedule(
        self, original: Original, scheduler_output: "SchedulerOutput"
    ) -> None:
        """Run vLLM's so that the next step has no drafts but those handed over. Drafts that
        found no room in this step are dropped: the next one may be launched before it is known."""
        if self._has_drafts:
            for request in self._scheduler.running:
                if request.request_id not in scheduler_output.num_scheduled_tokens:
                    drop_drafts(request)
            self._has_drafts = False
        leave_no_room(original, scheduler_output)

    leave_no_room = update_after_schedule

    def sample_tokens(self, original: Original, *_: Any, **__: Any) -> Any:
        """Run vLLM's, which waits for the tokens where drafts may be made of them at once."""
        state = self._runner.execute_model_state
        if state is None:
            return original()
        was_in_flight = bool(self._in_flight)
        is_followed = not self._has_to_wait(state.scheduler_output)
        # With another in flight, this one has no drafts, and was prepared to be sampled as vLLM
        # samples where scheduling is asynchronous.
        self._waits = not was_in_flight and not is_followed
        self._in_flight.append(
            _Step(state.scheduler_output, self._waits, was_in_flight, is_followed)
        )
        with sampling(self._runner, is_async=not self._waits):
            output = original()
        if isinstance(output, AsyncModelRunnerOutput):
            registry.apply_to(output, Feature.ASYNC_SCHEDULING, self)
        return output

    def sample_later(self, original: Original, *_: Any, **__: Any) -> Any:
        """Run vLLM's, with nothing drafted after the step. Its tokens are known later, unless it
        has drafts: what those come to vLLM could not keep on the device."""
        state = self._runner.execute_model_state
        self._waits = False
        has_drafts = state is not None and state.scheduler_output.scheduled_spec_decode_tokens
        with sampling(self._runner, is_async=not has_drafts):
            return original()

    def _has_to_wait(self, scheduler_output: "SchedulerOutput") -> bool:
        return bool(
            scheduler_output.scheduled_spec_decode_tokens
            or scheduler_output.has_structured_output_requests
            or needs_kv_loaded(scheduler_output)
            or self._runner.input_batch.sampling_metadata.output_token_ids
            or not self._may_launch
        )

    def get_output(self, original: Original) -> Any:
        """Run vLLM's, and take the time that it waits for the device."""
        began_s = time.perf_counter()
        output = original()
        self._waited_s = time.perf_counter() - began_s
        return output

    def propose_draft_token_ids(self, original: Original, *_: Any, **__: Any) -> Any:
        """Run vLLM's where the tokens are known that drafts are made of."""
        return original() if self._waits else original.instead(list)

    def update_from_output(
        self,
        original: Original,
        scheduler_output: "SchedulerOutput",
        model_runner_output: "ModelRunnerOutput",
    ) -> Any:
        """Run vLLM's; then draft, if drafts can be made now or would pay."""
        outputs = original()
        dropped = forget_failed_loads(self._scheduler, scheduler_output, model_runner_output)
        for request in dropped:
            take_back_output(self._runner, request.request_id, request.num_output_tokens)
        self._resolve_placeholders()
        if any(step.scheduler_output is scheduler_output for step in self._in_flight):
            # None is before it but what failed to be taken in.
            while (step := self._in_flight.popleft()).scheduler_output is not scheduler_output:
                pass
            self._drafts_pay = False
            if step.is_known:
                self._forget_drafts(scheduler_output)
                self._hand_over(self._runner.take_draft_token_ids())
            else:
                self._draft_late(step)
        for request in dropped:
            drop_drafts(request)  # they would follow a token that is not there
        return outputs

    def _forget_drafts(self, scheduler_output: "SchedulerOutput") -> None:
        """Keep the runner from correcting for drafts whose fate it has seen."""
        for request_id in scheduler_output.scheduled_spec_decode_tokens:
            state = self._runner.requests.get(request_id)
            if state is not None:
                forget_draft_length(state)

    def _hand_over(self, drafts: DraftTokenIds | None) -> None:
        if drafts is not None:
            self._has_drafts = True
            self._scheduler.update_draft_token_ids(drafts)

    def _resolve_placeholders(self) -> None:
        """Put tokens that the scheduler knows where the runner has placeholders. What a request
        emitted after its end stays one."""
        batch = self._runner.input_batch
        for request_id, state in self._runner.requests.items():
            request = self._scheduler.requests.get(request_id)
            if request is None:
                continue
            outputs, known = state.output_token_ids, request.output_token_ids
            # One that was preempted meanwhile may have fewer places: the scheduler sends its
            # tokens when it resumes.
            end = min(len(outputs), len(known))
            begin = max(0, end - _MAX_UNKNOWN)
            if PLACEHOLDER not in outputs[begin:end]:
                continue
            row = batch.req_id_to_index.get(request_id)
            for place in range(begin, end):
                if outputs[place] == PLACEHOLDER:
                    outputs[place] = known[place]
                    if row is not None:
                        in_row = batch.num_prompt_tokens[row] + place
                        batch.token_ids_cpu[row, in_row] = known[place]

    def _draft_late(self, step: _Step) -> None:
        """Draft after a step that was not waited for; for the next one, if nothing is in flight."""
        batch = self._runner.input_batch
        is_last = not self._in_flight
        unknown: Any = () if is_last else batch.prev_req_id_to_index or ()
        num_tokens = batch.num_tokens_no_spec.copy()
        emitted: list[list[int]] = []
        for row, request_id in enumerate(batch.req_ids):
            num_tokens[row] -= request_id in unknown
            decodes = num_tokens[row] > batch.num_prompt_tokens[row]
            is_live = request_id in self._scheduler.requests
            known = batch.token_ids_cpu[row, num_tokens[row] - 1 : num_tokens[row]].tolist()
            if is_live and decodes and known == [PLACEHOLDER]:
                return  # only the device knows it, from where vLLM takes it for the next step
            emitted.append(known if decodes and is_live else [])
        if is_last:
            take_inputs_from_host(batch)
        # The last draft cost nothing if the host still had to wait for the device after it.
        is_spare = not is_last and self._waited_s > MIN_WAIT_S
        began_s = time.perf_counter()
        drafts = self._drafter.propose_late(
            self._runner,
            step.scheduler_output,
            emitted,
            num_tokens,
            is_in_flight=not is_last,
            was_in_flight=step.was_in_flight,
            spare_s=self._waited_s + self._draft_late_s if is_spare else 0.0,
        )
        self._draft_late_s = time.perf_counter() - began_s
        if not any(drafts):
            return
        if is_last:
            self._hand_over(DraftTokenIds(list(batch.req_ids), drafts))
        else:
            self._drafts_pay = True
