# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Choice: a softmax over the likeliest candidates and "none of them", from richer features.

Attention sees places one by one; the choice sees each candidate whole (candidate_features.py).
"""

import math

from reprise.spec.predictor.candidate_features import (
    INTERPOLATED,
    candidate_features,
    near_presence,
    presence,
)
from reprise.spec.predictor.features import (
    CHANCE_BINS,
    ESCAPE_CHANCE,
    ESCAPE_MATCHES,
    ESCAPE_ORDERS,
)
from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import MAX_CANDIDATES

LONGEST_ESCAPE = 10


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
def choose(
    selected,
    context,
    near_texts,
    n,
    salt,
    near,
    own,
    orders,
    components,
    escape,
    table,
    escape_features,
    candidates,
    scratch,
):
    """Fill the candidates' features and chances, the last for "none"; return the escape's fraction.

    context: of which text[:n] has been emitted or drafted; salt: of hashed features; near, own:
    longest match in near answers and in the context; orders: found in the corpus; escape:
    attention's weight of it.
    """
    last, before = context.text[n - 1], context.text[max(n - 2, 0)]
    highest = -1e30
    for place in range(selected):
        candidate = scratch.chosen[place]
        best = scratch.best[candidate]
        features = candidates.feature[place]
        at = chance_bin(scratch.chance[candidate])
        low = int(at)
        fraction = at - low
        present = presence(scratch.token[candidate], context)
        near_present = near_presence(scratch.token[candidate], near_texts)
        f = candidate_features(
            features,
            place,
            low,
            scratch.source[best],
            orders,
            present,
            near_present,
            last,
            before,
            salt,
            components.feature[best],
            scratch,
        )
        score = (table[features[0]] + table[features[2]]) * (1.0 - fraction)
        score += (table[features[1]] + table[features[3]]) * fraction
        for k in range(INTERPOLATED, f):
            score += table[features[k]]
        candidates.token[place], candidates.chance[place] = scratch.token[candidate], score
        candidates.feature_count[place], candidates.fraction[place] = f, fraction
        highest = max(highest, score)
    near, own = min(near, LONGEST_ESCAPE), min(own, LONGEST_ESCAPE)
    at = chance_bin(escape)
    low = int(at)
    fraction = at - low
    escape_features[3], escape_features[4] = ESCAPE_CHANCE + low, ESCAPE_CHANCE + low + 1
    escape_features[5] = ESCAPE_MATCHES + near * 11 + own
    escape_features[6] = ESCAPE_ORDERS + orders * 11 + near
    score = table[escape_features[3]] * (1.0 - fraction) + table[escape_features[4]] * fraction
    score += table[escape_features[5]] + table[escape_features[6]]
    highest = max(highest, score)
    none = math.exp(score - highest)
    total = none
    for place in range(selected):
        candidates.chance[place] = math.exp(candidates.chance[place] - highest)
        total += candidates.chance[place]
    for place in range(selected):
        candidates.chance[place] /= total
    candidates.chance[MAX_CANDIDATES] = none / total
    return fraction


@compiled
def likeliest_of(selected, candidates):
    """The place of the likeliest candidate; -1 if there is none."""
    likeliest = -1
    for place in range(selected):
        if likeliest < 0 or candidates.chance[place] > candidates.chance[likeliest]:
            likeliest = place
    return likeliest
