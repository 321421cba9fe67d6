# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Kernels: compile-time constants are written in capitals, and their arguments have no Python types.
"""The noise of `gumbel.py` in Triton: the same bits, the same steps in float32."""

from __future__ import annotations

import triton
import triton.language as tl

from reprise.kernels.verify import gumbel

MAX_GUMBEL = tl.constexpr(gumbel.MAX_GUMBEL)


@triton.jit
def _rotate(x, BY: tl.constexpr):
    return (x << BY) | (x >> (32 - BY))


@triton.jit
def _mix(state, word):
    word = _rotate(word * 0xCC9E2D51, 15) * 0x1B873593
    return _rotate(state ^ word, 13) * 5 + 0xE6546B64


@triton.jit
def stream_of(seed, position):
    """What all tokens of a position share: three of the four words that are hashed."""
    seed = seed.to(tl.int64)
    position = position.to(tl.int64)
    state = tl.full([], 0, tl.uint32)
    state = _mix(state, (seed & 0xFFFFFFFF).to(tl.uint32))
    state = _mix(state, ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32))
    return _mix(state, (position & 0xFFFFFFFF).to(tl.uint32))


@triton.jit
def random_bits(stream, token):
    """32 bits for a token; the fewer, the larger its noise."""
    state = _mix(stream, token.to(tl.uint32)) ^ 16
    state = (state ^ (state >> 16)) * 0x85EBCA6B
    state = (state ^ (state >> 13)) * 0xC2B2AE35
    return state ^ (state >> 16)


@triton.jit
def gumbel_of(bits):
    """The noise that 32 random bits stand for."""
    # In two halves: each is exact in float32, and their sum is rounded once.
    high = (bits >> 16).to(tl.int32).to(tl.float32)
    low = (bits & 0xFFFF).to(tl.int32).to(tl.float32)
    uniform = high * 1.52587890625e-05 + (low + 0.5) * 2.3283064365386963e-10
    return -tl.log(-_log1p_of_minus(uniform))


@triton.jit
def _log1p_of_minus(x):
    series = 1.0 / 8.0
    for i in tl.static_range(7):
        series = 1.0 / (7 - i) + x * series
    logarithm = tl.log(tl.maximum(1.0 - x, 5.960464477539063e-08))
    return tl.where(x < 0.25, -x * series, logarithm)
