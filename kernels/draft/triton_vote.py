# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Kernels: compile-time constants are written in capitals, and their arguments have no Python types.
"""The vote for the next token in Triton, see `reference_vote`."""

from __future__ import annotations

import triton
import triton.language as tl

from reprise.kernels.draft import constants
from reprise.kernels.draft.triton_search import ENTRY, NOTHING, symbols_at

END = tl.constexpr(constants.END)
MAX_MATCH = tl.constexpr(constants.MAX_MATCH)
MAX_SECOND = tl.constexpr(constants.MAX_SECOND)
VOTING_PLACES = tl.constexpr(constants.VOTING_PLACES)
FIRST_VOTES = tl.constexpr(constants.FIRST_VOTES)
VOTES_HALVE = tl.constexpr(constants.VOTES_HALVE)


@triton.jit
def _match_back(source_ptr, at, floor, context_ptr, begin, seen, wanted, WITH_BOS: tl.constexpr):
    """How many symbols up to an index of the source equal those up to one of the context."""
    alive = wanted
    count = tl.zeros_like(at)
    for back in tl.static_range(MAX_SECOND):
        # What is read does not depend on what matches, so that all loads are under way at once.
        symbol = symbols_at(context_ptr, begin, seen - back, wanted, WITH_BOS)
        token = tl.load(
            source_ptr + at - back, mask=wanted & (at - back >= floor), other=NOTHING - 1
        )
        alive = alive & (token == symbol)
        count += alive.to(tl.int32)
    return count


@triton.jit
def _voters(
    voters_ptr,  # [VOTING_PLACES]
    count,
    source_ptr,
    split,
    context_ptr,
    length,
    begin,
    WITH_BOS: tl.constexpr,
    LAST: tl.constexpr,
):
    """Token, votes, place, match and match beyond that of each voter, [VOTING_PLACES] int32;
    0 votes: none."""
    slot = tl.arange(0, VOTING_PLACES)
    votes = slot < count
    entry = tl.load(voters_ptr + slot, mask=votes, other=0)
    place = entry // ENTRY
    match = entry - place * ENTRY
    token = tl.load(source_ptr + place, mask=votes, other=END)
    floor = tl.where(place > split, split, 0)
    at = place - 1 - match
    seen = length - 1 - match
    differs = tl.load(source_ptr + at, mask=votes & (at >= floor), other=END)
    is_open = (differs >= 0) & (seen >= begin)
    replaced = _match_back(
        source_ptr, at - 1, floor, context_ptr, begin, seen - 1, is_open, WITH_BOS
    )
    more = _match_back(source_ptr, at - 1, floor, context_ptr, begin, seen, is_open, WITH_BOS)
    less = _match_back(source_ptr, at, floor, context_ptr, begin, seen - 1, is_open, WITH_BOS)
    second = tl.maximum(replaced, tl.maximum(more, less))
    second = tl.where(match == MAX_MATCH, MAX_SECOND, second)
    # The last ones are kept in a ring.
    rank = (count - 1 - slot) % VOTING_PLACES if LAST else slot
    each = FIRST_VOTES * VOTES_HALVE // (VOTES_HALVE + tl.where(votes, rank, 0))
    return token, tl.where(votes, (match + second) * each, 0), place, match, second


@triton.jit
def _by_turns(first, second):
    """One of the first, one of the second, and so on: [2 * VOTING_PLACES]."""
    return tl.reshape(tl.join(first, second), [2 * VOTING_PLACES])


@triton.jit
def vote(
    voters_ptr,  # [2, VOTING_PLACES]
    near_ptr,
    near_count,
    near_match,  # the longest
    near_place,  # of the first of them
    context_ptr,
    context_count,
    length,
    begin,
):
    """Match and place of the voter to copy from, and whether it is in the context; 0: none. And the
    place of the longest match in the near answers that matches most beyond a difference."""
    token, votes, place, match, second = _voters(
        voters_ptr, near_count, near_ptr, 0, context_ptr, length, begin, True, False
    )
    slot = tl.arange(0, VOTING_PLACES)
    rank = second * VOTING_PLACES + VOTING_PLACES - slot
    rank = tl.where((votes > 0) & (match == near_match), rank, 0)
    furthest = tl.max(rank, axis=0)
    found = tl.max(tl.where(rank == furthest, place, 0), axis=0)
    near_place = tl.where(furthest > 0, found, near_place)
    others = _voters(
        voters_ptr + VOTING_PLACES, context_count, context_ptr, begin, context_ptr, length, begin,
        False, True,
    )  # fmt: skip
    token, votes = _by_turns(token, others[0]), _by_turns(votes, others[1])
    place, match = _by_turns(place, others[2]), _by_turns(match, others[3])
    same = token[:, None] == token[None, :]
    total = tl.sum(tl.where(same, votes[None, :], 0), axis=1)
    index = tl.arange(0, 2 * VOTING_PLACES)
    rank = (total * ENTRY + match) * (2 * VOTING_PLACES) + 2 * VOTING_PLACES - 1 - index
    best = tl.max(tl.where(votes > 0, rank, 0), axis=0)
    chosen = (rank == best) & (votes > 0)
    match = tl.max(tl.where(chosen, match, 0), axis=0)
    place = tl.max(tl.where(chosen, place, 0), axis=0)
    in_context = tl.max(tl.where(chosen, index % 2, 0), axis=0) > 0
    return match, place, in_context, near_place
