"""Calls a speculator's hooks from vLLM's model runner V2: ids, starts and ends of requests.

The hooks of `Feature.SPECULATOR` in the worker. Every other speculator passes through untouched.
"""

from typing import Any

from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.compat.hooks import speculator_of
from reprise.engine_ext.compat.model_runner import (
    reprise_draft_counts,
    reprise_flush,
    reprise_stats,
)

__all__ = [
    "add_requests",
    "finish_requests",
    "reprise_draft_counts",
    "reprise_flush",
    "reprise_stats",
]


def finish_requests(original: Original, runner: Any, scheduler_output: Any) -> Any:
    """Call `SpeculatorHooks.end_requests`, then run vLLM's."""
    if (speculator := speculator_of(runner)) is not None:
        speculator.end_requests(runner, scheduler_output)
    return original()


def add_requests(original: Original, runner: Any, scheduler_output: Any) -> Any:
    """Run vLLM's, then call `SpeculatorHooks.begin_step`."""
    result = original()
    if (speculator := speculator_of(runner)) is not None:
        speculator.begin_step(runner, scheduler_output)
    return result
