"""Decides which requests may be answered from the cache, and makes the keys of their answers.

A request is answered from the cache only if generating would give the same tokens. Whatever is
not known to do so passes through to the engine: a refusal costs a generation, nothing else.
"""

import hashlib
import json
import re
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from reprise.engine_ext.core.identity import hand_over
from reprise.engine_ext.request.exact_key import exact_key

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

ExactHits = Literal["off", "deterministic", "always"]

# vLLM's own border between greedy and sampled (`SamplingParams.__post_init__`).
_GREEDY_BELOW = 1e-5

FLOAT_FIELDS = frozenset(
    {
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "temperature",
        "top_p",
        "min_p",
    }
)
"""Keyed as floats: 0 and 0.0 are one setting."""

KEYED_FIELDS = FLOAT_FIELDS | frozenset(
    {
        "_all_stop_token_ids",
        "_eos_token_id",
        "allowed_token_ids",
        "bad_words",
        "detokenize",
        "extra_args",
        "ignore_eos",
        "include_stop_str_in_output",
        "logit_bias",
        "min_tokens",
        "repetition_detection",
        "seed",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stop",
        "stop_token_ids",
        "structured_outputs",
        "thinking_token_budget",
        "top_k",
        "watermarking",
    }
)
"""Fields of `SamplingParams` that change the tokens or where they end. `max_tokens` is apart: it
only matters to where an answer is cut."""

REFUSED_FIELDS = {
    "n": 1,
    "logprobs": None,
    "prompt_logprobs": None,
    "prompt_logprob_token_ids": None,
    "prompt_logprob_start": None,
    "logprob_token_ids": None,
    "flat_logprobs": False,
    "routed_experts_prompt_start": 0,
    "trace_decode_token_ids": None,
}
"""Fields that ask for more than tokens, with the one value at which they ask for nothing."""

UNKEYED_FIELDS = frozenset(
    {
        "max_tokens",
        "output_kind",
        "stream_interval",
        "skip_clone",
        "output_text_buffer_length",
        "_watermarking_skipped",
        "_bad_words_token_ids",
        "skip_reading_prefix_cache",
    }
)
"""Fields that change how an answer is delivered, or that follow from keyed ones."""

REQUEST_FIELDS_KEYED = frozenset(
    {"prompt_token_ids", "reasoning_ended", "reasoning_parser_kwargs", "sampling_params"}
)
"""Fields of `EngineCoreRequest` that are part of the key, `sampling_params` by its own fields."""

REQUEST_FIELDS_IN_KEY_OTHERWISE = {
    "cache_salt": "the namespace, unless the operator has declared a single tenant",
    "lora_request": "the model key",
}
"""Those that reach the key by way of something else."""

REQUEST_FIELDS_REFUSED = frozenset(
    {
        "abort_immediately",
        "mm_features",
        "pooling_params",
        "prompt_embeds",
        "prompt_is_token_ids",
        "resumable",
    }
)
"""Those of requests that are never answered from the cache; see `refusal`."""

REQUEST_FIELDS_UNKEYED = frozenset(
    {
        "arrival_time",
        "client_index",
        "current_wave",
        "data_parallel_rank",
        "external_req_id",
        "kv_hints",
        "priority",
        "request_id",
        "session_id",
        "trace_headers",
    }
)
"""Those that say where, when and for whom an answer is generated, not what it is."""

# Of vLLM's `rejection_sample_method`: synthetic, and FLy from 0.33 on, accept drafts that the model
# would not have sampled, so that an answer depends on what happened to be drafted.
_LOSSLESS_METHODS = frozenset({"standard", "block"})

_ENGINE_TRANSFERS = ("kv_transfer_params", "ec_transfer_params")


SAMPLED = "sampled without a seed"
"""The refusal of requests that ask for another sample each time."""


_WORDS = {
    SAMPLED: "sampled",
    "exact hits are off": "off",
    "a setting without an encoding": "setting",
}


def word_of(reason: str) -> str:
    """Return a refusal in one word, for a reply's header: letters, digits, dashes, underscores."""
    return _WORDS.get(reason) or re.sub(r"[^A-Za-z0-9_]+", "-", reason).strip("-")


class ExactKeys(NamedTuple):
    """The keys that a request's answer may be stored under."""

    complete: bytes
    """An answer that ended by itself: good for every `max_tokens` that has room for it."""
    limited: bytes
    """An answer that was cut for another reason than `max_tokens`; also the identity of a
    flight."""
    cut: bytes
    """The longest answer known that hit its `max_tokens`: good for every smaller one."""


def is_greedy(params: "SamplingParams") -> bool:
    """Return whether the most probable token is taken at every step."""
    return bool(params.temperature < _GREEDY_BELOW)


def is_determined(params: "SamplingParams") -> bool:
    """Return whether the settings alone determine the answer: greedy, or seeded."""
    return is_greedy(params) or params.seed is not None


def unsupported_engine(vllm_config: Any) -> str | None:
    """Return why no request of this engine can be answered from the cache; None if some can."""
    model = vllm_config.model_config
    if (handed_over := hand_over(vllm_config)) is not None:
        return handed_over  # the other engine waits for what a hit would skip
    if getattr(model, "enable_return_routed_experts", False):
        return "the engine returns routed experts"
    if getattr(model, "return_sampling_mask", False):
        return "the engine returns sampling masks"
    if getattr(model, "is_diffusion", False):
        return "the model does not generate token by token"
    speculative = getattr(vllm_config, "speculative_config", None)
    method = getattr(speculative, "rejection_sample_method", "standard")
    if method not in _LOSSLESS_METHODS:
        return f"the rejection sampling method {method!r} may change outputs"
    return None


def refusal(request: "EngineCoreRequest", mode: ExactHits) -> str | None:
    """Return why this request must be generated and its answer not stored; None: it need not."""
    params = request.sampling_params
    if mode == "off":
        return "exact hits are off"
    if (
        params is None
        or request.pooling_params is not None
        or request.prompt_token_ids is None
        or request.prompt_embeds is not None
        or request.prompt_is_token_ids is not None
    ):
        return "not a prompt of token ids"
    if request.mm_features:
        return "multimodal"
    if request.resumable:
        return "streaming input"
    if request.abort_immediately:
        return "aborted on arrival"
    for name, neutral in REFUSED_FIELDS.items():
        value = getattr(params, name, neutral)
        # Not with None, from which an array differs element by element.
        if value is not None if neutral is None else value != neutral:
            return name
    if any((params.extra_args or {}).get(name) for name in _ENGINE_TRANSFERS):
        return "KV transfer"
    if mode == "deterministic" and not is_determined(params):
        return SAMPLED
    return None


def exact_keys(
    request: "EngineCoreRequest",
    *,
    namespace: str,
    model_key: str,
) -> ExactKeys:
    """Return the keys of a request that `refusal` accepts.

    Raises:
        ValueError: a setting has no encoding; such a request cannot be replayed.
    """
    params = request.sampling_params
    assert params is not None
    assert request.prompt_token_ids is not None
    complete = exact_key(
        namespace=namespace,
        model_key=model_key,
        prompt_token_ids=request.prompt_token_ids,
        sampling={
            **sampling_fields(params),
            "reasoning_ended": request.reasoning_ended,
            "reasoning_parser_kwargs": _as_json(request.reasoning_parser_kwargs),
        },
    )
    limit = str(params.max_tokens).encode()
    return ExactKeys(
        complete,
        limited=hashlib.blake2b(limit, key=complete, digest_size=16).digest(),
        cut=hashlib.blake2b(b"cut", key=complete, digest_size=16).digest(),
    )


def sampling_fields(params: "SamplingParams") -> dict[str, Any]:
    """Return the keyed fields as plain values, without those that greedy decoding ignores."""
    plain = {name: _plain(name, getattr(params, name)) for name in KEYED_FIELDS}
    if is_greedy(params):
        plain["seed"] = None
    return plain


def _plain(name: str, value: Any) -> Any:
    if name in FLOAT_FIELDS:
        return float(value)
    if name == "extra_args":
        # What our own front end put there concerns drafts, never the output.
        return {key: item for key, item in (value or {}).items() if key != "reprise"}
    if name == "logit_bias":
        return sorted((value or {}).items())
    if isinstance(value, set | frozenset):
        return sorted(value)
    if is_dataclass(value) and not isinstance(value, type):
        # As text, in the order given: the order of a schema's properties is that of the output.
        return [(field.name, _as_json(getattr(value, field.name))) for field in fields(value)]
    return value


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a setting has no encoding: {error}") from error
