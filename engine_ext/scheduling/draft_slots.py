"""How many tokens of a request may be drafted on model runner V2, where slots come before drafts.

There every decoding request has a step with as many slots as drafts are long in this batch
(`draft_lengths.py`), and what the device has drafted fills them. A request that must not be drafted
for has to be scheduled without. Where full CUDA graphs want requests of one length, its batch has
no drafts then, and with a request that is capped none that are longer.

The hooks of `Feature.DRAFT_SLOTS`, in the engine core.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reprise.engine_ext.compat.engine_state import (
    drop_drafts,
    limit_drafts,
    mark_of,
    set_mark,
    set_room_for_drafts,
)
from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.config import config_with, engine_config
from reprise.engine_ext.core.identity import runs_on_v2, uses_our_proposer
from reprise.engine_ext.core.request_hints import read_hints
from reprise.engine_ext.core.same_samples import drafts_keep_samples, promises_a_sample
from reprise.engine_ext.scheduling.draft_lengths import lengths_of

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.core.sched.output import SchedulerOutput

_MAX_SLOTS = "max_slots"
_HAS_DRAFTS = "has_drafts"
_KEEP_SAMPLES = "keep_samples"


def limit_slots(original: Original, scheduler: Any, scheduler_output: "SchedulerOutput") -> Any:
    """Run vLLM's with as many slots for each request as drafts are to be long in this batch, and
    take them from requests that must not have as many with the next step."""
    if not _has_slots(scheduler):
        return original()
    if not _has_drafts(scheduler.vllm_config):
        return leave_no_slots(original, scheduler, scheduler_output)
    if (lengths := lengths_of(scheduler)) is not None:
        decoding = _max_slots_by_name(scheduler, scheduler_output)
        set_room_for_drafts(scheduler_output, lengths.choose(scheduler_output, decoding))
    result = original()
    _limit(
        [scheduler.requests[name] for name in scheduler_output.num_scheduled_tokens],
        scheduler.vllm_config,
    )
    return result


def limit_handed_over(original: Original, scheduler: Any, draft_token_ids: Any) -> Any:
    """Run vLLM's, which gives requests slots once drafts are made where scheduling is synchronous,
    and take them from those that must not have as many."""
    result = original()
    if _has_slots(scheduler):
        found = map(scheduler.requests.get, draft_token_ids.req_ids)
        requests = [request for request in found if request is not None]
        _limit(requests, scheduler.vllm_config)
    return result


def _limit(requests: Sequence[Any], config: "VllmConfig") -> None:
    """Leave requests with as many slots as each may have."""
    try:
        has_drafts = _has_drafts(config)
        for request in requests:
            if request.spec_token_ids:
                limit_drafts(request, _max_slots_of(request, config) if has_drafts else 0)
    except Exception:
        # What each may have is not known: those that promise a sample must keep it.
        for request in requests:
            drop_drafts(request)
        raise


def leave_no_slots(original: Original, scheduler: Any, scheduler_output: "SchedulerOutput") -> Any:
    """Run vLLM's so that no request has slots: what it may have is not known."""
    if _has_slots(scheduler):
        set_room_for_drafts(scheduler_output, 0)
    return original()


def _has_slots(scheduler: Any) -> bool:
    return uses_our_proposer(scheduler.vllm_config) and runs_on_v2(scheduler)


def _has_drafts(config: "VllmConfig") -> bool:
    """Return whether the settings leave drafts on; found out once."""
    kept: bool | None = mark_of(config.scheduler_config, _HAS_DRAFTS)
    if kept is None:
        kept = config_with(config.additional_config).features.drafts
        set_mark(config.scheduler_config, _HAS_DRAFTS, kept)
    return kept


def _max_slots_by_name(
    scheduler: Any, scheduler_output: "SchedulerOutput"
) -> dict[str, int | None]:
    """Return the requests of a step that decode in the next one, and how many tokens may be drafted
    for each there."""
    found = {}
    for name, num_tokens in scheduler_output.num_scheduled_tokens.items():
        request = scheduler.requests[name]
        known = request.num_tokens + request.num_output_placeholders
        if request.num_computed_tokens + num_tokens >= known:
            found[name] = _max_slots_of(request, scheduler.vllm_config)
    return found


def _max_slots_of(request: Any, config: "VllmConfig") -> int | None:
    """Return `max_slots` of a request, read once from the params that it has."""
    params = request.sampling_params
    kept: tuple[Any, int | None] | None = mark_of(request, _MAX_SLOTS)
    if kept is None or kept[0] is not params:
        keeps = promises_a_sample(params) and _drafts_keep_samples(config)
        kept = params, max_slots(params, keeps_sample=keeps)
        set_mark(request, _MAX_SLOTS, kept)
    return kept[1]


def _drafts_keep_samples(config: "VllmConfig") -> bool:
    """Return whether workers verify so that drafts change no sample; found out once."""
    kept: bool | None = mark_of(config.scheduler_config, _KEEP_SAMPLES)
    if kept is None:
        # What a worker asks before it verifies.
        kept = drafts_keep_samples(config, engine_config(config)) and (
            registry.problem(Feature.VERIFICATION_V2, Role.WORKER) is None
        )
        set_mark(config.scheduler_config, _KEEP_SAMPLES, kept)
    return kept


def max_slots(params: "SamplingParams | None", *, keeps_sample: bool = False) -> int | None:
    """Return the maximum of tokens to draft in a step; None: the engine's own bound.

    Args:
        params: of the request.
        keeps_sample: its seed gives the same sample with drafts as without.
    """
    if params is None:
        return None
    if promises_a_sample(params) and not keeps_sample:
        return 0
    hints = read_hints(params)
    return hints.max_draft if hints.drafts else 0
