"""In the worker: a step that was scheduled ahead (schedule_ahead.py) becomes what it is.

The scheduler has left room for drafts, and taken all before them to be right. The model runner
knows better, and puts in how far each request is, and its draft.
"""

from typing import TYPE_CHECKING, Any

from reprise.engine_ext.row_tracker import PLACEHOLDER

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

_NUM_FILLED_IN = "_reprise_num_filled_in"


def fill_in(runner: "GPUModelRunner", scheduler_output: "SchedulerOutput") -> None:
    """Put the drafts of now, and the places of now, into a step that is about to run."""
    cached = scheduler_output.scheduled_cached_reqs
    for place, request_id in enumerate(cached.req_ids):
        if request_id not in cached.resumed_req_ids:
            state = runner.requests[request_id]
            computed = min(cached.num_computed_tokens[place], state.num_tokens - 1)
            cached.num_computed_tokens[place] = computed
            cached.num_output_tokens[place] = len(state.output_token_ids)
    num_filled_in: dict[str, int] = {}
    setattr(runner, _NUM_FILLED_IN, num_filled_in)
    scheduled = scheduler_output.scheduled_spec_decode_tokens
    if not scheduled:
        return
    made = runner.take_draft_token_ids()
    drafts = {} if made is None else dict(zip(made.req_ids, made.draft_token_ids, strict=True))
    for request_id, tokens in tuple(scheduled.items()):
        if tokens[0] != PLACEHOLDER:
            continue
        draft = drafts.get(request_id, [])[: len(tokens)]
        scheduler_output.num_scheduled_tokens[request_id] -= len(tokens) - len(draft)
        scheduler_output.total_num_scheduled_tokens -= len(tokens) - len(draft)
        if draft:
            scheduled[request_id] = draft
            num_filled_in[request_id] = len(draft)
        else:
            del scheduled[request_id]


def attach_num_filled_in(runner: Any, output: Any) -> None:
    """Tell the engine core with a step's output how long the drafts were."""
    if output is not None:
        setattr(output, _NUM_FILLED_IN, getattr(runner, _NUM_FILLED_IN))


def num_filled_in(output: Any) -> dict[str, int]:
    """In the engine core: the lengths of the drafts, by request; none of those without."""
    lengths: dict[str, int] = getattr(output, _NUM_FILLED_IN)
    return lengths
