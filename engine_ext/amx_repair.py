"""Keep vLLM on the CPU off AMX tiles, in which a token depends on what is computed beside it.

On processors with AMX, vLLM 0.32 computes bfloat16 in tiles, with two faults, drafts or not: a
worker whose first prompt has fewer than five tokens ends with an illegal instruction (attention
configures no tile for it), and both attention and linear layers round differently for other numbers
of tokens, so that a verified draft can come out otherwise than the same tokens one by one. In
AVX-512 neither happens, and engines with and without drafts agree token for token.
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
_ONEDNN_ISA = ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")


def install() -> bool:
    """Have this process and those that it starts compute in AVX-512 where they would use AMX.

    To be called before oneDNN's first use. A limit for oneDNN that is set already stays.

    Returns:
        Whether this is a CPU with AMX.
    """
    if not current_platform.is_cpu() or not torch.cpu._is_amx_tile_supported():
        return False
    os.environ.setdefault(*_ONEDNN_ISA)
    from vllm.v1.attention.backends import cpu_attn

    original: Callable[..., str] = cpu_attn._get_attn_isa
    if getattr(original, "_reprise_off_tiles", False):
        return True

    @wraps(original)
    def attention_isa(*args: Any, **kwargs: Any) -> str:
        isa = original(*args, **kwargs)
        if isa != _TILES:
            return isa
        logger.warning_once(
            "Reprise: in AMX tiles this vLLM computes a drafted token otherwise than the same "
            "token alone, and fails on a short first prompt; AVX-512 is used instead."
        )
        return _VECTORS

    attention_isa._reprise_off_tiles = True  # type: ignore[attr-defined]
    cpu_attn._get_attn_isa = attention_isa
    return True
