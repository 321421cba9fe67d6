"""Which engines schedule asynchronously, and how: async_scheduling.py decides it."""

from enum import Enum
from typing import TYPE_CHECKING, Any

from reprise.engine_ext.compat.engine_state import (
    forget_output_in_flight,
    mark_of,
    set_mark,
    set_room_for_drafts,
    without_requests,
)
from reprise.engine_ext.compat.guarded import Original

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput

_MODE = "async_mode"
_CPU_OPTIMIZATIONS = "cpu_optimizations"


class AsyncMode(Enum):
    """How an engine has more than one step in flight."""

    LAUNCH = "steps without drafts are launched before the step before them is known"
    SCHEDULE = "steps are scheduled while the one before them runs"


def async_mode_of(config: "VllmConfig") -> AsyncMode | None:
    """Return the mode of an engine of this config, in any of its processes; None: one step at a
    time."""
    mode: AsyncMode | None = mark_of(config.scheduler_config, _MODE)
    return mode


def set_async_mode(config: "VllmConfig", mode: AsyncMode | None) -> None:
    """Note the mode in the config, which other processes get copies of from then on."""
    set_mark(config.scheduler_config, _MODE, mode)


def has_cpu_optimizations(config: "VllmConfig") -> bool:
    """Return the setting `engine.cpu_optimizations`, in any process of an engine."""
    return bool(mark_of(config.scheduler_config, _CPU_OPTIMIZATIONS, True))


def set_cpu_optimizations(config: "VllmConfig", wanted: bool) -> None:
    """Note the setting in the config, which other processes get copies of from then on."""
    set_mark(config.scheduler_config, _CPU_OPTIMIZATIONS, wanted)


def step_without_requests(step: Original, scheduler: Any) -> Any:
    """Have the engine core only process the output of a step that is in flight."""
    with without_requests(scheduler):
        outputs, _ = step()
    return outputs, True  # else vLLM would sleep, as if nothing could be run


def needs_kv_loaded(scheduler_output: "SchedulerOutput") -> bool:
    """Return whether a step begins with what a KV connector loads for it: if that fails, its output
    is worth nothing, and nothing must have been scheduled after it."""
    # vLLM 0.26 does not say.
    has_connector = getattr(scheduler_output, "kv_connector_metadata", None) is not None
    return bool(getattr(scheduler_output, "has_sync_kv_loads", has_connector))


def forget_failed_loads(
    scheduler: Any, scheduler_output: "SchedulerOutput", output: "ModelRunnerOutput"
) -> list[Any]:
    """Return the requests whose output of the latest step was dropped, because KV that it needed
    could not be loaded, and have them go on as if it had not been scheduled.

    vLLM has them computed once more, and goes on waiting for the tokens that it has dropped. It
    also leaves the blocks in the prefix cache meanwhile: a request that is preempted before it has
    computed them would find them there.
    """
    loaded = getattr(output, "kv_connector_output", None)
    if loaded is None or not loaded.invalid_block_ids or not needs_kv_loaded(scheduler_output):
        return []
    evict_from(scheduler, loaded.invalid_block_ids)
    # No step is in flight: whatever is still expected was dropped.
    dropped = [each for each in scheduler.running if each.num_output_placeholders]
    for request in dropped:
        forget_output_in_flight(request)
    return dropped


def evict_from(scheduler: Any, invalid_block_ids: set[int]) -> None:
    """Take blocks that hold nothing out of the prefix cache, and those that follow them in a
    running request."""
    manager = scheduler.kv_cache_manager
    for request in scheduler.running:
        (block_ids,) = manager.get_block_ids(request.request_id)
        places = [place for place, each in enumerate(block_ids) if each in invalid_block_ids]
        if places:
            manager.evict_blocks(set(block_ids[places[0] :]))


def leave_no_room(original: Original, scheduler_output: "SchedulerOutput") -> None:
    """Run vLLM's `_update_after_schedule` so that the next step has no room for drafts, but for
    those that are handed over before it is scheduled."""
    set_room_for_drafts(scheduler_output, 0)
    original()
