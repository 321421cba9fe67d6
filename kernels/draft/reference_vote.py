"""The vote for the next token, in numpy: the definition that the kernel is held to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from reprise.kernels.draft.constants import (
    BOS,
    END,
    FIRST_VOTES,
    MAX_MATCH,
    MAX_SECOND,
    VOTES_HALVE,
    VOTING_PLACES,
)

_NOTHING = -3  # equals no token and no mark

Ints = npt.NDArray[np.int64]


class Voters(NamedTuple):
    """Places of tokens that follow a match in a source, in the order of their slots."""

    places: Ints  # [n]
    matches: Ints  # [n]
    ranks: Ints  # [n], the first or last one's 0


def find_voters(found: torch.Tensor, *, last: bool) -> Voters:
    """The first, or last, of the places after matches, which `found` has for each index. Of the
    last ones the n-th of all is in slot n modulo VOTING_PLACES."""
    indices = np.flatnonzero(found.numpy())
    number = len(indices)
    indices = indices[-VOTING_PLACES:] if last else indices[:VOTING_PLACES]
    ranks = np.arange(len(indices))
    if last:
        ranks = ranks[::-1]
    if last and number > VOTING_PLACES:
        indices, ranks = np.roll(indices, number), np.roll(ranks, number)
    return Voters(indices + 1, found.numpy()[indices], ranks)


def best_beyond(voters: Voters, second: Ints, match: int, place: int) -> int:
    """Of the voters with this match, the place of the first that matches most beyond it; `place`
    where there is none."""
    longest = np.where(voters.matches == match, second, -1)
    if not len(longest) or longest.max() < 0:
        return place
    return int(voters.places[longest.argmax()])


def vote(
    near: npt.NDArray[np.int32],
    near_voters: Voters,
    near_second: Ints,
    text: npt.NDArray[np.int32],
    context_voters: Voters,
    context_second: Ints,
) -> tuple[int, int, bool]:
    """Match and place of the one voter to copy from, and whether it is in the context; 0: none.

    A voter has votes for all symbols of its match and of what matches beyond it, more the earlier
    its rank is. Of the voters for the token that has most, the one with the longest
    match is chosen; then the one in the first slot, near answers before the context.
    """
    tokens, votes, voters = [], [], []
    for source, (places, matches, ranks), second, in_context in (
        (near, near_voters, near_second, False),
        (text, context_voters, context_second, True),
    ):
        each = FIRST_VOTES * VOTES_HALVE // (VOTES_HALVE + ranks)
        tokens += source[places].tolist()
        votes += ((matches + second) * each).tolist()
        for slot, (match, place) in enumerate(zip(matches.tolist(), places.tolist(), strict=True)):
            voters.append((match, slot, place, in_context))
    sums: dict[int, int] = {}
    for token, many in zip(tokens, votes, strict=True):
        sums[token] = sums.get(token, 0) + many
    best = max(
        (
            (sums[token], match, -slot, not in_context, place)
            for token, (match, slot, place, in_context) in zip(tokens, voters, strict=True)
        ),
        default=(0, 0, 0, True, 0),
    )
    _, match, _, in_near, place = best
    return match, place, not in_near


def second_matches(
    source: npt.NDArray[np.int32],
    voters: Voters,
    text: npt.NDArray[np.int32],
    begin: int,
    *,
    in_context: bool,
) -> Ints:
    """How many symbols of each voter, [n], match beyond the one before which its match ends: one is
    replaced, there is one more in the source, or one less. MAX_SECOND where a match may be longer
    than is told."""
    places, matches, _ = voters
    floor = np.where(in_context & (places > begin), begin, 0)
    at, seen = places - 1 - matches, len(text) - 1 - matches
    differs = symbols_at(source, at, at >= floor, END)
    back = np.arange(MAX_SECOND)
    here = (at[:, None] - [1, 1, 0])[..., None] - back  # [n, 3, MAX_SECOND]
    there = (seen[:, None] - [1, 0, 1])[..., None] - back
    symbols = symbols_at(text, there, there >= begin, _NOTHING)
    if not in_context:
        symbols[there == begin - 1] = BOS
    alike = symbols_at(source, here, here >= floor[:, None, None], _NOTHING - 1) == symbols
    second: Ints = np.logical_and.accumulate(alike, axis=2).sum(axis=2).max(axis=1)
    second[(differs < 0) | (seen < begin)] = 0
    second[matches == MAX_MATCH] = MAX_SECOND
    return second


def symbols_at(
    source: npt.NDArray[np.int32], indices: Ints, wanted: npt.NDArray[np.bool_], other: int
) -> Ints:
    """What is at indices that are wanted, and `other` elsewhere."""
    found: Ints = np.full(indices.shape, other, np.int64)
    found[wanted] = source[indices[wanted]]
    return found
