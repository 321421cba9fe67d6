"""Which requests a stored answer may be verified for."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RepetitionDetectionParams, SamplingParams, StructuredOutputsParams

from reprise.engine_ext.core.request_hints import RequestHints, with_hints
from reprise.engine_ext.request.exact_hits import KEYED_FIELDS
from reprise.engine_ext.request.verifiable import (
    OTHER_FIELDS,
    PLAIN_FIELDS,
    is_verifiable,
    unverifiable_engine,
)
from reprise.tests.engine_ext.front_ends import core_request, vllm_config


def test_every_field_that_changes_outputs_is_classified() -> None:
    assert set(PLAIN_FIELDS) | OTHER_FIELDS == KEYED_FIELDS
    assert not set(PLAIN_FIELDS) & OTHER_FIELDS


@pytest.mark.parametrize(
    "params",
    [{}, {"stop": ["x"]}, {"ignore_eos": True}, {"seed": 5}, {"stop_token_ids": [4]},
     {"bad_words": []}, {"logit_bias": {}}],
)  # fmt: skip
def test_plain_greedy_requests_are(params: dict[str, Any]) -> None:
    sampling = with_hints(SamplingParams(temperature=0, **params), RequestHints(namespace="a"))
    assert is_verifiable(core_request("r", sampling))


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.7, "seed": 5},
        {"presence_penalty": 0.1},
        {"frequency_penalty": 0.1},
        {"repetition_penalty": 1.1},
        {"allowed_token_ids": [1]},
        {"bad_words": ["x"]},
        {"logit_bias": {1: 1.0}},
        {"min_tokens": 1},
        {"repetition_detection": RepetitionDetectionParams(max_pattern_size=2, min_count=2)},
        {"structured_outputs": StructuredOutputsParams(regex="a")},
        {"thinking_token_budget": 5},
        {"thinking_token_budget": 0},  # no thinking at all
        {"extra_args": {"a_processor_may_read": 1}},
    ],
)
def test_others_are_not(params: dict[str, Any]) -> None:
    sampling = SamplingParams(**{"temperature": 0, **params})
    assert not is_verifiable(core_request("r", sampling))


def test_no_adapter_is() -> None:
    sampling = SamplingParams(temperature=0)
    adapter = LoRARequest("a", 1, "/a")
    assert not is_verifiable(core_request("r", sampling, lora_request=adapter))


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ("model_config", "logits_processors"),
        ("model_config", "is_multimodal_model"),
        ("model_config", "is_encoder_decoder"),
        ("cache_config", "kv_sharing_fast_prefill"),
        (None, "lora_config"),
        (None, "watermark_config"),
    ],
)
def test_engines_that_answer_otherwise_do_not_verify(section: str | None, field: str) -> None:
    config = vllm_config(cache_config=SimpleNamespace())
    assert unverifiable_engine(config) is None
    setattr(config if section is None else getattr(config, section), field, [1])
    assert unverifiable_engine(config)
