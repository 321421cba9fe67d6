"""What a step without drafts leaves to the one launched after it; engines are in test_ahead.py."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.outputs import DraftTokenIds

from reprise.engine_ext import run_ahead
from reprise.engine_ext.row_tracker import num_known


def test_drafts_that_found_no_room_are_dropped() -> None:
    """They would be scheduled with a step that is launched before the one before it is known."""
    requests = [SimpleNamespace(request_id=name, spec_token_ids=[]) for name in ("a", "b", "c")]
    by_id = {request.request_id: request for request in requests}

    def update_draft_token_ids(drafts: Any) -> None:
        for name, tokens in zip(drafts.req_ids, drafts.draft_token_ids, strict=True):
            by_id[name].spec_token_ids = tokens

    def update_after_schedule(output: Any) -> None:
        for name in output.num_scheduled_tokens:
            by_id[name].spec_token_ids = [-1] * output.num_spec_tokens_to_schedule

    output = SimpleNamespace(scheduled_spec_decode_tokens={})
    runner = SimpleNamespace(
        drafter=SimpleNamespace(can_run_ahead=lambda: True),
        execute_model_state=SimpleNamespace(scheduler_output=output),
        requests={},
        sample_tokens=lambda _: "sampled",
        propose_draft_token_ids=None,
        take_draft_token_ids=lambda: DraftTokenIds(["a", "b"], [[1], [2, 3]]),
    )
    output.scheduled_spec_decode_tokens["a"] = [7]
    scheduler = SimpleNamespace(
        running=requests,
        update_draft_token_ids=update_draft_token_ids,
        update_from_output=lambda *_: "outputs",
        _update_after_schedule=update_after_schedule,
    )
    worker = SimpleNamespace(worker=SimpleNamespace(model_runner=runner))
    executor = SimpleNamespace(driver_worker=worker)
    run_ahead.RunAhead(SimpleNamespace(scheduler=scheduler, model_executor=executor))
    runner.sample_tokens(None)  # a step with drafts, which is waited for
    scheduler.update_from_output(output, SimpleNamespace())
    assert [request.spec_token_ids for request in requests] == [[1], [2, 3], []]
    scheduler._update_after_schedule(SimpleNamespace(num_scheduled_tokens={"a": 2, "c": 1}))
    assert [request.spec_token_ids for request in requests] == [[], [], []]


@pytest.mark.parametrize(
    ("tokens", "known"), [([], 0), ([5, 6], 2), ([5, -1], 1), ([-1, -1], 0), ([5, -1, 6, -1], 3)]
)
def test_placeholders_at_the_end_are_not_known(tokens: list[int], known: int) -> None:
    assert num_known(tokens) == known
