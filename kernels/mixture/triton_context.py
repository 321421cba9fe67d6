# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Kernels: compile-time constants are written in capitals, and their arguments have no Python types.
"""Evidence of the context in Triton: see `evidence`."""

from __future__ import annotations

import triton
import triton.language as tl

from reprise.kernels.mixture import evidence, layout, scratch
from reprise.kernels.mixture.triton_near import keep_pieces, weigh
from reprise.kernels.mixture.triton_places import (
    BOS,
    coarse_bucket,
    context_at,
    list_places,
    match_bucket,
    reached,
    second_bucket,
    text_at,
)

MAX_EVIDENCE = tl.constexpr(evidence.MAX_CONTEXT_EVIDENCE)
MAX_SKIPPED = tl.constexpr(evidence.MAX_CONTEXT_SKIPPED)
MAX_SKIPPED_VISITS = tl.constexpr(evidence.MAX_CONTEXT_SKIPPED_VISITS)
LONGEST = tl.constexpr(evidence.LONGEST)
LONGEST_SKIPPED = tl.constexpr(evidence.LONGEST_SKIPPED)
LONGEST_SECOND = tl.constexpr(evidence.LONGEST_SECOND)
COARSE = tl.constexpr(layout.COARSE)
SECONDS = tl.constexpr(layout.SECONDS)
MATCHES = tl.constexpr(layout.MATCHES)
CONTEXT_MATCH = tl.constexpr(layout.CONTEXT_MATCH)
CONTEXT_SKIPPED = tl.constexpr(layout.CONTEXT_SKIPPED)
CONTEXT_RECENCY = tl.constexpr(layout.CONTEXT_RECENCY)
CONTEXT_PLACES = tl.constexpr(scratch.CONTEXT_PLACES)
MOST_SKIPPED = tl.constexpr(scratch.MOST_CONTEXT_SKIPPED)
PLACES = tl.constexpr(scratch.PLACES)
SKIPPED_PLACES = tl.constexpr(scratch.SKIPPED_PLACES)
LISTED = tl.constexpr(64)
SKIPPED_LISTED = tl.constexpr(16)


@triton.jit
def find_places(
    mixture_ptr, choice_ptr, words_ptr, floats_ptr, context_ptr, drafted_ptr,
    begin, length, end, count, piece,
):  # fmt: skip
    """See `evidence.context_evidence`: keep the pieces of the `count` places that are listed, from
    index `piece` on."""
    lane = tl.arange(0, LISTED)
    listed = lane < count
    token_at = tl.load(words_ptr + PLACES + lane, mask=listed, other=0)
    valid = listed & (token_at + 1 < length) & (token_at != begin - 1)
    valid &= tl.cumsum(valid.to(tl.int32), axis=0) <= MAX_EVIDENCE
    token = tl.load(context_ptr + token_at + 1, mask=valid, other=-1)
    place = token_at + (token_at >= begin).to(tl.int32)
    back = tl.arange(0, LONGEST)
    own = text_at(context_ptr, drafted_ptr, begin, length, end - 1 - back, back < end)[:, None]
    back = back[:, None]
    symbol = context_at(context_ptr, begin, place[None, :] - back, valid[None, :])
    match = tl.min(tl.where(symbol != own, back, LONGEST), axis=0)
    step = tl.arange(0, LONGEST_SECOND)[:, None]
    symbol = context_at(context_ptr, begin, (place - match - 1)[None, :] - step, valid[None, :])
    own = text_at(
        context_ptr, drafted_ptr, begin, length, (end - 2 - match)[None, :] - step, valid[None, :]
    )
    second = tl.min(tl.where(symbol != own, step, LONGEST_SECOND), axis=0)
    in_answer = (place >= begin).to(tl.int32)
    cell = (in_answer * MATCHES + match_bucket(match)) * SECONDS + second_bucket(second)
    ago = end - place
    recency = reached(ago, 9) + reached(ago, 18) + reached(ago, 36) + reached(ago, 72)
    recency += reached(ago, 144) + reached(ago, 288) + reached(ago, 576)
    zero = tl.zeros([LISTED], tl.float32)
    score, best = weigh(mixture_ptr, choice_ptr, zero, zero, CONTEXT_MATCH + cell, valid)
    feature = CONTEXT_RECENCY + recency * COARSE + coarse_bucket(match)
    score, best = weigh(mixture_ptr, choice_ptr, score, best, feature, valid)
    keep_pieces(words_ptr, floats_ptr, piece + lane, token, match, score, best, valid)


@triton.jit
def find_skipped_places(
    mixture_ptr, choice_ptr, words_ptr, floats_ptr, context_ptr, drafted_ptr,
    begin, length, end, count, last, piece,
):  # fmt: skip
    """See `evidence.context_skipped`, likewise."""
    lane = tl.arange(0, SKIPPED_LISTED)
    listed = lane < count
    place = tl.load(words_ptr + SKIPPED_PLACES + lane, mask=listed, other=0)
    place += (place >= begin).to(tl.int32)
    valid = listed & (place + 2 < length + 1)
    following = context_at(context_ptr, begin, place + 1, valid)
    behind = context_at(context_ptr, begin, place + 2, valid)
    valid &= (following != last) & (following != BOS)
    back = tl.arange(0, LONGEST_SKIPPED)
    own = text_at(context_ptr, drafted_ptr, begin, length, end - 2 - back, back + 1 < end)[:, None]
    back = back[:, None]
    symbol = context_at(context_ptr, begin, place[None, :] - back, valid[None, :])
    match = tl.min(tl.where(symbol != own, back, LONGEST_SKIPPED), axis=0)
    valid &= match >= 2
    has_both = valid & (behind != BOS)
    number = valid.to(tl.int32) + has_both.to(tl.int32)
    before = tl.cumsum(number, axis=0) - number
    valid &= before < MAX_SKIPPED
    # Both kinds of a place beside each other: its second token behind, and its first.
    both = (valid & has_both).to(tl.int32)
    chosen = tl.interleave(both, valid.to(tl.int32)) > 0
    kind = tl.interleave(lane * 0, lane * 0 + 1)
    bucket = second_bucket(match)
    feature = CONTEXT_SKIPPED + kind * SECONDS + tl.interleave(bucket, bucket)
    zero = tl.zeros([2 * SKIPPED_LISTED], tl.float32)
    score, best = weigh(mixture_ptr, choice_ptr, zero, zero, feature, chosen)
    index = piece + tl.interleave(before, before + both)
    token = tl.interleave(behind, following)
    keep_pieces(words_ptr, floats_ptr, index, token, kind * 0, score, best, chosen)


@triton.jit
def find_context(
    mixture_ptr, choice_ptr, words_ptr, floats_ptr, context_ptr, drafted_ptr,
    begin, length, end, last, before, piece, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keep the evidence of the context, from index `piece` on; the index behind it."""
    count, skipped_count = list_places(
        words_ptr + PLACES, words_ptr + SKIPPED_PLACES, context_ptr, length, last, before,
        CONTEXT_PLACES, MAX_SKIPPED_VISITS, True, BLOCK,
    )  # fmt: skip
    tl.debug_barrier()
    find_places(
        mixture_ptr, choice_ptr, words_ptr, floats_ptr, context_ptr, drafted_ptr,
        begin, length, end, count, piece,
    )  # fmt: skip
    find_skipped_places(
        mixture_ptr, choice_ptr, words_ptr, floats_ptr, context_ptr, drafted_ptr,
        begin, length, end, skipped_count, last, piece + count,
    )  # fmt: skip
    return piece + count + tl.minimum(2 * skipped_count, MOST_SKIPPED)
