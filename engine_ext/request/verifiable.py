"""Which requests a stored answer may be verified for: plain greedy ones.

The engine is asked for the most probable token at each position of a stored answer, before any
processor of logits. So only where no processor acts is that what it would generate. Whatever is not
known to be plain is generated.
"""

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from reprise.engine_ext.request.exact_hits import is_greedy, unsupported_engine

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest

    from reprise.engine_ext.core.config import RepriseConfig

PLAIN_FIELDS: dict[str, Any] = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "allowed_token_ids": None,
    "bad_words": None,
    "logit_bias": None,
    "min_tokens": 0,
    "repetition_detection": None,
    "structured_outputs": None,
    "thinking_token_budget": None,
}
"""Fields of `SamplingParams` that process logits, or look back further than the last token to end
an answer, with the one value at which they do nothing. An empty list or dictionary is None; the
number 0 is not."""

OTHER_FIELDS = frozenset(
    {
        # Of sampling, which greedy requests do not.
        "min_p", "seed", "temperature", "top_k", "top_p",
        # They end an answer, or change how it is delivered.
        "_all_stop_token_ids", "_eos_token_id", "detokenize", "ignore_eos",
        "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens",
        "stop", "stop_token_ids",
        # Only ours are let through; and see `unverifiable_engine`.
        "extra_args", "watermarking",
    }
)  # fmt: skip
"""The others of those that are part of exact keys."""

_OURS = "reprise"


def is_verifiable(request: "EngineCoreRequest") -> bool:
    """Return whether the answer to a request that may be an exact hit can be verified by the most
    probable tokens alone."""
    params = request.sampling_params
    if params is None or not is_greedy(params) or request.lora_request is not None:
        return False
    if not all(_is_plain(getattr(params, name), plain) for name, plain in PLAIN_FIELDS.items()):
        return False
    return set(params.extra_args or ()) <= {_OURS}


def _is_plain(value: Any, plain: Any) -> bool:
    return value == plain or (plain is None and value in ([], {}))


def may_verify(vllm_config: Any, config: "RepriseConfig") -> bool:
    """Return whether a server of this engine may verify stored answers, for all that its workers
    can tell."""
    serving = config.serving
    return (
        serving.enabled
        and serving.exact_hits != "off"
        and serving.exact_hits_from_others != "off"
        and config.retrieval.has_tier
        and unsupported_engine(vllm_config) is None
        and unverifiable_engine(vllm_config) is None
    )


def unverifiable_engine(vllm_config: Any) -> str | None:
    """Return why no answer can be verified by this engine; None: they can."""
    model = vllm_config.model_config
    if getattr(model, "logits_processors", None) or entry_points(group="vllm.logits_processors"):
        return "it has logits processors"
    if getattr(model, "is_multimodal_model", False) or getattr(model, "is_encoder_decoder", False):
        return "a prompt of its model may be more than token ids"
    if getattr(vllm_config.cache_config, "kv_sharing_fast_prefill", False):
        return "it computes no logits for most of a prompt"
    if getattr(vllm_config, "lora_config", None) is not None:
        # Of all requests, those without an adapter too: vLLM ends on a CPU that is asked for more.
        return "with LoRA the logits of a step have one row for each request"
    if getattr(vllm_config, "watermark_config", None) is not None:
        return "it has a watermark"
    return None
