"""A step is scheduled while the one before it runs, with room for drafts that are not made yet.

Where the model runner is a process of its own, it stands still while the engine core takes in what
a step emitted, schedules the next one and sends it over: for a seventh of a step of a small model
on the CPU. But all that the scheduler does with drafts is to count them, and the runner knows
before it what a step emitted and what is drafted next. So here the scheduler takes every draft to
be as long as it can be, and every drafted token to be right, and sends the next step while the one
before it runs; the runner resolves them (`resolve_drafts.py`), and the scheduler takes back the
rest when it learns of it. To the runner, steps are what they always were.

Steps with grammars are waited for: their drafts have to be seen by the engine core first. So are
steps that begin with KV that a connector loads: should that fail, they have no output.

The engine core then no longer has to wait in a loop, to be there at once when a step is over, and
leaves its core to others meanwhile (`sleep_between_polls`). On a machine of few cores an API server
was kept from sending tokens for hundreds of milliseconds.
"""

import time
from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING, Any

from reprise.engine_ext.compat.engine_state import roll_back, set_room_for_drafts
from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.compat.patches import Feature
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.placeholders import PLACEHOLDER
from reprise.engine_ext.scheduling.failed_loads import forget_failed_loads, needs_kv_loaded
from reprise.engine_ext.scheduling.modes import leave_no_room, step_without_requests
from reprise.engine_ext.scheduling.resolve_drafts import num_drafted_of

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput

POLL_SLEEP_S = 0.0001
# Of a step's tokens and of free KV blocks, what is left to prompts.
_SHARE_OF_PROMPTS = 0.5
_BLOCKS_A_REQUEST = 2


class AsyncSchedule:
    """One engine core's: keeps a step scheduled beside the one that runs.

    Args:
        engine_core: vLLM's, with our proposer and one worker process.
    """

    def __init__(self, engine_core: Any) -> None:
        self._core = engine_core
        self._scheduler = engine_core.scheduler
        registry.apply_to(self._scheduler, Feature.ASYNC_SCHEDULING, self)

    def step(self, step: Original) -> Any:
        """Run vLLM's `step_with_batch_queue`, which schedules a batch wherever it can; where the
        next batch has to wait for what is in flight, only process the output of that."""
        in_flight = self._core.batch_queue
        if not in_flight or not _has_to_wait(in_flight[0][1]):
            return step()
        return step_without_requests(step, self._scheduler)

    def update_after_schedule(
        self, original: Original, scheduler_output: "SchedulerOutput"
    ) -> None:
        """Run vLLM's, with as much room for drafts in the next step as there can be."""
        room = 0 if self._has_grammar(scheduler_output) else self._room_for_drafts()
        set_room_for_drafts(scheduler_output, room)
        original()

    def leave_no_room(self, original: Original, scheduler_output: "SchedulerOutput") -> None:
        """Run vLLM's, with no room for drafts in the next step."""
        leave_no_room(original, scheduler_output)

    def _has_grammar(self, scheduler_output: "SchedulerOutput") -> bool:
        """Return whether drafts for the next step are handed over, once this one is known."""
        requests = self._scheduler.requests
        return any(
            requests[name].use_structured_output for name in scheduler_output.num_scheduled_tokens
        )

    def _room_for_drafts(self) -> int:
        """Tokens that the next step keeps free for each request's draft."""
        scheduler = self._scheduler
        num_running = len(scheduler.running)
        free_blocks = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        if free_blocks < num_running * _BLOCKS_A_REQUEST:
            return 0  # no request is to be preempted for what might be drafted
        budget = int(scheduler.max_num_scheduled_tokens * (1.0 - _SHARE_OF_PROMPTS))
        room: int = min(scheduler.num_spec_tokens, budget // max(1, num_running) - 1)
        return max(0, room)

    def update_from_output(
        self,
        original: Original,
        scheduler_output: "SchedulerOutput",
        model_runner_output: "ModelRunnerOutput",
    ) -> Any:
        """Run vLLM's on what was really drafted."""
        self._roll_back_unused(scheduler_output.scheduled_spec_decode_tokens, model_runner_output)
        outputs = original()
        forget_failed_loads(self._scheduler, scheduler_output, model_runner_output)
        if scheduler_output.has_structured_output_requests:
            drafts = self._core.model_executor.take_draft_token_ids()
            if drafts is not None:
                self._scheduler.update_draft_token_ids(drafts)
        return outputs

    def _roll_back_unused(
        self, scheduled: MutableMapping[str, list[int]], output: "ModelRunnerOutput"
    ) -> None:
        """Take the room that no draft has filled for never scheduled.

        What is left to vLLM here, it counts as drafted and rejected: its statistics are then off,
        and the scheduler's counts are the same.
        """
        num_drafted = num_drafted_of(output) if scheduled else None
        if num_drafted is None:
            return
        for request_id, tokens in tuple(scheduled.items()):
            if not tokens or tokens[0] != PLACEHOLDER:
                continue
            drafted = num_drafted.get(request_id, 0)
            request = self._scheduler.requests.get(request_id)
            # One that was preempted meanwhile counts from zero again.
            if request is not None and request.num_stale_output_tokens == 0:
                roll_back(request, len(tokens) - drafted)
            if drafted:
                scheduled[request_id] = tokens[:drafted]
            else:
                del scheduled[request_id]


def _has_to_wait(scheduler_output: "SchedulerOutput") -> bool:
    """Return whether nothing may be scheduled before a step's output is known."""
    return scheduler_output.has_structured_output_requests or needs_kv_loaded(scheduler_output)


class _Polling:
    """Sleeps where vLLM would poll in a loop."""

    def poll_sleep(self, timeout_ms: int | None = None) -> None:  # noqa: ARG002 - it looks itself
        """Wait until the next poll."""
        time.sleep(POLL_SLEEP_S)


def sleep_between_polls(response_queues: Iterable[Any]) -> None:
    """In the engine core: sleep while nothing is in the workers' queues, in place of a loop."""
    for queue in response_queues:
        registry.apply_to(queue._spin_condition, Feature.ASYNC_SCHEDULING, _Polling())
