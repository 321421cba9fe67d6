"""Prepares vLLM's CPU kernels for engines with our proposer: safe with AMX, batch invariant on
request.

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
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.platforms import current_platform

from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry

logger = init_logger(__name__)

_TILES, _VECTORS = "amx", "vec"
_ONEDNN_LIMIT = ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
_WITHOUT_SPLIT = ("VLLM_CPU_ATTN_SPLIT_KV", "0")


def prepare(*, batch_invariant: bool) -> None:
    """Prepare the worker of an engine with our proposer, before its model is loaded."""
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
    hooks = _WithoutTiles()
    if not registry.apply(Feature.BATCH_INVARIANCE, hooks, role=Role.WORKER):
        raise RuntimeError(registry.problem(Feature.BATCH_INVARIANCE, Role.WORKER))
    logger.info("Reprise: vLLM computes in AVX-512 instead of AMX tiles (cpu_batch_invariant).")


class _WithoutTiles:
    """The hooks of `Feature.BATCH_INVARIANCE`."""

    def attention_isa(self, original: Callable[..., str], *args: Any, **kwargs: Any) -> str:
        """Choose vLLM's instruction set for attention, but tiles."""
        isa = original(*args, **kwargs)
        return _VECTORS if isa == _TILES else isa

    def uses_tile_kernel(self, *_: Any, **__: Any) -> bool:
        """Leave linear layers to oneDNN: the other kernels exist for their tiles, and a limit for
        oneDNN may end who uses them."""
        return False
