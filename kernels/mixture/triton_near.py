# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Kernels: compile-time constants are written in capitals, and their arguments have no Python types.
"""Evidence of near answers, and their alignment, in Triton: see `evidence`."""

from __future__ import annotations

import triton
import triton.language as tl

from reprise.kernels.mixture import evidence, layout, reference, scratch
from reprise.kernels.mixture import state as fields
from reprise.kernels.mixture.triton_places import (
    BOS,
    END,
    OUTSIDE,
    coarse_bucket,
    hit_bucket,
    list_places,
    match_bucket,
    reached,
    second_bucket,
    text_at,
)

MAX_EVIDENCE = tl.constexpr(evidence.MAX_NEAR_EVIDENCE)
MAX_SKIPPED = tl.constexpr(evidence.MAX_NEAR_SKIPPED)
MAX_SKIPPED_VISITS = tl.constexpr(evidence.MAX_NEAR_SKIPPED_VISITS)
LONGEST = tl.constexpr(evidence.LONGEST)
LONGEST_SKIPPED = tl.constexpr(evidence.LONGEST_SKIPPED)
LONGEST_SECOND = tl.constexpr(evidence.LONGEST_SECOND)
REACHED_START = tl.constexpr(evidence.REACHED_START)
UNKNOWN_DISTANCE = tl.constexpr(evidence.UNKNOWN_DISTANCE)
RECENT_HITS = tl.constexpr(reference.RECENT_HITS)
MAX_NEAR = tl.constexpr(layout.MAX_NEAR)
COARSE = tl.constexpr(layout.COARSE)
SECONDS = tl.constexpr(layout.SECONDS)
DISTANCES = tl.constexpr(layout.DISTANCES)
HITS = tl.constexpr(layout.HITS)
MATCHES = tl.constexpr(layout.MATCHES)
NEAR_MATCH = tl.constexpr(layout.NEAR_MATCH)
NEAR_SKIPPED = tl.constexpr(layout.NEAR_SKIPPED)
NEAR_DISTANCE = tl.constexpr(layout.NEAR_DISTANCE)
NEAR_LIKENESS = tl.constexpr(layout.NEAR_LIKENESS)
NEAR_ANSWER_RANK = tl.constexpr(layout.NEAR_ANSWER_RANK)
NEAR_PROMPTS = tl.constexpr(layout.NEAR_PROMPTS)
NEAR_HITS = tl.constexpr(layout.NEAR_HITS)
NEAR_CLAUSE_SWITCH = tl.constexpr(layout.NEAR_CLAUSE_SWITCH)
BEST_EVIDENCE = tl.constexpr(layout.BEST_EVIDENCE)
NEAR_START = tl.constexpr(fields.NEAR_START)
NEAR_SIMILARITY = tl.constexpr(fields.NEAR_SIMILARITY)
NEAR_RANK = tl.constexpr(fields.NEAR_RANK)
NEAR_CLAUSE = tl.constexpr(fields.NEAR_CLAUSE)
NEAR_FIELDS = tl.constexpr(fields.NEAR_FIELDS)
TAG_KIND = tl.constexpr(fields.TAG_KIND)
NEAR_PLACES = tl.constexpr(scratch.NEAR_PLACES)
MOST_SKIPPED = tl.constexpr(scratch.MOST_NEAR_SKIPPED)
TOKENS = tl.constexpr(scratch.TOKENS)
INFOS = tl.constexpr(scratch.INFOS)
PLACES = tl.constexpr(scratch.PLACES)
SKIPPED_PLACES = tl.constexpr(scratch.SKIPPED_PLACES)
SCORES = tl.constexpr(scratch.SCORES)
BEST_SCORES = tl.constexpr(scratch.BEST_SCORES)
LISTED = tl.constexpr(128)
SKIPPED_LISTED = tl.constexpr(64)
PLACE_SPAN = tl.constexpr(1 << 20)
"""More than there are places in the near answers of a request."""


@triton.jit
def weigh(mixture_ptr, choice_ptr, score, best, feature, valid):
    """Add a feature's weights to a piece's score, and to what the choice gives its best piece."""
    score += tl.load(mixture_ptr + feature, mask=valid, other=0.0)
    best += tl.load(choice_ptr + BEST_EVIDENCE + feature, mask=valid, other=0.0)
    return score, best


@triton.jit
def keep_pieces(words_ptr, floats_ptr, index, token, info, score, best, valid):
    """Store pieces at their indices."""
    tl.store(words_ptr + TOKENS + index, token, mask=valid)
    tl.store(words_ptr + INFOS + index, info, mask=valid)
    tl.store(floats_ptr + SCORES + index, score, mask=valid)
    tl.store(floats_ptr + BEST_SCORES + index, best, mask=valid)


@triton.jit
def near_match(near_ptr, place, valid, context_ptr, drafted_ptr, begin, length, end):
    """See `evidence.near_match`; [n] of each. Pieces are on the last axis, over the threads, and
    what is compared is on the first, so that a thread reduces what it has compared."""
    back = tl.arange(0, LONGEST)
    own = text_at(context_ptr, drafted_ptr, begin, length, end - 1 - back, end - 1 - back >= begin)[
        :, None
    ]
    back = back[:, None]
    index = place[None, :] - back
    symbol = tl.load(near_ptr + index, mask=valid[None, :] & (index >= 0), other=OUTSIDE)
    run = tl.min(tl.where(symbol != own, back, LONGEST), axis=0)
    start = tl.min(tl.where(symbol == BOS, back, 2 * LONGEST), axis=0)
    reaches = start < run
    match = tl.where(reaches, start + 1 + REACHED_START, run)
    goes_on = valid & (start >= run)
    edge = tl.load(near_ptr + place - run, mask=goes_on & (place >= run), other=OUTSIDE)
    step = tl.arange(0, LONGEST_SECOND)[:, None]
    index = (place - run - 1)[None, :] - step
    symbol = tl.load(near_ptr + index, mask=goes_on[None, :] & (index >= 0), other=OUTSIDE)
    index = (end - 2 - run)[None, :] - step
    own = text_at(
        context_ptr, drafted_ptr, begin, length, index, goes_on[None, :] & (index >= begin)
    )
    second = tl.min(tl.where(symbol != own, step, LONGEST_SECOND), axis=0)
    start = tl.min(tl.where(symbol == BOS, step, 2 * LONGEST_SECOND), axis=0)
    second = tl.where(start < second, LONGEST_SECOND, second)
    second = tl.where(edge == BOS, 4, second)
    return match, tl.where(reaches, LONGEST_SECOND, second)


@triton.jit
def near_score(
    tags_ptr,
    info_ptr,
    pointers_ptr,
    hits_ptr,
    mixture_ptr,
    choice_ptr,
    place,  # of the token that is predicted
    match,
    first,
    block,
    valid,
):
    """See `evidence.near_piece`: score, best score, what INFOS has, near answer and its pointer."""
    tag = tl.load(tags_ptr + place, mask=valid, other=0)
    near = tag & 255
    kind = (tag // TAG_KIND) & 3
    pointer = tl.load(pointers_ptr + near, mask=valid, other=-1)
    hits = tl.load(hits_ptr + near, mask=valid, other=0.0)
    away = tl.abs(place - pointer)
    distance = 2 * (reached(away, 1) + reached(away, 3) + reached(away, 9) + reached(away, 33))
    distance -= (place > pointer).to(tl.int32)
    distance = tl.where(pointer >= 0, distance, UNKNOWN_DISTANCE)
    coarse = coarse_bucket(match)
    info_ptr += near * NEAR_FIELDS
    similarity = tl.load(info_ptr + NEAR_SIMILARITY, mask=valid, other=0)
    rank = tl.load(info_ptr + NEAR_RANK, mask=valid, other=0)
    score = tl.load(mixture_ptr + first, mask=valid, other=0.0)
    best = tl.load(choice_ptr + BEST_EVIDENCE + first, mask=valid, other=0.0)
    feature = NEAR_DISTANCE + block * DISTANCES + distance
    score, best = weigh(mixture_ptr, choice_ptr, score, best, feature, valid)
    feature = NEAR_LIKENESS + similarity * COARSE + coarse
    score, best = weigh(mixture_ptr, choice_ptr, score, best, feature, valid)
    feature = NEAR_ANSWER_RANK + rank * COARSE + coarse
    score, best = weigh(mixture_ptr, choice_ptr, score, best, feature, valid)
    feature = NEAR_PROMPTS + kind * COARSE + coarse
    score, best = weigh(mixture_ptr, choice_ptr, score, best, feature, valid)
    feature = NEAR_HITS + hit_bucket(hits) * COARSE + coarse
    score, best = weigh(mixture_ptr, choice_ptr, score, best, feature, valid)
    aligned = (place == pointer).to(tl.int32)
    info = match + aligned * (256 + 512 * reached(hits, RECENT_HITS))
    return score, best, info, near, away


@triton.jit
def find_skipped(
    near_ptr, tags_ptr, info_ptr, pointers_ptr, hits_ptr, mixture_ptr, choice_ptr,
    words_ptr, floats_ptr, context_ptr, drafted_ptr, begin, length, end, count, last, piece,
):  # fmt: skip
    """See `evidence.near_skipped`: keep the pieces, from index `piece` on, after the `count` places
    that are listed."""
    lane = tl.arange(0, SKIPPED_LISTED)
    listed = lane < count
    place = tl.load(words_ptr + SKIPPED_PLACES + lane, mask=listed, other=0)
    following = tl.load(near_ptr + place + 1, mask=listed, other=END)
    valid = listed & (following != END) & (following != last)
    back = tl.arange(0, LONGEST_SKIPPED)
    own = text_at(context_ptr, drafted_ptr, begin, length, end - 2 - back, end - 2 - back >= begin)[
        :, None
    ]
    back = back[:, None]
    index = place[None, :] - back
    symbol = tl.load(near_ptr + index, mask=valid[None, :] & (index >= 0), other=OUTSIDE)
    run = tl.min(tl.where(symbol != own, back, LONGEST_SKIPPED), axis=0)
    start = tl.min(tl.where(symbol == BOS, back, 2 * LONGEST_SKIPPED), axis=0)
    match = tl.where((start < run) & (start > 0), LONGEST_SKIPPED, run)
    valid &= (match >= 2) | (start == 0)
    behind = tl.load(near_ptr + place + 2, mask=valid, other=END)
    has_both = valid & (behind != END)
    number = valid.to(tl.int32) + has_both.to(tl.int32)
    before = tl.cumsum(number, axis=0) - number
    valid &= before < MAX_SKIPPED
    # Both kinds of a place beside each other: its second token behind, and its first.
    both = (valid & has_both).to(tl.int32)
    chosen = tl.interleave(both, valid.to(tl.int32)) > 0
    kind = tl.interleave(lane * 0, lane * 0 + 1)
    bucket = second_bucket(match)
    first = NEAR_SKIPPED + kind * SECONDS + tl.interleave(bucket, bucket)
    score, best, info, _, _ = near_score(
        tags_ptr, info_ptr, pointers_ptr, hits_ptr, mixture_ptr, choice_ptr,
        tl.interleave(place + 2, place + 1), kind * 0, first, MATCHES + kind, chosen,
    )  # fmt: skip
    index = piece + tl.interleave(before, before + both)
    token = tl.interleave(behind, following)
    keep_pieces(words_ptr, floats_ptr, index, token, info, score, best, chosen)


@triton.jit
def find_switches(
    near_ptr, tags_ptr, info_ptr, pointers_ptr, hits_ptr, mixture_ptr, choice_ptr,
    words_ptr, floats_ptr, near_length, num_near, piece,
):  # fmt: skip
    """See `evidence.clause_switches`: if near answers are of several clauses, keep the pieces, from
    index `piece` on; the index behind them."""
    lane = tl.arange(0, MAX_NEAR)
    real = lane < num_near
    row_ptr = info_ptr + lane * NEAR_FIELDS
    clause = tl.load(row_ptr + NEAR_CLAUSE, mask=real, other=0)
    lowest = tl.min(tl.where(real, clause, 1 << 30), axis=0)
    are_several = tl.max(tl.where(real, clause, lowest), axis=0) > lowest
    if are_several:
        hits = tl.load(hits_ptr + lane, mask=real, other=-1.0)
        highest = tl.max(hits, axis=0)
        leader = tl.min(tl.where(hits == highest, lane, MAX_NEAR), axis=0)
        place = tl.maximum(tl.load(pointers_ptr + leader), 0)
        ahead = tl.arange(0, 4)
        following = tl.load(near_ptr + place + ahead, mask=place + ahead < near_length, other=END)
        left = tl.min(tl.where(following == END, ahead, 4), axis=0)
        step = reached(left, 2) + reached(left, 3) + reached(left, 4)
        first = NEAR_CLAUSE_SWITCH + step * HITS + hit_bucket(highest)
        leading = tl.load(info_ptr + leader * NEAR_FIELDS + NEAR_CLAUSE)
        rank = tl.load(row_ptr + NEAR_RANK, mask=real, other=2)
        valid = real & (clause != leading) & (rank <= 1)
        place = tl.load(row_ptr + NEAR_START, mask=valid, other=0) + 1
        token = tl.load(near_ptr + place, mask=valid, other=-1)
        zero = lane * 0
        score, best, info, _, _ = near_score(
            tags_ptr, info_ptr, pointers_ptr, hits_ptr, mixture_ptr, choice_ptr,
            place, zero, zero + first, zero + MATCHES + 1, valid,
        )  # fmt: skip
        keep_pieces(words_ptr, floats_ptr, piece + lane, token, info, score, best, valid)
    return piece + tl.where(are_several, num_near, 0)


@triton.jit
def find_near(
    near_ptr, tags_ptr, info_ptr, pointers_ptr, hits_ptr, mixture_ptr, choice_ptr,
    words_ptr, floats_ptr, context_ptr, drafted_ptr, begin, length, end, near_length,
    last, before, IS_DRAFT, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keep the evidence of near answers, while only their alignment is caught up with that which it
    needs; what the alignment needs: token, place and worth of each piece, and its near answer; and
    the index behind the pieces."""
    count, skipped_count = list_places(
        words_ptr + PLACES, words_ptr + SKIPPED_PLACES, near_ptr, near_length, last, before,
        NEAR_PLACES, MAX_SKIPPED_VISITS, False, BLOCK,
    )  # fmt: skip
    tl.debug_barrier()
    lane = tl.arange(0, LISTED)
    listed = lane < count
    place = tl.load(words_ptr + PLACES + lane, mask=listed, other=0)
    token = tl.load(near_ptr + place + 1, mask=listed, other=END)
    valid = listed & (token != END)
    valid &= tl.cumsum(valid.to(tl.int32), axis=0) <= MAX_EVIDENCE
    match, second = near_match(near_ptr, place, valid, context_ptr, drafted_ptr, begin, length, end)
    block = match_bucket(match)
    first = NEAR_MATCH + block * SECONDS + second_bucket(second)
    score, best, info, near, away = near_score(
        tags_ptr, info_ptr, pointers_ptr, hits_ptr, mixture_ptr, choice_ptr,
        place + 1, match, first, block, valid,
    )  # fmt: skip
    keep_pieces(words_ptr, floats_ptr, lane, token, info, score, best, valid)
    if IS_DRAFT:
        find_skipped(
            near_ptr, tags_ptr, info_ptr, pointers_ptr, hits_ptr, mixture_ptr, choice_ptr,
            words_ptr, floats_ptr, context_ptr, drafted_ptr, begin, length, end, skipped_count,
            last, count,
        )  # fmt: skip
    # In twentieths of a matched token. A long match and a short way count for a place.
    worth = 20 * (match + 1) - tl.minimum(away, 60)
    valid &= (match >= 2) | (away <= 8)
    num_pieces = count + tl.minimum(2 * skipped_count, MOST_SKIPPED)
    return tl.where(valid, token, END), place + 1, worth, near, num_pieces


@triton.jit
def advance(
    pointers_ptr,  # [MAX_NEAR]: before the token
    hits_ptr,
    next_pointers_ptr,  # [MAX_NEAR]: out
    next_hits_ptr,
    token,
    piece_token,  # [LISTED]
    place,  # [LISTED]
    worth,  # [LISTED]
    near,  # [LISTED]
):
    """See `evidence.advance`. No other thread may still read what is written."""
    lane = tl.arange(0, MAX_NEAR)
    pointer = tl.load(pointers_ptr + lane)
    hits = tl.load(hits_ptr + lane)
    # The first of equals: places come in their order.
    key = tl.where(
        (piece_token == token) & (worth > 0), worth * PLACE_SPAN + PLACE_SPAN - 1 - place, -1
    )
    best = tl.max(tl.where(near[None, :] == lane[:, None], key[None, :], -1), axis=1)
    found = best >= 0
    place = -(best % PLACE_SPAN) + (PLACE_SPAN - 1)
    pointer = tl.where(found, place + 1, pointer + (pointer >= 0).to(tl.int32))
    tl.debug_barrier()
    tl.store(next_pointers_ptr + lane, pointer)
    tl.store(next_hits_ptr + lane, 0.9 * hits + found.to(tl.float32))
