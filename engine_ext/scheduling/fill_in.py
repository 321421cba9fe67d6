"""In the worker: a step that was scheduled ahead (schedule_ahead.py) becomes what it is.

The scheduler has left room for drafts, and taken all before them to be right. The model runner
knows better, and puts in how far each request is, and its draft. A step must never run as it was
sent, so nothing here depends on drafts: without them the room is given back.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT

from reprise.engine_ext.worker.row_tracker import PLACEHOLDER

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

_NUM_FILLED_IN = "_reprise_num_filled_in"
_NO_DRAFTS: Mapping[str, list[int]] = {}


def fill_in(runner: "GPUModelRunner", scheduler_output: "SchedulerOutput") -> None:
    """Put the drafts of now, and the places of now, into a step that is about to run."""
    _settle(runner, scheduler_output, _latest_drafts(runner))


def fill_in_nothing(runner: "GPUModelRunner", scheduler_output: "SchedulerOutput") -> None:
    """Put the places of now into a step that is about to run, and no further draft: what is left
    to do where `fill_in` failed, at whatever point."""
    _settle(runner, scheduler_output, _NO_DRAFTS)


def _latest_drafts(runner: Any) -> Mapping[str, list[int]]:
    """The drafts of the last step that made any, by the requests that they were made for.

    vLLM's `take_draft_token_ids` pairs them with the requests of now: others, if a step that ran
    nothing has emptied the batch since.
    """
    request_ids, drafts = runner._draft_token_req_ids, runner._draft_token_ids
    if not request_ids or not isinstance(drafts, list) or len(request_ids) != len(drafts):
        return _NO_DRAFTS
    return dict(zip(request_ids, drafts, strict=True))


def _settle(
    runner: Any, scheduler_output: "SchedulerOutput", drafts: Mapping[str, list[int]]
) -> None:
    """May be called again for a step that it has left half done."""
    cached = scheduler_output.scheduled_cached_reqs
    for place, request_id in enumerate(cached.req_ids):
        state = runner.requests.get(request_id)
        if state is not None and request_id not in cached.resumed_req_ids:
            computed = min(cached.num_computed_tokens[place], state.num_tokens - 1)
            cached.num_computed_tokens[place] = computed
            cached.num_output_tokens[place] = len(state.output_token_ids)
    scheduled = scheduler_output.scheduled_spec_decode_tokens
    num_filled_in: dict[str, int] = vars(scheduler_output).setdefault(_NUM_FILLED_IN, {})
    for request_id, tokens in tuple(scheduled.items()):
        if not tokens or tokens[0] != PLACEHOLDER:
            continue
        draft = () if _has_grammar(runner, request_id) else drafts.get(request_id, ())
        draft = list(draft[: len(tokens)])
        scheduler_output.num_scheduled_tokens[request_id] -= len(tokens) - len(draft)
        if draft:
            scheduled[request_id] = draft
            num_filled_in[request_id] = len(draft)
        else:
            del scheduled[request_id]
    scheduler_output.total_num_scheduled_tokens = sum(
        scheduler_output.num_scheduled_tokens.values()
    )


def _has_grammar(runner: Any, request_id: str) -> bool:
    """Whether a request's drafts have to be seen by the engine core first."""
    params = getattr(runner.requests.get(request_id), "sampling_params", None)
    return params is not None and params.structured_outputs is not None


def attach_num_filled_in(scheduler_output: "SchedulerOutput", output: Any) -> None:
    """Tell the engine core with a step's output how long the drafts were."""
    lengths = getattr(scheduler_output, _NUM_FILLED_IN, None)
    # One object stands for all steps that ran nothing.
    if lengths is not None and output is not None and output is not EMPTY_MODEL_RUNNER_OUTPUT:
        setattr(output, _NUM_FILLED_IN, lengths)


def num_filled_in(output: Any) -> dict[str, int] | None:
    """In the engine core: the lengths of the drafts, by request, none of those without; None: the
    worker could not tell."""
    lengths: dict[str, int] | None = getattr(output, _NUM_FILLED_IN, None)
    return lengths
