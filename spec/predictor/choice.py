# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Choice: a softmax over the likeliest candidates and "none of them", from richer features.

The mixture sees positions one by one; the choice sees each candidate whole (candidate_features.py).
"""

import math

from reprise.spec.predictor.candidate_features import (
    INTERPOLATED,
    candidate_features,
    near_presence,
    presence,
)
from reprise.spec.predictor.features import (
    ESCAPE_MATCHES,
    ESCAPE_ORDERS,
    ESCAPE_PROB,
    PROB_BINS,
)
from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import MAX_CANDIDATES

LONGEST_ESCAPE = 10


@compiled
def select_candidates(number, scratch):
    """Put the likeliest candidates into scratch.chosen, by falling probability; return how many."""
    chosen, prob = scratch.chosen, scratch.prob
    selected = 0
    for candidate in range(number):
        rank = selected
        if selected == MAX_CANDIDATES:
            rank = MAX_CANDIDATES - 1
            if prob[candidate] <= prob[chosen[rank]]:
                continue
        else:
            selected += 1
        while rank > 0 and prob[chosen[rank - 1]] < prob[candidate]:
            chosen[rank] = chosen[rank - 1]
            rank -= 1
        chosen[rank] = candidate
    return selected


@compiled
def prob_bin(prob):
    """ln(probability) in bins half a unit wide, as a real number in [0, PROB_BINS - 2]."""
    at = (math.log(prob + 1e-9) + 8.5) * 2.0
    return min(max(at, 0.0), PROB_BINS - 2.01)


@compiled
def score_escape(near, own, orders, escape, table, escape_features):
    """Fill the escape's features for the choice; return its score, and its fraction of a bin."""
    near, own = min(near, LONGEST_ESCAPE), min(own, LONGEST_ESCAPE)
    at = prob_bin(escape)
    low = int(at)
    fraction = at - low
    escape_features[3], escape_features[4] = ESCAPE_PROB + low, ESCAPE_PROB + low + 1
    escape_features[5] = ESCAPE_MATCHES + near * 11 + own
    escape_features[6] = ESCAPE_ORDERS + orders * 11 + near
    score = table[escape_features[3]] * (1.0 - fraction) + table[escape_features[4]] * fraction
    score += table[escape_features[5]] + table[escape_features[6]]
    return score, fraction


@compiled
def choose(
    selected,
    context,
    near_texts,
    n,
    salt,
    near,
    own,
    orders,
    evidence,
    escape,
    table,
    escape_features,
    candidates,
    scratch,
):
    """Fill the candidates' features and probabilities, the last for "none of them"; return the
    escape's fraction.

    context: of which text[:n] has been emitted or drafted; salt: of hashed features; near, own:
    longest match in near answers and in the context; orders: found in the corpus; escape:
    the mixture's weight of it.
    """
    last, before = context.text[n - 1], context.text[max(n - 2, 0)]
    highest = -1e30
    for rank in range(selected):
        candidate = scratch.chosen[rank]
        best = scratch.best[candidate]
        features = candidates.feature[rank]
        at = prob_bin(scratch.prob[candidate])
        low = int(at)
        fraction = at - low
        present = presence(scratch.token[candidate], context)
        near_present = near_presence(scratch.token[candidate], near_texts)
        f = candidate_features(
            features,
            rank,
            low,
            scratch.source[best],
            orders,
            present,
            near_present,
            last,
            before,
            salt,
            evidence.feature[best],
            scratch,
        )
        score = (table[features[0]] + table[features[2]]) * (1.0 - fraction)
        score += (table[features[1]] + table[features[3]]) * fraction
        for k in range(INTERPOLATED, f):
            score += table[features[k]]
        candidates.token[rank], candidates.prob[rank] = scratch.token[candidate], score
        candidates.feature_count[rank], candidates.fraction[rank] = f, fraction
        highest = max(highest, score)
    score, fraction = score_escape(near, own, orders, escape, table, escape_features)
    highest = max(highest, score)
    none = math.exp(score - highest)
    total = none
    for rank in range(selected):
        candidates.prob[rank] = math.exp(candidates.prob[rank] - highest)
        total += candidates.prob[rank]
    for rank in range(selected):
        candidates.prob[rank] /= total
    candidates.prob[MAX_CANDIDATES] = none / total
    return fraction


@compiled
def argmax_candidate(selected, candidates):
    """Return the rank of the likeliest candidate; -1 if there is none."""
    likeliest = -1
    for rank in range(selected):
        if likeliest < 0 or candidates.prob[rank] > candidates.prob[likeliest]:
            likeliest = rank
    return likeliest
