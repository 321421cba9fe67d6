"""Every field of vLLM's objects that is set from here on, with what it is set for.

Methods are patched by the registry; these are the plain fields. Each function is called for one
engine's own object, so nothing here outlives an engine.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput


def set_mark(obj: Any, name: str, value: Any) -> None:
    """Keep a value of ours with an object of vLLM's, and in copies that other processes get."""
    setattr(obj, f"_reprise_{name}", value)


def mark_of(obj: Any, name: str, default: Any = None) -> Any:
    """Return what `set_mark` has kept."""
    return getattr(obj, f"_reprise_{name}", default)


def set_async_scheduling(config: "VllmConfig", wanted: bool) -> None:
    """Turn vLLM's asynchronous scheduling on or off in this process's copy of a config."""
    config.scheduler_config.async_scheduling = wanted


@contextmanager
def shown_as_method(speculative_config: Any, method: str) -> Iterator[None]:
    """Let vLLM take a drafter for one of another method."""
    own = speculative_config.method
    speculative_config.method = method
    try:
        yield
    finally:
        speculative_config.method = own


@contextmanager
def without_requests(scheduler: Any) -> Iterator[None]:
    """Let the engine core find nothing to schedule."""
    scheduler.has_requests = lambda: False
    try:
        yield
    finally:
        del scheduler.has_requests


def set_room_for_drafts(scheduler_output: "SchedulerOutput", num_tokens: int) -> None:
    """Have the next step keep so many tokens free for each request's draft."""
    scheduler_output.num_spec_tokens_to_schedule = num_tokens


def set_draft_lengths(
    speculative_config: Any, schedule: "list[tuple[int, int, int]] | None"
) -> None:
    """Give an engine a schedule of draft lengths by batch size, for all of which vLLM captures
    graphs; None: drafts have one length."""
    speculative_config.num_speculative_tokens_per_batch_size = schedule


def set_num_scheduled(scheduler_output: "SchedulerOutput", num_tokens: int) -> None:
    """Correct the number of tokens that a step computes."""
    scheduler_output.total_num_scheduled_tokens = num_tokens


def limit_drafts(request: Any, num_tokens: int | None) -> None:
    """Have a request's drafts no longer than this with the next step; None: as long as they are."""
    if num_tokens is not None:
        request.spec_token_ids = request.spec_token_ids[:num_tokens]


def drop_drafts(request: Any) -> None:
    """Forget the drafts that a request was to have with the next step."""
    request.spec_token_ids = []


def roll_back(request: Any, num_slots: int) -> None:
    """Take slots of a step that no draft has used for never scheduled."""
    request.num_computed_tokens -= num_slots
    request.num_output_placeholders -= num_slots


def go_back_to(request: Any, num_tokens: int) -> None:
    """Have a request compute all but its first `num_tokens` tokens once more."""
    request.num_computed_tokens = min(request.num_computed_tokens, num_tokens)


def forget_output_in_flight(request: Any) -> None:
    """Take the output of a request, for which no step is in flight, for never scheduled, and so the
    drafts that were to follow it."""
    request.num_output_placeholders = 0
    request.spec_token_ids = []


def take_back_output(runner: Any, request_id: str, num_tokens: int) -> None:
    """Have a model runner keep only the first `num_tokens` tokens of a request's output."""
    state = runner.requests.get(request_id)
    if state is None:
        return
    del state.output_token_ids[num_tokens:]
    batch = runner.input_batch
    row = batch.req_id_to_index.get(request_id)
    if row is not None:
        num_kept = batch.num_prompt_tokens[row] + len(state.output_token_ids)
        batch.num_tokens_no_spec[row] = num_kept
    if batch.prev_req_id_to_index:
        batch.prev_req_id_to_index.pop(request_id, None)  # its last token is not on the device


def resolve_on_host(runner: Any) -> None:
    """Have a model runner leave nothing that a step has to know to be corrected on the device."""
    runner.use_async_spec_decode = False


@contextmanager
def sampling(runner: Any, *, is_async: bool) -> Iterator[None]:
    """Have a model runner sample as with, or as without, asynchronous scheduling."""
    runner.use_async_scheduling = is_async
    try:
        yield
    finally:
        runner.use_async_scheduling = True


def forget_draft_length(state: Any) -> None:
    """Keep a model runner from correcting for a request's drafts whose fate it has seen."""
    state.prev_num_draft_len = 0


def take_inputs_from_host(batch: Any) -> None:
    """Have the next step's inputs taken from the host, as after a step that was waited for."""
    batch.prev_sampled_token_ids = None
    batch.prev_req_id_to_index = None
    batch.sampled_token_ids_cpu = None
    batch.async_copy_ready_event = None


@contextmanager
def without_generators(batch: Any, rows: Iterable[int]) -> Iterator[None]:
    """Have an input batch, and what the sampler is told of it, know no generator of these rows."""
    own = {row: batch.generators.pop(row) for row in rows if row in batch.generators}
    try:
        yield
    finally:
        batch.generators.update(own)


def set_scheduled(stats: Any, at_s: float) -> None:
    """Have the statistics of a request say that an engine took it up when it came."""
    stats.queued_ts = stats.scheduled_ts = at_s


def set_thinking_budgets(batch: Any, holder: Any) -> None:
    """Have an input batch without requests keep their thinking budgets in another holder."""
    batch.thinking_budget_state_holder = holder


def min_p_of_rows(processor: Any, num_rows: Any) -> Any:
    """Return a copy of vLLM's processor for `min_p` that treats each request's rows as requests;
    `num_rows` [batch] says how many each has."""
    of_rows = copy(processor)
    of_rows.min_p = processor.min_p.repeat_interleave(num_rows, dim=0)
    return of_rows


def set_linear(layer: Any, linear: Callable[[Any, Any, Any], Any]) -> None:
    """Choose how a layer of an engine on the CPU multiplies: `linear(x, weight, bias)`."""
    layer.cpu_linear = linear


def set_cudagraph_mode(compilation_config: Any, mode: Any) -> None:
    """Choose the mode of CUDA graphs."""
    compilation_config.cudagraph_mode = mode


def keep_tokens_on_device(req_states: Any) -> None:
    """Have model runner V2 keep the tokens of requests in the device's memory, where drafting reads
    all of them in every step; by default a GPU reads them from the host's. To be called before
    there is any request."""
    tokens = req_states.all_token_ids
    if hasattr(tokens, "_uva_buf"):
        shape = (req_states.max_num_reqs, req_states.max_model_len)
        req_states.all_token_ids = type(tokens)(shape, dtype=tokens.dtype, device=req_states.device)
