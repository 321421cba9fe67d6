"""Whether vLLM's attention on the CPU computes one query alike alone and among several.

Every token of a prompt attends to all before it; its number is computed whole, in chunks, and token
by token, as a step without drafts does.
"""

from __future__ import annotations

from typing import Any

_BLOCK = 32
_SIZES = (1, 2, 3, 4, 8, 17)  # queries at once


def attention_in_pieces(
    size: int, dtype: Any, *, tokens: int = 300, heads: int = 3, width: int = 64
) -> Any:
    """Compute causal attention of random queries, `size` of them a call, from a KV cache.

    With as many threads as torch has, none of which shares out keys.

    Returns:
        Of `dtype`, [tokens, heads, width]; inputs are the same for any `size`.
    """
    import torch
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends import cpu_attn

    isa = cpu_attn._get_attn_isa(dtype, _BLOCK, width)
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, tokens, heads, width, generator=generator).to(dtype)
    num_blocks = -(-tokens // _BLOCK)
    cache = torch.zeros(num_blocks, heads, 2 * _BLOCK, width, dtype=dtype)
    key_cache, value_cache = cache.chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(key, value, key_cache, value_cache, torch.arange(tokens), isa)
    output = torch.zeros_like(query)
    for start in range(0, tokens, size):
        end = min(tokens, start + size)
        starts = torch.tensor([0, end - start], dtype=torch.int32)
        lengths = torch.tensor([end], dtype=torch.int32)
        plan = ops.cpu_attn_get_scheduler_metadata(
            num_reqs=1,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=width,
            seq_lens=lengths,
            dtype=dtype,
            query_start_loc=starts,
            causal=True,
            sliding_window_size=-1,
            isa=isa,
            enable_kv_split=False,
        )
        ops.cpu_attention_with_kv_cache(
            query=query[start:end].contiguous(),
            key_cache=key_cache,
            value_cache=value_cache,
            output=output[start:end],
            query_start_loc=starts,
            seq_lens=lengths,
            scale=width**-0.5,
            causal=True,
            alibi_slopes=None,
            sliding_window=-1,
            block_table=torch.arange(num_blocks, dtype=torch.int32)[None],
            softcap=0.0,
            scheduler_metadata=plan,
            s_aux=None,
        )
    return output


def sizes_that_differ(dtype: Any, **shape: int) -> dict[int, float]:
    """Return for how many queries at once attention is otherwise than for a whole prompt, with the
    share of values that differ."""
    whole = attention_in_pieces(10**6, dtype, **shape)
    differing = {}
    for size in _SIZES:
        share = float((attention_in_pieces(size, dtype, **shape) != whole).float().mean())
        if share:
            differing[size] = share
    return differing
