"""One exchange with the workers a step, where vLLM needs three.

Where workers are processes of their own, vLLM's engine core asks them to run the model, waits, asks
for the tokens, waits, and asks for the drafts: model and scheduler both stand still for a tenth of
a millisecond each time, of a step of two. Here one call runs the model and samples, unless a
grammar has to be applied in between, and the worker puts the drafts on the step's output. Where
either side is not as expected, vLLM's own calls remain.

The hooks of `Feature.STEP_EXCHANGE`, in engine core and worker.
"""

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from vllm import envs
from vllm.v1.outputs import ModelRunnerOutput

from reprise.engine_ext.compat.engine_state import mark_of, set_mark
from reprise.engine_ext.compat.guarded import Original, step_errors
from reprise.engine_ext.compat.hooks import drafter_of
from reprise.engine_ext.core.identity import uses_our_proposer
from reprise.engine_ext.scheduling.modes import AsyncMode, async_mode_of, has_cpu_optimizations

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

_ATTACHED = "draft_token_ids"  # on an output
_STEP, _DRAFTS = "step", "drafts"  # on an executor: of the latest step


class _StepFuture(Future[Any]):
    """The output of a step that is in flight; its drafts stay with the executor."""

    def __init__(self, executor: Any, output: Future[Any]) -> None:
        super().__init__()
        self._executor = executor
        self._output = output

    def result(self, timeout: float | None = None) -> Any:
        output = self._output.result(timeout)
        _store_drafts(self._executor, output)
        return output


def attach_drafts(original: Original, runner: Any, *_: Any, **__: Any) -> Any:
    """In the worker: run vLLM's `sample_tokens`, and put the drafts on the step's output."""
    has_run = getattr(runner, "execute_model_state", None) is not None  # sampling clears it
    output = original()
    is_in_step = async_mode_of(runner.vllm_config) is not AsyncMode.SCHEDULE
    if has_run and is_in_step and drafter_of(runner) is not None:
        attach(runner, output)
    return output


def attach(runner: Any, output: Any) -> None:
    """Put the runner's drafts on the output [B] of the step that made them."""
    if isinstance(output, ModelRunnerOutput) and not runner.use_async_scheduling:
        set_mark(output, _ATTACHED, runner.take_draft_token_ids())


def run_step(worker: Any, scheduler_output: "SchedulerOutput") -> Any:
    """In the worker: run the model and sample; return the output of `sample_tokens`, mostly."""
    output = worker.execute_model(scheduler_output)
    return worker.sample_tokens(None) if output is None else output


def _store_drafts(executor: Any, output: Any) -> None:
    """Store those of the latest step, or none: those of an earlier one must not be taken for
    them."""
    set_mark(executor, _DRAFTS, None)
    with step_errors.recording("store drafts"):
        set_mark(executor, _DRAFTS, mark_of(output, _ATTACHED))


def _runs_as_one(executor: Any, scheduler_output: "SchedulerOutput") -> bool:
    """Return whether nothing has to be decided between the model and the sampler."""
    config = executor.vllm_config
    # With several batches in flight, vLLM asks for their tokens in an order of its own.
    is_in_order = config.max_concurrent_batches == 1 or async_mode_of(config) is AsyncMode.SCHEDULE
    return (
        scheduler_output.total_num_scheduled_tokens > 0
        and not scheduler_output.has_structured_output_requests
        and is_in_order
        and uses_our_proposer(config)
        and has_cpu_optimizations(config)
    )


def execute_model(
    original: Original,
    executor: Any,
    scheduler_output: "SchedulerOutput",
    non_block: bool = False,
) -> Any:
    """Run vLLM's, or have the worker run the model and sample in one call."""
    set_mark(executor, _STEP, None)
    if not non_block or not _runs_as_one(executor, scheduler_output):
        return original()
    step = original.instead(lambda: _send_step(executor, scheduler_output))
    set_mark(executor, _STEP, step)
    return step


def execute_alone(original: Original, executor: Any, *_: Any, **__: Any) -> Any:
    """Run vLLM's for a step that is not one call."""
    set_mark(executor, _STEP, None)
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


def sample_tokens(
    original: Original,
    executor: Any,
    grammar_output: Any,
    non_block: bool = False,
) -> Any:
    """Return what the step's one call will have sampled, or run vLLM's, which brings drafts."""
    output = sample_once(original, executor, grammar_output, non_block)
    if not non_block:
        _store_drafts(executor, output)
    return output


def sample_once(
    original: Original,
    executor: Any,
    grammar_output: Any,  # noqa: ARG001 - vLLM's
    non_block: bool = False,
) -> Any:
    """Return what the step's one call will have sampled, or run vLLM's."""
    step = mark_of(executor, _STEP)
    return original() if step is None or not non_block else original.instead(lambda: step)


def take_draft_token_ids(original: Original, executor: Any) -> Any:
    """Return the drafts that came with the output, or run vLLM's."""
    drafts = mark_of(executor, _DRAFTS)
    set_mark(executor, _DRAFTS, None)
    return original() if drafts is None else original.instead(lambda: drafts)
