"""Requests with `min_p` or `logit_bias` are answered, where vLLM refuses them.

vLLM 0.32 answers them with 400 as soon as there is a speculative config, because its rejection
sampler applies the two to the bonus token only, and it then does not even build the processors. A
row without drafts has no other token than that one: so the processors are built, and such a request
gets drafts only where its drafted rows are sampled by `verification/same_samples_v1.py`.

A request with a thinking budget, which vLLM lets in, has no drafts on model runner V1: see
`thinking_budgets.py`.

Custom logits processors are refused at the start by vLLM with any speculative config, and that
stays: nobody can tell which requests they act on.

The hooks of `Feature.UNDRAFTED_SETTINGS`, in front end and worker.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm.sampling_params import SamplingParams

from reprise.engine_ext.core.identity import PROPOSER_PATH, uses_our_proposer

if TYPE_CHECKING:
    from vllm.config import SpeculativeConfig


def must_not_be_drafted(params: SamplingParams, *, keeps_sample: bool = False) -> bool:
    """Return whether a request asks for what drafted tokens would not be held to.

    Args:
        params: of the request.
        keeps_sample: drafted rows get what vLLM's sampler would draw for them.
    """
    if params.thinking_token_budget is not None:
        return True
    if not keeps_sample:
        return params.min_p > 0.0 or bool(params.logit_bias)
    # vLLM applies penalties to drafted rows first, where the sampler adds the bias first.
    return bool(params.logit_bias) and (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
    )


def validate_spec_decode(
    original: Callable[..., None],
    params: SamplingParams,
    speculative_config: "SpeculativeConfig | None",
) -> None:
    """Let engines with our proposer take such requests, in the process that checks them."""
    if speculative_config is None or speculative_config.model != PROPOSER_PATH:
        original(params, speculative_config)


def build_logitsprocs(
    original: Callable[..., Any],
    vllm_config: Any,
    device: Any,
    is_pin_memory: bool,
    is_pooling_model: bool,
    custom_logitsprocs: Any = (),
) -> Any:
    """Have the model runner that is being built apply `min_p` and `logit_bias`."""
    if is_pooling_model or custom_logitsprocs or not uses_our_proposer(vllm_config):
        return original(vllm_config, device, is_pin_memory, is_pooling_model, custom_logitsprocs)
    from vllm.v1.sample.logits_processor import BUILTIN_LOGITS_PROCESSORS, LogitsProcessors

    return LogitsProcessors(
        processor(vllm_config, device, is_pin_memory) for processor in BUILTIN_LOGITS_PROCESSORS
    )
