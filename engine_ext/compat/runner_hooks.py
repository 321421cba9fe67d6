"""Hand the proposer what vLLM's V1 model runner knows and does not pass on: ids, starts and ends.

Methods of `GPUModelRunner`, `Scheduler` and `CPUWorker` are wrapped in a few lines each, and only
in a process that has built our proposer; every other drafter passes through untouched. None of it
can fail a step (guarded.py).
`WorkerBase` gains three methods for `collective_rpc`: `reprise_stats`, `reprise_draft_counts` and
`reprise_flush`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from vllm.logger import init_logger
from vllm.platforms import current_platform

from reprise.engine_ext.compat import step_exchange
from reprise.engine_ext.compat.expected_parameters import unexpected_parameters
from reprise.engine_ext.compat.guarded import Original, Part, wrap_step_method
from reprise.engine_ext.scheduling.ahead import Ahead, ahead_of
from reprise.engine_ext.scheduling.fill_in import attach_num_filled_in, fill_in, fill_in_nothing

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from reprise.engine_ext.worker.row_tracker import IntArray

logger = init_logger(__name__)

# Of GPUModelRunner: what the wrappers rely on, checked before anything is wrapped.
_LEADING_PARAMETERS = {
    "execute_model": ("self", "scheduler_output"),
    "_update_states": ("self", "scheduler_output"),
    "sample_tokens": ("self", "grammar_output"),
    "propose_draft_token_ids": ("self", "scheduler_output", "sampled_token_ids"),
}


# The drafters of this process, with the config of the engine that each is of: a process may hold
# several engines. Weak, so that an engine that is gone hears of nothing.
_drafters: "WeakKeyDictionary[RunnerAware, VllmConfig]" = WeakKeyDictionary()


class RunnerAware(ABC):
    """A drafter that wants to know requests by id."""

    @abstractmethod
    def on_arrival(self, request: "Request") -> None:
        """Called when a request joins the scheduler's queue, where worker and scheduler share a
        process; a request that waits for its turn can be retrieved for meanwhile."""

    @abstractmethod
    def before_serving(self, runner: "GPUModelRunner") -> None:
        """Called on the CPU when the model is loaded and no request is there yet."""

    @abstractmethod
    def before_step(self, runner: "GPUModelRunner", scheduler_output: "SchedulerOutput") -> None:
        """Called before the runner takes in what the scheduler decided: starts and ends."""

    @abstractmethod
    def before_propose(self, runner: "GPUModelRunner", scheduler_output: "SchedulerOutput") -> None:
        """Called right before `propose`, with the rows as `propose` will see them."""

    @abstractmethod
    def can_run_ahead(self) -> bool:
        """Called by an engine that can launch steps before the tokens of those before are known.

        Returns:
            Whether it may: it then asks for drafts after those steps with `propose_late`.
        """

    @abstractmethod
    def propose_late(
        self,
        runner: "GPUModelRunner",
        scheduler_output: "SchedulerOutput",
        emitted: list[list[int]],
        num_tokens: "IntArray",
        *,
        is_ahead: bool,
        was_ahead: bool,
        spare_s: float,
    ) -> list[list[int]]:
        """Drafts after a step that was not waited for, once its tokens are known.

        Args:
            runner: with the rows as they are by now.
            scheduler_output: of the step.
            emitted: [num_reqs] lists with the latest token that is known of each row; empty: none
                to draft for.
            num_tokens: [max_num_reqs] int32, prompt and known output so far.
            is_ahead: the next step has been launched, without drafts; those that are asked for
                only tell whether it pays to wait for that step. Else the next step has them.
            was_ahead: the step was launched while the one before it ran.
            spare_s: how long the host would have to wait for the device, in seconds, if it did not
                draft.
        """

    @abstractmethod
    def report(self) -> dict[str, Any]:
        """Figures of this worker, plain values only."""

    @abstractmethod
    def take_draft_counts(self, request_ids: Sequence[str]) -> dict[str, Any]:
        """Counts of those of these requests that are over and asked for them; once."""

    @abstractmethod
    def flush(self, timeout_s: float) -> bool:
        """Wait until what was handed to the background is done."""


def install(drafter: RunnerAware, vllm_config: "VllmConfig") -> bool:
    """Wrap the V1 model runner of this process, once, and let `drafter` know of arrivals.

    Args:
        drafter: is told of the requests of its own engine only.
        vllm_config: of that engine.

    Returns:
        False, with one warning line, where this vLLM's runner is not as expected; the proposer
        then recognises requests by content.
    """
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    from vllm.v1.worker.worker_base import WorkerBase

    _drafters[drafter] = vllm_config
    if getattr(GPUModelRunner, "_reprise_hooks", False):
        return True
    expected = {(GPUModelRunner, name): leading for name, leading in _LEADING_PARAMETERS.items()}
    if (problem := unexpected_parameters(expected, leading=True)) is not None:
        logger.warning(
            "Reprise: %s; requests are recognised by content, and drafts come from each request's "
            "own context only.",
            problem,
        )
        return False
    wrap_step_method(GPUModelRunner, "execute_model", _execute_model, otherwise=_without_drafts)
    before_step = _before("before_step")  # tried twice: the ends of requests are told once
    wrap_step_method(GPUModelRunner, "_update_states", before_step, otherwise=before_step)
    wrap_step_method(GPUModelRunner, "propose_draft_token_ids", _before("before_propose"))
    wrap_step_method(GPUModelRunner, "sample_tokens", _sample_tokens)
    if hasattr(GPUModelRunner, "_input_fits_in_drafter"):
        wrap_step_method(GPUModelRunner, "_input_fits_in_drafter", _input_fits_in_drafter)
    wrap_step_method(Scheduler, "add_request", _add_request)
    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker

        wrap_step_method(CPUWorker, "compile_or_warm_up_model", _compile_or_warm_up_model)
    WorkerBase.reprise_stats = _worker_stats
    WorkerBase.reprise_draft_counts = _worker_draft_counts
    WorkerBase.reprise_flush = _worker_flush
    GPUModelRunner._reprise_hooks = True
    return True


def are_installed(runner: "GPUModelRunner") -> bool:
    """Whether a model runner has a drafter that knows requests by id."""
    is_aware = isinstance(getattr(runner, "drafter", None), RunnerAware)
    return is_aware and getattr(runner, "_reprise_hooks", False)


def _is_scheduled_ahead(runner: Any) -> bool:
    return ahead_of(runner.vllm_config) is Ahead.SCHEDULE and are_installed(runner)


def _execute_model(
    original: Original, runner: Any, scheduler_output: Any, *_: Any, **__: Any
) -> Any:
    if _is_scheduled_ahead(runner):
        fill_in(runner, scheduler_output)
    return original()


def _without_drafts(
    original: Original, runner: Any, scheduler_output: Any, *_: Any, **__: Any
) -> Any:
    if _is_scheduled_ahead(runner):
        fill_in_nothing(runner, scheduler_output)
    return original()


def _before(hook_name: str) -> Part:
    def part(original: Original, runner: Any, scheduler_output: Any, *_: Any, **__: Any) -> Any:
        drafter = getattr(runner, "drafter", None)
        if isinstance(drafter, RunnerAware):
            getattr(drafter, hook_name)(runner, scheduler_output)
        return original()

    return part


def _sample_tokens(original: Original, runner: Any, *_: Any, **__: Any) -> Any:
    # Of the step that was run; sampling clears it.
    state = getattr(runner, "execute_model_state", None)
    output = original()
    if state is not None and isinstance(getattr(runner, "drafter", None), RunnerAware):
        if ahead_of(runner.vllm_config) is Ahead.SCHEDULE:
            attach_num_filled_in(state.scheduler_output, output)
        else:
            step_exchange.attach(runner, output)
    return output


def _input_fits_in_drafter(original: Original, runner: Any, attention: Any) -> Any:
    """Our drafter keeps to each request's room itself. vLLM would draft zeros for all requests
    while one of them is near the end of its context, for those also that are to have no drafts."""
    if attention is not None and are_installed(runner):
        return original.instead(lambda: True)
    return original()


def _add_request(original: Original, scheduler: Any, request: "Request", *_: Any, **__: Any) -> Any:
    for drafter, vllm_config in tuple(_drafters.items()):
        if vllm_config is scheduler.vllm_config:
            drafter.on_arrival(request)
    return original()


def _compile_or_warm_up_model(original: Original, worker: Any) -> Any:
    drafter = getattr(worker.model_runner, "drafter", None)
    if isinstance(drafter, RunnerAware):
        drafter.before_serving(worker.model_runner)
    return original()


def _worker_stats(self: Any) -> dict[str, Any]:
    drafter = getattr(self.model_runner, "drafter", None)
    return drafter.report() if isinstance(drafter, RunnerAware) else {}


def _worker_draft_counts(self: Any, request_ids: Sequence[str]) -> dict[str, Any]:
    drafter = getattr(self.model_runner, "drafter", None)
    return drafter.take_draft_counts(request_ids) if isinstance(drafter, RunnerAware) else {}


def _worker_flush(self: Any, timeout_s: float = 30.0) -> bool:
    drafter = getattr(self.model_runner, "drafter", None)
    return drafter.flush(timeout_s) if isinstance(drafter, RunnerAware) else True
