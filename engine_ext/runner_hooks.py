"""Hand the proposer what vLLM's V1 model runner knows and does not pass on: ids, starts and ends.

Four methods of `GPUModelRunner` and one each of `Scheduler` and `CPUWorker` are wrapped in a few
lines, and only in a process that has built our proposer; every other drafter passes through
untouched.
`WorkerBase` gains three methods for `collective_rpc`: `reprise_stats`, `reprise_draft_counts` and
`reprise_flush`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from vllm.logger import init_logger
from vllm.platforms import current_platform

from reprise.engine_ext import step_exchange
from reprise.engine_ext.ahead import Ahead, ahead_of
from reprise.engine_ext.expected_parameters import unexpected_parameters
from reprise.engine_ext.fill_in import attach_num_filled_in, fill_in

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from reprise.engine_ext.row_tracker import IntArray

logger = init_logger(__name__)

# Of GPUModelRunner: what the wrappers rely on, checked before anything is wrapped.
_LEADING_PARAMETERS = {
    "execute_model": ("self", "scheduler_output"),
    "_update_states": ("self", "scheduler_output"),
    "propose_draft_token_ids": ("self", "scheduler_output", "sampled_token_ids"),
}


# The drafters of this process; weak, so that an engine that is gone hears of nothing.
_drafters: "WeakSet[RunnerAware]" = WeakSet()


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


def install(drafter: RunnerAware) -> bool:
    """Wrap the V1 model runner of this process, once, and let `drafter` know of arrivals.

    Returns:
        False, with one warning line, where this vLLM's runner is not as expected; the proposer
        then recognises requests by content.
    """
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    from vllm.v1.worker.worker_base import WorkerBase

    _drafters.add(drafter)
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
    _wrap_steps(GPUModelRunner)
    _wrap(GPUModelRunner, "_update_states", "before_step")
    _wrap(GPUModelRunner, "propose_draft_token_ids", "before_propose")
    _wrap_arrivals(Scheduler)
    _wrap_outputs(GPUModelRunner)
    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker

        _wrap_warm_up(CPUWorker)
    WorkerBase.reprise_stats = _worker_stats
    WorkerBase.reprise_draft_counts = _worker_draft_counts
    WorkerBase.reprise_flush = _worker_flush
    GPUModelRunner._reprise_hooks = True
    return True


def are_installed(runner: "GPUModelRunner") -> bool:
    """Whether a model runner has a drafter that knows requests by id."""
    is_aware = isinstance(getattr(runner, "drafter", None), RunnerAware)
    return is_aware and getattr(runner, "_reprise_hooks", False)


def _wrap_steps(runner_class: type) -> None:
    original: Callable[..., Any] = runner_class.execute_model  # type: ignore[attr-defined]

    @wraps(original)
    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if ahead_of(self.vllm_config) is Ahead.SCHEDULE and are_installed(self):
            fill_in(self, scheduler_output)
        return original(self, scheduler_output, *args, **kwargs)

    runner_class.execute_model = execute_model  # type: ignore[attr-defined]


def _wrap(runner_class: type, method_name: str, hook_name: str) -> None:
    original: Callable[..., Any] = getattr(runner_class, method_name)

    @wraps(original)
    def wrapper(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        drafter = getattr(self, "drafter", None)
        if isinstance(drafter, RunnerAware):
            getattr(drafter, hook_name)(self, scheduler_output)
        return original(self, scheduler_output, *args, **kwargs)

    setattr(runner_class, method_name, wrapper)


def _wrap_arrivals(scheduler_class: type) -> None:
    original: Callable[..., Any] = scheduler_class.add_request  # type: ignore[attr-defined]

    @wraps(original)
    def add_request(self: Any, request: "Request", *args: Any, **kwargs: Any) -> Any:
        for drafter in _drafters:
            drafter.on_arrival(request)
        return original(self, request, *args, **kwargs)

    scheduler_class.add_request = add_request  # type: ignore[attr-defined]


def _wrap_outputs(runner_class: type) -> None:
    original: Callable[..., Any] = runner_class.sample_tokens  # type: ignore[attr-defined]

    @wraps(original)
    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        if isinstance(getattr(self, "drafter", None), RunnerAware):
            if ahead_of(self.vllm_config) is Ahead.SCHEDULE:
                attach_num_filled_in(self, output)
            else:
                step_exchange.attach(self, output)
        return output

    runner_class.sample_tokens = sample_tokens  # type: ignore[attr-defined]


def _wrap_warm_up(worker_class: type) -> None:
    original: Callable[..., Any] = worker_class.compile_or_warm_up_model  # type: ignore[attr-defined]

    @wraps(original)
    def compile_or_warm_up_model(self: Any) -> Any:
        drafter = getattr(self.model_runner, "drafter", None)
        if isinstance(drafter, RunnerAware):
            drafter.before_serving(self.model_runner)
        return original(self)

    worker_class.compile_or_warm_up_model = compile_or_warm_up_model  # type: ignore[attr-defined]


def _worker_stats(self: Any) -> dict[str, Any]:
    drafter = getattr(self.model_runner, "drafter", None)
    return drafter.report() if isinstance(drafter, RunnerAware) else {}


def _worker_draft_counts(self: Any, request_ids: Sequence[str]) -> dict[str, Any]:
    drafter = getattr(self.model_runner, "drafter", None)
    return drafter.take_draft_counts(request_ids) if isinstance(drafter, RunnerAware) else {}


def _worker_flush(self: Any, timeout_s: float = 30.0) -> bool:
    drafter = getattr(self.model_runner, "drafter", None)
    return drafter.flush(timeout_s) if isinstance(drafter, RunnerAware) else True
