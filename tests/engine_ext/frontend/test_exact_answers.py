"""Exact answers: which are stored, and which requests they are good for."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest, FinishReason

from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.frontend.exact_answers import ExactAnswers
from reprise.engine_ext.outputs.flight import FinishedFlight
from reprise.engine_ext.outputs.replay import Ending
from reprise.engine_ext.request.request_control import RequestControl
from reprise.engine_ext.request.request_policy import RequestPolicy
from reprise.retrieval.host import steady_clock
from reprise.tests.engine_ext.front_ends import core_request, vllm_config


def exact_answers(*, weight_transfer: Any = None, **processes: Any) -> ExactAnswers:
    config = vllm_config(weight_transfer_config=weight_transfer)
    return ExactAnswers(config, load_config({}), **processes)


def request(max_tokens: int | None = 10, lora: LoRARequest | None = None) -> EngineCoreRequest:
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    return core_request("r", params, lora_request=lora)


def tracked(exact: ExactAnswers, **fields: Any) -> Any:
    known = {
        "keys": exact.keys(request(), "acme"),
        "prompt_token_ids": [1, 2, 3],
        "policy": RequestPolicy(RequestControl(), "acme"),
        "lora_request": None,
        "weights": exact.weights_of(None),
        "weight_version": "w",
        "max_tokens": 10,
    }
    return SimpleNamespace(**{**known, **fields})


def finished(num_tokens: int, reason: FinishReason = FinishReason.STOP) -> FinishedFlight:
    return FinishedFlight(list(range(num_tokens)), "", Ending(reason, None), 0)


def test_only_an_answer_of_the_weights_as_they_are_is_stored() -> None:
    exact = exact_answers()
    early = tracked(exact)
    exact.model_changed()
    assert not exact.store(early, finished(3), weight_version="w")
    assert not exact.store(tracked(exact), finished(3), weight_version="other")
    assert not exact.store(tracked(exact, keys=None), finished(3), weight_version="w")
    assert exact.memory.stats().answers == 0
    assert exact.store(tracked(exact), finished(3), weight_version="w")
    # The first request of an engine comes before the first output, which carries the label.
    assert exact.store(tracked(exact, weight_version=None), finished(3), weight_version="w")
    keys = exact.keys(request(), "acme")
    found = exact.find(keys, request(), None)
    assert found is not None
    assert found.namespace == "acme"
    exact.model_changed()
    assert exact.find(keys, request(), None) is None
    assert exact.keys(request(), "acme") != keys


@pytest.mark.parametrize(
    ("reason", "cut_at"),
    [
        (FinishReason.STOP, {None: False, 4: False, 3: False, 2: True, 1: True}),
        # vLLM looks at the limit before it looks for repetition.
        (FinishReason.REPETITION, {None: False, 4: False, 3: True, 2: True, 1: True}),
    ],
)
def test_an_answer_ends_at_a_limit_as_if_it_had_been_generated_with_it(
    reason: FinishReason, cut_at: dict[int | None, bool]
) -> None:
    exact = exact_answers()
    exact.store(tracked(exact), finished(3, reason), weight_version="w")
    for max_tokens, is_cut in cut_at.items():
        asked = request(max_tokens)
        found = exact.find(exact.keys(asked, "acme"), asked, None)
        assert found is not None
        assert found.finish_reason == str(FinishReason.LENGTH if is_cut else reason), max_tokens
        assert found.response_token_ids.tolist() == [0, 1, 2][:max_tokens]


def test_an_answer_older_than_asked_for_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = exact_answers()
    exact.store(tracked(exact), finished(3), weight_version="w")
    keys, now_s = exact.keys(request(), "acme"), steady_clock.now_s()
    monkeypatch.setattr(steady_clock, "now_s", lambda: now_s + 100)
    assert exact.find(keys, request(), 50.0) is None
    assert exact.find(keys, request(), 150.0) is not None


def test_what_another_process_may_change_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = LoRARequest("a", 1, "/adapters/a")
    assert exact_answers().refusal(request()) is None
    assert exact_answers().refusal(request(lora=adapter)) is None
    several = exact_answers(num_api_servers=2)
    assert several.refusal(request()) is None
    assert "adapters may change" in (several.refusal(request(lora=adapter)) or "")
    several = exact_answers(num_api_servers=2, has_fixed_adapters=True)
    assert several.refusal(request(lora=adapter)) is None
    in_place = LoRARequest("a", 1, "/adapters/a", load_inplace=True)
    assert "every request reloads" in (several.refusal(request(lora=in_place)) or "")
    several = exact_answers(num_api_servers=2, weight_transfer="nccl")
    assert "weights may change" in (several.refusal(request()) or "")
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")  # its routes reach one process only
    assert exact_answers().refusal(request()) is None
    several = exact_answers(num_api_servers=2)
    assert "weights may change" in (several.refusal(request()) or "")
