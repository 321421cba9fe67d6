# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Kernels: compile-time constants are written in capitals, and their arguments have no Python types.
"""Longest matches in Triton: in tokens that are scanned, and by a suffix array."""

from __future__ import annotations

import triton
import triton.language as tl

from reprise.kernels.draft import constants

BOS = tl.constexpr(constants.BOS)
END = tl.constexpr(constants.END)
REMOVED = tl.constexpr(constants.REMOVED)
MAX_MATCH = tl.constexpr(constants.MAX_MATCH)
VOTES = tl.constexpr(constants.VOTES)
VOTING_PLACES = tl.constexpr(constants.VOTING_PLACES)
ENTRY = tl.constexpr(constants.ENTRY)
PROBES = tl.constexpr(16)  # of each search, at a time: a million entries take five rounds
SPAN = tl.constexpr(1 << 26)  # more than there are positions in what is scanned
NOTHING = tl.constexpr(-3)  # equals no token and no mark


@triton.jit
def symbols_at(context_ptr, begin, index, wanted, WITH_BOS: tl.constexpr):
    """The symbols at indices of a request's answer, its BOS before them and nothing before that."""
    symbol = tl.load(context_ptr + index, mask=wanted & (index >= begin), other=NOTHING)
    if WITH_BOS:
        symbol = tl.where(index == begin - 1, BOS, symbol)
    return symbol


@triton.jit
def scan(
    source_ptr,  # [size]
    size,
    split,  # no match reaches across this index of the source
    context_ptr,
    length,
    begin,
    WITH_BOS: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    voters_ptr=None,  # [VOTING_PLACES]: out
):
    """Longest match of the context's end in a source, and the index of the token that follows the
    last of them, or the first; 0, 0: none. The last or first of all matches are kept as voters, if
    these are asked for; last, how many matches there are then."""
    best = tl.zeros([BLOCK], tl.int32)
    count = tl.full([], 0, tl.int32)
    newest = symbols_at(context_ptr, begin, length - 1, length > 0, WITH_BOS)
    for block in range(0, size - 1, BLOCK):
        index = block + tl.arange(0, BLOCK)
        token = tl.load(source_ptr + index, mask=index < size - 1, other=NOTHING - 1)
        alive = (token == newest) & (index != split - 1)
        if tl.max(alive.to(tl.int32), axis=0) > 0:
            following = tl.load(source_ptr + index + 1, mask=alive, other=END)
            alive = following >= 0
            match = alive.to(tl.int32)
            floor = tl.where(index >= split, split, 0)
            back = 1
            while (back < MAX_MATCH) & (tl.max(alive.to(tl.int32), axis=0) > 0):
                symbol = symbols_at(context_ptr, begin, length - 1 - back, True, WITH_BOS)
                reached = alive & (index - back >= floor)
                token = tl.load(source_ptr + index - back, mask=reached, other=NOTHING - 1)
                alive = token == symbol
                match += alive.to(tl.int32)
                back += 1
            order = index if LAST else SPAN - 1 - index
            best = tl.maximum(best, tl.where(match > 0, match * SPAN + order, 0))
            if voters_ptr is not None:
                found = (match > 0).to(tl.int32)
                rank = count + tl.cumsum(found, axis=0) - 1
                count += tl.sum(found, axis=0)
                kept = (rank >= count - VOTING_PLACES) if LAST else (rank < VOTING_PLACES)
                entry = (index + 1) * ENTRY + match
                tl.store(voters_ptr + rank % VOTING_PLACES, entry, mask=(match > 0) & kept)
                # Those of the next block may take their slots.
                tl.debug_barrier()
    top = tl.max(best, axis=0)
    match = top // SPAN
    order = top - match * SPAN
    found = order if LAST else SPAN - 1 - order
    return match, tl.where(match > 0, found + 1, 0), count


@triton.jit
def _signs(
    text_ptr,
    text_length,
    entry,  # [2 * MAX_MATCH, PROBES]: indices of suffixes
    match,  # [2 * MAX_MATCH]: how many tokens are compared
    context_ptr,
    length,
    begin,
):
    """-1, 0 or 1: suffixes before, like and behind the context's last `match` symbols."""
    sign = entry * 0
    for depth in tl.static_range(MAX_MATCH):
        # What is compared does not depend on what was, so that all loads are under way at once.
        symbol = symbols_at(context_ptr, begin, length - match + depth, match > depth, True)[
            :, None
        ]
        # Entries are in the text where nothing is amiss: no fault may become a read beyond it.
        inside = (entry >= 0) & (entry < text_length - depth)
        token = tl.load(text_ptr + entry + depth, mask=inside, other=END)
        token = tl.where(token < BOS, token - REMOVED, token)
        differs = (token > symbol).to(tl.int32) - (token < symbol).to(tl.int32)
        undecided = tl.where((match > depth)[:, None], sign == 0, False)
        sign = tl.where(undecided, differs, sign)
    return sign


@triton.jit
def search_order(text_ptr, text_length, order_ptr, order_length, context_ptr, length, begin):
    """The ranges of a suffix array that begin with the context's last 1, 2, ... MAX_MATCH symbols:
    first and number of each, [MAX_MATCH] int32. All are searched for at once, at PROBES places."""
    row = tl.arange(0, 2 * MAX_MATCH)
    match = row // 2 + 1
    behind = (row % 2 == 1)[:, None]
    probe = tl.arange(0, PROBES)[None, :] + 1
    low = row * 0
    high = tl.where(match <= length - begin + 1, order_length, 0)
    while tl.max(high - low, axis=0) > 0:
        size = (high - low).to(tl.int64)
        at = low[:, None] + (size[:, None] * probe // (PROBES + 1)).to(tl.int32)
        inside = tl.where((probe > 0), (low < high)[:, None], False)
        entry = tl.load(order_ptr + at, mask=inside, other=0)
        sign = _signs(text_ptr, text_length, entry, match, context_ptr, length, begin)
        before = (sign < 0) | ((sign == 0) & behind)
        count = tl.sum(tl.where(inside & before, 1, 0), axis=1)
        last_before = low + (size * count // (PROBES + 1)).to(tl.int32)
        first_behind = low + (size * (count + 1) // (PROBES + 1)).to(tl.int32)
        low = tl.where(count > 0, last_before + 1, low)
        high = tl.where(count < PROBES, first_behind, high)
    first, last = tl.split(tl.reshape(low, [MAX_MATCH, 2]))
    return first, last - first


@triton.jit
def commonest_longest(text_ptr, text_length, order_ptr, order_length, context_ptr, length, begin):
    """Longest match of the context's end by a suffix array, and the index of the last token that
    follows it among those of the commonest; 0, 0: none."""
    first, size = search_order(
        text_ptr, text_length, order_ptr, order_length, context_ptr, length, begin
    )
    match = tl.arange(0, MAX_MATCH) + 1
    vote = tl.arange(0, VOTES)[None, :]
    spread = (size.to(tl.int64)[:, None] * (2 * vote + 1) // (2 * VOTES)).to(tl.int32)
    asked = tl.where(size[:, None] <= VOTES, vote, spread)
    entry = tl.load(order_ptr + first[:, None] + asked, mask=vote < size[:, None], other=0)
    place = entry + match[:, None]
    known = (vote < size[:, None]) & (entry >= 0) & (entry < text_length - match[:, None])
    token = tl.load(text_ptr + place, mask=known, other=END)
    longest = tl.max(tl.where(tl.max(token, axis=1) >= 0, match, 0), axis=0)
    chosen = (match == longest)[:, None]
    tokens = tl.max(tl.where(chosen, token, END - 1), axis=0)  # [VOTES]
    places = tl.max(tl.where(chosen, place, 0), axis=0)
    count = tl.sum((tokens[:, None] == tokens[None, :]).to(tl.int64), axis=1)
    ranked = tl.where(tokens >= 0, (count << 32) + places, 0)
    return longest, (tl.max(ranked, axis=0) & 0x7FFFFFFF).to(tl.int32)
