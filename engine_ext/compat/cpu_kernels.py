"""vLLM's kernels on the CPU, for engines with our proposer: safe with AMX, batch invariant on wish.

vLLM 0.32 rounds a token by what is computed beside it in two places, drafts or not. So where two
tokens nearly tie, an answer can differ with drafts, as it can with another batch:

* on processors with AMX, bfloat16 in tiles, in attention and linear layers;
* with several threads, attention that shares out the keys of few requests among them.

`make_batch_invariant` leaves out both, for less speed. And on processors with AMX, Linux ends a
process that uses tiles without having asked for them. oneDNN asks, vLLM's attention does not: a
worker ended with an illegal instruction if its first prompt was so short (fewer than five tokens)
that small linear layers left oneDNN out. `ask_for_tiles` asks.

Called where the drafter is built, in the worker, before the model is loaded: no other engine is
touched, and what oneDNN and vLLM read once has not been read yet.
"""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.platforms import current_platform

logger = init_logger(__name__)

_TILES, _VECTORS = "amx", "vec"
_ONEDNN_LIMIT = ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
_WITHOUT_SPLIT = ("VLLM_CPU_ATTN_SPLIT_KV", "0")
_MARK = "_reprise_off_tiles"


def prepare(*, batch_invariant: bool) -> None:
    """In the worker of an engine with our proposer, before its model is loaded."""
    if not current_platform.is_cpu():
        return
    if batch_invariant:
        make_batch_invariant()
    elif torch.cpu._is_amx_tile_supported():
        ask_for_tiles()


def ask_for_tiles() -> bool:
    """Ask Linux to let this process, and its threads, compute in AMX tiles.

    Returns:
        Whether it may.
    """
    granted: bool = torch.cpu._init_amx()
    return granted


def make_batch_invariant() -> None:
    """Have this process compute a token alike whatever is computed beside it.

    Variables that are set already stay. Multi-head latent attention is not covered: vLLM chooses it
    where the engine is configured.
    """
    os.environ.setdefault(*_WITHOUT_SPLIT)
    if torch.cpu._is_amx_tile_supported():
        os.environ.setdefault(*_ONEDNN_LIMIT)
        _keep_off_tiles()


def _keep_off_tiles() -> None:
    """Have vLLM choose, once and for all, as on a processor without tiles."""
    from vllm.model_executor.layers import utils as linear_layers
    from vllm.v1.attention.backends import cpu_attn

    attention_isa: Callable[..., str] = cpu_attn._get_attn_isa
    if getattr(attention_isa, _MARK, False):
        return

    @wraps(attention_isa)
    def without_tiles(*args: Any, **kwargs: Any) -> str:
        isa = attention_isa(*args, **kwargs)
        return _VECTORS if isa == _TILES else isa

    @wraps(linear_layers.check_cpu_sgl_kernel)
    def by_onednn(*_args: Any, **_kwargs: Any) -> bool:
        # Kernels that exist for their tiles; a limit for oneDNN may end who uses them.
        return False

    setattr(without_tiles, _MARK, True)
    cpu_attn._get_attn_isa = without_tiles
    linear_layers.check_cpu_sgl_kernel = by_onednn
    logger.info("Reprise: vLLM computes in AVX-512 instead of AMX tiles (cpu_batch_invariant).")
