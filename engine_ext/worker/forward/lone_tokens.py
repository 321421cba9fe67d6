"""On a CPU no token is computed alone: steps of fewer than four tokens are padded to four.

vLLM's linear layers may sum one row in another order than several: oneDNN does on an AMD EPYC, in
one kind of layer of SmolLM2 (`python -m reprise.eval.real_model.layer_rows`). A single request has
one row in a step without drafts and several in one with them, so that its answer would depend on
drafting where two tokens nearly tie. From two rows on all are alike, on processors without matrix
tiles: so one row is computed beside others that nobody reads. Four, because that takes less time
than one, two or three: reading the weights is what a small step costs, and for four rows oneDNN
reads them faster.

Padded are steps, whatever is compiled, and the logits, of which a padded step has as few rows as
before. Left as they are: models with states besides attention, latent attention or an encoder,
whose kernels on the CPU were not tried with padding; adapters, whose kernels there take as many
tokens as are scheduled; and data parallelism, where all ranks agree on the number of tokens.

The hooks of `Feature.LONE_TOKENS`, in the worker.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from vllm.config import get_current_vllm_config_or_none

from reprise.engine_ext.compat.engine_state import set_linear
from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.compat.hooks import drafter_of
from reprise.engine_ext.core.identity import uses_our_proposer

FEWEST_TOKENS = 4
"""Of a step, and rows of logits."""


def batch_of_several(
    original: Original,
    runner: Any,
    num_tokens: int,
    num_reqs: int,  # noqa: ARG001 - vLLM's
    *_: Any,
    **__: Any,
) -> Any:
    """Run vLLM's `_determine_batch_execution_and_padding`, and have few tokens padded."""
    result = original()
    if num_tokens >= FEWEST_TOKENS or drafter_of(runner) is None or not _can_be_padded(runner):
        return result
    mode, descriptor, *others = result
    padded = max(descriptor.num_tokens, FEWEST_TOKENS)
    return mode, replace(descriptor, num_tokens=padded), *others


def _can_be_padded(runner: Any) -> bool:
    model = runner.model_config
    return not (
        model.is_hybrid
        or model.has_inner_state
        or model.use_mla
        or model.is_encoder_decoder
        or runner.lora_config is not None
        or runner.parallel_config.data_parallel_size > 1
        or runner.max_num_tokens < FEWEST_TOKENS
    )


def dispatch_linear_layer(
    original: Callable[..., None], layer: torch.nn.Module, remove_weight: bool
) -> None:
    """Run vLLM's `dispatch_cpu_unquantized_gemm`, and have few rows of logits padded."""
    original(layer, remove_weight)
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    config = get_current_vllm_config_or_none()
    if config is None or not uses_our_proposer(config):
        return
    # As an embedding it is read, not multiplied.
    if isinstance(layer, VocabParallelEmbedding) and hasattr(layer, "cpu_linear"):
        set_linear(layer, _never_of_few_rows(layer.cpu_linear))


def _never_of_few_rows(
    linear: Callable[..., torch.Tensor],
) -> Callable[..., torch.Tensor]:
    def padded(
        x: torch.Tensor,  # [rows, inputs]
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        num_rows = len(x)
        if num_rows >= FEWEST_TOKENS:
            return linear(x, weight, bias)
        more = torch.nn.functional.pad(x, (0, 0, 0, FEWEST_TOKENS - num_rows))
        return linear(more, weight, bias)[:num_rows]

    return padded
