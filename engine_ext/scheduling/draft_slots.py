"""How many tokens of a request may be drafted on model runner V2, where slots come before drafts.

There every decoding request has a step with as many slots as drafts are long, and what the device
has drafted fills them. A request that must not be drafted for has to be scheduled without. Its
batch then runs without full CUDA graphs, which want requests of one length.

The hooks of `Feature.DRAFT_SLOTS`, in the engine core.
"""

from typing import TYPE_CHECKING, Any

from vllm.sampling_params import SamplingType

from reprise.engine_ext.compat.engine_state import (
    drop_drafts,
    limit_drafts,
    mark_of,
    set_mark,
    set_room_for_drafts,
)
from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.core.identity import uses_our_proposer
from reprise.engine_ext.core.request_hints import read_hints

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.core.sched.output import SchedulerOutput

_MAX_SLOTS = "max_slots"


def limit_slots(original: Original, scheduler: Any, scheduler_output: "SchedulerOutput") -> Any:
    """Run vLLM's, and take slots from requests that must not have as many with the next step."""
    result = original()
    if scheduler.use_v2_model_runner and uses_our_proposer(scheduler.vllm_config):
        requests = [scheduler.requests[name] for name in scheduler_output.num_scheduled_tokens]
        try:
            for request in requests:
                if request.spec_token_ids:
                    limit_drafts(request, _max_slots_of(request))
        except Exception:
            # What each may have is not known: those that promise a sample must keep it.
            for request in requests:
                drop_drafts(request)
            raise
    return result


def leave_no_slots(original: Original, scheduler: Any, scheduler_output: "SchedulerOutput") -> Any:
    """Run vLLM's so that no request has slots: what it may have is not known."""
    if scheduler.use_v2_model_runner and uses_our_proposer(scheduler.vllm_config):
        set_room_for_drafts(scheduler_output, 0)
    return original()


def _max_slots_of(request: Any) -> int | None:
    """Return `max_slots` of a request, read once from the params that it has."""
    params = request.sampling_params
    kept: tuple[Any, int | None] | None = mark_of(request, _MAX_SLOTS)
    if kept is None or kept[0] is not params:
        kept = params, max_slots(params)
        set_mark(request, _MAX_SLOTS, kept)
    return kept[1]


def max_slots(params: "SamplingParams | None") -> int | None:
    """Return the maximum of tokens to draft in a step; None: the engine's own bound."""
    if params is None:
        return None
    if params.seed is not None and params.sampling_type is not SamplingType.GREEDY:
        # Verifying drafts spends other random numbers than sampling without: see decision 2.
        return 0
    hints = read_hints(params)
    return hints.max_draft if hints.drafts else 0
