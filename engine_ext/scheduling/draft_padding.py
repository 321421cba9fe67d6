"""A request that joins a batch has no drafts: vLLM's padding of it is taken away again.

Where one token of a request is left to be computed when it joins (the rest is cached), vLLM
schedules it as if it had a full draft, of placeholders, so that all requests of a batch are of one
length. With drafts of all lengths nothing is won by that, and placeholders are no tokens: an
embedding that is asked for one fails, and a grammar's mask counts rows for them. On model runner V2
all requests of a batch have slots for drafts, and placeholders are rejected by its own sampler: it
keeps its padding.

The hook of `Feature.DRAFT_PADDING`, in the engine core.
"""

from typing import Any

from reprise.engine_ext.compat.engine_state import set_num_scheduled
from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.core.identity import runs_on_v2, uses_our_proposer


def update_after_schedule(original: Original, scheduler: Any, scheduler_output: Any) -> Any:
    """Run vLLM's `_update_after_schedule` for a step without padding."""
    if uses_our_proposer(scheduler.vllm_config) and not runs_on_v2(scheduler):
        remove_padding(scheduler_output)
    return original()


def remove_padding(scheduler_output: Any) -> None:
    """Schedule requests that join the batch with this step without a draft."""
    drafts = scheduler_output.scheduled_spec_decode_tokens
    if not drafts:
        return
    num_scheduled = scheduler_output.total_num_scheduled_tokens
    joining = {request.req_id for request in scheduler_output.scheduled_new_reqs}
    for request_id in joining | scheduler_output.scheduled_cached_reqs.resumed_req_ids:
        padding = drafts.pop(request_id, None)
        if padding:
            scheduler_output.num_scheduled_tokens[request_id] -= len(padding)
            num_scheduled -= len(padding)
    set_num_scheduled(scheduler_output, num_scheduled)
