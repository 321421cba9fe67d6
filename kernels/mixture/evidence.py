"""Evidence of the next token in plain Python: places in near answers, context and corpus.

The host predictor's, of the last 1 to 4 tokens in the corpus alone and without what is skipped in
it; features are indices into its table of the mixture's weights.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from reprise.kernels.draft.constants import BOS, END, REMOVED
from reprise.kernels.mixture import layout as at

MAX_NEAR_EVIDENCE, MAX_NEAR_VISITS = 96, 512
MAX_NEAR_SKIPPED, MAX_NEAR_SKIPPED_VISITS = 24, 48
MAX_CONTEXT_EVIDENCE, MAX_CONTEXT_VISITS = 40, 384
MAX_CONTEXT_SKIPPED, MAX_CONTEXT_SKIPPED_VISITS = 12, 16
MAX_RECENT_VISITS = 64
LONGEST, LONGEST_SKIPPED, LONGEST_SECOND = 32, 16, 8
REACHED_START = 4
SAMPLED, SUCCESSORS, USED_SUCCESSORS = 24, 12, 8
UNKNOWN_DISTANCE = 9


class NearTexts(NamedTuple):
    """A request's near answers, MAX_NEAR at most, one after the other."""

    token_ids: Sequence[int]  # [t]: BOS, tokens, END of each
    tags: Sequence[int]  # [t]: index of the near answer + 256 * (in our prompt + 2 in theirs)
    similarities: Sequence[int]  # [n]: bucket of each
    ranks: Sequence[int]  # [n]: bucket of its rank among those of its clause
    clauses: Sequence[int]  # [n]
    starts: Sequence[int]  # [n]: index of its BOS
    places: Mapping[int, Sequence[int]]  # of each token, the first place first


class Alignment(NamedTuple):
    """Per near answer the place expected next, -1 for none, and how often it was right of late."""

    pointers: list[int]
    hits: list[float]


class Text(NamedTuple):
    """A request's tokens with BOS before its answer, and the draft so far behind them."""

    token_ids: list[int]
    begin: int  # index of BOS
    length: int  # without the draft


class SortedAnswers(NamedTuple):
    """A corpus: its text, of which the suffix array holds the part before `recent_begin`."""

    text: Sequence[int]
    order: Sequence[int]
    recent_begin: int


class Piece(NamedTuple):
    """One place, or one successor in the corpus, that predicts the next token."""

    token: int
    source: int
    features: tuple[int, ...]  # 2 or 6 indices of weights
    match: int = 0
    place: int = -1  # in the near answers


class Orders(NamedTuple):
    """Successors in the corpus after the last 1 to NUM_ORDERS tokens."""

    totals: list[int]
    tokens: list[list[int]]  # of each order, the most frequent first, SUCCESSORS at most
    counts: list[list[int]]


def bucket(value: int, *starts: int) -> int:
    """The number of `starts` that a value has reached."""
    return sum(value >= start for start in starts)


def count_bucket(count: int) -> int:
    """0..5 for 1, 2, 3-4, 5-8, 9-16, 17+."""
    return bucket(count, 2, 3, 5, 9, 17)


def coarse_bucket(match: int) -> int:
    """0..4 for match lengths 0, 1, 2-3, 4-8, 9+."""
    return bucket(match, 1, 2, 4, 9)


def match_bucket(match: int) -> int:
    """0..9 for match lengths 0, 1, 2, 3, 4, 5-6, 7-8, 9-12, 13-20, 21+."""
    return bucket(match, 1, 2, 3, 4, 5, 7, 9, 13, 21)


def second_bucket(match: int) -> int:
    """0..4 for the length matched beyond one substitution: 0, 1, 2-3, 4-7, 8+."""
    return bucket(match, 1, 2, 4, 8)


def hit_bucket(hit: float) -> int:
    """0..5 for a near answer's decayed number of recent hits."""
    return sum(hit >= start for start in (0.3, 1.0, 2.0, 4.0, 6.5))


def distance_bucket(distance: int) -> int:
    """0 on the alignment; odd buckets ahead of it, even ones behind, growing with distance."""
    if distance == 0:
        return 0
    return 2 * bucket(abs(distance), 1, 3, 9, 33) - (distance > 0)


def near_piece(
    near: NearTexts, alignment: Alignment, place: int, match: int, first: int, block: int
) -> Piece:
    """What predicts the token at a place of the near answers; `first`: its first feature."""
    tag = near.tags[place]
    index = tag & 255
    pointer = alignment.pointers[index]
    distance = distance_bucket(place - pointer) if pointer >= 0 else UNKNOWN_DISTANCE
    coarse = coarse_bucket(match)
    features = (
        first,
        at.NEAR_DISTANCE + block * at.DISTANCES + distance,
        at.NEAR_LIKENESS + near.similarities[index] * at.COARSE + coarse,
        at.NEAR_ANSWER_RANK + near.ranks[index] * at.COARSE + coarse,
        at.NEAR_PROMPTS + (tag >> 8) * at.COARSE + coarse,
        at.NEAR_HITS + hit_bucket(alignment.hits[index]) * at.COARSE + coarse,
    )
    return Piece(near.token_ids[place], at.NEAR_ANSWER, features, match, place)


def near_match(near: Sequence[int], text: Text, i: int) -> tuple[int, int]:
    """(match, match beyond one substitution) of what ends at near[i] with what ends the text."""
    own, n = text.token_ids, len(text.token_ids)
    match = 1
    while match < LONGEST and n - 1 - match >= text.begin and near[i - match] == own[n - 1 - match]:
        if near[i - match] == BOS:
            return match + 1 + REACHED_START, LONGEST_SECOND
        match += 1
    if near[i - match + 1] == BOS:
        return match + REACHED_START, LONGEST_SECOND
    if near[i - match] == BOS:
        return match, 4
    second, a, b = 0, i - match - 1, n - 2 - match
    while (
        second < LONGEST_SECOND and b - second >= text.begin and near[a - second] == own[b - second]
    ):
        if near[a - second] == BOS:
            return match, LONGEST_SECOND
        second += 1
    return match, second


def near_evidence(text: Text, near: NearTexts, alignment: Alignment) -> list[Piece]:
    """Places in near answers after the last token."""
    pieces: list[Piece] = []
    for i in near.places.get(text.token_ids[-1], ())[:MAX_NEAR_VISITS]:
        if len(pieces) == MAX_NEAR_EVIDENCE:
            break
        if near.token_ids[i + 1] != END:
            match, second = near_match(near.token_ids, text, i)
            block = match_bucket(match)
            first = at.NEAR_MATCH + block * at.SECONDS + second_bucket(second)
            pieces.append(near_piece(near, alignment, i + 1, match, first, block))
    return pieces


def near_skipped(text: Text, near: NearTexts, alignment: Alignment) -> list[Piece]:
    """Places where all but the last token match: it replaces one of theirs, or was put in."""
    own, n, tokens = text.token_ids, len(text.token_ids), near.token_ids
    pieces: list[Piece] = []
    if n - 2 < text.begin:
        return pieces
    for i in near.places.get(own[n - 2], ())[:MAX_NEAR_SKIPPED_VISITS]:
        if len(pieces) >= MAX_NEAR_SKIPPED:
            break
        if tokens[i + 1] in (END, own[-1]):
            continue
        match = 1
        while (
            match < LONGEST_SKIPPED
            and n - 2 - match >= text.begin
            and tokens[i - match] == own[n - 2 - match]
        ):
            match = LONGEST_SKIPPED if tokens[i - match] == BOS else match + 1
        if match < 2 and own[n - 2] != BOS:
            continue
        for kind in range(2):
            place = i + 2 - kind
            if tokens[place] != END:
                first = at.NEAR_SKIPPED + kind * at.SECONDS + second_bucket(match)
                pieces.append(near_piece(near, alignment, place, 0, first, at.MATCHES + kind))
    return pieces


def clause_switches(near: NearTexts, alignment: Alignment) -> list[Piece]:
    """First tokens of near answers of clauses that have not had their turn."""
    if len(set(near.clauses)) < 2:
        return []
    hits, tokens = alignment.hits, near.token_ids
    leader = max(range(len(near.starts)), key=lambda k: (hits[k], -k))
    place, left = max(alignment.pointers[leader], 0), 0
    while left < 4 and place + left < len(tokens) and tokens[place + left] != END:
        left += 1
    first = at.NEAR_CLAUSE_SWITCH + bucket(left, 2, 3, 4) * at.HITS + hit_bucket(hits[leader])
    return [
        near_piece(near, alignment, start + 1, 0, first, at.MATCHES + 1)
        for start, clause, rank in zip(near.starts, near.clauses, near.ranks, strict=True)
        if clause != near.clauses[leader] and rank <= 1
    ]


def context_evidence(text: Text) -> list[Piece]:
    """Places in prompt and answer after the last token, the last ones first."""
    own, n = text.token_ids, len(text.token_ids)
    pieces: list[Piece] = []
    places = [i for i in range(text.length - 1, -1, -1) if own[i] == own[-1]]
    for i in places[:MAX_CONTEXT_VISITS]:
        if len(pieces) == MAX_CONTEXT_EVIDENCE:
            break
        if i + 1 >= text.length or own[i + 1] == BOS:
            continue
        match = 1
        while match < LONGEST and i - match >= 0 and own[i - match] == own[n - 1 - match]:
            match += 1
        second, a, b = 0, i - match - 1, n - 2 - match
        while second < LONGEST_SECOND and a - second >= 0 and own[a - second] == own[b - second]:
            second += 1
        in_answer = int(i >= text.begin)
        cell = (in_answer * at.MATCHES + match_bucket(match)) * at.SECONDS + second_bucket(second)
        recency = bucket(n - i, 9, 18, 36, 72, 144, 288, 576) * at.COARSE + coarse_bucket(match)
        features = (at.CONTEXT_MATCH + cell, at.CONTEXT_RECENCY + recency)
        pieces.append(Piece(own[i + 1], at.CONTEXT, features, match))
    return pieces


def context_skipped(text: Text) -> list[Piece]:
    """Places in the context where all but the last token match."""
    own, n = text.token_ids, len(text.token_ids)
    pieces: list[Piece] = []
    if n < 2:
        return pieces
    places = [i for i in range(text.length - 1, -1, -1) if own[i] == own[n - 2]]
    for i in places[:MAX_CONTEXT_SKIPPED_VISITS]:
        if len(pieces) >= MAX_CONTEXT_SKIPPED:
            break
        if i + 2 >= text.length or own[i + 1] in (own[-1], BOS):
            continue
        match = 1
        while match < LONGEST_SKIPPED and i - match >= 0 and own[i - match] == own[n - 2 - match]:
            match += 1
        if match < 2:
            continue
        for kind in range(2):
            token = own[i + 2 - kind]
            if token != BOS:
                feature = at.CONTEXT_SKIPPED + kind * at.SECONDS + second_bucket(match)
                pieces.append(Piece(token, at.CONTEXT, (feature,)))
    return pieces


def corpus_orders(text: Text, corpus: SortedAnswers) -> Orders:
    """Successors of the answer's last 1 to NUM_ORDERS tokens, in the corpus."""
    own, n = text.token_ids, len(text.token_ids)
    found = Orders([], [], [])
    longest = min(at.NUM_ORDERS, n - text.begin)
    for length in range(1, longest + 1):
        total, tokens, counts = _sorted_successors(corpus, own[n - length :])
        found.totals.append(total)
        found.tokens.append(tokens)
        found.counts.append(counts)
    stored, visits = corpus.text, 0
    for i in range(len(stored) - 2, corpus.recent_begin - 1, -1):
        if visits == MAX_RECENT_VISITS:
            break
        if stored[i] != own[-1]:
            continue
        visits += 1
        if stored[i + 1] < 0:
            continue
        match = 1
        while (
            match < longest
            and i - match >= corpus.recent_begin
            and stored[i - match] == own[n - 1 - match]
        ):
            match += 1
        for order in range(match):
            found.totals[order] += 1
            _count(found.tokens[order], found.counts[order], stored[i + 1])
    return found


def _count(tokens: list[int], counts: list[int], token: int) -> None:
    if token in tokens:
        counts[tokens.index(token)] += 1
    elif len(tokens) < SUCCESSORS:
        tokens.append(token)
        counts.append(1)


def _sorted_successors(
    corpus: SortedAnswers, pattern: list[int]
) -> tuple[int, list[int], list[int]]:
    """How often a pattern is there, and its most frequent successors with their counts: exact for
    SAMPLED places at most, else what as many at even distances say."""
    text, order, depth = corpus.text, corpus.order, len(pattern)

    def suffix(entry: int) -> list[int]:
        part = text[entry : entry + depth]
        return [token if token >= BOS else token - REMOVED for token in part]

    low = bisect_left(order, pattern, key=suffix)
    size = bisect_right(order, pattern, lo=low, key=suffix) - low
    spread = ((2 * i + 1) * size // (2 * SAMPLED) for i in range(SAMPLED))
    asked = [order[low + i] + depth for i in (range(size) if size <= SAMPLED else spread)]
    following = [text[i] for i in asked]
    removed = sum(
        token < BOS or (token == END and text[i - 1] < BOS)
        for i, token in zip(asked, following, strict=True)
    )
    counts: dict[int, int] = {}
    for token in following:
        if token >= 0:
            counts[token] = counts.get(token, 0) + 1
    ranked = sorted(counts, key=lambda token: (-counts[token], token))[:SUCCESSORS]
    if size <= SAMPLED:
        return size - removed, ranked, [counts[token] for token in ranked]
    scaled = [max(1, counts[token] * size // SAMPLED) for token in ranked]
    return size - removed * size // SAMPLED, ranked, scaled


def corpus_evidence(orders: Orders) -> tuple[list[Piece], int]:
    """Each order's most frequent successors; and how many orders are found."""
    longest = max((o + 1 for o, total in enumerate(orders.totals) if total > 0), default=0)
    pieces = []
    for o in range(longest):
        total = count_bucket(orders.totals[o])
        used = list(zip(orders.tokens[o], orders.counts[o], strict=True))[:USED_SUCCESSORS]
        for token, number in used:
            count = count_bucket(number)
            cell = (o * at.COUNTS + count) * at.COUNTS + total
            depth = min(longest - 1 - o, 5) * at.COUNTS + count
            features = (at.CORPUS_COUNT + cell, at.CORPUS_DEPTH + depth)
            pieces.append(Piece(token, at.CORPUS, features))
    return pieces, longest


def advance(
    alignment: Alignment, pieces: Sequence[Piece], near: NearTexts, token: int
) -> Alignment:
    """The alignment after a token, from the near pieces that there were before it: a near answer
    goes to its best match of at least 3 (2 near its pointer) that predicted the token, a long match
    and a short way counting for it; else it moves on by one."""
    number = len(near.starts)
    best = [(0.0, -1)] * number
    for piece in pieces:
        if piece.token != token or piece.match == 0 or piece.place < 0:
            continue
        index = near.tags[piece.place] & 255
        place, match = piece.place + 1, piece.match + 1
        distance = min(60, abs(place - alignment.pointers[index] - 1))
        score = match - 0.05 * distance
        if (match >= 3 or distance <= 8) and score > best[index][0]:
            best[index] = (float(np.float32(score)), place)  # so ties go as the host's do
    pointers = [pointer + 1 if pointer >= 0 else -1 for pointer in alignment.pointers]
    hits = [0.9 * hit for hit in alignment.hits]
    for index, (_, place) in enumerate(best):
        if place >= 0:
            pointers[index] = place
            hits[index] += 1.0
    return Alignment(pointers, hits)
