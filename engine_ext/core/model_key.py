"""Names of what made an answer: the model key for exact hits, the tokenizer key for drafts."""

import hashlib
from typing import TYPE_CHECKING, Any

from reprise.retrieval.query.tokenizer_key import vocabulary_key

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def model_key_of(vllm_config: "VllmConfig", *, lora_request: Any = None) -> str:
    """32 hexadecimal digits: model, weights' revision and format, tokenizer and adapter.

    The chat template is not among them: it has done its work once there are prompt token ids.
    """
    model = vllm_config.model_config
    adapter = (
        (lora_request.lora_name, lora_request.lora_path) if lora_request is not None else ("", "")
    )
    parts = (
        model.model,
        model.revision,
        model.quantization,
        str(model.dtype),
        model.tokenizer,
        model.tokenizer_revision,
        *adapter,
    )
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def vocabulary_size_of(vllm_config: "VllmConfig") -> int:
    """Return how many tokens the model can look up."""
    size: int = vllm_config.model_config.get_vocab_size()
    return size


def tokenizer_key_of(vllm_config: "VllmConfig") -> str:
    """32 hexadecimal digits: answers drafted from must be tokenised alike.

    Of the vocabulary itself, so that `reprise cache import` finds the same key by itself wherever
    the model lies; of the tokenizer's name where its file cannot be read.
    """
    model = vllm_config.model_config
    found = vocabulary_key(
        str(model.tokenizer),
        revision=model.tokenizer_revision or None,
        mode=str(getattr(model, "tokenizer_mode", "auto")),
    )
    if found is not None:
        return found
    parts = (model.tokenizer, model.tokenizer_revision, model.tokenizer_mode)
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
