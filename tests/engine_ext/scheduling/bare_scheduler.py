"""vLLM's scheduler of model runner V2 with as much around it as its own methods need."""

from types import SimpleNamespace
from typing import Any

from vllm import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from reprise.engine_ext.compat.engine_state import set_mark
from reprise.engine_ext.core.identity import PROPOSER_PATH
from reprise.engine_ext.scheduling import draft_slots


class Request(SimpleNamespace):
    """A scheduler's own; vLLM keeps them in sets."""

    __hash__ = object.__hash__


def decoding_request(params: SamplingParams | None = None) -> Request:
    """A request whose prompt of 32 tokens has been computed."""
    return Request(
        num_computed_tokens=32, num_in_flight_tokens=0, num_tokens=33, num_output_placeholders=0,
        use_structured_output=False, is_prefill_chunk=False, sampling_params=params,
        spec_token_ids=[],
    )  # fmt: skip


def bare_scheduler(**configs: Any) -> Any:
    """A scheduler without requests, of an engine of ours; `configs` are parts of its config beside
    those for speculation and scheduling."""
    made: Any = AsyncScheduler.__new__(AsyncScheduler)
    made.vllm_config = SimpleNamespace(
        speculative_config=SimpleNamespace(model=PROPOSER_PATH),
        scheduler_config=SimpleNamespace(),
        additional_config={},
        **configs,
    )
    set_mark(made.vllm_config.scheduler_config, draft_slots._KEEP_SAMPLES, False)
    made.use_v2_model_runner = True
    made.num_sampled_tokens_per_step = 1
    made.current_step = 5
    made.decode_stagger = 1
    made.defer_block_free = False
    made._inflight_prefills = set()
    made.requests = {}
    return made


def decoding_step(num_tokens: dict[str, int], **fields: Any) -> Any:
    """A step with so many tokens of each request, as it has been decided on; `fields` beside or in
    place of those here."""
    given: dict[str, Any] = {
        "num_scheduled_tokens": num_tokens,
        "total_num_scheduled_tokens": sum(num_tokens.values()),
        "scheduled_spec_decode_tokens": {},
        "num_invalid_spec_tokens": None,
        "num_spec_tokens_to_schedule": 0,
        "scheduled_new_reqs": [],
        "scheduled_cached_reqs": SimpleNamespace(resumed_req_ids=set()),
        "pending_structured_output_tokens": False,
        "has_structured_output_requests": False,
    }
    return SimpleNamespace(**given | fields)
