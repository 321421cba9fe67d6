# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Choice: a softmax over the likeliest candidates and "none of them", from richer features.

Attention sees places one by one; the choice sees each candidate whole: its counts per order and
per match length, next to the totals, and what attention made of it.
"""

import math

import numpy as np

from .buckets import COUNTS, count_bucket, share_bucket
from .chain import bucket_of
from .compiled import compiled
from .features import (
    ALIGNED_CELL,
    BEST_COMPONENT,
    CELL,
    CHANCE,
    CHANCE_BINS,
    CHANCE_ORDER,
    CHANCE_REACH,
    CONTEXT_CELL,
    DEPTH_CELL,
    DEPTH_SHARES,
    ESCAPE_CHANCE,
    ESCAPE_MATCHES,
    ESCAPE_ORDERS,
    NEAR_CELL,
    NEAR_SHARES,
    ORDER_CELL,
    PLACE,
    PRESENCE,
    REACH,
    SHARES,
    THRESHOLDS,
)
from .layout import COMPONENT_FEATURES, MAX_CANDIDATES, NUM_ORDERS, USED_SUCCESSORS

LEAST_MATCHES = np.array([1, 2, 3, 4, 6, 8, 12, 16], np.int64)
PRESENCE_VISITS = 16
RECENT_HITS = 2.0


@compiled
def cell(count, total):
    """(absent or count bucket, total bucket) as one number below CELL."""
    return (0 if count == 0 else count_bucket(count) + 1) * 7 + count_bucket(total)


@compiled
def near_share(count, total):
    """0..4: share_bucket, in which certainty from several places is told from that of one."""
    bucket = share_bucket(count, total)
    return 4 if bucket == 3 and count > 1 else bucket


@compiled
def clear_counts(selected, scratch):
    """Give the chosen candidates their places, and all counts 0."""
    for k in range(THRESHOLDS):
        scratch.near_total[k], scratch.context_total[k] = 0, 0
    scratch.aligned_total[0], scratch.aligned_total[1] = 0, 0
    for place in range(selected):
        scratch.place[scratch.chosen[place]] = place
        for k in range(THRESHOLDS):
            scratch.near_count[place, k], scratch.context_count[place, k] = 0, 0
        for o in range(NUM_ORDERS):
            scratch.corpus_count[place, o] = 0
        scratch.aligned_count[place, 0], scratch.aligned_count[place, 1] = 0, 0


@compiled
def count_matches(matches, begin, end, scratch, counts, totals):
    """Count, per chosen candidate and in all, the components begin..end by least match length."""
    for i in range(begin, end):
        place = scratch.place[scratch.candidate[i]]
        for k in range(THRESHOLDS):
            if matches[i] < LEAST_MATCHES[k]:
                break
            totals[k] += 1
            if place >= 0:
                counts[place, k] += 1


@compiled
def count_aligned(places, tags, pointers, hits, end, scratch):
    """Count, per chosen candidate and in all, near answers whose pointer is at it, and of those
    the ones with recent hits."""
    for i in range(end):
        near = tags[places[i]] & 255
        if places[i] != pointers[near]:
            continue
        place = scratch.place[scratch.candidate[i]]
        recent = hits[near] >= RECENT_HITS
        scratch.aligned_total[0] += 1
        scratch.aligned_total[1] += recent
        if place >= 0:
            scratch.aligned_count[place, 0] += 1
            scratch.aligned_count[place, 1] += recent


@compiled
def count_orders(begin, count, scratch):
    """Note each chosen candidate's count per order; corpus components begin..count are in order."""
    i = begin
    for o in range(NUM_ORDERS):
        for k in range(min(scratch.successors[o], USED_SUCCESSORS)):
            if i < count:
                place = scratch.place[scratch.candidate[i]]
                if place >= 0:
                    scratch.corpus_count[place, o] = scratch.successor_count[o, k]
                i += 1


@compiled
def reach_bucket(longest):
    """0..4 for a longest threshold or order of none, 1-2, 3-4, 5-6, 7+."""
    return min(4, (longest + 1) // 2)


@compiled
def reach_features(f, features, place, orders, low, scratch):
    """Append the features that cross sources."""
    near, context, order = 0, 0, 0
    for k in range(THRESHOLDS):
        if scratch.near_count[place, k] > 0:
            near = k + 1
        if scratch.context_count[place, k] > 0:
            context = k + 1
    for o in range(orders):
        if scratch.corpus_count[place, o] > 0:
            order = o + 1
    order_reach = reach_bucket(order)
    features[f] = REACH + (near * 5 + reach_bucket(context)) * 5 + order_reach
    longest = 0
    for k in range(THRESHOLDS):
        if scratch.near_total[k] > 0:
            longest = k
    near_part = near_share(scratch.near_count[place, longest], scratch.near_total[longest])
    corpus_part = 0
    if orders > 0:
        corpus_part = share_bucket(
            scratch.corpus_count[place, orders - 1], scratch.corpus_total[orders - 1]
        )
    features[f + 1] = (
        SHARES + ((near_part * 4 + corpus_part) * 4 + longest // 2) * 5 + reach_bucket(orders)
    )
    features[f + 2] = CHANCE_REACH + low * 9 + near
    features[f + 3] = CHANCE_ORDER + low * 5 + order_reach
    f += 4
    for k in range(2):
        if scratch.aligned_total[k] > 0:
            features[f] = (
                ALIGNED_CELL
                + k * CELL
                + cell(scratch.aligned_count[place, k], scratch.aligned_total[k])
            )
            f += 1
    return f


@compiled
def select_candidates(number, scratch):
    """Put the likeliest candidates into scratch.chosen, by falling chance; returns how many."""
    chosen, chance = scratch.chosen, scratch.chance
    selected = 0
    for candidate in range(number):
        place = selected
        if selected == MAX_CANDIDATES:
            place = MAX_CANDIDATES - 1
            if chance[candidate] <= chance[chosen[place]]:
                continue
        else:
            selected += 1
        while place > 0 and chance[chosen[place - 1]] < chance[candidate]:
            chosen[place] = chosen[place - 1]
            place -= 1
        chosen[place] = candidate
    return selected


@compiled
def chance_bin(chance):
    """ln(chance) in bins half a unit wide, as a real number in [0, CHANCE_BINS - 2]."""
    at = (math.log(chance + 1e-9) + 8.5) * 2.0
    return min(max(at, 0.0), CHANCE_BINS - 2.01)


@compiled
def corpus_features(f, features, place, orders, scratch):
    """Append the features from the corpus's orders; returns the number of features."""
    counts, totals = scratch.corpus_count[place], scratch.corpus_total
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
def match_features(f, features, place, scratch):
    """Append the features from near and context match counts; returns the number of features."""
    counts, totals = scratch.near_count[place], scratch.near_total
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
    counts, totals = scratch.context_count[place], scratch.context_total
    for k in range(THRESHOLDS):
        if totals[k] == 0:
            break
        features[f] = CONTEXT_CELL + k * CELL + cell(counts[k], totals[k])
        f += 1
    return f


@compiled
def presence(token, text, begin, chain, heads, mask):
    """0..8: how often (0, 1, 2+) a token is in the prompt, and in the output, as far as looked."""
    in_prompt, in_output, visits = 0, 0, 0
    i = heads[bucket_of(token, mask)]
    while i >= 0 and visits < PRESENCE_VISITS and in_prompt < 2:
        visits += 1
        if text[i] == token:
            if i < begin:
                in_prompt += 1
            elif in_output < 2:
                in_output += 1
        i = chain[i]
    return in_prompt * 3 + in_output


@compiled
def choose(
    selected,
    near,
    context,
    orders,
    source_of,
    component_features,
    present,
    escape,
    table,
    scratch,
    tokens,
    chances,
    features,
    feature_counts,
    fractions,
    escape_features,
):
    """Fill the candidates' features and chances, the last for "none"; return the escape's fraction.

    source_of [components] int32; present [selected] int32; the rest as in Trail at one position.
    """
    highest = -1e30
    for place in range(selected):
        candidate = scratch.chosen[place]
        best = scratch.best[candidate]
        own = features[place]
        at = chance_bin(scratch.chance[candidate])
        low = int(at)
        fraction = at - low
        block = CHANCE + (1 + source_of[best]) * CHANCE_BINS
        own[0], own[1], own[2], own[3] = (
            CHANCE + low,
            CHANCE + low + 1,
            block + low,
            block + low + 1,
        )
        own[4] = PRESENCE + present[place] * 3 + source_of[best]
        own[5] = PLACE + min(place, 4)
        f = corpus_features(6, own, place, orders, scratch)
        f = match_features(f, own, place, scratch)
        f = reach_features(f, own, place, orders, low, scratch)
        for k in range(COMPONENT_FEATURES):
            if component_features[best, k] > 0:
                own[f] = BEST_COMPONENT + component_features[best, k]
                f += 1
        score = (table[own[0]] + table[own[2]]) * (1.0 - fraction)
        score += (table[own[1]] + table[own[3]]) * fraction
        for k in range(4, f):
            score += table[own[k]]
        tokens[place], chances[place] = scratch.token[candidate], score
        feature_counts[place], fractions[place] = f, fraction
        highest = max(highest, score)
    at = chance_bin(escape)
    low = int(at)
    fraction = at - low
    escape_features[3], escape_features[4] = (
        ESCAPE_CHANCE + low,
        ESCAPE_CHANCE + low + 1,
    )
    escape_features[5] = ESCAPE_MATCHES + near * 11 + context
    escape_features[6] = ESCAPE_ORDERS + orders * 11 + near
    score = table[escape_features[3]] * (1.0 - fraction) + table[escape_features[4]] * fraction
    score += table[escape_features[5]] + table[escape_features[6]]
    highest = max(highest, score)
    none = math.exp(score - highest)
    total = none
    for place in range(selected):
        chances[place] = math.exp(chances[place] - highest)
        total += chances[place]
    for place in range(selected):
        chances[place] /= total
    chances[MAX_CANDIDATES] = none / total
    return fraction
