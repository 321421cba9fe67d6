# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""The features of a candidate, seen whole: its counts per order and per match length next to the
totals, what the mixture made of it, and what it is.

Counts come first, for all of the chosen candidates at once; then each one's features.
"""

import numpy as np

from reprise.spec.corpus.token_table import COUNT, OUTPUT_COUNT, entry_of
from reprise.spec.predictor.buckets import (
    COUNTS,
    buckets_from,
    count_bucket,
    known_bucket,
    many_bucket,
    share_bucket,
)
from reprise.spec.predictor.features import (
    ALIGNED_CELL,
    BEST_EVIDENCE,
    CANDIDATE_RANK,
    CELL,
    CONTEXT_CELL,
    DEPTH_CELL,
    DEPTH_SHARES,
    HASHED_PAIR,
    HASHED_TOKEN,
    HASHED_TOKENS,
    HASHED_TRIPLE,
    HASHED_TUPLES,
    NEAR_CELL,
    NEAR_PRESENCE,
    NEAR_SHARES,
    ORDER_CELL,
    PRESENCE,
    PROB,
    PROB_BINS,
    PROB_ORDER,
    PROB_REACH,
    REACH,
    SHARES,
    SKIPPED_CELL,
    THRESHOLDS,
)
from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import EVIDENCE_FEATURES, NUM_ORDERS, NUM_SKIPPED

MIN_MATCHES = 1, 2, 3, 4, 6, 8, 12, 16
MATCHES_MET = buckets_from(*MIN_MATCHES)
"""How many of MIN_MATCHES a match meets, up to the last of them."""
RECENT_HITS = 2.0
INTERPOLATED = 4  # features whose weights count by how far a probability is into its bin


@compiled
def cell(count, total):
    """(absent or count bucket, total bucket) as one number below CELL."""
    return known_bucket(count) * 7 + count_bucket(total)


@compiled
def near_share(count, total):
    """0..4: share_bucket, in which certainty from several positions is told from that of one."""
    bucket = share_bucket(count, total)
    return 4 if bucket == 3 and count > 1 else bucket


@compiled
def clear_counts(selected, scratch):
    """Give the chosen candidates their positions, and all counts 0."""
    for k in range(THRESHOLDS):
        scratch.near_total[k], scratch.context_total[k] = 0, 0
    scratch.aligned_total[0], scratch.aligned_total[1] = 0, 0
    for rank in range(selected):
        scratch.rank[scratch.chosen[rank]] = rank
        for k in range(THRESHOLDS):
            scratch.near_count[rank, k], scratch.context_count[rank, k] = 0, 0
        for o in range(NUM_ORDERS):
            scratch.corpus_count[rank, o] = 0
        for o in range(NUM_SKIPPED):
            scratch.skipped_count[rank, o] = 0
        scratch.aligned_count[rank, 0], scratch.aligned_count[rank, 1] = 0, 0


@compiled
def count_matches(matches, begin, end, selected, scratch, counts, totals):
    """Count, per chosen candidate and in all, the evidence begin..end by min match length."""
    for i in range(begin, end):
        met = MATCHES_MET[min(matches[i], len(MATCHES_MET) - 1)]
        if met > 0:
            totals[met - 1] += 1
            rank = scratch.rank[scratch.candidate[i]]
            if rank >= 0:
                counts[rank, met - 1] += 1
    for k in range(THRESHOLDS - 1, 0, -1):  # who meets more meets less
        totals[k - 1] += totals[k]
        for rank in range(selected):
            counts[rank, k - 1] += counts[rank, k]


@compiled
def count_aligned(evidence, end, tags, pointers, hits, scratch):
    """Count, per chosen candidate and in all, near answers whose pointer is at it, and of those
    the ones with recent hits."""
    for i in range(end):
        near = tags[evidence.position[i]] & 255
        if evidence.position[i] != pointers[near]:
            continue
        rank = scratch.rank[scratch.candidate[i]]
        recent = hits[near] >= RECENT_HITS
        scratch.aligned_total[0] += 1
        scratch.aligned_total[1] += recent
        if rank >= 0:
            scratch.aligned_count[rank, 0] += 1
            scratch.aligned_count[rank, 1] += recent


@compiled
def count_successors(begin, end, used, numbers, found, counts, scratch):
    """Note each chosen candidate's count per order, counts [candidates, orders]: the evidence
    begin..end are, order by order, the first `used` of numbers[o] successors with counts found[o].
    """
    i = begin
    for o in range(numbers.shape[0]):
        for k in range(min(numbers[o], used)):
            if i < end:
                rank = scratch.rank[scratch.candidate[i]]
                if rank >= 0:
                    counts[rank, o] = found[o, k]
                i += 1


@compiled
def corpus_features(f, features, rank, orders, scratch):
    """Append the features from the corpus's orders; returns the number of features."""
    counts, totals = scratch.corpus_count[rank], scratch.corpus_total
    for o in range(orders):
        features[f] = ORDER_CELL + o * CELL + cell(counts[o], totals[o])
        f += 1
    if orders > 0:
        shares = 0
        for depth in range(min(3, orders)):
            o = orders - 1 - depth
            features[f] = DEPTH_CELL + depth * CELL + cell(counts[o], totals[o])
            f += 1
            shares = shares * 4 + share_bucket(counts[o], totals[o])
        features[f] = DEPTH_SHARES + shares * COUNTS + count_bucket(totals[orders - 1])
        f += 1
    return f


@compiled
def match_features(f, features, rank, scratch):
    """Append the features from near and context match counts; returns the number of features."""
    counts, totals = scratch.near_count[rank], scratch.near_total
    longest = -1
    for k in range(THRESHOLDS):
        if totals[k] == 0:
            break
        features[f] = NEAR_CELL + k * CELL + cell(counts[k], totals[k])
        f += 1
        longest = k
    if longest >= 0:
        shorter = max(longest - 1, 0)
        share = near_share(counts[longest], totals[longest]) * 5
        share += near_share(counts[shorter], totals[shorter])
        features[f] = NEAR_SHARES + longest * 25 + share
        f += 1
    counts, totals = scratch.context_count[rank], scratch.context_total
    for k in range(THRESHOLDS):
        if totals[k] == 0:
            break
        features[f] = CONTEXT_CELL + k * CELL + cell(counts[k], totals[k])
        f += 1
    return f


@compiled
def skipped_features(f, features, rank, scratch):
    """Append the features from the tokens before the last; returns the number of features."""
    counts, totals = scratch.skipped_count[rank], scratch.skipped_total
    for o in range(NUM_SKIPPED):
        if totals[o] > 0:
            features[f] = SKIPPED_CELL + o * CELL + cell(counts[o], totals[o])
            f += 1
    return f


@compiled
def hashed_features(f, features, token, last, before, salt):
    """Append the candidate by itself and after the last two tokens, hashed with the namespace's
    salt; returns the number of features."""
    alone = np.int64(token) * 0x9E3779B1 + salt
    pair = alone + (np.int64(last) + 3) * 0x85EBCA77
    triple = pair + (np.int64(before) + 3) * 0xC2B2AE3D
    features[f] = HASHED_TOKEN + (alone >> 9 & (HASHED_TOKENS - 1))
    features[f + 1] = HASHED_PAIR + (pair >> 11 & (HASHED_TUPLES - 1))
    features[f + 2] = HASHED_TRIPLE + (triple >> 11 & (HASHED_TUPLES - 1))
    return f + 3


@compiled
def reach_bucket(longest):
    """0..4 for a longest threshold or order of none, 1-2, 3-4, 5-6, 7+."""
    return min(4, (longest + 1) // 2)


@compiled
def reach_features(f, features, rank, orders, low, scratch):
    """Append the features that cross sources."""
    near, context, order = 0, 0, 0
    for k in range(THRESHOLDS):
        if scratch.near_count[rank, k] > 0:
            near = k + 1
        if scratch.context_count[rank, k] > 0:
            context = k + 1
    for o in range(orders):
        if scratch.corpus_count[rank, o] > 0:
            order = o + 1
    order_reach = reach_bucket(order)
    features[f] = REACH + (near * 5 + reach_bucket(context)) * 5 + order_reach
    longest = 0
    for k in range(THRESHOLDS):
        if scratch.near_total[k] > 0:
            longest = k
    near_part = near_share(scratch.near_count[rank, longest], scratch.near_total[longest])
    corpus_part = 0
    if orders > 0:
        corpus_part = share_bucket(
            scratch.corpus_count[rank, orders - 1], scratch.corpus_total[orders - 1]
        )
    features[f + 1] = (
        SHARES + ((near_part * 4 + corpus_part) * 4 + longest // 2) * 5 + reach_bucket(orders)
    )
    features[f + 2] = PROB_REACH + low * 9 + near
    features[f + 3] = PROB_ORDER + low * 5 + order_reach
    f += 4
    for k in range(2):
        if scratch.aligned_total[k] > 0:
            features[f] = (
                ALIGNED_CELL
                + k * CELL
                + cell(scratch.aligned_count[rank, k], scratch.aligned_total[k])
            )
            f += 1
    return f


@compiled
def presence(token, context):
    """0..8: how often (0, 1, 2+) a token is in the prompt, and in the output."""
    entry = entry_of(context.table, context.mask, token)
    in_prompt, in_output = context.table[entry, COUNT], context.table[entry, OUTPUT_COUNT]
    return min(2, in_prompt) * 3 + min(2, in_output)


@compiled
def near_presence(token, near_texts):
    """0..27: how many near answers have a token, and how many there are."""
    found = 0
    if near_texts.count > 0:
        entry = entry_of(near_texts.table, near_texts.mask, token)
        found = near_texts.table[entry, COUNT]
    return many_bucket(near_texts.count) * 7 + known_bucket(found)


@compiled
def candidate_features(
    features,
    rank,
    bin_low,
    source,
    orders,
    present,
    near_present,
    last,
    before,
    salt,
    best_features,
    scratch,
):
    """Fill the features of the chosen candidate at `rank`; returns their number.

    features: [CANDIDATE_FEATURES] int16, the first INTERPOLATED in pairs of neighbouring bins;
    bin_low: the lower bin of the mixture's probability; source: of the best piece of evidence for
    it, whose features are `best_features`; present, near_present: see `presence` and
    `near_presence`; last, before: the last two tokens; salt: of the namespace.
    """
    block = PROB + (1 + source) * PROB_BINS
    features[0], features[1] = PROB + bin_low, PROB + bin_low + 1
    features[2], features[3] = block + bin_low, block + bin_low + 1
    features[4] = PRESENCE + present * 3 + source
    features[5] = CANDIDATE_RANK + min(rank, 4)
    features[6] = NEAR_PRESENCE + near_present * 3 + source
    f = corpus_features(7, features, rank, orders, scratch)
    f = match_features(f, features, rank, scratch)
    f = skipped_features(f, features, rank, scratch)
    f = reach_features(f, features, rank, orders, bin_low, scratch)
    token = scratch.token[scratch.chosen[rank]]
    f = hashed_features(f, features, token, last, before, salt)
    for k in range(EVIDENCE_FEATURES):
        if best_features[k] > 0:
            features[f] = BEST_EVIDENCE + best_features[k]
            f += 1
    return f
