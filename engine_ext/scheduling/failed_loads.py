"""Blocks that a KV connector could not load: nobody reads them before they are computed.

With the policy `recompute` vLLM has one of the requests that hold such a block compute it, and lets
the others, and the prefix cache, take it for computed at once. Should that one request be preempted
or aborted first, the block holds what was never computed, and so does every block that was computed
from it: a request that finds them in the prefix cache, its own former ones after a preemption among
them, is answered wrongly. Here each request goes back to the first block that it misses, and those
blocks leave the prefix cache until they are computed.

The hook of `Feature.FAILED_LOADS`, in the engine core.
"""

from typing import TYPE_CHECKING, Any

from reprise.engine_ext.compat.engine_state import forget_output_in_flight, go_back_to
from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.core.identity import uses_our_proposer

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput


def handle_invalid_blocks(
    original: Original, scheduler: Any, invalid_block_ids: set[int], *_: Any
) -> Any:
    """Run vLLM's, which returns the ids of requests whose output is dropped; then have all of those
    that go on compute what they miss."""
    request_ids = original()
    if request_ids and uses_our_proposer(scheduler.vllm_config):
        for request in scheduler.running:
            if request.request_id in request_ids:
                _recompute(scheduler, request, invalid_block_ids)
    return request_ids


def _recompute(scheduler: Any, request: Any, invalid_block_ids: set[int]) -> None:
    manager = scheduler.kv_cache_manager
    (block_ids,) = manager.get_block_ids(request.request_id)
    places = [place for place, each in enumerate(block_ids) if each in invalid_block_ids]
    if places:
        go_back_to(request, places[0] * scheduler.block_size)
        manager.evict_blocks(set(block_ids[places[0] :]))


def needs_kv_loaded(scheduler_output: "SchedulerOutput") -> bool:
    """Return whether a step begins with what a KV connector loads for it: if that fails, its output
    is worth nothing, and nothing must have been scheduled after it."""
    # vLLM 0.26 does not say.
    has_connector = getattr(scheduler_output, "kv_connector_metadata", None) is not None
    return bool(getattr(scheduler_output, "has_sync_kv_loads", has_connector))


def forget_failed_loads(
    scheduler: Any, scheduler_output: "SchedulerOutput", output: "ModelRunnerOutput"
) -> list[Any]:
    """Return the requests whose output of the latest step was dropped, because KV that it needed
    could not be loaded, and have them go on as if it had not been scheduled.

    vLLM has them computed once more, and goes on waiting for the tokens that it has dropped.
    """
    loaded = getattr(output, "kv_connector_output", None)
    if loaded is None or not loaded.invalid_block_ids or not needs_kv_loaded(scheduler_output):
        return []
    # No step is in flight: whatever is still expected was dropped.
    dropped = [each for each in scheduler.running if each.num_output_placeholders]
    for request in dropped:
        forget_output_in_flight(request)
    return dropped
