"""On model runner V2 a request is scheduled with the slots for drafts that it may have."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.v1.outputs import DraftTokenIds

from reprise.engine_ext.compat.guarded import step_errors
from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.request_hints import RequestHints, with_hints
from reprise.engine_ext.scheduling import draft_slots
from reprise.tests.engine_ext.scheduling.bare_scheduler import (
    bare_scheduler,
    decoding_request,
    decoding_step,
)

PLACE = "AsyncScheduler._update_after_schedule"
PARAMS = {
    "plain": SamplingParams(),
    "seeded": SamplingParams(seed=1),
    "off": with_hints(SamplingParams(), RequestHints(drafts=False)),
    "capped": with_hints(SamplingParams(), RequestHints(max_draft=2)),
}


@pytest.fixture
def scheduler() -> Any:
    """vLLM's own, with as much around it as its method needs."""
    assert registry.apply(Feature.DRAFT_SLOTS, draft_slots, role=Role.ENGINE_CORE)
    made = bare_scheduler()
    made.requests = {name: decoding_request(params) for name, params in PARAMS.items()}
    return made


def slots_after(scheduler: Any) -> dict[str, int]:
    """By request: slots that it will have with the next step."""
    scheduler._update_after_schedule(
        decoding_step(dict.fromkeys(PARAMS, 1), num_spec_tokens_to_schedule=4)
    )
    return {name: len(each.spec_token_ids) for name, each in scheduler.requests.items()}


def test_each_has_as_many_as_it_may_have(scheduler: Any) -> None:
    for _ in range(2):
        assert slots_after(scheduler) == {"plain": 4, "seeded": 0, "off": 0, "capped": 2}
    # A streaming session's next turn brings other params.
    scheduler.requests["off"].sampling_params = SamplingParams()
    assert slots_after(scheduler)["off"] == 4


def test_none_has_any_where_drafts_are_off(scheduler: Any) -> None:
    scheduler.vllm_config.additional_config = {"reprise": {"features": {"drafts": False}}}
    before = step_errors.counts().get(PLACE, 0)
    assert slots_after(scheduler) == dict.fromkeys(PARAMS, 0)
    assert step_errors.counts().get(PLACE, 0) == before


def test_a_seed_has_slots_where_drafts_keep_its_sample(scheduler: Any) -> None:
    draft_slots.set_mark(scheduler.vllm_config.scheduler_config, draft_slots._KEEP_SAMPLES, True)
    assert slots_after(scheduler)["seeded"] == 4


@pytest.mark.parametrize("other", ["runner", "drafter"])
def test_other_engines_are_left_alone(scheduler: Any, other: str) -> None:
    if other == "runner":
        scheduler.use_v2_model_runner = False
    else:
        scheduler.vllm_config.speculative_config.model = "ngram"
    assert set(slots_after(scheduler).values()) == {4}
    assert set(slots_handed_over(scheduler).values()) == {4}


def slots_handed_over(scheduler: Any) -> dict[str, int]:
    """The same where scheduling is synchronous: vLLM hands drafts over once a step is known."""
    valid = SimpleNamespace(validate_tokens=lambda _, tokens: tokens)
    scheduler.structured_output_manager = valid
    for request in scheduler.requests.values():
        request.is_finished = lambda: False
    names = [*scheduler.requests, "gone"]
    scheduler.update_draft_token_ids(DraftTokenIds(names, [[-1] * 4 for _ in names]))
    return {name: len(each.spec_token_ids) for name, each in scheduler.requests.items()}


def test_so_it_is_where_scheduling_is_synchronous(
    scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert slots_handed_over(scheduler) == {"plain": 4, "seeded": 0, "off": 0, "capped": 2}
    draft_slots.set_mark(scheduler.vllm_config.scheduler_config, draft_slots._HAS_DRAFTS, False)
    assert slots_handed_over(scheduler) == dict.fromkeys(PARAMS, 0)
    draft_slots.set_mark(scheduler.vllm_config.scheduler_config, draft_slots._HAS_DRAFTS, True)
    monkeypatch.setattr(draft_slots, "_max_slots_of", None)
    assert slots_handed_over(scheduler) == dict.fromkeys(PARAMS, 0)


def test_nobody_is_drafted_for_where_it_fails(
    scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails before vLLM's own part has run: requests that promise a sample must keep it."""

    def fail(*_: Any) -> Any:
        raise AssertionError("injected")

    before = step_errors.counts().get(PLACE, 0)
    monkeypatch.setattr("reprise.engine_ext.compat.guarded._run_part", _failing_once(fail))
    assert set(slots_after(scheduler).values()) == {0}
    assert step_errors.counts()[PLACE] == before + 1


def test_nor_where_it_fails_later(scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> Any:
        raise AssertionError("injected")

    monkeypatch.setattr(draft_slots, "read_hints", fail)
    assert set(slots_after(scheduler).values()) == {0}


def _failing_once(fail: Any) -> Any:
    """In place of `_run_part`: the hook fails before vLLM's part, the fallback runs."""
    calls: list[Any] = []

    def run(place: str, part: Any, theirs: Any, args: Any, kwargs: Any) -> Any:
        if place == PLACE and not calls:
            calls.append(part)
            return fail()
        return part(theirs, *args, **kwargs)

    return run
