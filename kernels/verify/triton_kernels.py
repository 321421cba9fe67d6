# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Kernels: compile-time constants are written in capitals, and their arguments have no Python types.
"""Verification in Triton: one read of the logits, and scratch of two numbers per tile of a row.

1. `tile_stats_kernel`, a program per row and few tiles: the maximum of each tile of `TILE` logits
   and its mass, the sum of exp((logit - tile maximum) / temperature).
2. `restrict_kernel`, a program per row, only if top-k, top-p or min-p is given: all three keep the
   logits above some threshold, so search for it, and replace the masses by what is kept.
3. `sample_kernel`, a program per row: the tile masses say in which tile the row's uniform falls,
   and only that tile is read again to find the token; a greedy row reads the first tile that holds
   its maximum.
4. `walk_kernel`, a program per request: compare the sampled tokens with the drafts.

Tiles are summed in the same order however they are spread over programs, so a row's token does not
depend on the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from reprise.kernels.verify.triton_restrict import KEY_SHIFT, restrict_kernel
from reprise.kernels.verify.triton_tiles import (
    GREEDY,
    LOG2E,
    PER_REQUEST,
    finite_or_zero,
    kept_weights,
    load_tile,
    row_of,
)

TILE = 4096
"""Logits per tile: 8 KiB of bf16; a vocabulary of 151936 makes 38 tiles, 304 bytes of scratch."""

_BROKEN = tl.constexpr(-2)  # sampled row without a finite maximum: emits token 0, accepts no draft


@triton.jit(do_not_specialize_on_alignment=PER_REQUEST)
def tile_stats_kernel(
    tile_max_ptr,  # [rows, num_tiles] float32
    tile_mass_ptr,  # [rows, num_tiles] float32, relative to the tile's maximum
    logits_ptr,  # [rows, vocab]
    cu_ptr,  # [batch]
    temperature_ptr,  # [batch] float32, or None if all are greedy
    row_stride,
    vocab,
    num_tiles,
    SAMPLES: tl.constexpr,
    TILES_PER_PROGRAM: tl.constexpr,
    TILE: tl.constexpr,
):
    request = tl.program_id(2)
    position = tl.program_id(1)
    _start, num_drafts, row = row_of(cu_ptr, request, position)
    if position > num_drafts:
        return
    scale = 0.0
    if SAMPLES:
        temperature = tl.load(temperature_ptr + request)
        if temperature >= GREEDY:
            scale = LOG2E / temperature
    for i in tl.static_range(TILES_PER_PROGRAM):
        tile = tl.program_id(0) * TILES_PER_PROGRAM + i
        logit = load_tile(logits_ptr + row * row_stride, tile, vocab, TILE)
        tile_max = tl.max(logit, axis=0)
        tl.store(tile_max_ptr + row * num_tiles + tile, tile_max, mask=tile < num_tiles)
        if scale > 0.0:
            mass = tl.sum(tl.exp2((logit - finite_or_zero(tile_max)) * scale), axis=0)
            tl.store(tile_mass_ptr + row * num_tiles + tile, mass, mask=tile < num_tiles)


@triton.jit
def _uniform(seed, counter):
    """See `noise.uniform`."""
    zero = (counter * 0).to(tl.uint32)
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    word0, word1, _word2, _word3 = tl.philox(seed, low, high, zero, zero)
    grid = (word0 >> 5).to(tl.float64) * 67108864.0 + (word1 >> 6).to(tl.float64)
    return (grid + 0.5) * 1.1102230246251565e-16


@triton.jit
def _invert(mass, target):
    """First index whose cumulative mass exceeds `target`, and how far into its mass that lies.

    `mass` [n] float64. Of equal cumulative masses the first is taken, so mass 0 is never hit.
    """
    index = tl.arange(0, mass.shape[0])
    cumulative = tl.cumsum(mass, axis=0)
    last = tl.max(tl.where(mass > 0.0, index, 0), axis=0)
    found = tl.minimum(tl.sum((cumulative <= target).to(tl.int32), axis=0), last)
    own = tl.sum(tl.where(index == found, mass, 0.0), axis=0)
    before = tl.sum(tl.where(index == found, cumulative, 0.0), axis=0) - own
    return found, (target - before) / own


@triton.jit
def _sample_token(
    row_ptr,
    mass,  # [PADDED_TILES] float32: of each tile, relative to the row's maximum
    vocab,
    row_max,
    scale,
    least,
    min_p,
    noise,  # float64 in (0, 1)
    TILE: tl.constexpr,
):
    """The token in whose share of the row's mass the noise falls."""
    mass = mass.to(tl.float64)
    tile, fraction = _invert(mass, noise * tl.sum(mass, axis=0))
    # The fraction, not the mass, is carried into the tile: its sum taken again may round otherwise.
    _logit, weight = kept_weights(row_ptr, tile, vocab, row_max, scale, least, None, min_p, TILE)
    weight = weight.to(tl.float64)
    token, _rest = _invert(weight, fraction * tl.sum(weight, axis=0))
    return tile * TILE + token


@triton.jit
def _greedy_token(row_ptr, maxima, vocab, TILE: tl.constexpr):
    """The first token with the row's largest logit."""
    tile = tl.argmax(maxima, axis=0)
    return tile * TILE + tl.argmax(load_tile(row_ptr, tile, vocab, TILE), axis=0)


@triton.jit(do_not_specialize_on_alignment=PER_REQUEST)
def sample_kernel(
    sampled_ptr,  # [rows] int32: out
    tile_max_ptr,  # [rows, num_tiles] float32
    tile_mass_ptr,  # [rows, num_tiles] float32
    least_ptr,  # [rows] float32, or None without restrictions
    logits_ptr,  # [rows, vocab]
    cu_ptr,  # [batch]
    temperature_ptr,  # [batch] float32, or None if all are greedy
    min_p_ptr,  # [batch] float32, or None
    seeds_ptr,  # [batch] int64, or None if all are greedy
    offsets_ptr,  # [batch] int64, or None if all are greedy
    row_stride,
    vocab,
    num_tiles,
    SAMPLES: tl.constexpr,
    RESTRICTED: tl.constexpr,
    PADDED_TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    request = tl.program_id(1)
    position = tl.program_id(0)
    _start, num_drafts, row = row_of(cu_ptr, request, position)
    if position > num_drafts:
        return
    row_ptr = logits_ptr + row * row_stride
    tiles = tl.arange(0, PADDED_TILES)
    in_row = tiles < num_tiles
    maxima = tl.load(tile_max_ptr + row * num_tiles + tiles, mask=in_row, other=float("-inf"))
    if SAMPLES:
        temperature = tl.load(temperature_ptr + request)
        row_max = tl.max(maxima, axis=0)
        if temperature < GREEDY:
            tl.store(sampled_ptr + row, _greedy_token(row_ptr, maxima, vocab, TILE))
        elif tl.abs(row_max) == float("inf"):
            tl.store(sampled_ptr + row, _BROKEN)
        else:
            scale = LOG2E / temperature
            least = tl.full([], float("-inf"), tl.float32)
            min_p = tl.full([], 0.0, tl.float32)
            mass = tl.load(tile_mass_ptr + row * num_tiles + tiles, mask=in_row, other=0.0)
            if RESTRICTED:
                least = tl.load(least_ptr + row)
                if min_p_ptr is not None:
                    min_p = tl.load(min_p_ptr + request)
            else:
                mass = mass * tl.exp2((maxima - row_max) * scale)
            counter = tl.load(offsets_ptr + request) + position
            noise = _uniform(tl.load(seeds_ptr + request), counter)
            token = _sample_token(row_ptr, mass, vocab, row_max, scale, least, min_p, noise, TILE)
            tl.store(sampled_ptr + row, token)
    else:
        tl.store(sampled_ptr + row, _greedy_token(row_ptr, maxima, vocab, TILE))


@triton.jit(
    do_not_specialize=["max_draft"],
    do_not_specialize_on_alignment=[*PER_REQUEST, "output_ptr", "sampled_ptr", "draft_ptr"],
)
def walk_kernel(
    output_ptr,  # [batch, max_draft + 1] int32: out
    accepted_ptr,  # [batch] int32: out
    sampled_ptr,  # [rows] int32
    draft_ptr,  # [num_draft]
    cu_ptr,  # [batch]
    max_draft,
    WIDTH: tl.constexpr,
):
    request = tl.program_id(0)
    position = tl.arange(0, WIDTH)
    start, num_drafts, row = row_of(cu_ptr, request, 0)
    sampled = tl.load(sampled_ptr + row + position, mask=position <= num_drafts, other=_BROKEN)
    draft = tl.load(draft_ptr + start + position, mask=position < num_drafts, other=-1)
    missed = (sampled != draft) | (sampled < 0)
    accepted = tl.min(tl.where(missed, position, num_drafts.to(tl.int32)), axis=0)
    token = tl.where(position <= accepted, tl.maximum(sampled, 0), -1)
    tl.store(output_ptr + request * (max_draft + 1) + position, token, mask=position <= max_draft)
    tl.store(accepted_ptr + request, accepted)


def verify_drafts_triton(
    logits: torch.Tensor,  # [num_draft + batch, vocab]
    draft_token_ids: torch.Tensor,  # [num_draft]
    cu_num_draft_tokens: torch.Tensor,  # [batch]
    *,
    temperature: torch.Tensor | None,  # [batch]
    top_k: torch.Tensor | None,  # [batch]
    top_p: torch.Tensor | None,  # [batch]
    min_p: torch.Tensor | None,  # [batch]
    seeds: torch.Tensor | None,  # [batch]
    offsets: torch.Tensor | None,  # [batch]
    max_draft: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `verify_drafts`; nothing here makes the host wait for the device."""
    rows, vocab = logits.shape
    batch, device = cu_num_draft_tokens.shape[0], logits.device
    num_tiles = triton.cdiv(vocab, TILE)
    padded_tiles = triton.next_power_of_2(num_tiles)
    samples = temperature is not None
    restricted = samples and not (top_k is None and top_p is None and min_p is None)
    temperature, top_p, min_p = (_dense(one, torch.float32) for one in (temperature, top_p, min_p))
    top_k, seeds, offsets = (_dense(one) for one in (top_k, seeds, offsets))
    draft_token_ids = draft_token_ids.contiguous()
    cu_num_draft_tokens = cu_num_draft_tokens.contiguous()
    tile_max = torch.empty((rows, num_tiles), dtype=torch.float32, device=device)
    tile_mass = torch.empty_like(tile_max)
    least = torch.empty(rows, dtype=torch.float32, device=device) if restricted else None
    sampled = torch.empty(rows, dtype=torch.int32, device=device)
    output = torch.empty((batch, max_draft + 1), dtype=torch.int32, device=device)
    accepted = torch.empty(batch, dtype=torch.int32, device=device)
    row_stride = logits.stride(0)
    # One tile a program spreads few rows over the device; two keep more loads in flight when there
    # are many.
    tiles_per_program = 2 if rows * num_tiles >= 4096 else 1
    with torch.cuda.device_of(logits):
        tile_stats_kernel[(triton.cdiv(num_tiles, tiles_per_program), max_draft + 1, batch)](
            tile_max, tile_mass, logits, cu_num_draft_tokens, temperature,
            row_stride, vocab, num_tiles,
            SAMPLES=samples, TILES_PER_PROGRAM=tiles_per_program, TILE=TILE, **launch_options(4),
        )  # fmt: skip
        if restricted:
            restrict_kernel[(max_draft + 1, batch)](
                tile_mass, least, tile_max, logits, cu_num_draft_tokens,
                temperature, top_k, top_p, min_p,
                row_stride, vocab, num_tiles,
                SHIFT=KEY_SHIFT[logits.dtype], PADDED_TILES=padded_tiles, TILE=TILE,
                **launch_options(8),
            )  # fmt: skip
        sample_kernel[(max_draft + 1, batch)](
            sampled, tile_max, tile_mass, least, logits, cu_num_draft_tokens,
            temperature, min_p, seeds, offsets,
            row_stride, vocab, num_tiles,
            SAMPLES=samples, RESTRICTED=restricted, PADDED_TILES=padded_tiles, TILE=TILE,
            **launch_options(8),
        )  # fmt: skip
        walk_kernel[(batch,)](
            output, accepted, sampled, draft_token_ids, cu_num_draft_tokens, max_draft,
            WIDTH=triton.next_power_of_2(max_draft + 1), **launch_options(1),
        )  # fmt: skip
    return output, accepted


def _dense(tensor: torch.Tensor | None, dtype: torch.dtype | None = None) -> torch.Tensor | None:
    """The tensor as the kernels read it; the same tensor where it is so already."""
    return None if tensor is None else tensor.to(dtype or tensor.dtype).contiguous()


def launch_options(num_warps: int) -> dict[str, int | bool]:
    """Launch options. Fused multiply-add is named because Triton 3.9 warns where it is not."""
    return {"num_warps": num_warps, "enable_fp_fusion": True}
