"""Steps with drafts run as one CUDA graph each, whatever was drafted.

By default (FULL_AND_PIECEWISE) vLLM has a graph of a whole step only for steps in which all
requests decode equally many tokens. Drafts differ in length, so their steps would run in pieces,
around every layer's attention, and the GPU would wait for them to be launched. Where all attention
backends allow graphs of any batch (FlashAttention 3 and Triton do), FULL has one for each number of
tokens.
"""

from collections.abc import Sequence
from typing import Any

from vllm.config import CUDAGraphMode
from vllm.logger import init_logger
from vllm.v1.attention.backend import AttentionCGSupport

from reprise.engine_ext.compat.engine_state import set_cudagraph_mode
from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.core.identity import uses_our_proposer

logger = init_logger(__name__)


def check_cudagraph_mode(
    original: Original,
    runner: Any,
    attention_backends: Sequence[Any],
    kv_cache_groups: Sequence[Any],
    is_profiling: bool = False,  # noqa: ARG001 - vLLM's
) -> None:
    """Run vLLM's `_check_and_update_cudagraph_mode` with full graphs preferred: the hook of
    `Feature.FULL_GRAPHS`, in the worker, before its attention is set up."""
    if uses_our_proposer(runner.vllm_config):
        prefer_full(runner, attention_backends, kv_cache_groups)
    original()


def prefer_full(
    runner: Any, attention_backends: Sequence[Any], kv_cache_groups: Sequence[Any]
) -> None:
    """Choose FULL in place of vLLM's default, if all backends can have it. Another mode stays, and
    so does the default where some steps could not have a full graph."""
    compilation, model = runner.compilation_config, runner.model_config
    if compilation.cudagraph_mode != CUDAGraphMode.FULL_AND_PIECEWISE:
        return
    if model.is_encoder_decoder or not getattr(model, "disable_cascade_attn", True):
        return
    for backends, group in zip(attention_backends, kv_cache_groups, strict=True):
        for backend in backends:
            builder = backend.get_builder_cls()
            support = builder.get_cudagraph_support(runner.vllm_config, group.kv_cache_spec)
            if support != AttentionCGSupport.ALWAYS:
                return
    set_cudagraph_mode(compilation, CUDAGraphMode.FULL)
    logger.info(
        "Reprise: cudagraph_mode FULL in place of FULL_AND_PIECEWISE, because drafts differ in "
        "length from request to request."
    )
