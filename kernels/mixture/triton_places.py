# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Kernels: compile-time constants are written in capitals, and their arguments have no Python types.
"""Places of tokens in Triton: the text with its draft, lists of places, ranges of a suffix array.

The *text* is the context with BOS before the answer, and the draft so far behind it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from reprise.kernels.draft import constants
from reprise.kernels.mixture import layout as at

BOS = tl.constexpr(constants.BOS)
END = tl.constexpr(constants.END)
REMOVED = tl.constexpr(constants.REMOVED)
NUM_ORDERS = tl.constexpr(at.NUM_ORDERS)
NOTHING = tl.constexpr(-3)
"""Stands where the text has no symbol; equals none that there is."""
OUTSIDE = tl.constexpr(-4)
"""Stands where a source has no symbol; equals none, nor NOTHING."""
PROBES = tl.constexpr(64)
"""Entries of a suffix array that each search looks at in a round."""


@triton.jit
def reached(value, start):
    """1 where a value has reached the start of a bucket."""
    return (value >= start).to(tl.int32)


@triton.jit
def count_bucket(count):
    """See `evidence.count_bucket`."""
    more = reached(count, 2) + reached(count, 3) + reached(count, 5)
    return more + reached(count, 9) + reached(count, 17)


@triton.jit
def coarse_bucket(match):
    """See `evidence.coarse_bucket`."""
    return reached(match, 1) + reached(match, 2) + reached(match, 4) + reached(match, 9)


@triton.jit
def match_bucket(match):
    """See `evidence.match_bucket`."""
    more = reached(match, 5) + reached(match, 7) + reached(match, 9)
    return tl.minimum(match, 4) + more + reached(match, 13) + reached(match, 21)


@triton.jit
def second_bucket(match):
    """See `evidence.second_bucket`."""
    return reached(match, 1) + reached(match, 2) + reached(match, 4) + reached(match, 8)


@triton.jit
def hit_bucket(hits):
    """See `evidence.hit_bucket`."""
    more = reached(hits, 0.3) + reached(hits, 1.0) + reached(hits, 2.0)
    return more + reached(hits, 4.0) + reached(hits, 6.5)


@triton.jit
def text_at(context_ptr, drafted_ptr, begin, length, index, wanted):
    """The symbols of the text at indices: of the context, of the draft, or BOS."""
    token = index - (index > begin).to(tl.int32)
    is_token = wanted & (index >= 0) & (index != begin)
    known = tl.load(context_ptr + token, mask=is_token & (token < length), other=NOTHING)
    drafted = tl.load(
        drafted_ptr + token - length, mask=is_token & (token >= length), other=NOTHING
    )
    symbol = tl.where(token < length, known, drafted)
    return tl.where(wanted & (index == begin), BOS, symbol)


@triton.jit
def context_at(context_ptr, begin, index, wanted):
    """The symbols of the text at indices before the draft."""
    token = index - (index > begin).to(tl.int32)
    is_token = wanted & (index >= 0) & (index != begin)
    symbol = tl.load(context_ptr + token, mask=is_token, other=OUTSIDE)
    return tl.where(wanted & (index == begin), BOS, symbol)


@triton.jit
def list_places(
    list_ptr,  # [LIMIT] int32: out
    other_list_ptr,  # [OTHER_LIMIT] int32: out
    source_ptr,  # [size]
    size,
    token,
    other,
    LIMIT: tl.constexpr,
    OTHER_LIMIT: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """List the first places of two tokens in a source, or the last ones, the last first; the number
    of each. Readers have to wait for all threads."""
    count = tl.full([], 0, tl.int32)
    other_count = tl.full([], 0, tl.int32)
    done = tl.full([], 0, tl.int32)
    while (done < size) & ((count < LIMIT) | (other_count < OTHER_LIMIT)):
        index = done + tl.arange(0, BLOCK)
        inside = index < size
        if LAST:
            index = size - 1 - index
        symbol = tl.load(source_ptr + index, mask=inside, other=OUTSIDE)
        hit = (symbol == token).to(tl.int32)
        other_hit = (symbol == other).to(tl.int32)
        # Both counts in one number: a block has fewer than 1 << 16 places.
        hits = hit + (other_hit << 16)
        number = tl.sum(hits, axis=0)
        if number > 0:
            before = tl.cumsum(hits, axis=0) - hits
            rank = count + (before & 0xFFFF)
            other_rank = other_count + (before >> 16)
            tl.store(list_ptr + rank, index, mask=(hit > 0) & (rank < LIMIT))
            tl.store(
                other_list_ptr + other_rank,
                index,
                mask=(other_hit > 0) & (other_rank < OTHER_LIMIT),
            )
            count += number & 0xFFFF
            other_count += number >> 16
        done += BLOCK
    return tl.minimum(count, LIMIT), tl.minimum(other_count, OTHER_LIMIT)


@triton.jit
def order_ranges(
    text_ptr,
    text_length,
    order_ptr,
    order_length,
    context_ptr,
    drafted_ptr,
    begin,
    length,
    end,  # length of the text, draft included
):
    """The ranges of a suffix array that begin with the answer's last 1 to NUM_ORDERS symbols: first
    and number of each, [NUM_ORDERS] int32. All are searched for at once, at PROBES places."""
    row = tl.arange(0, 2 * NUM_ORDERS)
    match = row // 2 + 1
    behind = (row % 2 == 1)[:, None]
    probe = tl.arange(0, PROBES)[None, :] + 1
    depth = tl.arange(0, NUM_ORDERS)[:, None]
    compared = depth < match[None, :]
    symbol = text_at(
        context_ptr, drafted_ptr, begin, length, end - match[None, :] + depth, compared
    )[:, :, None]
    compared = compared[:, :, None]
    depth = depth[:, :, None]
    low = row * 0
    high = tl.where(match <= end - begin, order_length, 0)
    while tl.max(high - low, axis=0) > 0:
        size = (high - low).to(tl.int64)
        place = low[:, None] + (size[:, None] * probe // (PROBES + 1)).to(tl.int32)
        inside = tl.where(probe > 0, (low < high)[:, None], False)
        entry = tl.load(order_ptr + place, mask=inside, other=0)
        index = entry[None, :, :] + depth
        # Entries are in the text where nothing is amiss: no fault may become a read beyond it.
        readable = (entry >= 0)[None, :, :] & (entry[None, :, :] < text_length - depth)
        token = tl.load(text_ptr + index, mask=readable, other=END)
        token = tl.where(token < BOS, token - REMOVED, token)
        # The first symbol that differs decides, by the last bit: whether it is greater.
        differs = 2 * depth + (token > symbol).to(tl.int32)
        differs = tl.where(compared & (token != symbol), differs, 2 * NUM_ORDERS)
        differs = tl.min(differs, axis=0)
        is_like = differs == 2 * NUM_ORDERS
        before = (is_like & behind) | ((differs % 2 == 0) & (differs < 2 * NUM_ORDERS))
        count = tl.sum(tl.where(inside & before, 1, 0), axis=1)
        last_before = low + (size * count // (PROBES + 1)).to(tl.int32)
        first_behind = low + (size * (count + 1) // (PROBES + 1)).to(tl.int32)
        low = tl.where(count > 0, last_before + 1, low)
        high = tl.where(count < PROBES, first_behind, high)
    first, last = tl.split(tl.reshape(low, [NUM_ORDERS, 2]))
    return first, last - first
