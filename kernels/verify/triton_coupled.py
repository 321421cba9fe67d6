# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Kernels: compile-time constants are written in capitals, and their arguments have no Python types.
"""Coupled verification in Triton: one read of the logits, no copy, noise only where it can win.

1. `scan_kernel`, a program per row and few tiles: the largest logit of each tile of `TILE` and its
   token; for top-p also the tile's mass. The only full read of the logits.
2. `threshold_kernel`, a program per row, only if top-k, top-p or min-p is given: the least logit
   that is kept, and up to which token its ties are (`triton_restrict.py`: no sort, no mask).
3. `noise_kernel`, a program per row and few tiles, only if a request samples: logit + noise, and
   the largest per tile. The token with the row's largest logit sets a bound; a tile whose largest
   logit cannot reach it with the largest noise there is, is left out unread, and so is one that
   cannot with the largest noise of its own tokens, for which their hashes are enough.
4. `choose_kernel`, a program per request: the best tile of each row, compared with the drafts.

Memory traffic of a row: 2 bytes a logit in bfloat16 once, and again (mostly from L2) those tiles
that may win; 16 bytes written and read for each tile of 8 KiB (20 with top-p), 8 a row. vLLM's own
way writes and reads 4 bytes a logit several times over.

A tile's best does not depend on how tiles are spread over programs, so a row's token does not
depend on the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from reprise.kernels.verify.triton_gumbel import MAX_GUMBEL, gumbel_of, random_bits, stream_of
from reprise.kernels.verify.triton_kernels import launch_options
from reprise.kernels.verify.triton_restrict import (
    KEY_SHIFT,
    from_key,
    least_of_top_k,
    least_of_top_p,
    to_key,
)
from reprise.kernels.verify.triton_tiles import GREEDY, LOG2E, finite_or_zero, is_kept, load_tile

TILE = 4096

# Read one number at a time, often as views into larger tensors: another alignment is no reason to
# compile again.
_PER_REQUEST = [
    f"{name}_ptr"
    for name in (
        "cu", "row_slots", "temperature", "top_k", "top_p", "min_p", "seeds", "positions",
        "row_token",
    )
]  # fmt: skip

_SLACK = tl.constexpr(1e-3)
"""Far above what rounding can do to the order of two noises."""


@triton.jit
def _scaled(logit, temperature, IS_SCALED: tl.constexpr):
    """A logit divided by the temperature, rounded as vLLM rounds it."""
    if IS_SCALED:
        return logit
    return tl.where(temperature == 1.0, logit, logit / temperature)


@triton.jit(do_not_specialize_on_alignment=_PER_REQUEST)
def scan_kernel(
    tile_max_ptr,  # [rows, num_tiles] float32: out
    tile_token_ptr,  # [rows, num_tiles] int32: out
    tile_mass_ptr,  # [rows, num_tiles] float32, relative to the tile's maximum: out, or None
    logits_ptr,  # [rows, vocab]
    row_slots_ptr,  # [rows]
    temperature_ptr,  # [num_slots] float32, or None without top-p
    row_stride,
    vocab,
    num_tiles,
    TILES_PER_PROGRAM: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    scale = 0.0
    if tile_mass_ptr is not None:
        temperature = tl.load(temperature_ptr + tl.load(row_slots_ptr + row))
        if temperature >= GREEDY:
            scale = LOG2E / temperature
    for i in tl.static_range(TILES_PER_PROGRAM):
        tile = tl.program_id(0) * TILES_PER_PROGRAM + i
        logit = load_tile(logits_ptr + row * row_stride, tile, vocab, TILE)
        tile_max, place = tl.max(logit, axis=0, return_indices=True)
        at = row * num_tiles + tile
        tl.store(tile_max_ptr + at, tile_max, mask=tile < num_tiles)
        tl.store(tile_token_ptr + at, tile * TILE + place, mask=tile < num_tiles)
        if tile_mass_ptr is not None:
            mass = tl.sum(tl.exp2((logit - finite_or_zero(tile_max)) * scale), axis=0)
            tl.store(tile_mass_ptr + at, mass, mask=tile < num_tiles)


@triton.jit
def _least_of_min_p(row_max, temperature, min_p, SHIFT: tl.constexpr):
    """The least logit that min-p keeps: its condition is monotone, so no logit is read."""
    floor = _scaled(row_max, temperature, False) + tl.log(min_p)
    low = to_key(tl.full([], float("-inf"), tl.float32), SHIFT)
    high = to_key(row_max, SHIFT)
    while high - low > 1:
        middle = (low + high) // 2
        if _scaled(from_key(middle, SHIFT), temperature, False) >= floor:
            high = middle
        else:
            low = middle
    return from_key(high, SHIFT)


@triton.jit
def _last_tie(
    row_ptr,
    tile_max_ptr,  # [num_tiles]
    vocab,
    num_tiles,
    least,
    top_k,
    TILE: tl.constexpr,
):
    """The last token, by id, of those with the logit `least` that are among the first `top_k`."""
    num_above = tl.zeros([TILE], tl.int32)
    num_ties = tl.zeros([TILE], tl.int32)
    for tile in range(num_tiles):
        if tl.load(tile_max_ptr + tile) >= least:
            logit = load_tile(row_ptr, tile, vocab, TILE)
            num_above += (logit > least).to(tl.int32)
            num_ties += (logit == least).to(tl.int32)
    left = top_k - tl.sum(num_above, axis=0)
    last = vocab
    if left < tl.sum(num_ties, axis=0):
        for tile in range(num_tiles):
            if (left > 0) & (tl.load(tile_max_ptr + tile) >= least):
                is_tie = (load_tile(row_ptr, tile, vocab, TILE) == least).to(tl.int32)
                num_before = tl.cumsum(is_tie, axis=0)
                token = tile * TILE + tl.arange(0, TILE)
                is_last = (is_tie > 0) & (num_before == left)
                last = tl.minimum(last, tl.min(tl.where(is_last, token, vocab), axis=0))
                left -= tl.sum(is_tie, axis=0)
    return last


@triton.jit(do_not_specialize_on_alignment=_PER_REQUEST)
def threshold_kernel(
    least_ptr,  # [rows] float32: out, the least logit that is kept
    last_tie_ptr,  # [rows] int32: out, the last token with that logit that is kept
    tile_max_ptr,  # [rows, num_tiles] float32
    tile_mass_ptr,  # [rows, num_tiles] float32, or None without top-p
    logits_ptr,  # [rows, vocab]
    row_slots_ptr,  # [rows]
    temperature_ptr,  # [num_slots] float32
    top_k_ptr,  # [num_slots], or None
    top_p_ptr,  # [num_slots] float32, or None
    min_p_ptr,  # [num_slots] float32, or None
    row_stride,
    vocab,
    num_tiles,
    SHIFT: tl.constexpr,
    PADDED_TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(row_slots_ptr + row)
    temperature = tl.load(temperature_ptr + slot)
    if temperature < GREEDY:
        return
    row_ptr = logits_ptr + row * row_stride
    tile_max_ptr += row * num_tiles
    tiles = tl.arange(0, PADDED_TILES)
    maxima = tl.load(tile_max_ptr + tiles, mask=tiles < num_tiles, other=float("-inf"))
    row_max = tl.max(maxima, axis=0)
    if tl.abs(row_max) == float("inf"):
        return
    least = tl.full([], float("-inf"), tl.float32)
    last_tie = vocab
    if min_p_ptr is not None:
        min_p = tl.load(min_p_ptr + slot)
        if min_p > 0.0:
            least = _least_of_min_p(row_max, temperature, min_p, SHIFT)
    if top_k_ptr is not None:
        top_k = tl.load(top_k_ptr + slot)
        if top_k >= 1 and top_k < vocab:
            kth = least_of_top_k(
                row_ptr, tile_max_ptr, vocab, num_tiles, top_k, row_max, SHIFT, TILE
            )
            if kth >= least:
                least = kth
                last_tie = _last_tie(row_ptr, tile_max_ptr, vocab, num_tiles, kth, top_k, TILE)
    if top_p_ptr is not None:
        top_p = tl.load(top_p_ptr + slot)
        if top_p < 1.0:
            tile_mass_ptr += row * num_tiles
            tile_mass = tl.load(tile_mass_ptr + tiles, mask=tiles < num_tiles, other=0.0)
            # The same last tie stands where this is no higher, and matters not where it is.
            of_top_p = least_of_top_p(
                row_ptr, tile_max_ptr, maxima, tile_mass, vocab, num_tiles, top_p, row_max,
                LOG2E / temperature, least, last_tie, 0.0, SHIFT, TILE,
            )  # fmt: skip
            if of_top_p > least:
                least = of_top_p
                last_tie = vocab
    tl.store(least_ptr + row, least)
    tl.store(last_tie_ptr + row, last_tie)


@triton.jit(do_not_specialize_on_alignment=_PER_REQUEST)
def noise_kernel(
    best_ptr,  # [rows, num_tiles] float32: out, the tile's largest logit + noise
    best_token_ptr,  # [rows, num_tiles] int32: out
    tile_max_ptr,  # [rows, num_tiles] float32
    tile_token_ptr,  # [rows, num_tiles] int32
    least_ptr,  # [rows] float32, or None without restrictions
    last_tie_ptr,  # [rows] int32, or None without restrictions
    logits_ptr,  # [rows, vocab]
    positions_ptr,  # [rows]
    row_slots_ptr,  # [rows]
    temperature_ptr,  # [num_slots] float32
    seeds_ptr,  # [num_slots] int64
    row_stride,
    vocab,
    num_tiles,
    IS_SCALED: tl.constexpr,
    PADDED_TILES: tl.constexpr,
    TILES_PER_PROGRAM: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    slot = tl.load(row_slots_ptr + row)
    temperature = tl.load(temperature_ptr + slot)
    tiles = tl.arange(0, PADDED_TILES)
    in_row = row * num_tiles + tiles
    maxima = tl.load(tile_max_ptr + in_row, mask=tiles < num_tiles, other=float("-inf"))
    row_max, best_tile = tl.max(maxima, axis=0, return_indices=True)
    samples = (temperature >= GREEDY) & (tl.abs(row_max) < float("inf"))
    stream = stream_of(tl.load(seeds_ptr + slot), tl.load(positions_ptr + row))
    least = tl.full([], float("-inf"), tl.float32)
    last_tie = vocab
    if least_ptr is not None:
        least = tl.load(least_ptr + row, mask=samples, other=float("-inf"))
        last_tie = tl.load(last_tie_ptr + row, mask=samples, other=0)
    # What the token with the largest logit has: it is always kept.
    top_token = tl.load(tile_token_ptr + row * num_tiles + best_tile)
    bound = _scaled(row_max, temperature, IS_SCALED) + gumbel_of(random_bits(stream, top_token))
    for i in range(TILES_PER_PROGRAM):
        tile = tl.program_id(0) * TILES_PER_PROGRAM + i
        if tile < num_tiles:
            at = row * num_tiles + tile
            best = tl.load(tile_max_ptr + at)
            token = tl.load(tile_token_ptr + at)
            if samples:
                most = _scaled(best, temperature, IS_SCALED)
                could_win = (best >= least) & (most + MAX_GUMBEL >= bound)
                best = tl.full([], float("-inf"), tl.float32)
                if could_win:
                    ids = tile * TILE + tl.arange(0, TILE)
                    bits = random_bits(stream, ids)
                    fewest = tl.min(tl.where(ids < vocab, bits >> 1, 0x7FFFFFFF).to(tl.int32))
                    largest = gumbel_of(fewest.to(tl.uint32) << 1)
                    if most + (largest + _SLACK) >= bound:
                        logit = load_tile(logits_ptr + row * row_stride, tile, vocab, TILE)
                        kept = is_kept(logit, tile, least, last_tie, TILE) & (ids < vocab)
                        noised = _scaled(logit, temperature, IS_SCALED) + gumbel_of(bits)
                        best, place = tl.max(
                            tl.where(kept, noised, float("-inf")), axis=0, return_indices=True
                        )
                        token = tile * TILE + place
            tl.store(best_ptr + at, best)
            tl.store(best_token_ptr + at, token)


@triton.jit(do_not_specialize=["max_draft"], do_not_specialize_on_alignment=_PER_REQUEST)
def choose_kernel(
    tokens_ptr,  # [batch, max_draft + 1] int64: out
    num_sampled_ptr,  # [batch] int32: out
    best_ptr,  # [rows, num_tiles] float32
    best_token_ptr,  # [rows, num_tiles] int32
    row_token_ptr,  # [rows]
    cu_ptr,  # [batch + 1]
    num_tiles,
    max_draft,
    WIDTH: tl.constexpr,
    PADDED_TILES: tl.constexpr,
):
    request = tl.program_id(0)
    position = tl.arange(0, WIDTH)
    row = tl.load(cu_ptr + request).to(tl.int64) + position
    is_row = row < tl.load(cu_ptr + request + 1)
    tiles = tl.arange(0, PADDED_TILES)
    best = tl.load(
        best_ptr + row[:, None] * num_tiles + tiles[None, :],
        mask=is_row[:, None] & (tiles[None, :] < num_tiles),
        other=float("-inf"),
    )
    tile = tl.argmax(best, axis=1)
    sampled = tl.load(best_token_ptr + row * num_tiles + tile, mask=is_row, other=-1)
    num_rows = tl.sum(is_row.to(tl.int32), axis=0)
    draft = tl.load(row_token_ptr + row + 1, mask=position + 1 < num_rows, other=-1)
    accepted = tl.min(tl.where(sampled != draft, position, WIDTH), axis=0)
    accepted = tl.minimum(accepted, tl.maximum(num_rows - 1, 0))
    token = tl.where(position <= accepted, sampled, -1).to(tl.int64)
    place = request * (max_draft + 1) + position
    tl.store(tokens_ptr + place, token, mask=position <= max_draft)
    tl.store(num_sampled_ptr + request, accepted + 1)


def verify_coupled_triton(
    logits: torch.Tensor,  # [rows, vocab]
    row_token_ids: torch.Tensor,  # [rows]
    positions: torch.Tensor,  # [rows]
    row_slots: torch.Tensor,  # [rows]
    cu_num_logits: torch.Tensor,  # [batch + 1]
    *,
    temperature: torch.Tensor | None,  # [num_slots]
    top_k: torch.Tensor | None,  # [num_slots]
    top_p: torch.Tensor | None,  # [num_slots]
    min_p: torch.Tensor | None,  # [num_slots]
    seeds: torch.Tensor | None,  # [num_slots]
    max_draft: int,
    is_scaled: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `verify_coupled`; nothing here makes the host wait for the device."""
    rows, vocab = logits.shape
    batch, device, row_stride = cu_num_logits.shape[0] - 1, logits.device, logits.stride(0)
    num_tiles = triton.cdiv(vocab, TILE)
    padded_tiles = triton.next_power_of_2(num_tiles)
    restricted = not (top_k is None and top_p is None and min_p is None)
    best = torch.empty((rows, num_tiles), dtype=torch.float32, device=device)
    token = torch.empty((rows, num_tiles), dtype=torch.int32, device=device)
    mass = None if top_p is None else torch.empty_like(best)
    tokens = torch.empty((batch, max_draft + 1), dtype=torch.int64, device=device)
    num_sampled = torch.empty(batch, dtype=torch.int32, device=device)
    per_program = 2 if rows * num_tiles >= 4096 else 1
    spread = (triton.cdiv(num_tiles, per_program), rows)
    with torch.cuda.device_of(logits):
        scan_kernel[spread](
            best, token, mass, logits, row_slots, None if mass is None else temperature,
            row_stride, vocab, num_tiles,
            TILES_PER_PROGRAM=per_program, TILE=TILE, **launch_options(4),
        )  # fmt: skip
        if temperature is not None:
            least = last_tie = None
            if restricted:
                least = torch.empty(rows, dtype=torch.float32, device=device)
                last_tie = torch.empty(rows, dtype=torch.int32, device=device)
                threshold_kernel[(rows,)](
                    least, last_tie, best, mass, logits, row_slots, temperature,
                    top_k, top_p, min_p, row_stride, vocab, num_tiles,
                    SHIFT=KEY_SHIFT[logits.dtype], PADDED_TILES=padded_tiles, TILE=TILE,
                    **launch_options(8),
                )  # fmt: skip
            noised, noised_token = torch.empty_like(best), torch.empty_like(token)
            noise_kernel[spread](
                noised, noised_token, best, token, least, last_tie, logits, positions, row_slots,
                temperature, seeds, row_stride, vocab, num_tiles,
                IS_SCALED=is_scaled, PADDED_TILES=padded_tiles, TILES_PER_PROGRAM=per_program,
                TILE=TILE, **launch_options(8),
            )  # fmt: skip
            best, token = noised, noised_token
        choose_kernel[(batch,)](
            tokens, num_sampled, best, token, row_token_ids, cu_num_logits, num_tiles, max_draft,
            WIDTH=triton.next_power_of_2(max_draft + 1), PADDED_TILES=padded_tiles,
            **launch_options(4),
        )  # fmt: skip
    return tokens, num_sampled
