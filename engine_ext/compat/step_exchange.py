"""One exchange with the workers a step, where vLLM needs three.

Where workers are processes of their own, vLLM's engine core asks them to run the model, waits, asks
for the tokens, waits, and asks for the drafts: model and scheduler both stand still for a tenth of
a millisecond each time, of a step of two. Here one call runs the model and samples, unless a
grammar has to be applied in between, and the worker puts the drafts on the step's output. Where
either side is not as expected, vLLM's own calls remain.
"""

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from vllm import envs
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.worker.worker_base import WorkerWrapperBase

from reprise.engine_ext.compat.expected_parameters import check_parameters
from reprise.engine_ext.compat.guarded import Original, step_errors, wrap_step_method
from reprise.engine_ext.core.identity import uses_our_proposer
from reprise.engine_ext.scheduling.ahead import Ahead, ahead_of

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

_ATTACHED = "_reprise_draft_token_ids"
_EXPECTED_PARAMETERS: dict[tuple[type, str], tuple[str, ...]] = {
    (MultiprocExecutor, "execute_model"): ("self", "scheduler_output", "non_block"),
    (MultiprocExecutor, "sample_tokens"): ("self", "grammar_output", "non_block"),
    (MultiprocExecutor, "take_draft_token_ids"): ("self",),
    (MultiprocExecutor, "collective_rpc"): (
        "self",
        "method",
        "timeout",
        "args",
        "kwargs",
        "non_block",
        "unique_reply_rank",
        "kv_output_aggregator",
        "ec_output_aggregator",
    ),
    (WorkerWrapperBase, "execute_model"): ("self", "scheduler_output"),
}


class _StepFuture(Future[Any]):
    """The output of a step that is under way; its drafts stay with the executor."""

    def __init__(self, executor: Any, output: Future[Any]) -> None:
        super().__init__()
        self._executor = executor
        self._output = output

    def result(self, timeout: float | None = None) -> Any:
        output = self._output.result(timeout)
        _keep_drafts(self._executor, output)
        return output


def attach(runner: Any, output: Any) -> None:
    """In the worker: put the runner's drafts on the output [B] of the step that made them."""
    if isinstance(output, ModelRunnerOutput) and not runner.use_async_scheduling:
        setattr(output, _ATTACHED, runner.take_draft_token_ids())


def run_step(worker: Any, scheduler_output: "SchedulerOutput") -> Any:
    """In the worker: run the model and sample; the output of `sample_tokens`, mostly."""
    output = worker.execute_model(scheduler_output)
    return worker.sample_tokens(None) if output is None else output


def _keep_drafts(executor: Any, output: Any) -> None:
    """Of the latest step, or none: those of an earlier one must not be taken for them."""
    executor._reprise_drafts = None
    with step_errors.recording("keep drafts"):
        executor._reprise_drafts = getattr(output, _ATTACHED, None)


def _runs_as_one(executor: Any, scheduler_output: "SchedulerOutput") -> bool:
    """Whether nothing has to be decided between the model and the sampler."""
    config = executor.vllm_config
    # With several batches under way, vLLM asks for their tokens in an order of its own.
    is_in_order = config.max_concurrent_batches == 1 or ahead_of(config) is Ahead.SCHEDULE
    return (
        scheduler_output.total_num_scheduled_tokens > 0
        and not scheduler_output.has_structured_output_requests
        and is_in_order
        and uses_our_proposer(config)
    )


def install() -> None:
    """In engine core and workers: wrap `MultiprocExecutor` and give workers `reprise_step`.

    Raises:
        RuntimeError: vLLM is not as expected; it is left as it is.
    """
    check_parameters(_EXPECTED_PARAMETERS)
    WorkerWrapperBase.reprise_step = run_step
    wrap_step_method(MultiprocExecutor, "execute_model", _execute_model, otherwise=_execute_alone)
    wrap_step_method(MultiprocExecutor, "sample_tokens", _sample_tokens, otherwise=_sample_once)
    wrap_step_method(MultiprocExecutor, "take_draft_token_ids", _take_draft_token_ids)


def _execute_model(
    original: Original,
    executor: Any,
    scheduler_output: "SchedulerOutput",
    non_block: bool = False,
) -> Any:
    executor._reprise_step = None
    if not non_block or not _runs_as_one(executor, scheduler_output):
        return original()
    executor._reprise_step = original.instead(lambda: _send_step(executor, scheduler_output))
    return executor._reprise_step


def _execute_alone(original: Original, executor: Any, *_: Any, **__: Any) -> Any:
    executor._reprise_step = None
    return original()


def _send_step(executor: Any, scheduler_output: "SchedulerOutput") -> _StepFuture:
    output = executor.collective_rpc(
        "reprise_step",
        args=(scheduler_output,),
        unique_reply_rank=executor.output_rank,
        non_block=True,
        timeout=envs.VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS,
        kv_output_aggregator=executor.kv_output_aggregator,
        ec_output_aggregator=executor.ec_output_aggregator,
    )
    return _StepFuture(executor, output)


def _sample_tokens(
    original: Original,
    executor: Any,
    grammar_output: Any,  # noqa: ARG001 - vLLM's
    non_block: bool = False,
) -> Any:
    step = getattr(executor, "_reprise_step", None)
    if non_block and step is not None:
        return original.instead(lambda: step)  # it samples as well
    output = original()
    if not non_block:
        _keep_drafts(executor, output)
    return output


def _sample_once(
    original: Original,
    executor: Any,
    grammar_output: Any,  # noqa: ARG001 - vLLM's
    non_block: bool = False,
) -> Any:
    step = getattr(executor, "_reprise_step", None)
    return original() if step is None or not non_block else original.instead(lambda: step)


def _take_draft_token_ids(original: Original, executor: Any) -> Any:
    drafts = getattr(executor, "_reprise_drafts", None)
    executor._reprise_drafts = None
    return original() if drafts is None else original.instead(lambda: drafts)
