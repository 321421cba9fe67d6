"""One exchange with the workers a step, where vLLM needs three.

Where workers are processes of their own, vLLM's engine core asks them to run the model, waits, asks
for the tokens, waits, and asks for the drafts: model and scheduler both stand still for a tenth of
a millisecond each time, of a step of two. Here one call runs the model and samples, unless a
grammar has to be applied in between, and the worker puts the drafts on the step's output. Where
either side is not as expected, vLLM's own calls remain.
"""

from collections.abc import Callable
from concurrent.futures import Future
from functools import wraps
from typing import TYPE_CHECKING, Any

from vllm import envs
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.worker.worker_base import WorkerWrapperBase

from reprise.engine_ext.ahead import Ahead, ahead_of
from reprise.engine_ext.expected_parameters import check_parameters
from reprise.engine_ext.plugin import uses_our_proposer

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
    if getattr(MultiprocExecutor, "_reprise_step_exchange", False):
        return
    check_parameters(_EXPECTED_PARAMETERS)
    execute: Callable[..., Any] = MultiprocExecutor.execute_model
    sample: Callable[..., Any] = MultiprocExecutor.sample_tokens
    take: Callable[..., Any] = MultiprocExecutor.take_draft_token_ids

    @wraps(execute)
    def execute_model(
        self: Any, scheduler_output: "SchedulerOutput", non_block: bool = False
    ) -> Any:
        self._reprise_step = None
        if not non_block or not _runs_as_one(self, scheduler_output):
            return execute(self, scheduler_output, non_block)
        output = self.collective_rpc(
            "reprise_step",
            args=(scheduler_output,),
            unique_reply_rank=self.output_rank,
            non_block=True,
            timeout=envs.VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS,
            kv_output_aggregator=self.kv_output_aggregator,
            ec_output_aggregator=self.ec_output_aggregator,
        )
        self._reprise_step = _StepFuture(self, output)
        return self._reprise_step

    @wraps(sample)
    def sample_tokens(self: Any, grammar_output: Any, non_block: bool = False) -> Any:
        step = getattr(self, "_reprise_step", None)
        if non_block and step is not None:
            return step  # it samples as well
        output = sample(self, grammar_output, non_block)
        if not non_block:
            _keep_drafts(self, output)
        return output

    @wraps(take)
    def take_draft_token_ids(self: Any) -> Any:
        drafts = getattr(self, "_reprise_drafts", None)
        self._reprise_drafts = None
        return take(self) if drafts is None else drafts

    MultiprocExecutor.execute_model = execute_model
    MultiprocExecutor.sample_tokens = sample_tokens
    MultiprocExecutor.take_draft_token_ids = take_draft_token_ids
    MultiprocExecutor._reprise_step_exchange = True
    WorkerWrapperBase.reprise_step = run_step
