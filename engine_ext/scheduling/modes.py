"""Which engines schedule asynchronously, and how: async_scheduling.py decides it."""

from enum import Enum
from typing import TYPE_CHECKING, Any

from reprise.engine_ext.compat.engine_state import (
    mark_of,
    set_mark,
    set_room_for_drafts,
    without_requests,
)
from reprise.engine_ext.compat.guarded import Original

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput

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


def leave_no_room(original: Original, scheduler_output: "SchedulerOutput") -> None:
    """Run vLLM's `_update_after_schedule` so that the next step has no room for drafts, but for
    those that are handed over before it is scheduled."""
    set_room_for_drafts(scheduler_output, 0)
    original()
