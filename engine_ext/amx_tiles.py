"""AMX tiles of a CPU, for engines with our proposer: made safe to use, or not used at all.

On processors with AMX vLLM 0.32 computes bfloat16 in tiles, with two faults, drafts or not:

* Linux ends a process that uses tiles without having asked for them. oneDNN asks, vLLM's attention
  does not. So a worker ends with an illegal instruction if its first prompt is so short (fewer than
  five tokens) that small linear layers leave oneDNN out: `ask_for_tiles`.
* Attention and linear layers round differently for other numbers of tokens, so that a verified
  draft can come out otherwise than the same tokens one by one. In AVX-512 they do not:
  `keep_off_tiles`. It costs speed, and is for those who want it (the setting `amx_tiles`).

Called where the drafter is built, in the worker, before the model is loaded: no other engine is
touched, and oneDNN, which reads its limit once, has not been used yet.
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
_MARK = "_reprise_off_tiles"


def prepare(*, use_tiles: bool) -> None:
    """In the worker of an engine with our proposer, before its model is loaded."""
    if not has_tiles():
        return
    if use_tiles:
        ask_for_tiles()
    else:
        keep_off_tiles()


def has_tiles() -> bool:
    """Whether vLLM runs on a CPU, and one with AMX."""
    return current_platform.is_cpu() and torch.cpu._is_amx_tile_supported()


def ask_for_tiles() -> bool:
    """Ask Linux to let this process, and its threads, compute in tiles.

    Returns:
        Whether it may.
    """
    granted: bool = torch.cpu._init_amx()
    return granted


def keep_off_tiles() -> None:
    """Have this process compute in AVX-512 what it would compute in tiles; once.

    A limit for oneDNN that is set already stays. Multi-head latent attention is not covered: vLLM
    chooses it where the engine is configured.
    """
    from vllm.model_executor.layers import utils as linear_layers
    from vllm.v1.attention.backends import cpu_attn

    os.environ.setdefault(*_ONEDNN_LIMIT)
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
    logger.info("Reprise: vLLM computes in AVX-512 instead of AMX tiles, as `amx_tiles` says.")
