# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Kernels: compile-time constants are written in capitals, and their arguments have no Python types.
"""Top-k, top-p and min-p in Triton: all keep the logits above a threshold, found by search.

No sorting and no copy of the row: each step of the search reads those tiles of the row again that
can matter, out of L2, and divides the keys that are left by four.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from reprise.kernels.verify.triton_tiles import (
    GREEDY,
    LOG2E,
    PER_REQUEST,
    finite_or_zero,
    kept_weights,
    load_tile,
    row_of,
)

# Mantissa bits of float32 that a type leaves 0: a search over its values need not look at them.
KEY_SHIFT = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}


@triton.jit
def to_key(x, SHIFT: tl.constexpr):
    """An integer that orders as the float; `SHIFT` drops the bits that the logits' type lacks."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SHIFT).to(tl.int64)


@triton.jit
def from_key(key, SHIFT: tl.constexpr):
    """The float of a key."""
    bits = (key << SHIFT).to(tl.int32)
    bits = tl.where(bits < 0, bits | ((1 << SHIFT) - 1), bits)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _least_kept(
    row_ptr,
    tile_max_ptr,  # [num_tiles]: tiles that lie below every pivot are not read
    vocab,
    num_tiles,
    low,  # int64 key, known to be too low
    high,  # int64 key, known to be high enough
    limit,
    row_max,
    scale,
    least,
    last_tie,
    min_p,
    BY_MASS: tl.constexpr,  # measure what lies above a pivot by its mass, or count it
    SHIFT: tl.constexpr,
    TILE: tl.constexpr,
):
    """The least logit above which there is less than `limit`: four-fold search over keys."""
    while high - low > 1:
        quarter = tl.maximum((high - low) // 4, 1)
        key1 = low + quarter
        key2 = tl.minimum(low + 2 * quarter, high - 1)
        key3 = tl.minimum(low + 3 * quarter, high - 1)
        pivot1 = from_key(key1, SHIFT)
        pivot2 = from_key(key2, SHIFT)
        pivot3 = from_key(key3, SHIFT)
        above1 = tl.zeros([TILE], tl.float32)
        above2 = tl.zeros([TILE], tl.float32)
        above3 = tl.zeros([TILE], tl.float32)
        for tile in range(num_tiles):
            if tl.load(tile_max_ptr + tile) > pivot1:
                if BY_MASS:
                    logit, amount = kept_weights(
                        row_ptr, tile, vocab, row_max, scale, least, last_tie, min_p, TILE
                    )
                else:
                    logit = load_tile(row_ptr, tile, vocab, TILE)
                    amount = tl.full([TILE], 1.0, tl.float32)
                above1 += tl.where(logit > pivot1, amount, 0.0)
                above2 += tl.where(logit > pivot2, amount, 0.0)
                above3 += tl.where(logit > pivot3, amount, 0.0)
        if tl.sum(above2, axis=0) < limit:
            high = key2
            if tl.sum(above1, axis=0) < limit:
                high = key1
            else:
                low = key1
        else:
            low = key2
            if tl.sum(above3, axis=0) < limit:
                high = key3
            else:
                low = key3
    return from_key(high, SHIFT)


@triton.jit
def least_of_top_k(
    row_ptr,
    tile_max_ptr,  # [num_tiles]
    vocab,
    num_tiles,
    top_k,  # in 1 .. vocab - 1
    row_max,
    SHIFT: tl.constexpr,
    TILE: tl.constexpr,
):
    """The k-th largest logit of a row."""
    lowest = to_key(tl.full([], float("-inf"), tl.float32), SHIFT) - 1
    return _least_kept(
        row_ptr, tile_max_ptr, vocab, num_tiles, lowest, to_key(row_max, SHIFT),
        top_k.to(tl.float32), row_max, 0.0, 0.0, None, 0.0, False, SHIFT, TILE,
    )  # fmt: skip


@triton.jit
def least_of_top_p(
    row_ptr,
    tile_max_ptr,  # [num_tiles]
    maxima,  # [PADDED_TILES] float32
    tile_mass,  # [PADDED_TILES] float32, relative to the tile's maximum
    vocab,
    num_tiles,
    top_p,
    row_max,
    scale,
    least,  # what is kept so far, see `kept_weights`
    last_tie,
    min_p,
    SHIFT: tl.constexpr,
    TILE: tl.constexpr,
):
    """The least logit that top-p keeps of what is kept so far."""
    mass = tl.sum(tile_mass * tl.exp2((maxima - row_max) * scale), axis=0)
    if (least > float("-inf")) | (min_p > 0.0):
        total = tl.zeros([TILE], tl.float32)
        for tile in range(num_tiles):
            _logit, weight = kept_weights(
                row_ptr, tile, vocab, row_max, scale, least, last_tie, min_p, TILE
            )
            total += weight
        mass = tl.sum(total, axis=0)
    # Fewer than `vocab` tokens lie below this bound, and together they weigh at most half of what
    # top-p leaves out: the threshold cannot be lower, and most of the keys need no search.
    bound = row_max + tl.log2(0.5 * (1.0 - top_p) * mass / vocab) / scale
    lowest = to_key(tl.full([], float("-inf"), tl.float32), SHIFT) - 1
    low = tl.maximum(to_key(tl.maximum(bound, least), SHIFT) - 1, lowest)
    return _least_kept(
        row_ptr, tile_max_ptr, vocab, num_tiles, low, to_key(row_max, SHIFT), top_p * mass,
        row_max, scale, least, last_tie, min_p, True, SHIFT, TILE,
    )  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=PER_REQUEST)
def restrict_kernel(
    tile_mass_ptr,  # [rows, num_tiles] float32: in and out, then relative to the row's maximum
    least_ptr,  # [rows] float32: out, the least logit that is kept
    tile_max_ptr,  # [rows, num_tiles] float32
    logits_ptr,  # [rows, vocab]
    cu_ptr,  # [batch]
    temperature_ptr,  # [batch] float32
    top_k_ptr,  # [batch], or None
    top_p_ptr,  # [batch] float32, or None
    min_p_ptr,  # [batch] float32, or None
    row_stride,
    vocab,
    num_tiles,
    SHIFT: tl.constexpr,
    PADDED_TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    request = tl.program_id(1)
    position = tl.program_id(0)
    _start, num_drafts, row = row_of(cu_ptr, request, position)
    temperature = tl.load(temperature_ptr + request)
    if position > num_drafts or temperature < GREEDY:
        return
    row_ptr = logits_ptr + row * row_stride
    tile_max_ptr += row * num_tiles
    tiles = tl.arange(0, PADDED_TILES)
    maxima = tl.load(tile_max_ptr + tiles, mask=tiles < num_tiles, other=float("-inf"))
    tile_mass_ptr += row * num_tiles
    tile_mass = tl.load(tile_mass_ptr + tiles, mask=tiles < num_tiles, other=0.0)
    top = tl.max(maxima, axis=0)
    row_max = finite_or_zero(top)
    scale = LOG2E / temperature
    least = tl.full([], float("-inf"), tl.float32)
    min_p = tl.full([], 0.0, tl.float32)
    if min_p_ptr is not None:
        min_p = tl.load(min_p_ptr + request)
    if tl.abs(top) == float("inf"):
        return

    if top_k_ptr is not None:
        top_k = tl.load(top_k_ptr + request)
        if top_k >= 1 and top_k < vocab:
            least = least_of_top_k(
                row_ptr, tile_max_ptr, vocab, num_tiles, top_k, row_max, SHIFT, TILE
            )
    if top_p_ptr is not None:
        top_p = tl.load(top_p_ptr + request)
        if top_p < 1.0:
            least = least_of_top_p(
                row_ptr, tile_max_ptr, maxima, tile_mass, vocab, num_tiles, top_p,
                row_max, scale, least, None, min_p, SHIFT, TILE,
            )  # fmt: skip

    tl.store(least_ptr + row, least)
    for tile in range(num_tiles):
        mass = 0.0
        if tl.load(tile_max_ptr + tile) >= least:
            _logit, weight = kept_weights(
                row_ptr, tile, vocab, row_max, scale, least, None, min_p, TILE
            )
            mass = tl.sum(weight, axis=0)
        tl.store(tile_mass_ptr + tile, mass)
