# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Kernels: compile-time constants are written in capitals, and their arguments have no Python types.
"""Evidence of the corpus in Triton: see `evidence`."""

from __future__ import annotations

import triton
import triton.language as tl

from reprise.kernels.mixture import evidence, layout, scratch
from reprise.kernels.mixture.triton_near import keep_pieces, weigh
from reprise.kernels.mixture.triton_places import (
    BOS,
    END,
    NOTHING,
    NUM_ORDERS,
    OUTSIDE,
    count_bucket,
    list_places,
    order_ranges,
    text_at,
)

TOKEN_SPAN = tl.constexpr(1 << 26)
"""More than there are tokens in a vocabulary."""
SAMPLED = tl.constexpr(evidence.SAMPLED)
USED = tl.constexpr(evidence.USED_SUCCESSORS)
COUNTS = tl.constexpr(layout.COUNTS)
CORPUS_COUNT = tl.constexpr(layout.CORPUS_COUNT)
CORPUS_DEPTH = tl.constexpr(layout.CORPUS_DEPTH)
VOTES = tl.constexpr(scratch.VOTES)
RECENT_PLACES = tl.constexpr(scratch.RECENT_PLACES)
PLACES = tl.constexpr(scratch.PLACES)
SKIPPED_PLACES = tl.constexpr(scratch.SKIPPED_PLACES)
VOTED = tl.constexpr(scratch.VOTED)
SUCCESSORS = tl.constexpr(scratch.SUCCESSORS)
NUMBERS = tl.constexpr(scratch.NUMBERS)
TOTALS = tl.constexpr(scratch.TOTALS)


@triton.jit
def share_bucket(count, total):
    """See `reference.share_bucket`."""
    share = 1 + (4 * count >= total).to(tl.int32) + (5 * count >= 4 * total).to(tl.int32)
    return tl.where(count > 0, share, 0)


@triton.jit
def vote(words_ptr, text_ptr, text_length, order_ptr, first, size):
    """See `evidence._sorted_successors`, of all orders: keep successors, the commonest first, their
    numbers, the totals, and each vote's token where it is the first for it."""
    order = tl.arange(0, NUM_ORDERS)
    lane = tl.arange(0, VOTES)
    asked = (2 * lane[None, :] + 1) * size.to(tl.int64)[:, None] // (2 * SAMPLED)
    is_few = (size <= SAMPLED)[:, None]
    asked = tl.where(is_few, lane[None, :], asked.to(tl.int32))
    valid = (lane[None, :] < size[:, None]) & (lane[None, :] < SAMPLED)
    entry = tl.load(order_ptr + first[:, None] + asked, mask=valid, other=0)
    place = entry + order[:, None] + 1
    valid &= (entry >= 0) & (entry < text_length - order[:, None] - 1)
    token = tl.load(text_ptr + place, mask=valid, other=END)
    before = tl.load(text_ptr + place - 1, mask=valid, other=0)
    removed = valid & ((token < BOS) | ((token == END) & (before < BOS)))
    num_removed = tl.sum(removed.to(tl.int32), axis=1)
    scaled = (num_removed.to(tl.int64) * size // SAMPLED).to(tl.int32)
    tl.store(words_ptr + TOTALS + order, size - tl.where(size <= SAMPLED, num_removed, scaled))
    valid &= token >= 0
    # Votes are on the last axis and others on the one before, which is reduced.
    same = (token[:, :, None] == token[:, None, :]) & valid[:, :, None]
    count = tl.sum(same.to(tl.int32), axis=1)
    earlier = same & (lane[None, :, None] < lane[None, None, :])
    is_first = valid & (tl.sum(earlier.to(tl.int32), axis=1) == 0)
    # The commonest first, of those the least.
    key = tl.where(is_first, count * TOKEN_SPAN + TOKEN_SPAN - 1 - token, -1)
    rank = tl.sum((key[:, :, None] > key[:, None, :]).to(tl.int32), axis=1)
    scaled = tl.maximum(1, (count.to(tl.int64) * size[:, None] // SAMPLED).to(tl.int32))
    number = tl.where(is_few, count, scaled)
    slot = order[:, None] * USED + rank
    used = is_first & (rank < USED)
    index = order[:, None] * VOTES + lane[None, :]
    tl.store(words_ptr + VOTED + index, tl.where(is_first, token, -1))
    lane = tl.arange(0, NUM_ORDERS * USED)
    tl.store(words_ptr + SUCCESSORS + lane, lane * 0 - 1)
    tl.store(words_ptr + NUMBERS + lane, lane * 0)
    tl.debug_barrier()
    tl.store(words_ptr + SUCCESSORS + slot, token, mask=used)
    tl.store(words_ptr + NUMBERS + slot, number, mask=used)


@triton.jit
def add_recent(
    words_ptr, recent_ptr, recent_length, context_ptr, drafted_ptr, begin, length, end, count
):
    """Add the `count` places that are listed of answers that are not sorted yet."""
    lane = tl.arange(0, RECENT_PLACES)
    place = tl.load(words_ptr + PLACES + lane, mask=lane < count, other=0)
    valid = (lane < count) & (place + 1 < recent_length)
    token = tl.load(recent_ptr + place + 1, mask=valid, other=-1)
    valid &= token >= 0
    back = tl.arange(0, NUM_ORDERS)
    own = text_at(context_ptr, drafted_ptr, begin, length, end - 1 - back, back < end - begin)
    back = back[:, None]
    index = place[None, :] - back
    symbol = tl.load(recent_ptr + index, mask=valid[None, :] & (index >= 0), other=OUTSIDE)
    match = tl.min(tl.where(symbol != own[:, None], back, NUM_ORDERS), axis=0)
    same = token[:, None] == token[None, :]
    earlier = same & (lane[:, None] < lane[None, :])
    used = tl.arange(0, USED)
    votes = tl.arange(0, VOTES)
    for order in tl.static_range(NUM_ORDERS):
        active = valid & (match > order)
        number = tl.sum(active.to(tl.int32), axis=0)
        if number > 0:
            total = tl.load(words_ptr + TOTALS + order)
            voted = tl.load(words_ptr + VOTED + order * VOTES + votes)
            successor = tl.load(words_ptr + SUCCESSORS + order * USED + used)
            more = (token[:, None] == successor[None, :]) & active[:, None]
            numbers = tl.load(words_ptr + NUMBERS + order * USED + used)
            numbers += tl.sum(more.to(tl.int32), axis=0)
            known = tl.sum((voted[:, None] == token[None, :]).to(tl.int32), axis=0)
            repeated = tl.sum((earlier & active[:, None]).to(tl.int32), axis=0)
            is_new = (active & (known == 0) & (repeated == 0)).to(tl.int32)
            slot = tl.sum((voted >= 0).to(tl.int32), axis=0)
            slot += tl.cumsum(is_new, axis=0) - is_new
            counted = tl.sum((same & active[:, None]).to(tl.int32), axis=0)
            tl.debug_barrier()
            tl.store(words_ptr + TOTALS + order, total + number)
            tl.store(words_ptr + NUMBERS + order * USED + used, numbers, mask=successor >= 0)
            fits = (is_new > 0) & (slot < USED)
            slot += order * USED
            tl.store(words_ptr + SUCCESSORS + slot, token, mask=fits)
            tl.store(words_ptr + NUMBERS + slot, counted, mask=fits)


@triton.jit
def find_corpus(
    mixture_ptr, choice_ptr, words_ptr, floats_ptr, context_ptr, drafted_ptr, begin, length, end,
    text_ptr, text_length, order_ptr, order_length, recent_begin, last, piece, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keep the evidence of the corpus, from index `piece` on; how many orders are found, and the
    index behind it."""
    first, size = order_ranges(
        text_ptr, text_length, order_ptr, order_length, context_ptr, drafted_ptr, begin, length, end
    )
    vote(words_ptr, text_ptr, text_length, order_ptr, first, size)
    recent_ptr = text_ptr + recent_begin
    recent_length = text_length - recent_begin
    count, _ = list_places(
        words_ptr + PLACES, words_ptr + SKIPPED_PLACES, recent_ptr, recent_length - 1,
        last, NOTHING, RECENT_PLACES, 0, True, BLOCK,
    )  # fmt: skip
    tl.debug_barrier()
    if count > 0:
        add_recent(
            words_ptr, recent_ptr, recent_length, context_ptr, drafted_ptr, begin, length, end,
            count,
        )  # fmt: skip
    tl.debug_barrier()
    order = tl.arange(0, NUM_ORDERS)
    total = tl.load(words_ptr + TOTALS + order)
    num_orders = tl.max(tl.where(total > 0, order + 1, 0), axis=0)
    lane = tl.arange(0, NUM_ORDERS * USED)
    order = lane // USED
    token = tl.load(words_ptr + SUCCESSORS + lane)
    count = tl.load(words_ptr + NUMBERS + lane)
    total = tl.load(words_ptr + TOTALS + order)
    valid = (token >= 0) & (order < num_orders)
    counted = count_bucket(count)
    zero = tl.zeros([NUM_ORDERS * USED], tl.float32)
    feature = CORPUS_COUNT + (order * COUNTS + counted) * COUNTS + count_bucket(total)
    score, best = weigh(mixture_ptr, choice_ptr, zero, zero, feature, valid)
    feature = CORPUS_DEPTH + (num_orders - 1 - order) * COUNTS + counted
    score, best = weigh(mixture_ptr, choice_ptr, score, best, feature, valid)
    # Of each order, the bucket of its count, from 1, and 8 times that of its share.
    code = (1 + counted + 8 * share_bucket(count, total)) << (5 * order)
    keep_pieces(words_ptr, floats_ptr, piece + lane, token, code, score, best, valid)
    return num_orders, piece + num_orders * USED
