"""A request that joins a batch has no drafts: vLLM's padding of it is taken away again.

Where one token of a request is left to be computed when it joins (the rest is cached), vLLM
schedules it as if it had a full draft, of placeholders, so that all requests of a batch are of one
length. With drafts of all lengths nothing is won by that, and placeholders are no tokens: an
embedding that is asked for one fails, and a grammar's mask counts rows for them.
"""

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from reprise.engine_ext.compat.expected_parameters import check_parameters
from reprise.engine_ext.compat.guarded import Original, wrap_step_method
from reprise.engine_ext.core.identity import uses_our_proposer


def install() -> None:
    """In the engine core: wrap what ends the scheduling of a step; once.

    Raises:
        RuntimeError: vLLM is not as expected; it is left as it is.
    """
    check_parameters({(Scheduler, "_update_after_schedule"): ("self", "scheduler_output")})
    wrap_step_method(
        Scheduler,
        "_update_after_schedule",
        _update_after_schedule,
        otherwise=_update_after_schedule,
    )


def _update_after_schedule(original: Original, scheduler: Any, scheduler_output: Any) -> Any:
    if uses_our_proposer(scheduler.vllm_config):
        remove_padding(scheduler_output)
    return original()


def remove_padding(scheduler_output: Any) -> None:
    """Schedule requests that join the batch with this step without a draft."""
    drafts = scheduler_output.scheduled_spec_decode_tokens
    if not drafts:
        return
    joining = {request.req_id for request in scheduler_output.scheduled_new_reqs}
    for request_id in joining | scheduler_output.scheduled_cached_reqs.resumed_req_ids:
        padding = drafts.pop(request_id, None)
        if padding:
            scheduler_output.num_scheduled_tokens[request_id] -= len(padding)
            scheduler_output.total_num_scheduled_tokens -= len(padding)
