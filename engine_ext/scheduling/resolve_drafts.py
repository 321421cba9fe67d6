"""In the worker: resolves the drafts of a step that was scheduled early (async_schedule.py).

The scheduler has left room for drafts, and taken all before them to be right. The model runner
knows better, and puts in how far each request is, and its draft. A step must never run as it was
sent, so nothing here depends on drafts: without them the room is given back.

The hooks of `Feature.ASYNC_SCHEDULING` in the worker.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT

from reprise.engine_ext.compat.engine_state import mark_of, set_mark, set_num_scheduled
from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.compat.hooks import drafter_of
from reprise.engine_ext.core.placeholders import PLACEHOLDER
from reprise.engine_ext.scheduling.modes import AsyncMode, async_mode_of

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

_NUM_DRAFTED = "num_drafted"
_NO_DRAFTS: Mapping[str, list[int]] = {}


def execute_model(
    original: Original, runner: Any, scheduler_output: "SchedulerOutput", *_: Any, **__: Any
) -> Any:
    """Run vLLM's with the drafts resolved, where they were left open."""
    if _is_scheduled_early(runner):
        resolve_drafts(runner, scheduler_output)
    return original()


def execute_without_drafts(
    original: Original, runner: Any, scheduler_output: "SchedulerOutput", *_: Any, **__: Any
) -> Any:
    """Run vLLM's without drafts, where they were left open and could not be resolved."""
    if _is_scheduled_early(runner):
        resolve_without_drafts(runner, scheduler_output)
    return original()


def attach_num_drafted(original: Original, runner: Any, *_: Any, **__: Any) -> Any:
    """Run vLLM's `sample_tokens`, and send the lengths of the step's drafts with its output."""
    state = getattr(runner, "execute_model_state", None)  # of the step; sampling clears it
    output = original()
    if state is not None and _is_scheduled_early(runner):
        send_num_drafted(state.scheduler_output, output)
    return output


def _is_scheduled_early(runner: Any) -> bool:
    is_scheduled = async_mode_of(runner.vllm_config) is AsyncMode.SCHEDULE
    return is_scheduled and drafter_of(runner) is not None


def resolve_drafts(runner: "GPUModelRunner", scheduler_output: "SchedulerOutput") -> None:
    """Put the current drafts, and the current positions, into a step that is about to run."""
    _resolve(runner, scheduler_output, _latest_drafts(runner))


def resolve_without_drafts(runner: "GPUModelRunner", scheduler_output: "SchedulerOutput") -> None:
    """Put the current positions into a step that is about to run, and no further draft: what is
    left to do where `resolve_drafts` failed, at whatever point."""
    _resolve(runner, scheduler_output, _NO_DRAFTS)


def _latest_drafts(runner: Any) -> Mapping[str, list[int]]:
    """Return the drafts of the last step that made any, by the requests that they were made for.

    vLLM's `take_draft_token_ids` pairs them with the requests of now: others, if a step that ran
    nothing has emptied the batch since.
    """
    request_ids, drafts = runner._draft_token_req_ids, runner._draft_token_ids
    if not request_ids or not isinstance(drafts, list) or len(request_ids) != len(drafts):
        return _NO_DRAFTS
    return dict(zip(request_ids, drafts, strict=True))


def _resolve(
    runner: Any, scheduler_output: "SchedulerOutput", drafts: Mapping[str, list[int]]
) -> None:
    """Resolve a step, also one that an earlier call has left half done."""
    cached = scheduler_output.scheduled_cached_reqs
    for index, request_id in enumerate(cached.req_ids):
        state = runner.requests.get(request_id)
        if state is not None and request_id not in cached.resumed_req_ids:
            computed = min(cached.num_computed_tokens[index], state.num_tokens - 1)
            cached.num_computed_tokens[index] = computed
            # Fewer are expected only where the scheduler has dropped some (failed KV loads).
            num_output = min(cached.num_output_tokens[index], len(state.output_token_ids))
            cached.num_output_tokens[index] = num_output
    scheduled = scheduler_output.scheduled_spec_decode_tokens
    num_drafted: dict[str, int] = mark_of(scheduler_output, _NUM_DRAFTED, {})
    set_mark(scheduler_output, _NUM_DRAFTED, num_drafted)
    for request_id, tokens in tuple(scheduled.items()):
        if not tokens or tokens[0] != PLACEHOLDER:
            continue
        draft = () if _has_grammar(runner, request_id) else drafts.get(request_id, ())
        draft = list(draft[: len(tokens)])
        scheduler_output.num_scheduled_tokens[request_id] -= len(tokens) - len(draft)
        if draft:
            scheduled[request_id] = draft
            num_drafted[request_id] = len(draft)
        else:
            del scheduled[request_id]
    set_num_scheduled(scheduler_output, sum(scheduler_output.num_scheduled_tokens.values()))


def _has_grammar(runner: Any, request_id: str) -> bool:
    """Return whether a request's drafts have to be seen by the engine core first."""
    params = getattr(runner.requests.get(request_id), "sampling_params", None)
    return params is not None and params.structured_outputs is not None


def send_num_drafted(scheduler_output: "SchedulerOutput", output: Any) -> None:
    """Attach the lengths of a step's drafts to its output, for the engine core."""
    lengths = mark_of(scheduler_output, _NUM_DRAFTED)
    # One object stands for all steps that ran nothing.
    if lengths is not None and output is not None and output is not EMPTY_MODEL_RUNNER_OUTPUT:
        set_mark(output, _NUM_DRAFTED, lengths)


def num_drafted_of(output: Any) -> dict[str, int] | None:
    """In the engine core: return the lengths of the drafts, by request, none of those without;
    None: the worker could not resolve them."""
    lengths: dict[str, int] | None = mark_of(output, _NUM_DRAFTED)
    return lengths
