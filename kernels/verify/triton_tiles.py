# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Kernels: compile-time constants are written in capitals, and their arguments have no Python types.
"""Tiles of a row of logits in Triton: what the kernels of verification share."""

from __future__ import annotations

import triton
import triton.language as tl

from reprise.kernels.verify.constants import GREEDY_TEMPERATURE

GREEDY = tl.constexpr(GREEDY_TEMPERATURE)
LOG2E = tl.constexpr(1.4426950408889634)

# Read one number at a time, often as views into larger tensors: kernels must not be compiled again
# for another alignment in the middle of serving.
PER_REQUEST = [
    f"{name}_ptr"
    for name in ("cu", "temperature", "top_k", "top_p", "min_p", "seeds", "offsets", "least")
]


@triton.jit
def row_of(cu_ptr, request, position):
    """First draft, number of drafts and row of logits of a request's position."""
    start = tl.load(cu_ptr + request - 1, mask=request > 0, other=0).to(tl.int64)
    num_drafts = tl.load(cu_ptr + request).to(tl.int64) - start
    return start, num_drafts, start + request + position


@triton.jit
def load_tile(row_ptr, tile, vocab, TILE: tl.constexpr):
    """One tile in float32: [TILE]; -inf beyond the vocabulary, NaN as +inf."""
    token = tile * TILE + tl.arange(0, TILE)
    logit = tl.load(row_ptr + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
    return tl.where(logit != logit, float("inf"), logit)


@triton.jit
def finite_or_zero(x):
    """The centre of an exponential: inf - inf would make NaN of tiles that are all -inf."""
    return tl.where(tl.abs(x) == float("inf"), 0.0, x)


@triton.jit
def is_kept(logit, tile, least, last_tie, TILE: tl.constexpr):
    """Which logits of a tile are at least `least`; of its ties, those up to the token `last_tie`.

    `last_tie` is None where ties stay together.
    """
    kept = logit >= least
    if last_tie is not None:
        token = tile * TILE + tl.arange(0, TILE)
        kept = kept & ((logit > least) | (token <= last_tie))
    return kept


@triton.jit
def kept_weights(row_ptr, tile, vocab, row_max, scale, least, last_tie, min_p, TILE: tl.constexpr):
    """Logits of a tile and their weights, 1 for the likeliest token and 0 for what is not kept."""
    logit = load_tile(row_ptr, tile, vocab, TILE)
    weight = tl.exp2((logit - row_max) * scale)
    kept = is_kept(logit, tile, least, last_tie, TILE) & (weight >= min_p)
    return logit, tl.where(kept, weight, 0.0)
