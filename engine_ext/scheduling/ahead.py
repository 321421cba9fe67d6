"""Which engines get ahead of themselves, and how: async_scheduling.py decides it."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any

from reprise.engine_ext.compat.guarded import Original

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput

_MARK = "_reprise_ahead"


class Ahead(Enum):
    """How an engine gets ahead of itself."""

    RUN = "steps without drafts are launched before the step before them is known"
    SCHEDULE = "steps are scheduled while the one before them runs"


def ahead_of(config: "VllmConfig") -> Ahead | None:
    """The way of an engine of this config, in any of its processes; None: it goes step by step."""
    return getattr(config.scheduler_config, _MARK, None)


def set_ahead(config: "VllmConfig", ahead: Ahead | None) -> None:
    """Note the way in the config, which other processes get copies of from then on."""
    setattr(config.scheduler_config, _MARK, ahead)


@contextmanager
def without_requests(scheduler: Any) -> Iterator[None]:
    """Let the engine core find nothing to schedule."""
    scheduler.has_requests = lambda: False
    try:
        yield
    finally:
        del scheduler.has_requests


def step_without_requests(step: Original, scheduler: Any) -> Any:
    """Have the engine core only take in what a step that is under way has emitted."""
    with without_requests(scheduler):
        outputs, _ = step()
    return outputs, True  # else vLLM would sleep, as if nothing could be run


def leave_no_room(original: Original, scheduler_output: "SchedulerOutput") -> None:
    """vLLM's `_update_after_schedule`, after which the next step has no room for drafts, but for
    those that are handed over before it is scheduled."""
    scheduler_output.num_spec_tokens_to_schedule = 0
    original()
