# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Kernels: compile-time constants are written in capitals, and their arguments have no Python types.
"""Mixture over the evidence and choice among candidates, in Triton: see `reference`."""

from __future__ import annotations

import triton
import triton.language as tl

from reprise.kernels.mixture import layout, reference, scratch
from reprise.kernels.mixture import state as fields
from reprise.kernels.mixture.triton_corpus import share_bucket
from reprise.kernels.mixture.triton_places import NUM_ORDERS, count_bucket, reached

LONGEST_ESCAPE = tl.constexpr(reference.LONGEST_ESCAPE)
MAX_CANDIDATES = tl.constexpr(reference.MAX_CANDIDATES)
ONE = tl.constexpr(reference.ONE)
NUM_PIECES = tl.constexpr(scratch.NUM_PIECES)
TOKENS = tl.constexpr(scratch.TOKENS)
INFOS = tl.constexpr(scratch.INFOS)
TOTALS = tl.constexpr(scratch.TOTALS)
SCORES = tl.constexpr(scratch.SCORES)
BEST_SCORES = tl.constexpr(scratch.BEST_SCORES)
TAG_FIRST = tl.constexpr(fields.TAG_FIRST)
CONTEXT = tl.constexpr(layout.CONTEXT)
NEAR_ANSWER = tl.constexpr(layout.NEAR_ANSWER)
CORPUS = tl.constexpr(layout.CORPUS)
CELL = tl.constexpr(layout.CELL)
COUNTS = tl.constexpr(layout.COUNTS)
THRESHOLDS = tl.constexpr(layout.THRESHOLDS)
PROB_BINS = tl.constexpr(layout.PROB_BINS)
ESCAPE_NEAR = tl.constexpr(layout.ESCAPE_NEAR)
ESCAPE_CONTEXT = tl.constexpr(layout.ESCAPE_CONTEXT)
ESCAPE_CORPUS = tl.constexpr(layout.ESCAPE_CORPUS)
ORDER_CELL = tl.constexpr(layout.ORDER_CELL)
DEPTH_CELL = tl.constexpr(layout.DEPTH_CELL)
DEPTH_SHARES = tl.constexpr(layout.DEPTH_SHARES)
NEAR_CELL = tl.constexpr(layout.NEAR_CELL)
NEAR_SHARES = tl.constexpr(layout.NEAR_SHARES)
CONTEXT_CELL = tl.constexpr(layout.CONTEXT_CELL)
PROB = tl.constexpr(layout.PROB)
PRESENCE = tl.constexpr(layout.PRESENCE)
NEAR_PRESENCE = tl.constexpr(layout.NEAR_PRESENCE)
CANDIDATE_RANK = tl.constexpr(layout.CANDIDATE_RANK)
REACH = tl.constexpr(layout.REACH)
SHARES = tl.constexpr(layout.SHARES)
PROB_REACH = tl.constexpr(layout.PROB_REACH)
PROB_ORDER = tl.constexpr(layout.PROB_ORDER)
ALIGNED_CELL = tl.constexpr(layout.ALIGNED_CELL)
ESCAPE_PROB = tl.constexpr(layout.ESCAPE_PROB)
ESCAPE_MATCHES = tl.constexpr(layout.ESCAPE_MATCHES)
ESCAPE_ORDERS = tl.constexpr(layout.ESCAPE_ORDERS)
HASHED_TOKEN = tl.constexpr(layout.HASHED_TOKEN)
HASHED_PAIR = tl.constexpr(layout.HASHED_PAIR)
HASHED_TRIPLE = tl.constexpr(layout.HASHED_TRIPLE)
WIDTH = tl.constexpr(8)
"""Candidates, rounded up."""
NEAR_BITS = tl.constexpr(7)
"""Of a near answer's count in a packed number: there are fewer than 128 pieces with a match, and as
few on the alignment."""
CONTEXT_BITS = tl.constexpr(6)
ALIGNED_AT = tl.constexpr(48)
"""Where counts on the alignment begin in the packed number of the context's."""
NEVER = tl.constexpr(-1.0e30)


@triton.jit
def cell(count, total):
    """See `reference.cell`."""
    return tl.where(count == 0, 0, 1 + count_bucket(count)) * 7 + count_bucket(total)


@triton.jit
def near_share(count, total):
    """See `reference.near_share`."""
    share = share_bucket(count, total)
    return tl.where((share == 3) & (count > 1), 4, share)


@triton.jit
def reach_bucket(reach):
    """See `reference.reach_bucket`."""
    return tl.minimum(4, (reach + 1) // 2)


@triton.jit
def prob_place(prob):
    """See `reference.prob_bin`: the lower bin, and how far it is to the next."""
    place = (tl.log(prob + 1e-9) + 8.5) * 2.0
    place = tl.minimum(tl.maximum(place, 0.0), PROB_BINS - 2.01)
    low = place.to(tl.int32)
    return low, place - low.to(tl.float32)


@triton.jit
def field(packed, index, BITS: tl.constexpr):
    """A count out of a packed number."""
    mask: tl.constexpr = 127 if BITS == 7 else 63
    return ((packed >> (index * BITS).to(tl.int64)) & mask).to(tl.int32)


@triton.jit
def pack_pieces(piece, token, info, near_end, context_end):
    """Of each piece, the thresholds that its match reaches and whether it is on the alignment, as
    ones in the fields of two numbers, of near answers and of the context; and its corpus code."""
    has = token >= 0
    is_near = has & (piece < near_end)
    is_context = has & (piece >= near_end) & (piece < context_end)
    match = tl.where(is_near | is_context, info & 255, 0)
    near = tl.zeros([NUM_PIECES], tl.int64)
    context = tl.zeros([NUM_PIECES], tl.int64)
    for threshold in tl.static_range(THRESHOLDS):
        # Of `reference.MIN_MATCHES`: 1, 2, 3, 4, 6, 8, 12, 16.
        longer = (threshold - 1) * 2 if threshold < 6 else (threshold - 3) * 4
        meets = (match >= (threshold + 1 if threshold < 4 else longer)).to(tl.int64)
        near += meets << (NEAR_BITS * threshold)
        context += meets << (CONTEXT_BITS * threshold)
    aligned = tl.where(is_near, info >> 8, 0).to(tl.int64)
    aligned = (aligned & 1) + ((aligned >> 1) << NEAR_BITS)
    near = tl.where(is_near, near, 0)
    context = tl.where(is_context, context, 0) + (aligned << ALIGNED_AT)
    return near, context, tl.where(has & (piece >= context_end), info, 0)


@triton.jit
def mix(
    words_ptr, floats_ptr, shares_ptr, mixture_ptr, num_orders, near_end, context_end, num_pieces,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """See `reference.mix`: the candidates' tokens (-1: none) and chances, the escape's, the pieces'
    shares, and the longest matches in near answers and in the context."""
    piece = tl.arange(0, NUM_PIECES)
    token = tl.load(words_ptr + TOKENS + piece)
    has = token >= 0
    info = tl.load(words_ptr + INFOS + piece, mask=has, other=0)
    match = info & 255
    is_near = piece < near_end
    longest_near = tl.max(tl.where(is_near, match, 0), axis=0)
    longest_context = tl.max(tl.where(is_near | (piece >= context_end), 0, match), axis=0)
    longest_near = tl.minimum(longest_near, LONGEST_ESCAPE)
    longest_context = tl.minimum(longest_context, LONGEST_ESCAPE)
    escape = tl.load(mixture_ptr + ESCAPE_NEAR + longest_near)
    escape += tl.load(mixture_ptr + ESCAPE_CONTEXT + longest_context)
    escape += tl.load(mixture_ptr + ESCAPE_CORPUS + num_orders)
    score = tl.load(floats_ptr + SCORES + piece, mask=has, other=NEVER)
    highest = tl.maximum(escape, tl.max(score, axis=0))
    share = tl.where(has, tl.exp(score - highest) * ONE + 0.5, 0.0).to(tl.int64)
    none = (tl.exp(escape - highest) * ONE + 0.5).to(tl.int64)
    total = (none + tl.sum(share, axis=0)).to(tl.float32)
    tl.store(shares_ptr + piece, share)
    tl.debug_barrier()
    shares = tl.zeros([NUM_PIECES], tl.int64)
    earlier = tl.zeros([NUM_PIECES], tl.int32)
    for begin in range(0, num_pieces, CHUNK):
        other = begin + tl.arange(0, CHUNK)
        other_token = tl.load(words_ptr + TOKENS + other)
        other_share = tl.load(shares_ptr + other)
        same = other_token[:, None] == token[None, :]
        shares += tl.sum(tl.where(same, other_share[:, None], 0), axis=0)
        before = same & (other[:, None] < piece[None, :])
        earlier += tl.sum(before.to(tl.int32), axis=0)
    # The most likely first, of those the one that was found first.
    key = tl.where(has & (earlier == 0), shares * NUM_PIECES + NUM_PIECES - 1 - piece, -1)
    lane = tl.arange(0, WIDTH)
    candidate = tl.full([WIDTH], -1, tl.int32)
    prob = tl.zeros([WIDTH], tl.float32)
    for rank in tl.static_range(MAX_CANDIDATES):
        best = tl.max(key, axis=0)
        chosen = -(best % NUM_PIECES).to(tl.int32) + (NUM_PIECES - 1)
        one = tl.load(words_ptr + TOKENS + chosen, mask=best >= 0, other=-1)
        likely = tl.where(best >= 0, (best // NUM_PIECES).to(tl.float32) / total, 0.0)
        candidate = tl.where(lane == rank, one, candidate)
        prob = tl.where(lane == rank, likely, prob)
        key = tl.where(key == best, -1, key)
    return candidate, prob, none.to(tl.float32) / total, longest_near, longest_context


@triton.jit
def count_presence(
    candidate, context_ptr, begin, length, near_ptr, tags_ptr, near_length, BLOCK: tl.constexpr
):
    """How often candidates are in the prompt and in the answer, and in how many near answers."""
    counts = tl.zeros([WIDTH, BLOCK], tl.int32)
    for block in range(0, length, BLOCK):
        index = block + tl.arange(0, BLOCK)
        token = tl.load(context_ptr + index, mask=index < length, other=-2)
        one = tl.where(index < begin, 1, 1 << 16)
        counts += tl.where(candidate[:, None] == token[None, :], one[None, :], 0)
    in_prompt = tl.sum(counts & 0xFFFF, axis=1)
    in_answer = tl.sum(counts >> 16, axis=1)
    counts = tl.zeros([WIDTH, BLOCK], tl.int32)
    for block in range(0, near_length, BLOCK):
        index = block + tl.arange(0, BLOCK)
        token = tl.load(near_ptr + index, mask=index < near_length, other=-2)
        tag = tl.load(tags_ptr + index, mask=index < near_length, other=0)
        token = tl.where(tag >= TAG_FIRST, token, -2)
        counts += (candidate[:, None] == token[None, :]).to(tl.int32)
    return in_prompt, in_answer, tl.sum(counts, axis=1)


@triton.jit
def weigh_orders(choice_ptr, words_ptr, code, valid, num_orders):
    """Features of a candidate's counts in the corpus: their weights, the share of it among what
    follows the longest order, and the longest order that has it."""
    order = tl.arange(0, NUM_ORDERS)
    total = tl.load(words_ptr + TOTALS + order, mask=order < num_orders, other=0)
    totalled = count_bucket(total)[None, :]
    found = valid[:, None] & (order < num_orders)[None, :]
    one = code[:, None] >> (5 * order)[None, :]
    cells = (one & 7) * 7 + totalled
    share = (one >> 3) & 3
    score = tl.load(choice_ptr + ORDER_CELL + order[None, :] * CELL + cells, mask=found, other=0.0)
    depth = (num_orders - 1 - order)[None, :]
    deep = found & (depth < 3)
    score += tl.load(choice_ptr + DEPTH_CELL + depth * CELL + cells, mask=deep, other=0.0)
    score = tl.sum(score, axis=1)
    # The shares of the three longest orders as digits, the longest one's first.
    digit = tl.minimum(num_orders, 3) - 1 - depth
    shares = tl.sum(tl.where(deep, share << (2 * tl.maximum(digit, 0)), 0), axis=1)
    is_longest = found & (depth == 0)
    longest_total = tl.sum(tl.where(is_longest, totalled, 0), axis=1)
    feature = DEPTH_SHARES + shares * COUNTS + longest_total
    score += tl.load(choice_ptr + feature, mask=tl.where(num_orders > 0, valid, False), other=0.0)
    corpus_share = tl.sum(tl.where(is_longest, share, 0), axis=1)
    reach = tl.max(tl.where(found & ((one & 7) > 0), order[None, :] + 1, 0), axis=1)
    return score, corpus_share, reach


@triton.jit
def weigh_counts(
    choice_ptr, near, near_total, context, context_total, low, corpus_share, order, num_orders,
    valid,
):  # fmt: skip
    """Features of a candidate's places by the length of their match: the sum of their weights."""
    threshold = tl.arange(0, THRESHOLDS)
    count = field(near[:, None], threshold[None, :], NEAR_BITS)
    total = field(near_total, threshold, NEAR_BITS)[None, :]
    index = NEAR_CELL + threshold[None, :] * CELL + cell(count, total)
    met = valid[:, None] & (total > 0)
    score = tl.sum(tl.load(choice_ptr + index, mask=met, other=0.0), axis=1)
    near_reach = tl.sum((count > 0).to(tl.int32), axis=1)
    longest = tl.maximum(tl.sum((total > 0).to(tl.int32), axis=1) - 1, 0)  # [1]
    longest = tl.max(longest, axis=0)
    shorter = tl.maximum(longest - 1, 0)
    longest_share = near_share(
        field(near, longest, NEAR_BITS), field(near_total, longest, NEAR_BITS)
    )
    share = near_share(field(near, shorter, NEAR_BITS), field(near_total, shorter, NEAR_BITS))
    index = NEAR_SHARES + longest * 25 + longest_share * 5 + share
    has_near = tl.where(field(near_total, longest * 0, NEAR_BITS) > 0, valid, False)
    score += tl.load(choice_ptr + index, mask=has_near, other=0.0)
    count = field(context[:, None], threshold[None, :], CONTEXT_BITS)
    total = field(context_total, threshold, CONTEXT_BITS)[None, :]
    index = CONTEXT_CELL + threshold[None, :] * CELL + cell(count, total)
    met = valid[:, None] & (total > 0)
    score += tl.sum(tl.load(choice_ptr + index, mask=met, other=0.0), axis=1)
    context_reach = reach_bucket(tl.sum((count > 0).to(tl.int32), axis=1))
    aligned = tl.arange(0, 2)
    count = field((context >> ALIGNED_AT)[:, None], aligned[None, :], NEAR_BITS)
    total = field(context_total >> ALIGNED_AT, aligned, NEAR_BITS)[None, :]
    index = ALIGNED_CELL + aligned[None, :] * CELL + cell(count, total)
    met = valid[:, None] & (total > 0)
    score += tl.sum(tl.load(choice_ptr + index, mask=met, other=0.0), axis=1)
    index = REACH + (near_reach * 5 + context_reach) * 5 + order
    score += tl.load(choice_ptr + index, mask=valid, other=0.0)
    part = longest_share * 4 + corpus_share
    index = SHARES + (part * 4 + longest // 2) * 5 + reach_bucket(num_orders)
    score += tl.load(choice_ptr + index, mask=valid, other=0.0)
    score += tl.load(choice_ptr + PROB_REACH + low * 9 + near_reach, mask=valid, other=0.0)
    return score + tl.load(choice_ptr + PROB_ORDER + low * 5 + order, mask=valid, other=0.0)


@triton.jit
def weigh_token(
    choice_ptr, candidate, valid, source, in_prompt, in_answer, in_near, num_near,
    last, before, salt,
):  # fmt: skip
    """Features of a candidate's token: the sum of their weights."""
    present = tl.minimum(2, in_prompt) * 3 + tl.minimum(2, in_answer)
    score = tl.load(choice_ptr + PRESENCE + present * 3 + source, mask=valid, other=0.0)
    rank = tl.minimum(tl.arange(0, WIDTH), 4)
    score += tl.load(choice_ptr + CANDIDATE_RANK + rank, mask=valid, other=0.0)
    present = reached(in_near, 1) + reached(in_near, 2) + reached(in_near, 3)
    present += reached(in_near, 5) + reached(in_near, 9) + reached(in_near, 17)
    present += 7 * (reached(num_near, 4) + reached(num_near, 12) + reached(num_near, 24))
    score += tl.load(choice_ptr + NEAR_PRESENCE + present * 3 + source, mask=valid, other=0.0)
    alone = candidate.to(tl.int64) * 0x9E3779B1 + (salt.to(tl.int64) & 0xFFFFFFFF)
    pair = alone + (last.to(tl.int64) + 3) * 0x85EBCA77
    triple = pair + (before.to(tl.int64) + 3) * 0xC2B2AE3D
    score += tl.load(choice_ptr + HASHED_TOKEN + ((alone >> 9) & 4095), mask=valid, other=0.0)
    score += tl.load(choice_ptr + HASHED_PAIR + ((pair >> 11) & 8191), mask=valid, other=0.0)
    index = HASHED_TRIPLE + ((triple >> 11) & 8191)
    return score + tl.load(choice_ptr + index, mask=valid, other=0.0)


@triton.jit
def choose(
    words_ptr, floats_ptr, shares_ptr, mixture_ptr, choice_ptr, context_ptr, begin, length,
    near_ptr, tags_ptr, near_length, num_near, num_orders, near_end, context_end, num_pieces,
    last, before, salt, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """See `reference.predict`: the likeliest token (-1: none), its chance and its source."""
    candidate, prob, escape, longest_near, longest_context = mix(
        words_ptr, floats_ptr, shares_ptr, mixture_ptr, num_orders, near_end, context_end,
        num_pieces, CHUNK,
    )  # fmt: skip
    valid = candidate >= 0
    piece = tl.arange(0, NUM_PIECES)
    token = tl.load(words_ptr + TOKENS + piece)
    info = tl.load(words_ptr + INFOS + piece, mask=token >= 0, other=0)
    near, context, code = pack_pieces(piece, token, info, near_end, context_end)
    near_total, context_total = tl.sum(near, axis=0), tl.sum(context, axis=0)
    same = candidate[:, None] == token[None, :]
    near = tl.sum(tl.where(same, near[None, :], 0), axis=1)
    context = tl.sum(tl.where(same, context[None, :], 0), axis=1)
    code = tl.sum(tl.where(same, code[None, :], 0), axis=1)
    key = tl.load(shares_ptr + piece) * NUM_PIECES + NUM_PIECES - 1 - piece
    best = tl.max(tl.where(same & valid[:, None], key[None, :], NUM_PIECES - 1), axis=1)
    best = -(best % NUM_PIECES).to(tl.int32) + (NUM_PIECES - 1)
    source = tl.where(best < near_end, NEAR_ANSWER, tl.where(best < context_end, CONTEXT, CORPUS))
    low, part = prob_place(prob)
    score = tl.load(floats_ptr + BEST_SCORES + best, mask=valid, other=0.0)
    block = PROB + (1 + source) * PROB_BINS + low
    lower = tl.load(choice_ptr + PROB + low) + tl.load(choice_ptr + block)
    upper = tl.load(choice_ptr + PROB + low + 1) + tl.load(choice_ptr + block + 1)
    score += lower * (1.0 - part) + upper * part
    more, corpus_share, reach = weigh_orders(choice_ptr, words_ptr, code, valid, num_orders)
    score += more
    score += weigh_counts(
        choice_ptr, near, near_total, context, context_total, low, corpus_share,
        reach_bucket(reach), num_orders, valid,
    )  # fmt: skip
    in_prompt, in_answer, in_near = count_presence(
        candidate, context_ptr, begin, length, near_ptr, tags_ptr, near_length, BLOCK
    )
    score += weigh_token(
        choice_ptr, candidate, valid, source, in_prompt, in_answer, in_near, num_near,
        last, before, salt,
    )  # fmt: skip
    low, part = prob_place(escape)
    none = tl.load(choice_ptr + ESCAPE_PROB + low) * (1.0 - part)
    none += tl.load(choice_ptr + ESCAPE_PROB + low + 1) * part
    none += tl.load(choice_ptr + ESCAPE_MATCHES + longest_near * 11 + longest_context)
    none += tl.load(choice_ptr + ESCAPE_ORDERS + num_orders * 11 + longest_near)
    score = tl.where(valid, score, NEVER)
    highest = tl.maximum(tl.max(score, axis=0), none)
    share = tl.where(valid, tl.exp(score - highest), 0.0)
    largest = tl.max(share, axis=0)
    lane = tl.arange(0, WIDTH)
    chosen = tl.min(tl.where((share == largest) & valid, lane, WIDTH), axis=0)
    chance = largest / (tl.sum(share, axis=0) + tl.exp(none - highest))
    token = tl.max(tl.where(lane == chosen, candidate, -1), axis=0)
    return token, chance, tl.max(tl.where(lane == chosen, source, 0), axis=0)
