"""Calls a drafter's hooks from vLLM's model runner V1: ids, starts and ends of requests.

The hooks of `Feature.REQUESTS`. Every other drafter passes through untouched. `WorkerBase` gains
three methods for `collective_rpc`, for either model runner: `reprise_stats`, `reprise_draft_counts`
and `reprise_flush`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.compat.hooks import (
    DrafterHooks,
    WorkerReports,
    drafter_of,
    speculator_of,
)

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.request import Request

# With the config of the engine that each is of: a process may hold several engines. Weak, so that
# an engine that is gone hears of nothing.
_drafters: "WeakKeyDictionary[DrafterHooks, VllmConfig]" = WeakKeyDictionary()


def register_drafter(drafter: DrafterHooks, vllm_config: "VllmConfig") -> None:
    """Let a drafter know when requests arrive at its own engine."""
    _drafters[drafter] = vllm_config


def before_step(original: Original, runner: Any, scheduler_output: Any, *_: Any, **__: Any) -> Any:
    """Call `DrafterHooks.before_step`."""
    if (drafter := drafter_of(runner)) is not None:
        drafter.before_step(runner, scheduler_output)
    return original()


def before_propose(
    original: Original, runner: Any, scheduler_output: Any, *_: Any, **__: Any
) -> Any:
    """Call `DrafterHooks.before_propose`."""
    if (drafter := drafter_of(runner)) is not None:
        drafter.before_propose(runner, scheduler_output)
    return original()


def input_fits_in_drafter(original: Original, runner: Any, attention: Any) -> Any:
    """Answer that all drafts fit: our drafter keeps to each request's room itself. vLLM would draft
    zeros for all requests while one of them is near the end of its context."""
    if attention is not None and drafter_of(runner) is not None:
        return original.instead(lambda: True)
    return original()


def add_request(original: Original, scheduler: Any, request: "Request", *_: Any, **__: Any) -> Any:
    """Call `DrafterHooks.on_arrival` of the scheduler's own engine."""
    for drafter, vllm_config in tuple(_drafters.items()):
        if vllm_config is scheduler.vllm_config:
            drafter.on_arrival(request)
    return original()


def before_serving(original: Original, worker: Any) -> Any:
    """Call `DrafterHooks.before_serving`."""
    if (drafter := drafter_of(worker.model_runner)) is not None:
        drafter.before_serving(worker.model_runner)
    return original()


def reprise_stats(worker: Any) -> dict[str, Any]:
    """Return `WorkerReports.report`."""
    reports = _reports_of(worker)
    return reports.report() if reports is not None else {}


def reprise_draft_counts(worker: Any, counts_ids: Sequence[str]) -> dict[str, Any]:
    """Return `WorkerReports.take_draft_counts`."""
    reports = _reports_of(worker)
    return reports.take_draft_counts(counts_ids) if reports is not None else {}


def reprise_flush(worker: Any, timeout_s: float = 30.0) -> bool:
    """Call `WorkerReports.flush`."""
    reports = _reports_of(worker)
    return reports.flush(timeout_s) if reports is not None else True


def _reports_of(worker: Any) -> WorkerReports | None:
    runner = worker.model_runner
    return drafter_of(runner) or speculator_of(runner)
