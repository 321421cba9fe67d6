"""vLLM's padding of requests that join a batch does not reach a worker of ours."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.core.sched.scheduler import Scheduler

from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.identity import PROPOSER_PATH
from reprise.engine_ext.scheduling import draft_padding
from reprise.tests.engine_ext.scheduling.bare_scheduler import decoding_request


def step() -> Any:
    """`new` and `resumed` join, padded; `running` has a draft that the engine core has seen."""
    scheduled = {"running": 3, "new": 5, "resumed": 5, "prompt": 20}
    return SimpleNamespace(
        scheduled_new_reqs=[SimpleNamespace(req_id="new"), SimpleNamespace(req_id="prompt")],
        scheduled_cached_reqs=SimpleNamespace(resumed_req_ids={"resumed"}),
        num_scheduled_tokens=scheduled,
        total_num_scheduled_tokens=sum(scheduled.values()),
        scheduled_spec_decode_tokens={"running": [7, 8], "new": [-1] * 4, "resumed": [-1] * 4},
        has_structured_output_requests=False,
    )


@pytest.mark.parametrize(
    ("drafter", "on_v2", "tokens"),
    [(PROPOSER_PATH, False, 1), (PROPOSER_PATH, True, 5), ("ngram", False, 5)],
)
def test_only_our_engines_schedule_them_without(drafter: str, on_v2: bool, tokens: int) -> None:
    """With vLLM's own method, which counts what was scheduled."""
    assert registry.apply(Feature.DRAFT_PADDING, draft_padding, role=Role.ENGINE_CORE)
    scheduler = Scheduler.__new__(Scheduler)
    scheduler.vllm_config = SimpleNamespace(speculative_config=SimpleNamespace(model=drafter))
    scheduler.use_v2_model_runner = on_v2
    scheduler.requests = {
        name: decoding_request() for name in ("running", "new", "resumed", "prompt")
    }
    scheduler.defer_block_free = False
    scheduler._inflight_prefills = set()
    decided = step()
    scheduler._update_after_schedule(decided)
    assert decided.num_scheduled_tokens == {
        "running": 3, "new": tokens, "resumed": tokens, "prompt": 20,
    }  # fmt: skip
    assert decided.total_num_scheduled_tokens == 23 + 2 * tokens
    assert decided.scheduled_spec_decode_tokens["running"] == [7, 8]
    assert ("new" in decided.scheduled_spec_decode_tokens) == (tokens > 1)
    assert scheduler.requests["new"].num_computed_tokens == 32 + tokens
