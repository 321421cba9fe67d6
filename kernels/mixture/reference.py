"""The core of the host's predictor in plain Python: mixture over evidence, choice among candidates.

`predict` is the host's prediction of one token from the evidence of `mixture_evidence`: the same
weights, the same probabilities, up to float32's rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from reprise.kernels.mixture import layout as at
from reprise.kernels.mixture.evidence import (
    USED_SUCCESSORS,
    Alignment,
    NearTexts,
    Orders,
    Piece,
    SortedAnswers,
    Text,
    advance,
    bucket,
    clause_switches,
    context_evidence,
    context_skipped,
    corpus_evidence,
    corpus_orders,
    count_bucket,
    near_evidence,
    near_skipped,
)

MAX_CANDIDATES = 6
LONGEST_ESCAPE = 10
RECENT_HITS = 2.0
ONE = float(1 << 40)
"""Shares of a mixture are added as whole numbers of which this is 1: in any order the sum is the
same, so that equal candidates are ranked alike everywhere."""
MIN_MATCHES = (1, 2, 3, 4, 6, 8, 12, 16)


class Weights(NamedTuple):
    """The host's two tables and the namespace's salt of hashed features."""

    mixture: Sequence[float]  # [NUM_MIXTURE]
    choice: Sequence[float]  # [NUM_CHOICE]
    salt: int = 0


class Presence(NamedTuple):
    """How often tokens are in a request's prompt, its answer, and in how many near answers."""

    prompt: Mapping[int, int]
    output: Mapping[int, int]
    near: Mapping[int, int]


class Candidate(NamedTuple):
    """One of the likeliest next tokens."""

    token: int
    prob: float  # the mixture's
    best: Piece  # what says most for it


class Evidence(NamedTuple):
    """All that predicts the next token."""

    near: list[Piece]
    context: list[Piece]
    corpus: list[Piece]
    orders: Orders
    num_orders: int

    @property
    def pieces(self) -> list[Piece]:
        return [*self.near, *self.context, *self.corpus]


class Prediction(NamedTuple):
    """The next token and what was found out on the way."""

    token: int  # -1: no candidate
    prob: float
    evidence: Evidence
    candidates: list[Candidate]
    probs: list[float]  # of the candidates, by the choice; the last is "none of them"


def collect(text: Text, near: NearTexts, alignment: Alignment, corpus: SortedAnswers) -> Evidence:
    """The evidence of all sources."""
    found = near_pieces(text, near, alignment)
    orders = corpus_orders(text, corpus)
    pieces, num_orders = corpus_evidence(orders)
    context = context_evidence(text) + context_skipped(text)
    return Evidence(found, context, pieces, orders, num_orders)


def near_pieces(text: Text, near: NearTexts, alignment: Alignment) -> list[Piece]:
    """The evidence of near answers."""
    if not near.starts:
        return []
    found = near_evidence(text, near, alignment) + near_skipped(text, near, alignment)
    return found + clause_switches(near, alignment)


def longest(pieces: Sequence[Piece]) -> int:
    """The longest match of any."""
    return max((piece.match for piece in pieces), default=0)


def mix(evidence: Evidence, weights: Sequence[float]) -> tuple[list[Candidate], float]:
    """The likeliest tokens of a softmax over all pieces, and the share of none of them."""
    escape = (
        weights[at.ESCAPE_NEAR + min(longest(evidence.near), LONGEST_ESCAPE)]
        + weights[at.ESCAPE_CONTEXT + min(longest(evidence.context), LONGEST_ESCAPE)]
        + weights[at.ESCAPE_CORPUS + evidence.num_orders]
    )
    pieces = evidence.pieces
    scores = [sum(weights[f] for f in piece.features) for piece in pieces]
    highest = max([escape, *scores])
    shares = [int(math.exp(score - highest) * ONE + 0.5) for score in scores]
    none = int(math.exp(escape - highest) * ONE + 0.5)
    total = none + sum(shares)
    sums: dict[int, int] = {}
    best: dict[int, int] = {}
    for i, piece in enumerate(pieces):
        sums[piece.token] = sums.get(piece.token, 0) + shares[i]
        if piece.token not in best or shares[i] > shares[best[piece.token]]:
            best[piece.token] = i
    ranked = sorted(sums, key=lambda token: -sums[token])[:MAX_CANDIDATES]
    candidates = [Candidate(token, sums[token] / total, pieces[best[token]]) for token in ranked]
    return candidates, none / total


def cell(count: int, total: int) -> int:
    """(absent or count bucket, total bucket) as one number below CELL."""
    return (0 if count == 0 else 1 + count_bucket(count)) * 7 + count_bucket(total)


def share_bucket(count: int, total: int) -> int:
    """0..3: absent, below a quarter, below four fifths, above."""
    return (count > 0) * (1 + (4 * count >= total) + (5 * count >= 4 * total))


def near_share(count: int, total: int) -> int:
    """0..4: share_bucket, in which certainty from several places is told from that of one."""
    share = share_bucket(count, total)
    return 4 if share == 3 and count > 1 else share


def prob_bin(prob: float) -> tuple[int, float]:
    """The lower of two bins of ln(probability), half a unit wide, and how far it is to the next."""
    place = min(max((math.log(prob + 1e-9) + 8.5) * 2.0, 0.0), at.PROB_BINS - 2.01)
    return int(place), place - int(place)


def matches_met(pieces: Sequence[Piece], token: int | None = None) -> list[int]:
    """How many pieces, of all or of a token's, match as much as each of MIN_MATCHES."""
    return [
        sum(piece.match >= least for piece in pieces if token is None or piece.token == token)
        for least in MIN_MATCHES
    ]


def reach_bucket(reach: int) -> int:
    """0..4 for a longest threshold or order of none, 1-2, 3-4, 5-6, 7+."""
    return min(4, (reach + 1) // 2)


def last_met(counts: Sequence[int]) -> int:
    """How many of the thresholds, or orders, up to the last that any meets."""
    return max((k + 1 for k, count in enumerate(counts) if count > 0), default=0)


class _Counts(NamedTuple):
    """What the features of a candidate are made from."""

    near: list[int]
    near_total: list[int]
    context: list[int]
    context_total: list[int]
    corpus: list[int]
    corpus_total: list[int]
    aligned: list[int]
    aligned_total: list[int]


def count_candidate(
    token: int, evidence: Evidence, near: NearTexts, alignment: Alignment
) -> _Counts:
    """Count a candidate's places by match length, its successors by order, and near answers whose
    pointer is at it, and of those the ones with recent hits."""
    orders = evidence.orders
    used = [
        dict(list(zip(orders.tokens[o], orders.counts[o], strict=True))[:USED_SUCCESSORS])
        for o in range(evidence.num_orders)
    ]
    aligned, total = [0, 0], [0, 0]
    for piece in evidence.near:
        index = near.tags[piece.place] & 255
        if piece.place == alignment.pointers[index]:
            recent = int(alignment.hits[index] >= RECENT_HITS)
            for k, one in enumerate((1, recent)):
                total[k] += one
                aligned[k] += one * (piece.token == token)
    return _Counts(
        matches_met(evidence.near, token),
        matches_met(evidence.near),
        matches_met(evidence.context, token),
        matches_met(evidence.context),
        [found.get(token, 0) for found in used],
        orders.totals[: evidence.num_orders],
        aligned,
        total,
    )


def count_features(counts: _Counts, low: int) -> list[int]:
    """Features of a candidate's counts; `low`: the lower bin of its probability."""
    num_orders = len(counts.corpus)
    found = [
        at.ORDER_CELL + o * at.CELL + cell(counts.corpus[o], counts.corpus_total[o])
        for o in range(num_orders)
    ]
    corpus_share = 0
    if num_orders:
        shares = 0
        for depth, o in enumerate(range(num_orders - 1, max(num_orders - 4, -1), -1)):
            found.append(
                at.DEPTH_CELL + depth * at.CELL + cell(counts.corpus[o], counts.corpus_total[o])
            )
            shares = shares * 4 + share_bucket(counts.corpus[o], counts.corpus_total[o])
        total = counts.corpus_total[-1]
        found.append(at.DEPTH_SHARES + shares * at.COUNTS + count_bucket(total))
        corpus_share = share_bucket(counts.corpus[-1], total)
    tables = [(at.NEAR_CELL, counts.near, counts.near_total)]
    tables += [(at.CONTEXT_CELL, counts.context, counts.context_total)]
    for begin, own, totals in tables:
        found += [
            begin + k * at.CELL + cell(own[k], totals[k])
            for k in range(at.THRESHOLDS)
            if totals[k] > 0
        ]
    longest_near = max(last_met(counts.near_total) - 1, 0)
    if counts.near_total[0] > 0:
        shorter = max(longest_near - 1, 0)
        share = near_share(counts.near[longest_near], counts.near_total[longest_near]) * 5
        share += near_share(counts.near[shorter], counts.near_total[shorter])
        found.append(at.NEAR_SHARES + longest_near * 25 + share)
    near, context = last_met(counts.near), last_met(counts.context)
    order = reach_bucket(last_met(counts.corpus))
    found.append(at.REACH + (near * 5 + reach_bucket(context)) * 5 + order)
    part = near_share(counts.near[longest_near], counts.near_total[longest_near]) * 4 + corpus_share
    found.append(at.SHARES + (part * 4 + longest_near // 2) * 5 + reach_bucket(num_orders))
    found += [at.PROB_REACH + low * 9 + near, at.PROB_ORDER + low * 5 + order]
    found += [
        at.ALIGNED_CELL + k * at.CELL + cell(counts.aligned[k], counts.aligned_total[k])
        for k in range(2)
        if counts.aligned_total[k] > 0
    ]
    return found


def hashed_features(token: int, last: int, before: int, salt: int) -> list[int]:
    """The candidate by itself and after the last two tokens, hashed with the namespace's salt."""
    alone = token * 0x9E3779B1 + salt
    pair = alone + (last + 3) * 0x85EBCA77
    triple = pair + (before + 3) * 0xC2B2AE3D
    return [
        at.HASHED_TOKEN + (alone >> 9 & 4095),
        at.HASHED_PAIR + (pair >> 11 & 8191),
        at.HASHED_TRIPLE + (triple >> 11 & 8191),
    ]


def score_candidate(
    candidate: Candidate,
    rank: int,
    counts: _Counts,
    text: Text,
    presence: Presence,
    num_near: int,
    weights: Weights,
) -> float:
    """The choice's score of a candidate."""
    token, source, table = candidate.token, candidate.best.source, weights.choice
    low, fraction = prob_bin(candidate.prob)
    block = at.PROB + (1 + source) * at.PROB_BINS
    score = (table[at.PROB + low] + table[block + low]) * (1.0 - fraction)
    score += (table[at.PROB + low + 1] + table[block + low + 1]) * fraction
    present = min(2, presence.prompt.get(token, 0)) * 3 + min(2, presence.output.get(token, 0))
    in_near = presence.near.get(token, 0)
    near_present = bucket(num_near, 4, 12, 24) * 7 + bucket(in_near, 1, 2, 3, 5, 9, 17)
    own = text.token_ids
    features = [
        at.PRESENCE + present * 3 + source,
        at.CANDIDATE_RANK + min(rank, 4),
        at.NEAR_PRESENCE + near_present * 3 + source,
        *count_features(counts, low),
        *hashed_features(token, own[-1], own[max(len(own) - 2, 0)], weights.salt),
        *(at.BEST_EVIDENCE + feature for feature in candidate.best.features),
    ]
    return score + sum(table[feature] for feature in features)


def score_escape(evidence: Evidence, escape: float, table: Sequence[float]) -> float:
    """The choice's score of "none of them"."""
    near = min(longest(evidence.near), LONGEST_ESCAPE)
    context = min(longest(evidence.context), LONGEST_ESCAPE)
    low, fraction = prob_bin(escape)
    score = table[at.ESCAPE_PROB + low] * (1.0 - fraction)
    score += table[at.ESCAPE_PROB + low + 1] * fraction
    return (
        score
        + table[at.ESCAPE_MATCHES + near * 11 + context]
        + table[at.ESCAPE_ORDERS + evidence.num_orders * 11 + near]
    )


def predict(
    text: Text,
    near: NearTexts,
    alignment: Alignment,
    corpus: SortedAnswers,
    presence: Presence,
    weights: Weights,
) -> Prediction:
    """The likeliest next token of a text, and its probability."""
    evidence = collect(text, near, alignment, corpus)
    candidates, escape = mix(evidence, weights.mixture)
    scores = [
        score_candidate(
            candidate,
            rank,
            count_candidate(candidate.token, evidence, near, alignment),
            text,
            presence,
            len(near.starts),
            weights,
        )
        for rank, candidate in enumerate(candidates)
    ]
    scores.append(score_escape(evidence, escape, weights.choice))
    highest = max(scores)
    shares = [math.exp(score - highest) for score in scores]
    probs = [share / sum(shares) for share in shares]
    if not candidates:
        return Prediction(-1, 0.0, evidence, candidates, probs)
    likeliest = max(range(len(candidates)), key=lambda rank: (probs[rank], -rank))
    return Prediction(candidates[likeliest].token, probs[likeliest], evidence, candidates, probs)


class Draft(NamedTuple):
    """Tokens, each one's chance given those before, and the alignment after each of them."""

    token_ids: list[int]
    chances: list[float]
    alignments: list[Alignment]
    source: int  # of what says most for the first token; -1: no draft


def draft(
    text: Text,
    near: NearTexts,
    alignment: Alignment,
    corpus: SortedAnswers,
    presence: Presence,
    weights: Weights,
    *,
    max_draft: int,
    least_chance: float,
) -> Draft:
    """The likeliest token, time and again: `max_draft` at most, and up to the first with which the
    draft is right with less than `least_chance`."""
    right, source = 1.0, -1
    tokens: list[int] = []
    chances: list[float] = []
    alignments: list[Alignment] = []
    while len(tokens) < max_draft and right >= least_chance:
        found = predict(text, near, alignment, corpus, presence, weights)
        if found.token < 0:
            break
        if not tokens:
            source = next(c.best.source for c in found.candidates if c.token == found.token)
        alignment = advance(alignment, found.evidence.near, near, found.token)
        text = text._replace(token_ids=[*text.token_ids, found.token])
        tokens.append(found.token)
        chances.append(found.prob)
        right *= found.prob
        alignments.append(alignment)
    return Draft(tokens, chances, alignments, source)
