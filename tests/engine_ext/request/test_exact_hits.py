"""Eligibility and keys: every field of vLLM's SamplingParams is classified, and it matters."""

from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from vllm.config import KVTransferConfig
from vllm.config.speculative import RejectionSampleMethod, SpeculativeConfig
from vllm.lora.request import LoRARequest
from vllm.sampling_params import (
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)
from vllm.v1.engine import EngineCoreRequest

from reprise.engine_ext.request.exact_hits import (
    KEYED_FIELDS,
    REFUSED_FIELDS,
    REQUEST_FIELDS_IN_KEY_OTHERWISE,
    REQUEST_FIELDS_KEYED,
    REQUEST_FIELDS_REFUSED,
    REQUEST_FIELDS_UNKEYED,
    UNKEYED_FIELDS,
    exact_keys,
    is_determined,
    refusal,
    unsupported_engine,
)
from reprise.tests.engine_ext.front_ends import core_request

BASE: dict[str, Any] = {"temperature": 0.7, "seed": 11, "max_tokens": 50}

FLIPPED: dict[str, Any] = {
    "_all_stop_token_ids": {3, 9},
    "_eos_token_id": 7,
    "allowed_token_ids": [1, 2, 3],
    "bad_words": ["no"],
    "detokenize": False,
    "extra_args": {"bias": 1},
    "frequency_penalty": 0.5,
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "logit_bias": {5: 1.0},
    "min_p": 0.1,
    "min_tokens": 4,
    "presence_penalty": 0.5,
    "repetition_detection": RepetitionDetectionParams(max_pattern_size=4, min_count=3),
    "repetition_penalty": 1.1,
    "seed": 12,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "stop": ["\n\n"],
    "stop_token_ids": [17],
    "structured_outputs": StructuredOutputsParams(choice=["a", "b"]),
    "temperature": 0.9,
    "thinking_token_budget": 8,
    "top_k": 5,
    "top_p": 0.9,
    "watermarking": False,
}

REFUSED: dict[str, Any] = {
    "n": 2,
    "logprobs": 0,
    "prompt_logprobs": 1,
    "prompt_logprob_token_ids": [[1]],
    "prompt_logprob_start": 2,
    "logprob_token_ids": [4],
    "flat_logprobs": True,
    "routed_experts_prompt_start": 1,
    "trace_decode_token_ids": [1, 2],
}


def make_request(params: SamplingParams | None = None, **overrides: Any) -> EngineCoreRequest:
    return core_request("r", params or SamplingParams(**BASE), **overrides)


def with_field(name: str, value: Any) -> SamplingParams:
    params = SamplingParams(**BASE)
    setattr(params, name, value)
    return params


def keys_of(request: EngineCoreRequest, *, namespace: str = "", model_key: str = "m") -> Any:
    return exact_keys(request, namespace=namespace, model_key=model_key)


def test_every_field_of_sampling_params_is_classified_once() -> None:
    classes = [set(KEYED_FIELDS), set(REFUSED_FIELDS), set(UNKEYED_FIELDS)]
    classified = set().union(*classes)
    assert classified == set(SamplingParams.__struct_fields__), (
        "a new vLLM has fields that nobody classified: decide whether they change the output"
    )
    assert sum(len(fields) for fields in classes) == len(classified)
    assert set(FLIPPED) == set(KEYED_FIELDS)
    assert set(REFUSED) == set(REFUSED_FIELDS)


def test_every_field_of_a_request_is_classified_once() -> None:
    classes = [
        set(REQUEST_FIELDS_KEYED),
        set(REQUEST_FIELDS_IN_KEY_OTHERWISE),
        set(REQUEST_FIELDS_REFUSED),
        set(REQUEST_FIELDS_UNKEYED),
    ]
    classified = set().union(*classes)
    assert classified == set(EngineCoreRequest.__struct_fields__), (
        "a new vLLM has fields that nobody classified: decide whether they change the output"
    )
    assert sum(len(fields) for fields in classes) == len(classified)


@pytest.mark.parametrize("name", sorted(REQUEST_FIELDS_UNKEYED))
def test_where_and_when_a_request_runs_is_not_in_the_keys(name: str) -> None:
    request = make_request()
    setattr(request, name, "another")
    assert refusal(request, "always") is None
    assert keys_of(request) == keys_of(make_request())


@pytest.mark.parametrize("name", sorted(KEYED_FIELDS))
def test_a_keyed_field_changes_all_keys(name: str) -> None:
    base = keys_of(make_request())
    flipped = keys_of(make_request(with_field(name, FLIPPED[name])))
    assert flipped.complete != base.complete
    assert flipped.limited != base.limited
    assert flipped.cut != base.cut


@pytest.mark.parametrize("rows", [[[1]], [[1, 2], [3, 4]]])
def test_token_ids_that_vllm_has_made_an_array_of_are_refused_in_words(rows: Any) -> None:
    params = with_field("prompt_logprob_token_ids", np.array(rows))
    assert refusal(make_request(params), "always") == "prompt_logprob_token_ids"


@pytest.mark.parametrize("name", sorted(REFUSED_FIELDS))
def test_a_request_for_more_than_tokens_is_refused(name: str) -> None:
    assert refusal(make_request(), "always") is None
    assert refusal(make_request(with_field(name, REFUSED[name])), "always") == name


@pytest.mark.parametrize("name", ["output_kind", "stream_interval", "skip_clone"])
def test_how_an_answer_is_handed_out_is_not_in_the_keys(name: str) -> None:
    value = {"output_kind": RequestOutputKind.DELTA, "stream_interval": 4, "skip_clone": True}
    assert keys_of(make_request(with_field(name, value[name]))) == keys_of(make_request())


def test_max_tokens_is_only_in_the_key_of_answers_cut_otherwise() -> None:
    base = keys_of(make_request())
    longer = keys_of(make_request(with_field("max_tokens", 51)))
    assert longer.complete == base.complete
    assert longer.limited != base.limited
    assert longer.cut == base.cut
    assert len(set(base)) == 3


def test_prompt_namespace_model_and_reasoning_are_in_the_keys() -> None:
    keys = {
        keys_of(make_request()).complete,
        keys_of(make_request(prompt_token_ids=[1, 2, 4])).complete,
        keys_of(make_request(), namespace="other").complete,
        keys_of(make_request(), model_key="other").complete,
        keys_of(make_request(reasoning_ended=True)).complete,
        keys_of(make_request(reasoning_parser_kwargs={"thinking": True})).complete,
    }
    assert len(keys) == 6


def test_a_greedy_answer_does_not_depend_on_the_seed() -> None:
    greedy = [SamplingParams(temperature=0, seed=seed, max_tokens=5) for seed in (None, 1, 2)]
    assert len({keys_of(make_request(params)).complete for params in greedy}) == 1


def test_our_own_extra_arguments_are_not_in_the_keys() -> None:
    params = with_field("extra_args", {"reprise": {"drafts": False}})
    assert keys_of(make_request(params)) == keys_of(make_request())


def test_the_order_of_a_schemas_properties_is_in_the_keys() -> None:
    schemas = [{"properties": {name: {} for name in names}} for names in ("ab", "ba")]
    keys = {
        keys_of(make_request(with_field("structured_outputs", StructuredOutputsParams(json=each))))
        for each in schemas
    }
    assert len(keys) == 2


def test_what_has_no_encoding_is_an_error_not_a_key() -> None:
    with pytest.raises(ValueError, match="plain values"):
        keys_of(make_request(with_field("extra_args", {"f": object()})))


def test_only_determined_requests_unless_the_operator_wants_more() -> None:
    sampled = SamplingParams(temperature=1.0)
    assert not is_determined(sampled)
    assert refusal(make_request(sampled), "deterministic") == "sampled without a seed"
    assert refusal(make_request(sampled), "always") is None
    assert refusal(make_request(SamplingParams(temperature=0)), "off") == "exact hits are off"
    assert refusal(make_request(SamplingParams(temperature=0)), "deterministic") is None


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ({"resumable": True}, "streaming input"),
        ({"mm_features": [object()]}, "multimodal"),
        ({"prompt_token_ids": None}, "not a prompt of token ids"),
        ({"sampling_params": None}, "not a prompt of token ids"),
        ({"abort_immediately": True}, "aborted on arrival"),
        ({"prompt_embeds": object()}, "not a prompt of token ids"),
        ({"prompt_is_token_ids": [True, False]}, "not a prompt of token ids"),
        ({"pooling_params": object()}, "not a prompt of token ids"),
    ],
)
def test_other_refusals(override: dict[str, Any], reason: str) -> None:
    request = make_request()
    for name, value in override.items():
        setattr(request, name, value)
    assert refusal(request, "always") == reason


def test_every_refused_field_of_a_request_is_tried_above() -> None:
    (parameters,) = [
        mark.args[1] for mark in test_other_refusals.pytestmark if mark.name == "parametrize"
    ]
    tried = {name for override, _ in parameters for name in override}
    assert tried >= REQUEST_FIELDS_REFUSED


def test_kv_transfer_passes_through() -> None:
    params = with_field("extra_args", {"kv_transfer_params": {"do_remote_prefill": True}})
    assert refusal(make_request(params), "always") == "KV transfer"


def test_an_adapter_is_no_reason_to_refuse_here() -> None:
    adapter = LoRARequest("a", 1, "/nowhere")
    assert refusal(make_request(lora_request=adapter), "always") is None


def engine(**speculative: Any) -> SimpleNamespace:
    return SimpleNamespace(
        model_config=SimpleNamespace(),
        kv_transfer_config=None,
        use_v2_model_runner=False,
        speculative_config=SimpleNamespace(**speculative) if speculative else None,
    )


def test_nothing_is_exact_where_another_engine_waits_for_the_kv() -> None:
    for role in ("kv_producer", "kv_consumer"):
        handing = engine()
        handing.kv_transfer_config = KVTransferConfig(kv_connector="Any", kv_role=role)
        assert unsupported_engine(handing) == f"the KV connector Any has the role {role}"
    keeping = engine()
    keeping.kv_transfer_config = KVTransferConfig(
        kv_connector="OffloadingConnector", kv_role="kv_both"
    )
    assert unsupported_engine(keeping) is None


def test_nothing_is_exact_where_drafts_change_answers() -> None:
    """FLy is of vLLM 0.33; a method that is not known here is not taken for lossless."""
    assert unsupported_engine(engine()) is None
    default = SpeculativeConfig.__dataclass_fields__["rejection_sample_method"].default
    assert unsupported_engine(engine(rejection_sample_method=default)) is None
    for method in {*get_args(RejectionSampleMethod), "fly", "new"} - {"standard", "block"}:
        reason = unsupported_engine(engine(rejection_sample_method=method))
        assert reason is not None
        assert method in reason
